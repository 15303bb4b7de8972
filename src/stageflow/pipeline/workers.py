"""The tasks of a run: as many as stages that wait for something at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any

__all__ = ["BREATHE_EVERY", "Workers"]

BREATHE_EVERY = 16
"""So many stages go on in one task before it lets others have the loop."""


async def _nothing() -> None: ...


class Workers:
    """Takes numbers of stages that are ready, and starts workers that take them in order.

    Args:
        loop: The loop of the run.
        name: Name of the tasks.
        variables: The context variables of the run. Each worker has a copy: what an emitter or a
            sink sets there reaches no stage.
        most: How many stages may be under way at once; None for no limit.
        work: Returns the coroutine of a worker, which takes from `queue` until it is empty.
        lost: Called with a worker that did not end in order.

    Attributes:
        queue: Numbers of the stages that are ready, first come, first served.
        tasks: The workers that have not ended.
    """

    __slots__ = (
        "_active",
        "_dispatching",
        "_loop",
        "_lost",
        "_most",
        "_name",
        "_variables",
        "_work",
        "_yielding",
        "queue",
        "tasks",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        variables: Context,
        most: int | None,
        work: Callable[[], Coroutine[Any, Any, None]],
        lost: Callable[[asyncio.Task[None]], None],
    ) -> None:
        self._loop = loop
        self._name = name
        self._variables = variables
        self._most = most
        self._work = work
        self._lost: Callable[[asyncio.Task[None]], None] | None = lost
        self._active = 0
        self._dispatching = False
        self._yielding = 0
        self.queue: deque[int] = deque()
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def full(self) -> bool:
        """True when no further stage may be under way."""
        return self._most is not None and self._active >= self._most

    def start(self) -> None:
        """Start a first worker now, and the others with the next turn of the loop."""
        if self.queue:
            self._start()
            self.dispatch()

    def dispatch(self) -> None:
        """See to it that what is queued starts with the next turn of the loop.

        Not at once: the stage at hand may be done without waiting for anything, and then its task
        can take the next one. So a task is made only for a stage that has to wait beside another.
        """
        if self.queue and not self._dispatching:
            self._dispatching = True
            self._loop.call_soon(self._dispatch, context=self._variables)

    def _dispatch(self) -> None:
        self._dispatching = False
        if self._yielding:
            return  # that worker is not waiting for anything: it takes the next one in its turn
        free = len(self.queue)
        if self._most is not None:
            free = min(free, self._most - self._active)
        for _ in range(free):
            self._start()

    def _start(self) -> None:
        self._active += 1
        # The constructor, not `loop.create_task`: an eager task factory would start a stage inside
        # the bookkeeping of the one before it.
        task = asyncio.Task(self._work(), loop=self._loop, name=self._name, context=self._variables.copy())
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        # One that ended in order is off the list, also if it was cancelled with nothing left to do.
        if task in self.tasks:
            self.tasks.discard(task)
            if self._lost is not None:
                self._lost(task)

    async def breathe(self) -> None:
        """Let others have the loop for a turn; the worker at hand takes the next stage after it."""
        self._yielding += 1
        await asyncio.sleep(0)
        self._yielding -= 1

    def left(self, task: asyncio.Task[None]) -> None:
        """Take a worker off the list that ends in order."""
        self.tasks.discard(task)

    def close(self) -> None:
        """Let go of the run, which has ended: in a circle with it, it would wait for the collector."""
        self.queue.clear()
        self._work, self._lost = _nothing, None

    def place_is_free(self) -> None:
        """Count one stage less as under way."""
        self._active -= 1
