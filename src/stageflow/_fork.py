"""State that a forked child must not share with its parent, and the event loop that it inherits."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from typing import Any

from ._cpython import mark_running, running_loop

__all__ = ["FORKED", "ForkedLoop", "reset_in_child"]

_resets: list[Callable[[], None]] = []


def reset_in_child(reset: Callable[[], None]) -> Callable[[], None]:
    """Call `reset` in every forked child, in the order of registration; usable as a decorator.

    A forked child inherits the locks of its parent, some of them held by threads that do not exist in the
    child. It must also not write the record of its parent.
    """
    _resets.append(reset)
    return reset


def _reset() -> None:
    for reset in _resets:
        reset()


class ForkedLoop:
    """The loop that ran the thread which forked this process, until the child returns to it.

    In a forked child, asyncio resets the running loop and task, so that the child can start a separate loop.
    A stage that forks and then returns or raises nevertheless returns into a callback of the inherited loop.
    Since Python 3.14, a task can neither finish its step nor start another one unless both are marked as
    running: without this class, neither the run nor the child would end.

    Attributes:
        loop: The inherited loop, or None if there is nothing to restore.
    """

    __slots__ = ("_forking", "_task", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._forking = threading.local()  # two threads may fork at the same time

    def return_to_loop(self) -> None:
        """Mark the inherited loop and its task as running, unless the child is running another loop."""
        loop, task = self.loop, self._task
        if loop is not None and running_loop() is None:
            mark_running(loop, task)
            self.loop = self._task = None

    def before_fork(self) -> None:
        """Store the running loop and task of the thread that is about to fork."""
        loop = running_loop()
        here = (self.loop, self._task) if loop is None else (loop, asyncio.current_task(loop))
        self._forking.loop, self._forking.task = here

    def after_fork_in_child(self) -> None:
        """Store the loop and the task that the child inherited."""
        self.loop, self._task = self._forking.loop, self._forking.task


FORKED = ForkedLoop()

os.register_at_fork(before=FORKED.before_fork, after_in_child=FORKED.after_fork_in_child)
os.register_at_fork(after_in_child=_reset)
