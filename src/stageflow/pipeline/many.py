"""Many runs of one graph: so many at a time, handed out as they end, none left behind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

from ..context import PipelineContext, PipelineResults
from ..errors import StageflowError

__all__ = ["Contexts", "ManyRuns"]

_END: Any = object()

Contexts = Iterable[PipelineContext] | AsyncIterable[PipelineContext]


class ManyRuns:
    """What `graph.run_many()` returns: an async context manager, and the iterator inside it.

    At most `concurrency` runs are started and not yet handed out, so a slow consumer holds back new
    runs. Leaving the block cancels the runs that are under way and waits for them; their records
    are written like any other's. An error in the contexts is raised when the runs that were started
    before it have been handed out.
    """

    def __init__(
        self,
        start: Callable[[PipelineContext], Coroutine[Any, Any, PipelineResults]],
        contexts: Contexts,
        concurrency: int,
    ) -> None:
        self._start = start
        self._contexts = _as_async(contexts)
        self._concurrency = concurrency
        self._running: set[asyncio.Task[PipelineResults]] = set()
        self._ended: deque[asyncio.Task[PipelineResults]] = deque()
        self._exhausted = False
        self._broken: Exception | None = None
        self._count = 0
        self._entered = False
        self._waiters: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> ManyRuns:
        self._entered = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._exhausted = True
        for task in self._running:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._running:
            try:
                await asyncio.wait(self._running)
            except asyncio.CancelledError as error:
                # Whoever cancels us waits, as we do, until every run has ended.
                cancelled = error
        for task in self._ended:
            if not task.cancelled():
                task.exception()  # looked at: nobody else will
        close = getattr(self._contexts, "aclose", None)
        if close is not None:
            await close()
        if cancelled is not None:
            raise cancelled

    def __aiter__(self) -> ManyRuns:
        if not self._entered:
            raise RuntimeError(
                "run_many() is a context manager: what is under way must not outlive the loop over it"
                "\n  hint: async with graph.run_many(contexts) as runs: async for results in runs: ..."
            )
        return self

    async def __anext__(self) -> PipelineResults:
        while not self._exhausted and len(self._running) + len(self._ended) < self._concurrency:
            context = await self._next_context()
            if context is None:
                self._exhausted = True
                break
            task = asyncio.create_task(self._start(context))
            self._running.add(task)
            task.add_done_callback(self._run_ended)
        while not self._ended:
            if not self._running:
                if self._broken is not None:
                    broken, self._broken = self._broken, None
                    raise broken
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter
        ended = self._ended.popleft()
        if ended.cancelled():
            raise StageflowError(
                "a run of run_many() was cancelled by somebody else", hint="its record is written"
            )
        return ended.result()

    async def _next_context(self) -> PipelineContext | None:
        """Return the next context, or None at the end.

        An error of the iterable waits until the runs that were started have been handed out.
        """
        try:
            context = await anext(self._contexts, _END)
            self._count += 1
            if context is _END:
                return None
            if context is None:
                return PipelineContext()
            if not isinstance(context, PipelineContext):
                raise TypeError(
                    f"item {self._count} of the contexts of run_many() is a {type(context).__name__}, "
                    "not a PipelineContext\n  hint: PipelineContext(data={...})"
                )
        except Exception as error:
            self._broken = error
            return None
        return context

    def _run_ended(self, task: asyncio.Task[PipelineResults]) -> None:
        self._running.discard(task)
        self._ended.append(task)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


async def _as_async(contexts: Contexts) -> AsyncIterator[PipelineContext]:
    if isinstance(contexts, AsyncIterable):
        try:
            async for context in contexts:
                yield context
        finally:
            close = getattr(contexts, "aclose", None)  # a generator has one, and things to clean up
            if close is not None:
                await close()
    else:
        for context in contexts:
            yield context
