"""A run that a client follows, and the events that the client may have missed."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from typing import NamedTuple

from ...pipeline import StreamedRun
from ...stages import Chunk
from ._wire import json_lines

__all__ = ["Event", "LiveRun"]

_EVENT_BYTES = 128
"""The memory of an event in addition to its data."""


class Event(NamedTuple):
    """A server-sent event of a run: `start`, `chunk`, `restart` or `end`; `data` are its `data:` lines."""

    number: int
    name: str
    data: bytes


class LiveRun:
    """A run, and the events that were sent last.

    A task of its own keeps the run, so that the run can outlive the response that started it. Nothing reads
    the chunks while no client is attached: the buffer of the run fills, and then the run waits.

    Args:
        stream: The run, which has not started.
        owner: The ids of the user, which a client that reattaches must have too.
        replay_bytes: Maximum size of the events that are kept after they were sent.

    Attributes:
        key: A secret that identifies the run; it is part of the id of each event.
        run_id: The id of the run, once it has started.
        keeper: The task that keeps the run; it ends when the run has ended.
        reader: The task that reads the events for the client; None if no client is attached.
        reading: Held by the task that reads.
        expiry: The timer that ends the run if no client reattaches.
    """

    def __init__(self, stream: StreamedRun, owner: tuple[str | None, str | None], replay_bytes: int) -> None:
        self.key = secrets.token_urlsafe(16)
        self.owner = owner
        self.run_id = ""
        self.reader: asyncio.Task[None] | None = None
        self.reading = asyncio.Lock()
        self.expiry: asyncio.TimerHandle | None = None
        self._stream: StreamedRun | None = stream
        self._max_size = replay_bytes
        self._size = 0
        self._sent: deque[Event] = deque()
        self._count = 0
        self._all_read = asyncio.Event()
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.keeper = asyncio.create_task(self._keep(stream))

    async def _keep(self, stream: StreamedRun) -> None:
        async with stream as run:
            self.run_id = run.run_id
            self._started.set_result(None)
            await self._all_read.wait()

    async def start(self) -> None:
        """Wait until the run has started."""
        await asyncio.wait({self.keeper, self._started}, return_when=asyncio.FIRST_COMPLETED)
        if not self._started.done():
            await self.keeper  # raises the reason
        self._add("start", json_lines({"run_id": self.run_id}))

    async def read(self, seconds: float | None) -> list[Event]:
        """Return the next events: at least one, unless none arrives within this number of seconds."""
        stream = self._stream
        assert stream is not None, "all events were read"
        if not self._all_read.is_set():
            try:
                async with asyncio.timeout(seconds):
                    events = [self._chunk(await anext(stream))]
            except TimeoutError:
                return []
            except StopAsyncIteration:
                self._all_read.set()
            else:
                while stream.pending:
                    events.append(self._chunk(await anext(stream)))
                return events
        await asyncio.wait({self.keeper}, timeout=seconds)
        if not self.keeper.done():
            return []
        outcome = (await stream.results()).outcome
        self._stream = None  # frees the results
        return [self._add("end", json_lines({"run_id": self.run_id, "outcome": outcome}))]

    def _chunk(self, chunk: Chunk) -> Event:
        if chunk.restart:
            return self._add("restart", json_lines({"stage": chunk.stage}))
        return self._add("chunk", chunk.value)

    def _add(self, name: str, data: bytes) -> Event:
        event = Event(self._count, name, data)
        self._count += 1
        self._sent.append(event)
        self._size += len(event.data) + _EVENT_BYTES
        while self._size > self._max_size and len(self._sent) > 1:
            self._size -= len(self._sent.popleft().data) + _EVENT_BYTES
        return event

    @property
    def is_complete(self) -> bool:
        """True once the event `end` was read."""
        return self._stream is None

    def replay(self, after: int) -> list[Event] | None:
        """Return the events after this number that were read before; None if one of them was dropped."""
        if after + 1 < self._sent[0].number:
            return None
        return [event for event in self._sent if event.number > after]

    def has_sent(self, number: int) -> bool:
        """Return whether the event of this number was read."""
        return number < self._count

    def cancel(self) -> None:
        """Cancel the run, unless it has ended."""
        if self.expiry is not None:
            self.expiry.cancel()
        self.keeper.cancel()
