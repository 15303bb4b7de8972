"""`StreamedRun`: a run whose chunks are read while it is running."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal

from ..results import PipelineResults
from ..stages import Chunk
from ._buffer import RESTART, Buffer
from ._scheduler import Scheduler
from ._streams import Streams

__all__ = ["OnAbandon", "StreamedRun", "SyncStreamedRun"]

OnAbandon = Literal["cancel", "finish"]

_finishing: set[asyncio.Task[BaseException | None]] = set()
"""The runs that continue although their reader has left; a loop only has weak references to its tasks."""


class StreamedRun:
    """The result of `graph.stream()`: an async context manager and, inside the block, an async iterator.

    The run starts when the block is entered. Iterating yields the chunks of the selected stages in the order
    in which they were sent, and ends when these stages have ended. If the block is left before that, the run
    is cancelled, or continues without this reader with `on_abandon="finish"`; otherwise, leaving the block
    waits for the end of the run. A cancelled read loses nothing.

    Example:
        async with graph.stream(PipelineContext(data={"question": "why?"})) as run:
            async for chunk in run:
                print(chunk.value, end="")
        results = await run.results()
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Scheduler],
        selected: tuple[int, ...],
        buffer: int,
        on_abandon: OnAbandon,
        encode: Callable[[Chunk], Any] | None,
    ) -> None:
        self._name = name
        self._start = start
        self._selected = selected
        self._limit = buffer
        self._on_abandon = on_abandon
        self._encode = encode
        self._run: Scheduler | None = None
        self._streams: Streams | None = None
        self._buffer: Buffer | None = None
        self._task: asyncio.Task[BaseException | None] | None = None
        self._left_early = False

    @property
    def run_id(self) -> str:
        """The `pipeline_run_id` of the run.

        Raises:
            RuntimeError: The block was not entered.
        """
        return self._entered()[0].run_id

    @property
    def pending(self) -> int:
        """Number of chunks that can be read without waiting; a restart counts as one.

        Raises:
            RuntimeError: The block was not entered.
        """
        return len(self._entered()[1])

    async def __aenter__(self) -> StreamedRun:
        self._check_not_entered()
        self._run = run = self._start()
        self._streams = run.upstream.open_streams()
        self._buffer = self._streams.open_external_reader(self._selected, self._limit, self._encode)
        self._task = asyncio.create_task(_complete(run))
        try:
            await asyncio.sleep(0)  # a task that is cancelled before its first step would leave no record
        except asyncio.CancelledError:
            self._task.cancel()
            await self._wait(self._task)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _, buffer, task = self._entered()
        if not task.done() and (error is not None or not (buffer.ended or buffer.closed) or len(buffer)):
            self._left_early = True
            self._leave(abandoned=True)
            if self._on_abandon == "finish":
                self._continue_in_background(task)
                return
            task.cancel()
        cancelled = await self._wait(task)
        if cancelled is not None and not isinstance(error, asyncio.CancelledError):
            raise cancelled

    def __aiter__(self) -> StreamedRun:
        self._entered()
        return self

    async def __anext__(self) -> Chunk:
        buffer = self._buffer
        if buffer is None:
            buffer = self._entered()[1]
        if not buffer:
            await buffer.wait()
        sender, number, value = buffer.get()
        if value is RESTART:
            return Chunk(sender.name, -1, None, restart=True)
        return Chunk(sender.name, number, value)

    async def results(self) -> PipelineResults:
        """Discard the chunks that were not read, wait for the end of the run, and return its results.

        If the block was left early, the results are those of the cancelled run, or with
        `on_abandon="finish"` those of the complete run.

        Raises:
            RuntimeError: The block was not entered.
        """
        run, _, task = self._entered()
        if not self._left_early:
            self._leave(abandoned=False)
        cancelled = await self._wait(task)
        if cancelled is not None:
            raise cancelled
        assert run.results is not None
        return run.results

    async def _wait(self, task: asyncio.Task[BaseException | None]) -> asyncio.CancelledError | None:
        """Wait for the end of the run, and return a cancellation of the caller.

        The cancellation cancels the run, too, unless the run is to finish without its reader.
        """
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                if self._on_abandon == "finish" and not task.cancelling():
                    self._continue_in_background(task)
                    return error
                cancelled = cancelled or error
                task.cancel()
        if not task.cancelled() and (raised := task.exception() or task.result()) is not None:
            raise raised
        return cancelled

    @staticmethod
    def _continue_in_background(task: asyncio.Task[BaseException | None]) -> None:
        _finishing.add(task)
        task.add_done_callback(_finishing.discard)

    def _leave(self, *, abandoned: bool) -> None:
        assert self._streams is not None
        self._streams.leave(abandoned=abandoned)

    def _check_not_entered(self) -> None:
        if self._run is not None:
            raise RuntimeError(
                f"pipeline {self._name!r}: this streamed run was already entered"
                "\n  hint: call stream() or stream_sync() once per run"
            )

    def _entered(self) -> tuple[Scheduler, Buffer, asyncio.Task[BaseException | None]]:
        if self._run is None or self._buffer is None or self._task is None:
            raise RuntimeError(
                f"pipeline {self._name!r}: a streamed run is a context manager; enter it before reading"
                "\n  hint: write `async with graph.stream(ctx) as run:`, or without an event loop"
                " `with graph.stream_sync(ctx) as run:`"
            )
        return self._run, self._buffer, self._task


async def _complete(run: Scheduler) -> BaseException | None:
    """Complete a run, and return an interrupt, which would end the event loop if a task raised it."""
    try:
        await run.complete(cancelled_by="the reader of the stream left")
    except (SystemExit, KeyboardInterrupt) as interrupt:
        return interrupt
    return None


class SyncStreamedRun:
    """The result of `graph.stream_sync()`: a context manager and, inside the block, an iterator.

    Each read runs the event loop of the run until the next chunk arrives; between two reads, the run does not
    progress.

    Example:
        with graph.stream_sync(PipelineContext(data={"question": "why?"})) as run:
            for chunk in run:
                print(chunk.value, end="")
        results = run.results()
    """

    def __init__(self, run: StreamedRun) -> None:
        self._run = run
        self._runner = asyncio.Runner()
        self._results: PipelineResults | None = None

    @property
    def run_id(self) -> str:
        """The `pipeline_run_id` of the run."""
        return self._run.run_id

    def __enter__(self) -> SyncStreamedRun:
        self._run._check_not_entered()
        self._runner.run(self._run.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._runner:
            self._runner.run(self._run.__aexit__(kind, error, trace))
            self._results = self._runner.run(self._run.results())

    def __iter__(self) -> Iterator[Chunk]:
        while self._results is None and (chunk := self._runner.run(self._next())) is not None:
            yield chunk

    async def _next(self) -> Chunk | None:
        return await anext(self._run, None)

    def results(self) -> PipelineResults:
        """Discard the chunks that were not read, wait for the end of the run, and return its results."""
        if self._results is None:
            self._results = self._runner.run(self._run.results())
        return self._results
