"""The attempts of the items of a map: those that can start, and those that have started."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from ._attempt import Attempt, StageScope
from ._limits import Permit

__all__ = ["Grant", "SuspendedItem", "Work"]


class Work(Struct, frozen=True):
    """An attempt of an item that can start.

    Attributes:
        index: Position of the item, starting at 0.
        item: The item.
        attempt: Number of the attempt, starting at 1.
        first_began: Start of the first attempt in monotonic nanoseconds; None if this is the first one.
    """

    index: int
    item: Any
    attempt: int = 1
    first_began: int | None = None

    def start(self, began: int) -> int:
        """Return the start of the first attempt, given the start of this one."""
        return began if self.first_began is None else self.first_began


class SuspendedItem:
    """An attempt of an item that is suspended, or waits for a permit or a thread.

    Attributes:
        work: The item and its attempt.
        attempt: The attempt; None while it waits for a permit or a thread.
        permit: Its permit of the limit.
        scope: The state of its call in a thread.
    """

    __slots__ = ("attempt", "permit", "scope", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self.attempt: Attempt | None = None
        self.permit: Permit | None = None
        self.scope: StageScope | None = None


class Grant:
    """Waits for a permit of a limit."""

    __slots__ = ("__weakref__", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()

    def notify(self, permit: Permit) -> None:
        """Record that the permit was granted."""
        if not self.future.done():
            self.future.set_result(None)
