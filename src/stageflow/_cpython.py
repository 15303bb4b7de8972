"""Wrappers for every private API of CPython that the library uses, each with the reason.

The tests check each wrapper on every Python version.
"""

from __future__ import annotations

import asyncio
import atexit
import subprocess
import threading
from collections.abc import Callable
from typing import Any

__all__ = [
    "exclude_from_all_tasks",
    "forget_unfinished",
    "interpreter_arguments",
    "mark_running",
    "register_before_threads_end",
    "running_loop",
]


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the running event loop of this thread, or None.

    `asyncio.get_running_loop` raises an error instead of returning None, and takes several times as long.
    """
    return asyncio._get_running_loop()


def mark_running(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any] | None) -> None:
    """Mark a loop and one of its tasks as running in this thread.

    asyncio resets both in a forked child. Since Python 3.14, a task can then neither finish its current step
    nor start another one.
    """
    asyncio._set_running_loop(loop)
    if task is not None and asyncio.current_task(loop) is None:
        asyncio._enter_task(loop, task)


def exclude_from_all_tasks(task: asyncio.Task[Any]) -> None:
    """Remove a task from `asyncio.all_tasks()`.

    `asyncio.run` cancels all of these tasks at once during shutdown. A task that delivers events must outlive
    the runs, which emit their last events when they are cancelled.
    """
    asyncio._unregister_task(task)


def forget_unfinished(task: asyncio.Task[Any]) -> None:
    """Disable the log message for a task destroyed while pending: delivery counts a hanging sink instead."""
    setattr(task, "_log_destroy_pending", False)  # noqa: B010 - the stubs of asyncio do not declare it


def register_before_threads_end(callback: Callable[[], None]) -> None:
    """Call a function when the interpreter exits, while threads and connections can still be created.

    A plain `atexit` handler runs too late for that; it is the fallback if this hook does not exist.
    """
    getattr(threading, "_register_atexit", atexit.register)(callback)


def interpreter_arguments() -> list[str]:
    """Return the options of this interpreter, such as `-O` and `-W error`, for another one.

    `multiprocessing` uses the same function.
    """
    arguments: list[str] = getattr(subprocess, "_args_from_interpreter_flags")()  # noqa: B009 - not in the stubs
    return arguments
