"""Executes, caches, limits and interrupts the queries of the web API; identical queries run once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from ..errors import StageflowError
from ..store import Interruption, PinnedStore
from ._snapshots import Snapshot

__all__ = ["Executor", "Replaced"]

_CACHE_BYTES = 64 << 20
_MAX_HEAVY = 2
_THREADS = 8


class Replaced(StageflowError):
    """A newer request from the same panel replaced this one."""


def _lower_priority() -> None:
    """Let the other threads of the machine run first. Only on Linux do threads have priorities."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + 10))


class _Execution:
    """One execution of a query, which one or more requests await."""

    def __init__(self) -> None:
        self.interruption = Interruption()
        self.waiters = 0
        self.task: asyncio.Task[bytes] | None = None


class Executor:
    """Executes queries in threads.

    Identical queries of one snapshot share an execution, and their results are cached, up to 64 MiB. At most
    two heavy queries run at the same time, with a lower priority, so that other queries are fast meanwhile. A
    query is interrupted when no request awaits it anymore.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="stageflow-ui")
        self._heavy_threads = ThreadPoolExecutor(
            _MAX_HEAVY, thread_name_prefix="stageflow-ui-heavy", initializer=_lower_priority
        )
        self._running: dict[tuple[int, str], _Execution] = {}
        self._cache: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._panels: dict[str, asyncio.Future[None]] = {}
        self.cache_bytes = 0
        self._is_closed = False

    @property
    def running(self) -> int:
        """Number of queries that are running or waiting for a thread."""
        return len(self._running)

    async def execute(
        self,
        snapshot: Snapshot,
        key: str,
        query: Callable[[PinnedStore], bytes],
        *,
        heavy: bool,
        panel: str | None,
        disconnected: Callable[[], Coroutine[None, None, None]],
    ) -> bytes:
        """Return the result of a query.

        Args:
            snapshot: The snapshot that it reads.
            key: Identifies the query.
            query: Executes it in a thread, and returns the encoded result.
            heavy: Whether it counts towards the limit of heavy queries.
            panel: The panel of the browser tab that shows the result; None if it is unknown. A newer request
                from the same panel replaces this one.
            disconnected: Returns when the client disconnects.

        Raises:
            Replaced: A newer request replaced this one, or the client disconnected.
            StageflowError: The query failed.
        """
        place = (snapshot.number, key)
        if (cached := self._cache.get(place)) is not None:
            self._cache.move_to_end(place)
            self._replace(panel)
            return cached
        execution = self._running.get(place)
        if execution is None or execution.interruption.requested:
            execution = self._running[place] = _Execution()
            execution.task = asyncio.create_task(self._run(execution, place, snapshot, query, heavy))
            # If no request awaits the query anymore, the error of the interrupted query is never retrieved.
            execution.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        assert execution.task is not None
        with self._of_panel(panel) as replaced:
            gone = asyncio.create_task(disconnected())
            execution.waiters += 1
            try:
                ends: set[asyncio.Future[Any]] = {execution.task, replaced, gone}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if not execution.task.done():
                    raise Replaced("the request was replaced, or its client disconnected")
                return execution.task.result()
            finally:
                gone.cancel()
                execution.waiters -= 1
                if execution.waiters == 0 and not execution.task.done():
                    execution.interruption.interrupt()

    def _replace(self, panel: str | None) -> None:
        previous = self._panels.pop(panel, None) if panel is not None else None
        if previous is not None and not previous.done():
            previous.set_result(None)

    @contextlib.contextmanager
    def _of_panel(self, panel: str | None) -> Generator[asyncio.Future[None]]:
        """Return a future that is done when a newer request of the panel arrives."""
        self._replace(panel)
        replaced = asyncio.get_running_loop().create_future()
        if panel is not None:
            self._panels[panel] = replaced
        try:
            yield replaced
        finally:
            if panel is not None and self._panels.get(panel) is replaced:
                del self._panels[panel]

    async def _run(
        self,
        execution: _Execution,
        place: tuple[int, str],
        snapshot: Snapshot,
        query: Callable[[PinnedStore], bytes],
        heavy: bool,
    ) -> bytes:
        def run() -> bytes:
            if execution.interruption.requested or self._is_closed:
                raise Replaced("the request was replaced, or the server stopped, before it started")
            with execution.interruption, snapshot.reading() as store:
                return query(store)

        try:
            if self._is_closed:
                raise Replaced("the server stopped before the request started")
            threads = self._heavy_threads if heavy else self._threads
            result = await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, run)
        except asyncio.CancelledError:
            execution.interruption.interrupt()  # the event loop ends, but not the thread
            raise
        finally:
            if self._running.get(place) is execution:
                del self._running[place]
        self._store(place, result)
        return result

    def _store(self, place: tuple[int, str], result: bytes) -> None:
        if len(result) > _CACHE_BYTES:
            return
        # An interrupted query may have ended after another one took its place.
        self.cache_bytes += len(result) - len(self._cache.pop(place, b""))
        self._cache[place] = result
        while self.cache_bytes > _CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self.cache_bytes -= len(dropped)

    def close(self) -> None:
        """Interrupt the running queries, and stop the threads."""
        self._is_closed = True
        for execution in self._running.values():
            execution.interruption.interrupt()
        for threads in (self._threads, self._heavy_threads):
            threads.shutdown(wait=False)  # those that wait raise `Replaced` when they start
