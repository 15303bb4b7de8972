"""The attempts of the items of a map: those that can start, and those that have started."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from ._attempt import Attempt, StageScope
from ._limits import THREADS, Permit, ThreadPermit
from ._plan import Node

__all__ = ["SuspendedItem", "Work", "acquire_permit", "acquire_thread"]


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

    def release(self) -> None:
        """Release the permits of the attempt; a permit that its function uses in a thread remains."""
        if self.permit is not None:
            self.permit.limit.release(self.permit)
        if self.scope is not None and self.scope.permit is not None:
            THREADS.release(self.scope.permit)
            self.scope.permit = None


class _Grant:
    """Waits for a permit of a limit."""

    __slots__ = ("__weakref__", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[None] = loop.create_future()

    def notify(self, permit: Permit) -> None:
        """Record that the permit was granted."""
        if not self.future.done():
            self.future.set_result(None)


async def acquire_permit(
    node: Node, run_id: str, loop: asyncio.AbstractEventLoop, outer: Permit | None
) -> Permit | None:
    """Acquire a permit of the limit of the items; return None if they have no limit.

    Raises:
        LimitDeadlockError: It would never be granted.
    """
    limit = node.item_limit
    if limit is None:
        return None
    grant = _Grant(loop)
    permit = Permit(limit, node.index, node.pipeline, node.name, run_id, loop, grant.notify, outer)
    if not limit.acquire(permit):
        try:
            await grant.future
        except BaseException:
            limit.release(permit)
            raise
    return permit


async def acquire_thread(loop: asyncio.AbstractEventLoop) -> ThreadPermit:
    """Acquire a permit for a thread."""
    permit = ThreadPermit(loop)
    if (granted := THREADS.acquire(permit)) is not None:
        try:
            await granted
        except BaseException:
            THREADS.release(permit)
            raise
    return permit
