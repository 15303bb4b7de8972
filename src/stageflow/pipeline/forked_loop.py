"""Lets a child that was forked inside a stage go on with the event loop it inherited."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

__all__ = ["FORKED", "ForkedLoop"]


class ForkedLoop:
    """The loop that ran the thread which forked this process, until the child returns to it.

    In a forked child, asyncio forgets which loop and which task are running, so that the child can start a
    loop of its own. A stage that forks and then returns, or raises, returns into the callback of the
    inherited loop all the same. Since Python 3.14 a task can neither end its step nor take another one unless
    both are marked as running: the run would never end, and neither would the child.

    Attributes:
        loop: The inherited loop, or None if nothing has to be restored.
    """

    __slots__ = ("_forking", "_task", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._forking = threading.local()  # two threads may fork at the same time

    def return_to_loop(self) -> None:
        """Mark the inherited loop and its task as running, unless another loop of the child is running."""
        loop, task = self.loop, self._task
        if loop is not None and asyncio._get_running_loop() is None:
            asyncio._set_running_loop(loop)
            if task is not None and asyncio.current_task(loop) is None:
                asyncio._enter_task(loop, task)
            self.loop = self._task = None

    def before_fork(self) -> None:
        """Remember the running loop and task of the thread that is about to fork."""
        loop = asyncio._get_running_loop()
        here = (self.loop, self._task) if loop is None else (loop, asyncio.current_task(loop))
        self._forking.loop, self._forking.task = here

    def after_fork_in_child(self) -> None:
        """Keep the loop and the task that the child inherited."""
        self.loop, self._task = self._forking.loop, self._forking.task


FORKED = ForkedLoop()

os.register_at_fork(before=FORKED.before_fork, after_in_child=FORKED.after_fork_in_child)
