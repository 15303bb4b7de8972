"""`EventStream`: the events for one client that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import ServerSentEvent

__all__ = ["EventStream"]


class EventStream:
    """The events that one client has not received yet: the newest one of each kind.

    Each event replaces the earlier ones of its kind, so a client that reads slowly needs no more memory, and
    never misses the newest state.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._is_ended = False
        self._wake = asyncio.Event()

    def send(self, kind: str, data: bytes) -> None:
        """Send an event, in place of an earlier one of this kind that the client has not received."""
        self._waiting[kind] = data
        self._wake.set()

    def end(self) -> None:
        """End the stream."""
        self._is_ended = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[ServerSentEvent]:
        """Return the events as they arrive."""
        while not self._is_ended:
            if not self._waiting:
                self._wake.clear()
                await self._wake.wait()
                continue
            kind = next(iter(self._waiting))
            yield ServerSentEvent(event=kind, data=self._waiting.pop(kind).decode())
