"""A pool of daemon threads for synchronous functions; they do not delay process exit.

Each running function has its own thread; `pipeline._limits.ThreadLimit` limits their number.
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
                if self._pool.remove_idle(self):
                    return
                continue  # a job was assigned just before the timeout
            function, freed = job
            function()
            del job, function  # otherwise their objects would stay alive until the next job
            if os.getpid() != self._process:
                return  # the job forked: in the child, this thread gets no further jobs
            self._pool.assign_next(self)
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
                # The most recently used one, so that the others reach their idle timeout.
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

    def remove_idle(self, worker: _Worker) -> bool:
        """Remove an idle thread, which then exits; return False if it has a job."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            self._alive -= 1
            return True

    def assign_next(self, worker: _Worker) -> None:
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
        function: The function to run. It must not raise.
        freed: Called in the thread after `function`, when the thread can run another one. It must not raise.

    Raises:
        RuntimeError: No thread can be started, and no other thread exists that could run it later.
    """
    _pool.run((function, freed))


def busy_threads() -> int:
    """Return the number of running jobs plus the number of jobs that wait for a thread."""
    return _pool.busy
