"""Threads for plain functions: daemons that are reused and hold up no exit.

There is no bound on their number: a plain stage may start a run of its own and wait for it, and
a bounded pool would then wait for itself. `max_concurrency` bounds the work.
"""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["busy_threads", "in_thread"]

Job = Callable[[], None]

_IDLE_SECONDS = 10.0
_lock = threading.RLock()
_idle: list[_Worker] = []
_backlog: deque[Job] = deque()
_alive = 0


class _Worker(threading.Thread):
    def __init__(self, job: Job) -> None:
        super().__init__(name="stageflow-stage", daemon=True)
        self._process = os.getpid()
        self.inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self.inbox.put(job)

    def run(self) -> None:
        global _alive
        while True:
            try:
                job = self.inbox.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                with _lock:
                    if self in _idle:
                        _idle.remove(self)
                        _alive -= 1
                        return
                continue  # a job was handed over at the last moment
            job()
            del job  # or what it holds would live until the next one
            if os.getpid() != self._process:
                return  # the job forked: in the child, nobody gives this thread another one
            with _lock:
                if _backlog:
                    self.inbox.put(_backlog.popleft())
                else:
                    _idle.append(self)


def in_thread(job: Job) -> None:
    """Run `job` in a daemon thread. It must not raise.

    Raises:
        RuntimeError: No thread can be started, and there is none that could do it later.
    """
    global _alive
    with _lock:
        if _idle:
            # The one used last: the others may then grow old and end.
            _idle.pop().inbox.put(job)
            return
        _alive += 1
    try:
        _Worker(job).start()
    except RuntimeError:
        with _lock:
            _alive -= 1
            if _idle:
                _idle.pop().inbox.put(job)
            elif _alive:
                _backlog.append(job)
            else:
                raise


def busy_threads() -> int:
    """Return how many threads are running a job, or have one to start with."""
    with _lock:
        return _alive - len(_idle) + len(_backlog)


def _forget_parent() -> None:
    # A forked child has the list of its parent's threads, and none of the threads.
    global _lock, _alive
    _lock = threading.RLock()
    _idle.clear()
    _backlog.clear()
    _alive = 0


os.register_at_fork(after_in_child=_forget_parent)
