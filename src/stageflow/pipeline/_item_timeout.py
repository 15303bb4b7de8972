"""The timeout of an item of a map that a worker runs in a batch."""

from __future__ import annotations

import asyncio

from ..executors import Session
from ._attempt import Attempt

__all__ = ["ItemTimeout"]

_CHECK_SECONDS = 0.001


class ItemTimeout:
    """Kills a worker whose current item takes too long.

    This process does not know which item that is: the messages of the worker may be on their way, for example
    while the event loop is blocked. So the worker is suspended before it is killed, and continues if it has
    completed the item in the meantime.

    Args:
        session: The call of the batch.
        seconds: The timeout of each item.
        loop: The event loop.
    """

    def __init__(self, session: Session, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._seconds = seconds
        self._loop = loop
        self._late_item: int | None = None

    def start(self, attempt: Attempt) -> None:
        """Start the timer for the next item without an outcome, whose arrival stops the timer."""
        attempt.timer = self._loop.call_later(self._seconds, self._check, attempt)

    def _check(self, attempt: Attempt) -> None:
        left = _CHECK_SECONDS
        if self._late_item is None:
            item, running_ns = self._session.current_item()
            left = self._seconds - running_ns / 1e9
            if left <= 0:
                self._late_item, left = item, _CHECK_SECONDS
        if self._late_item is not None:
            was_killed = self._session.kill_item(self._late_item)
            if was_killed:
                return
            if was_killed is False:
                self._late_item = None
        attempt.timer = self._loop.call_later(max(left, _CHECK_SECONDS), self._check, attempt)
