"""Every private API of CPython that the library relies on, each with the reason.

The tests check each of them on every Python version.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable
from typing import Any

__all__ = [
    "exclude_from_all_tasks",
    "forget_unfinished",
    "mark_running",
    "register_before_threads_end",
    "running_loop",
]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None.

    `asyncio.get_running_loop` raises instead, which takes several times as long.
    """
    return asyncio._get_running_loop()


def mark_running(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    """Mark a loop, and a task of it, as running in this thread.

    In a forked child, asyncio has forgotten both, and since Python 3.14 a task can neither end its step
    nor take another one without them.
    """
    asyncio._set_running_loop(loop)
    if task is not None and asyncio.current_task(loop) is None:
        asyncio._enter_task(loop, task)


def exclude_from_all_tasks(task: asyncio.Task[Any]) -> None:
    """Remove a task from `asyncio.all_tasks()`.

    `asyncio.run` cancels all of these tasks at once when it ends. A task that delivers events has to
    outlive the runs that are cancelled at that moment and emit their last events.
    """
    asyncio._unregister_task(task)


def forget_unfinished(task: asyncio.Task[Any]) -> None:
    """Do not log a task that is destroyed while it is pending: a sink that hangs is counted instead."""
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - the stubs of asyncio do not declare it


def register_before_threads_end(callback: Callable[[], None]) -> None:
    """Call a function when the interpreter exits, while threads and connections can still be created.

    A plain `atexit` handler runs too late for that, and serves if this hook does not exist.
    """
    getattr(threading, "_register_atexit", atexit.register)(callback)
