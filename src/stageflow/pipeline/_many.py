"""Many runs of one graph with limited concurrency; results in order of completion."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable
from contextlib import aclosing
from typing import Any

from .._log import log_safely
from ..context import PipelineContext
from ..errors import InvalidArgumentError, StageflowError, describe
from ..results import PipelineResults

__all__ = ["Contexts", "ManyRuns"]

log = logging.getLogger("stageflow.pipeline")

_END: Any = object()

_YIELD_EVERY = 16
"""Number of contexts after which the source yields to the event loop, in case it never waits."""

Contexts = Iterable[PipelineContext] | AsyncIterable[PipelineContext]


class ManyRuns:
    """The result of `graph.run_many()`: an async context manager and, inside the block, an async iterator.

    A separate task iterates over the contexts and starts the runs, so a result is available as soon as its
    run has ended, whatever the source of the contexts waits for. The source and the runs see the context
    variables as of the start of the block. At most `concurrency` runs are started and not yet read, and no
    context is requested ahead of that.

    Several tasks may read; each result goes to one of them. A cancelled read (`asyncio.timeout` around
    `anext`) loses nothing. Leaving the block cancels and awaits the source and all runs.
    """

    def __init__(
        self,
        start: Callable[[PipelineContext], Coroutine[Any, Any, PipelineResults]],
        contexts: Contexts,
        concurrency: int,
    ) -> None:
        self._start = start
        self._contexts = contexts
        self._concurrency = concurrency
        self._feeder: asyncio.Task[None] | None = None
        self._fed = False
        self._leaving = False
        self._running: set[asyncio.Task[PipelineResults]] = set()
        self._ended: deque[asyncio.Task[PipelineResults]] = deque()
        self._has_ended = asyncio.Event()
        self._was_read = asyncio.Event()
        self._source_error: Exception | None = None
        self._cleanup_error: Exception | None = None

    async def __aenter__(self) -> ManyRuns:
        if self._feeder is not None:
            raise RuntimeError(
                "run_many() was entered twice"
                "\n  hint: call run_many() for each block; several tasks may read inside one block"
            )
        self._feeder = asyncio.create_task(self._feed())
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        assert self._feeder is not None
        self._leaving = True
        for task in (self._feeder, *self._running):
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while pending := {task for task in (self._feeder, *self._running) if not task.done()}:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as cancellation:
                # The runs end within their grace period; the cleanup of the source has no time limit.
                cancelled = cancellation
                self._feeder.cancel()
        for task in self._ended:
            if not task.cancelled():
                task.exception()  # otherwise, asyncio logs that it was never retrieved
        self._ended.clear()
        self._fed = True
        self._has_ended.set()
        if error is None and cancelled is not None:
            raise cancelled
        if self._cleanup_error is not None:
            if error is None:
                raise self._cleanup_error
            # An exception raised in the block takes precedence.
            log_safely(log, "closing the contexts of run_many() failed: %s", describe(self._cleanup_error))

    def __aiter__(self) -> ManyRuns:
        self._check_entered()
        return self

    async def __anext__(self) -> PipelineResults:
        self._check_entered()
        while not self._ended:
            if self._fed and not self._running:
                if self._source_error is not None:
                    error, self._source_error = self._source_error, None
                    raise error
                raise StopAsyncIteration
            self._has_ended.clear()
            await self._has_ended.wait()
        if self._leaving:  # the runs that end now were cancelled
            raise StopAsyncIteration
        ended = self._ended.popleft()
        self._was_read.set()
        if ended.cancelled():
            raise StageflowError(
                "other code cancelled the task of a run started by run_many()",
                hint="the record of the run was still written",
            )
        return ended.result()

    def _check_entered(self) -> None:
        if self._feeder is None:
            raise RuntimeError(
                "run_many() is a context manager; enter it before you iterate over its results"
                "\n  hint: async with graph.run_many(contexts) as runs: async for results in runs: ..."
            )

    async def _feed(self) -> None:
        """Start a run for each context, within the limit on concurrency."""
        try:
            async with aclosing(_iterate(self._contexts)) as source:
                number = 0
                while True:
                    while len(self._running) + len(self._ended) >= self._concurrency:
                        self._was_read.clear()
                        await self._was_read.wait()
                    context = await anext(source, _END)
                    if context is _END or self._leaving:
                        break
                    number += 1
                    task = asyncio.create_task(self._start(_checked(context, number)))
                    self._running.add(task)
                    task.add_done_callback(self._run_ended)
                    if number % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            if self._leaving:
                raise
            self._source_error = StageflowError(
                "the iteration over the contexts of run_many() was cancelled",
                hint="catch the CancelledError in the iterator if something that it awaits may be cancelled",
            )
            self._source_error.__cause__ = error
        except Exception as error:
            if self._leaving:
                self._cleanup_error = error
            else:
                self._source_error = error
        finally:
            self._fed = True
            self._has_ended.set()

    def _run_ended(self, task: asyncio.Task[PipelineResults]) -> None:
        self._running.discard(task)
        self._ended.append(task)
        self._has_ended.set()


def _checked(context: Any, number: int) -> PipelineContext:
    if context is None:
        return PipelineContext()
    if not isinstance(context, PipelineContext):
        raise InvalidArgumentError(
            f"item {number} of the contexts of run_many() has type {type(context).__name__}, "
            "not PipelineContext",
            hint="PipelineContext(data={...})",
        )
    return context


async def _iterate(contexts: Contexts) -> AsyncGenerator[Any, None]:
    """Iterate over the contexts; close an asynchronous generator at the end."""
    if isinstance(contexts, AsyncIterable):
        try:
            async for context in contexts:
                yield context
        finally:
            close = getattr(contexts, "aclose", None)
            if close is not None:
                await close()
    else:
        for context in contexts:
            yield context
