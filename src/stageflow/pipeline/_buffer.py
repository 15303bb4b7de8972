"""`Buffer`: the chunks that wait for one reader."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from ..errors import StageOutputError
from ..stages import Chunk
from ._collected import MAX_COLLECTED, size_of

__all__ = ["OUTSIDE", "RESTART", "Buffer", "Sender"]

OUTSIDE = -1
"""The number of the reader outside the run."""

RESTART: Any = object()
"""The value that a reader outside the run receives when a stage restarts."""


class Sender(Protocol):
    """A stage that sends chunks to a buffer.

    Attributes:
        name: Name of the stage.
        index: Number of the stage.
        full_buffers: Number of its buffers that are full; the stage waits until it is 0.
        readers: The readers that have received a chunk of the current attempt.
    """

    name: str
    index: int
    full_buffers: int
    readers: set[int]

    def wake(self) -> None:
        """There is room in every buffer."""
        ...

    def detach(self, buffer: Buffer) -> None:
        """Send no more chunks to a buffer."""
        ...

    def record_read_by(self, reader: int) -> None:
        """Record that a reader has received a chunk of the current attempt."""
        ...


Waiting = tuple[Sender, int, Any]
"""A chunk that waits for a reader: its sender, its number and its value."""


class Buffer:
    """The chunks that wait for one reader: of one stage, or outside the run, of several.

    Args:
        reader: Number of the stage that reads, or -1 outside the run.
        limit: Maximum number of chunks, or None for no limit.
        name: Name of the stage that reads, for errors.
        encode: Called with each chunk when it is sent; its return value replaces that of the chunk.

    Attributes:
        senders: The stages whose chunks the buffer receives.
        ended: True if no chunk will be added.
        closed: True if the reader has stopped reading.
        interrupted: True if the attempt that reads was cancelled: reading raises `CancelledError`.
    """

    __slots__ = (
        "_chunks",
        "_encode",
        "_limit",
        "_name",
        "_size",
        "_waiters",
        "closed",
        "ended",
        "interrupted",
        "reader",
        "senders",
    )

    def __init__(
        self, reader: int, limit: int | None, name: str, encode: Callable[[Chunk], Any] | None = None
    ) -> None:
        self.reader = reader
        self.senders: list[Sender] = []
        self.ended = self.closed = self.interrupted = False
        self._name = name
        self._limit = limit
        self._encode = encode
        self._size = 0
        self._chunks: deque[Waiting] = deque()
        self._waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._chunks)

    def attach(self, sender: Sender) -> None:
        """Receive the chunks of a stage."""
        self.senders.append(sender)
        if self._limit is not None and len(self._chunks) >= self._limit:
            sender.full_buffers += 1

    def add(self, sender: Sender, number: int, value: Any) -> None:
        """Add a chunk. The sender has checked that the buffer is not full.

        Raises:
            StageOutputError: The buffer has no limit, and the chunks exceed the maximum size.
            Exception: `encode` raised it.
        """
        if self._encode is not None:
            value = self._encode(Chunk(sender.name, number, value))
        if self._limit is None:
            self._size += size_of(value)
            if self._size > MAX_COLLECTED:
                raise StageOutputError(
                    f"the chunks waiting for stage {self._name!r} exceed {MAX_COLLECTED:,} characters"
                    " or bytes",
                    stage=sender.name,
                    hint='start the reader earlier, or replace buffer="collect" with a limit,'
                    " such as buffer=64",
                )
        self._append((sender, number, value))

    def _append(self, chunk: Waiting) -> None:
        self._chunks.append(chunk)
        if len(self._chunks) == self._limit:
            for sender in self.senders:
                sender.full_buffers += 1
        if self._waiters:
            self._wake()

    async def wait(self) -> None:
        """Wait for a chunk.

        Raises:
            StopAsyncIteration: The stream has ended.
            asyncio.CancelledError: The attempt that reads was cancelled.
        """
        while not self._chunks:
            if self.interrupted:
                raise asyncio.CancelledError
            if self.ended or self.closed:
                raise StopAsyncIteration
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                self._waiters.remove(waiter)

    def get(self) -> Waiting:
        """Remove and return the next chunk. Call `wait()` first."""
        chunk = self._chunks.popleft()
        if self._limit is None:
            self._size -= size_of(chunk[2])
        elif len(self._chunks) == self._limit - 1:
            self._notify_senders()
        if self.reader not in chunk[0].readers:
            chunk[0].record_read_by(self.reader)
        return chunk

    def restart(self, sender: Sender) -> None:
        """Remove the chunks of a stage that restarts; notify a reader outside the run if it has some."""
        self._keep([chunk for chunk in self._chunks if chunk[0] is not sender])
        if self.reader == OUTSIDE and OUTSIDE in sender.readers:
            self._append((sender, -1, RESTART))

    def end(self) -> None:
        """No chunk will be added; the reader still receives those that are in the buffer."""
        self.ended = True
        self._wake()

    def interrupt(self) -> None:
        """The attempt that reads was cancelled: wake it."""
        self.interrupted = True
        self._wake()

    def close(self) -> None:
        """The reader has stopped reading: drop the chunks, receive no more, and let the senders continue."""
        self.closed = True
        self._keep([])
        for sender in self.senders:
            sender.detach(self)
        self._wake()

    def _keep(self, chunks: list[Waiting]) -> None:
        """Remove all chunks except these."""
        was_full = self._limit is not None and len(self._chunks) >= self._limit
        self._chunks = deque(chunks)
        if self._limit is None:
            self._size = sum(size_of(value) for _, _, value in chunks)
        elif was_full and len(chunks) < self._limit:
            self._notify_senders()

    def _notify_senders(self) -> None:
        """Resume the senders, because the buffer has room again."""
        for sender in self.senders:
            sender.full_buffers -= 1
            if not sender.full_buffers:
                sender.wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
