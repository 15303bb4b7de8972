"""The limit of threads in which synchronous stages run, shared by all runs of the process."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextvars import ContextVar

from .._fork import reset_in_child
from ..observability.defaults import defaults, on_change

__all__ = ["THREADS", "ThreadLimit", "ThreadPermit", "thread_permit"]


class ThreadPermit:
    """The permit of one attempt for a thread: from the request until its function has returned.

    Attributes:
        granted: Completed when the permit is granted, if it was not granted at once.
    """

    __slots__ = ("_loop", "granted", "is_counted", "is_waiting", "nested_runs")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.granted: asyncio.Future[None] | None = None
        self.is_waiting = False
        self.is_counted = False
        self.nested_runs = 0

    def wait(self) -> asyncio.Future[None]:
        """Return a future for the grant. The limit holds its lock."""
        self.is_waiting = True
        self.granted = self._loop.create_future()
        return self.granted

    def notify_soon(self) -> None:
        """Complete `granted` on its event loop, which may be that of another thread.

        Raises:
            RuntimeError: The loop is closed.
        """
        self._loop.call_soon_threadsafe(self._notify)

    def _notify(self) -> None:
        if self.granted is not None and not self.granted.done():
            self.granted.set_result(None)


class ThreadLimit:
    """A number of permits, granted in the order of the requests.

    A permit does not count while a run that its function has started is in progress: most likely the function
    waits for that run, whose synchronous stages need permits as well. If it counted, functions that wait for
    nested runs could hold every permit, and none of them would ever return.
    """

    def __init__(self, permits: int) -> None:
        self._permits = permits
        self.reset()

    def reset(self) -> None:
        """Reset the limit in a forked child, which has none of its parent's threads."""
        # Reentrant: a run may end when the garbage collector finds it, which may happen anywhere.
        self._lock = threading.RLock()
        self._counted = 0
        self._queue: deque[ThreadPermit] = deque()

    def resize(self, permits: int) -> None:
        """Change the number of permits."""
        with self._lock:
            self._permits = permits
            self._grant()

    def acquire(self, permit: ThreadPermit) -> asyncio.Future[None] | None:
        """Return None if the permit is granted now, or else a future for it."""
        with self._lock:
            if self._counted < self._permits:
                self._count(permit, 1)
                return None
            self._queue.append(permit)
            return permit.wait()

    def exceed(self, permit: ThreadPermit) -> None:
        """Count a permit although none may be free: its function cannot wait."""
        with self._lock:
            self._count(permit, 1)

    def release(self, permit: ThreadPermit) -> None:
        """Release a permit, or withdraw the request for it. A second call has no effect."""
        with self._lock:
            permit.is_waiting = False
            permit.nested_runs = -1
            if permit.is_counted:
                self._count(permit, -1)
                self._grant()

    def nested_run_started(self, permit: ThreadPermit) -> None:
        """Do not count the permit of a function that has started a run; no effect once it has returned."""
        with self._lock:
            if permit.nested_runs >= 0:
                permit.nested_runs += 1
                if permit.is_counted:
                    self._count(permit, -1)
                    self._grant()

    def nested_run_ended(self, permit: ThreadPermit) -> None:
        """Count the permit again, without waiting, when the last run that its function has started ends."""
        with self._lock:
            if permit.nested_runs > 0:
                permit.nested_runs -= 1
                if not permit.nested_runs:
                    self._count(permit, 1)

    def _count(self, permit: ThreadPermit, change: int) -> None:
        permit.is_counted = change > 0
        # In a forked child, a function of the parent may still return.
        self._counted = max(0, self._counted + change)

    def _grant(self) -> None:
        while self._queue and self._counted < self._permits:
            permit = self._queue.popleft()
            if not permit.is_waiting:
                continue
            permit.is_waiting = False
            self._count(permit, 1)
            try:
                permit.notify_soon()
            except RuntimeError:  # the loop was closed, and the run ended with it
                self._count(permit, -1)


THREADS = ThreadLimit(defaults().max_threads)
"""`stageflow.configure(max_threads=...)`"""

on_change(lambda: THREADS.resize(defaults().max_threads))
reset_in_child(THREADS.reset)

thread_permit: ContextVar[ThreadPermit | None] = ContextVar("stageflow_thread_permit", default=None)
"""The permit of the function that runs in the current thread, or that has started the current run."""
