"""Threads for synchronous functions: daemon threads, reused, which do not delay the exit of the process.

There is a thread for each function that runs; `pipeline._thread_limit` limits how many run at once.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable

from .._fork import reset_in_child

__all__ = ["busy_threads", "in_thread"]


Job = tuple[Callable[[], None], Callable[[], None]]
"""The function to run, and the one to call once its thread is free for another job."""

_IDLE_SECONDS = 10.0


class _Worker(threading.Thread):
    def __init__(self, pool: _Pool, job: Job) -> None:
        super().__init__(name="stageflow-stage", daemon=True)
        self._pool = pool
        self._process = os.getpid()
        self.inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.inbox.put(job)

    def run(self) -> None:
        while True:
            try:
                job = self.inbox.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                if self._pool.retires(self):
                    return
                continue  # a job was handed over at the last moment
            function, freed = job
            function()
            del job, function  # otherwise their objects would live until the next job
            if os.getpid() != self._process:
                return  # the job forked: in the child, this thread gets no further jobs
            self._pool.is_free(self)
            freed()
            del freed


class _Pool:
    """The threads of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset the pool in a forked child, which has none of its parent's threads."""
        self._lock = threading.RLock()
        self._idle: list[_Worker] = []
        self._backlog: deque[Job] = deque()
        self._alive = 0

    def run(self, job: Job) -> None:
        """See `in_thread`."""
        with self._lock:
            if self._idle:
                # The one used last: the others may then grow old and end.
                self._idle.pop().inbox.put(job)
                return
            self._alive += 1
        try:
            _Worker(self, job).start()
        except RuntimeError:
            with self._lock:
                self._alive -= 1
                if self._idle:
                    self._idle.pop().inbox.put(job)
                elif self._alive:
                    self._backlog.append(job)
                else:
                    raise

    def retires(self, worker: _Worker) -> bool:
        """Return whether an idle thread may exit."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            self._alive -= 1
            return True

    def is_free(self, worker: _Worker) -> None:
        """Assign the next job to a thread that has finished one, or add the thread to the idle ones."""
        with self._lock:
            if self._backlog:
                worker.inbox.put(self._backlog.popleft())
            else:
                self._idle.append(worker)

    @property
    def busy(self) -> int:
        with self._lock:
            return self._alive - len(self._idle) + len(self._backlog)


_pool = _Pool()
reset_in_child(_pool.reset)


def in_thread(function: Callable[[], None], freed: Callable[[], None]) -> None:
    """Run a function in a daemon thread.

    Args:
        function: What to run. It must not raise.
        freed: Called in the thread after `function`, when the thread can run another one. It must not raise.

    Raises:
        RuntimeError: No thread can be started, and there is none that could run it later.
    """
    _pool.run((function, freed))


def busy_threads() -> int:
    """Return how many threads are running a job, or have one to start with."""
    return _pool.busy
