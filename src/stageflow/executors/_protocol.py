"""The protocol between a process and its workers: messages over a socket, with a tag, a length and data.

The first message to a worker is a `Setup`. Each further message is a `Call`. If the worker cannot load a
call, it replies with `REJECTED`. Otherwise it replies with `STARTED`, any number of `RECORDED` and `CHUNK`,
and one `RETURNED` or `RAISED` for each item of `Call.arguments`. While a call runs, the parent process sends
one byte for each chunk that it has accepted.

`STARTED` is sent only if the call requests it, because it wakes up the parent process. In any case, the
worker writes the time into memory that both share (`CallProgress`): after the loss of a worker, the parent
process knows whether the call had started.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import tempfile
import time

from msgspec import Struct

__all__ = [
    "CHUNK",
    "RAISED",
    "RECORDED",
    "REJECTED",
    "RETURNED",
    "STARTED",
    "WINDOW",
    "CallProgress",
    "FrameReader",
    "Setup",
    "send_frame",
]

REJECTED, STARTED, RECORDED, CHUNK, RETURNED, RAISED = range(6)
"""The tags of the messages of a worker; the data of each is a pickled tuple.

Each message contains the number of its call: a thread that a function has started may send one after the end
of the call, when the worker runs another one.
"""

WINDOW = 64
"""Maximum number of chunks that a worker sends before the parent process has accepted them."""

_HEADER = struct.Struct("!BIQ")
_READ_BYTES = 1 << 16
_SMALL_BYTES = 1 << 16


class Setup(Struct, frozen=True):
    """The first message to a worker.

    Attributes:
        parent: The process id of the parent process.
        argv: Its `sys.argv`.
        main_name: Name of its main module if it was started with `python -m`, or None.
        main_path: Path of its main module, or None.
        log_levels: The levels of its loggers, by name; that of the root logger has an empty name.
    """

    parent: int
    argv: list[str]
    main_name: str | None
    main_path: str | None
    log_levels: dict[str, int]


_PROGRESS = struct.Struct("=qqq")


class CallProgress:
    """The progress of the current call, in memory that a process and its worker share.

    Args:
        fd: A file descriptor from `create_file`.
    """

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _PROGRESS.size)

    @staticmethod
    def create_file() -> int:
        """Return the file descriptor of a new anonymous file."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("stageflow")
        else:
            with tempfile.TemporaryFile() as file:
                fd = os.dup(file.fileno())
        os.truncate(fd, _PROGRESS.size)
        return fd

    def call_started(self) -> None:
        """Store that the call starts."""
        now = time.monotonic_ns()
        _PROGRESS.pack_into(self._memory, 0, now, now, 0)

    def item_started(self) -> None:
        """Store that the next item starts; a call that is not of a map has one item."""
        started, _, items = self._read()
        _PROGRESS.pack_into(self._memory, 0, started, time.monotonic_ns(), items + 1)

    def clear(self) -> None:
        """Prepare for the next call."""
        _PROGRESS.pack_into(self._memory, 0, 0, 0, 0)

    def _read(self) -> tuple[int, int, int]:
        started, item_started, items = _PROGRESS.unpack_from(self._memory, 0)
        return started, item_started, items

    @property
    def started_ns(self) -> int:
        """Start of the call in nanoseconds of `time.monotonic_ns`; 0 if it has not started."""
        return self._read()[0]

    def current_item(self) -> tuple[int, int]:
        """Return the number of items that have started, and the start of the last one; 0 before the first."""
        _, item_started, items = self._read()
        return items, item_started

    def close(self) -> None:
        """Release the memory."""
        self._memory.close()


def send_frame(connection: socket.socket, tag: int, call: int, data: bytes) -> None:
    """Send a message.

    Args:
        connection: The socket.
        tag: The kind of message.
        call: The number of the call that it belongs to; 0 for `Setup`.
        data: The message in pickled form.

    Raises:
        OSError: The other process has ended.
    """
    header = _HEADER.pack(tag, call, len(data))
    if len(data) <= _SMALL_BYTES:
        connection.sendall(header + data)
    else:  # avoid copying the data
        connection.sendall(header)
        connection.sendall(data)


Frame = tuple[int, int, bytes | bytearray]
"""A message: its tag, the number of its call, and its data."""


class FrameReader:
    """Reads messages. A single system call may read several of them."""

    __slots__ = ("_connection", "_received")

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = bytearray()

    def read(self) -> list[Frame]:
        """Wait for at least one message; an empty list means that the other process has ended."""
        while True:
            frames = self._complete()
            if frames:
                return frames
            try:
                data = self._connection.recv(_READ_BYTES)
            except ConnectionResetError:
                return []
            if not data:
                return []
            self._received += data

    def _complete(self) -> list[Frame]:
        """Return the complete messages among the received data."""
        received, at = self._received, 0
        frames: list[Frame] = []
        while len(received) - at >= _HEADER.size:
            tag, call, length = _HEADER.unpack_from(received, at)
            end = at + _HEADER.size + length
            if len(received) < end:
                if length > _READ_BYTES and not frames:
                    return self._read_large(tag, call, length, at + _HEADER.size)
                break
            frames.append((tag, call, bytes(received[at + _HEADER.size : end])))
            at = end
        if at:
            del received[:at]
        return frames

    def _read_large(self, tag: int, call: int, length: int, start: int) -> list[Frame]:
        """Read the rest of a large message without copying it; an empty list means the end."""
        data = bytearray(length)
        filled = len(self._received) - start
        data[:filled] = self._received[start:]
        self._received.clear()
        with memoryview(data) as view:
            while filled < length:
                try:
                    count = self._connection.recv_into(view[filled:])
                except ConnectionResetError:
                    count = 0
                if not count:
                    return []
                filled += count
        return [(tag, call, data)]
