"""Lets a child that was forked inside a stage go on with the event loop it inherited."""

from __future__ import annotations

import asyncio
import os
import threading

__all__ = ["FORKED", "ForkedLoop"]


class ForkedLoop:
    """The loop that ran the thread which forked this process, until the child returns to it.

    In a forked child, asyncio forgets which loop is running, so that the child can start one of its own.
    A stage that forks and then returns, or raises, returns into the callback of the inherited loop all the
    same. Since Python 3.14 a task of a loop that is not marked as running cannot take another step: the
    run would never end, and neither would the child.

    Attributes:
        loop: The inherited loop, or None if nothing has to be restored.
    """

    __slots__ = ("_forking", "loop")

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._forking = threading.local()  # two threads may fork at the same time

    def return_to_loop(self) -> None:
        """Mark the inherited loop as running, unless another loop of the child is running."""
        if asyncio._get_running_loop() is None:
            asyncio._set_running_loop(self.loop)
            self.loop = None

    def before_fork(self) -> None:
        """Remember the running loop of the thread that is about to fork."""
        self._forking.loop = asyncio._get_running_loop() or self.loop

    def after_fork_in_child(self) -> None:
        """Keep the loop that the child inherited."""
        self.loop = self._forking.loop


FORKED = ForkedLoop()

os.register_at_fork(before=FORKED.before_fork, after_in_child=FORKED.after_fork_in_child)
