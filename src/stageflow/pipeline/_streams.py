"""The streams of a run: bounded buffers between the stages that send chunks and their readers."""

from __future__ import annotations

import asyncio
import concurrent.futures
from array import array
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from .._time import get_clock
from ..context import StageContext
from ..errors import InputError, StageflowError, StageOutputError, did_you_mean
from ..schema import Stream
from ..stages import Chunk, StageOutput, StageResult, StageStatus
from ._plan import Plan
from ._run_state import DONE, RunState

__all__ = [
    "MAX_COLLECTED",
    "OUTSIDE",
    "Buffer",
    "ChunkReader",
    "StageStream",
    "Streams",
    "is_restart",
    "run_from_thread",
]

MAX_COLLECTED = 16 << 20
"""Maximum size of the collected value of a stream, in characters or bytes; see `_OTHER_SIZE`."""

_OTHER_SIZE = 16
"""The size of a chunk that is neither text nor bytes."""

_JOIN_EVERY = 4096
"""Number of chunks of text that are joined, so that many short ones do not take much memory."""

OUTSIDE = -1
"""The number of the reader outside the run."""

_RESTART: Any = object()

_INCOMPLETE = (StageStatus.FAIL, StageStatus.CANCEL)


T = TypeVar("T")


class Owner(Protocol):
    """The part of the scheduler that streams use."""

    loop: asyncio.AbstractEventLoop

    def stream_started(self, index: int) -> None:
        """A stage whose stream other stages read has sent its first chunk."""
        ...

    def sender_blocked(self, index: int) -> None:
        """A stage waits for a reader."""
        ...


class Buffer:
    """The chunks that wait for one reader: of one stage, or outside the run, of several.

    Args:
        reader: Number of the stage that reads, or -1 outside the run.
        limit: Maximum number of chunks, or None for no limit.
        name: Name of the stage that reads, for errors.
        encode: Called with each chunk when it is sent; its return value replaces that of the chunk.

    Attributes:
        ended: True if no chunk will be added.
        closed: True if the reader has stopped reading.
        interrupted: True if the attempt that reads was cancelled: reading raises `CancelledError`.
    """

    __slots__ = (
        "_chunks",
        "_encode",
        "_limit",
        "_name",
        "_senders",
        "_size",
        "_waiters",
        "closed",
        "ended",
        "interrupted",
        "reader",
    )

    def __init__(
        self, reader: int, limit: int | None, name: str, encode: Callable[[Chunk], Any] | None = None
    ) -> None:
        self.reader = reader
        self.ended = self.closed = self.interrupted = False
        self._name = name
        self._limit = limit
        self._encode = encode
        self._size = 0
        self._chunks: deque[tuple[StageStream, int, Any]] = deque()
        self._senders: list[StageStream] = []
        self._waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def _is_full(self) -> bool:
        return self._limit is not None and len(self._chunks) >= self._limit

    def attach(self, sender: StageStream) -> None:
        """Receive the chunks of a stage."""
        self._senders.append(sender)
        if self._is_full:
            sender.full_buffers += 1

    def add(self, sender: StageStream, number: int, value: Any) -> None:
        """Add a chunk. The sender has checked that the buffer is not full.

        Raises:
            StageOutputError: The buffer has no limit, and the chunks exceed the maximum size.
            Exception: `encode` raised it.
        """
        if self._encode is not None:
            value = self._encode(Chunk(sender.name, number, value))
        self._chunks.append((sender, number, value))
        if self._limit is None:
            self._size += _size_of(value)
            if self._size > MAX_COLLECTED:
                raise StageOutputError(
                    f"the chunks waiting for stage {self._name!r} exceed {MAX_COLLECTED:,} characters"
                    " or bytes",
                    stage=sender.name,
                    hint='start the reader earlier, or replace buffer="collect" with a limit,'
                    " such as buffer=64",
                )
        elif len(self._chunks) == self._limit:
            for each in self._senders:
                each.full_buffers += 1
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
            await waiter

    def get(self) -> tuple[StageStream, int, Any]:
        """Remove and return the next chunk: its sender, its number and its value. `wait()` comes first."""
        chunk = self._chunks.popleft()
        if self._limit is None:
            self._size -= _size_of(chunk[2])
        elif len(self._chunks) == self._limit - 1:
            self._notify_senders()
        if self.reader not in chunk[0].readers:
            chunk[0].record_read_by(self.reader)
        return chunk

    def restart(self, sender: StageStream) -> None:
        """Remove the chunks of a stage that starts over; notify a reader outside the run if it has some."""
        was_full = self._is_full
        self._chunks = deque(each for each in self._chunks if each[0] is not sender)
        self._size = sum(_size_of(value) for _, _, value in self._chunks)
        if was_full and not self._is_full:
            self._notify_senders()
        if self.reader == OUTSIDE and OUTSIDE in sender.readers:
            self._chunks.append((sender, -1, _RESTART))
            if len(self._chunks) == self._limit:
                for each in self._senders:
                    each.full_buffers += 1
            self._wake()

    def end(self) -> None:
        """No chunk will be added; the reader still receives those that are in the buffer."""
        self.ended = True
        self._wake()

    def interrupt(self) -> None:
        """The attempt that reads was cancelled: wake it."""
        self.interrupted = True
        self._wake()

    def close(self) -> None:
        """The reader has stopped reading: drop the chunks, and let the senders continue."""
        if not self.closed:
            self.closed = True
            was_full = self._is_full
            self._chunks.clear()
            if was_full:
                self._notify_senders()
        self._wake()

    def leave_senders(self) -> None:
        """Receive no more chunks."""
        for sender in self._senders:
            sender.detach(self)

    def _notify_senders(self) -> None:
        for each in self._senders:
            each.full_buffers -= 1
            if not each.full_buffers:
                each.wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def is_restart(value: Any) -> bool:
    """Return whether a buffered value marks a restart of its stage."""
    return value is _RESTART


def _size_of(value: Any) -> int:
    return len(value) if type(value) in (str, bytes) else _OTHER_SIZE


def run_from_thread(steps: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> T:
    """Run a coroutine on the loop of the run, and wait for it in the thread of a stage.

    Raises:
        asyncio.CancelledError: The attempt was cancelled, or the loop was closed.
    """
    try:
        return asyncio.run_coroutine_threadsafe(steps, loop).result()
    except (concurrent.futures.CancelledError, RuntimeError) as error:
        steps.close()
        if isinstance(error, RuntimeError) and not loop.is_closed():
            raise
        raise asyncio.CancelledError from None


class _Sent:
    """Can be awaited; it does not suspend."""

    def __await__(self) -> Generator[Any, Any, None]:
        return
        yield


_SENT = _Sent()


def sent_too_late(ctx: StageContext) -> StageflowError:
    """Return the error of a chunk that an attempt sends after its end."""
    return StageflowError(
        "a chunk was sent after the attempt had ended",
        stage=ctx.stage,
        run_id=str(ctx.run.pipeline_run_id),
        hint="await the tasks that send chunks before the stage returns",
    )


class StageStream:
    """The stream of one stage, through all of its attempts.

    Attributes:
        name: Name of the stage.
        full_buffers: Number of buffers that are full; the stage waits until it is 0.
        chunks: Number of chunks of the current attempt.
        readers: The readers that have received a chunk of the current attempt.
        last_ns: When the attempt began, last stopped waiting for a reader or, with an `idle_timeout`, last
            sent a chunk.
        waiting: Number of tasks that wait for a reader.
        abandoned: True if the reader outside the run left before the stream ended.
    """

    __slots__ = (
        "_blocked_ns",
        "_blocked_since",
        "_buffers",
        "_bytes",
        "_collected",
        "_ctx",
        "_first_ns",
        "_index",
        "_is_timed",
        "_joined",
        "_kind",
        "_lengths",
        "_room",
        "_size",
        "_streams",
        "_truncated",
        "abandoned",
        "chunks",
        "full_buffers",
        "last_ns",
        "name",
        "readers",
        "waiting",
    )

    def __init__(self, streams: Streams, index: int, name: str, *, is_timed: bool) -> None:
        self.name = name
        self._is_timed = is_timed
        self.full_buffers = 0
        self.waiting = 0
        self.abandoned = False
        self.readers: set[int] = set()
        self._streams = streams
        self._index = index
        self._ctx: StageContext | None = None
        self._buffers: list[Buffer] = []
        self._room: asyncio.Future[None] | None = None
        self._begin(0)

    def _begin(self, now: int) -> None:
        self.last_ns = now
        self.chunks = 0
        self._bytes: int | None = 0
        self._first_ns: int | None = None
        self._blocked_ns = 0
        self._blocked_since = now
        self._kind: type | None = None
        self._collected: list[Any] = []
        self._joined: list[str] = []
        self._lengths = array("Q")
        self._size = 0
        self._truncated = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the run."""
        return self._streams.loop

    def attempt_started(self, ctx: StageContext, now: int) -> None:
        """Start a new attempt."""
        self._ctx = ctx
        self._begin(now)

    def attach(self, buffer: Buffer) -> None:
        """Add a reader."""
        self._buffers.append(buffer)
        buffer.attach(self)

    def detach(self, buffer: Buffer) -> None:
        """Remove a reader."""
        if buffer in self._buffers:
            self._buffers.remove(buffer)

    def send(self, ctx: StageContext, value: Any) -> Awaitable[None]:
        """Send a chunk: now if no buffer is full, otherwise when the returned object is awaited.

        Raises:
            StageflowError: The attempt has ended.
        """
        self.check(ctx)
        if self.full_buffers:
            return self._send_later(ctx, value)
        self.add(value)
        return _SENT

    async def _send_later(self, ctx: StageContext, value: Any) -> None:
        await self.wait_for_room(ctx)
        self.check(ctx)
        self.add(value)

    def check(self, ctx: StageContext) -> None:
        """Check that an attempt can send a chunk.

        Raises:
            StageflowError: It has ended.
        """
        if ctx is not self._ctx or ctx._sealed or ctx.abandoned:
            raise sent_too_late(ctx)

    async def wait_for_room(self, ctx: StageContext) -> None:
        """Wait until no buffer is full."""
        if not self.waiting:
            self._blocked_since = get_clock().monotonic_ns()
            self._streams.blocked(self._index)
        self.waiting += 1
        try:
            while self.full_buffers:
                if self._room is None or self._room.done():
                    self._room = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._room)
                if ctx.cancelled and self.full_buffers:  # the attempt runs in a thread
                    raise asyncio.CancelledError
        finally:
            self.waiting -= 1
            if not self.waiting:
                self._streams.unblocked(self._index)
                self.last_ns = get_clock().monotonic_ns()
                self._blocked_ns += self.last_ns - self._blocked_since

    def wake(self) -> None:
        """Continue an attempt that waits for room."""
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def add(self, value: Any) -> None:
        """Add a chunk to the buffers and to the collected value.

        Raises:
            StageOutputError: A buffer without a limit exceeds the maximum size.
            Exception: A reader cannot encode the value.
        """
        number = self.chunks
        self.chunks = number + 1
        kind = type(value)
        if kind is str:
            size = len(value)
            if self._bytes is not None:
                self._bytes += size if value.isascii() else len(value.encode("utf-8", "replace"))
        elif kind is bytes:
            size = len(value)
            if self._bytes is not None:
                self._bytes += size
        else:
            kind, size, self._bytes = object, _OTHER_SIZE, None
        if kind is not self._kind:
            self._kind = kind if self._kind is None else object
        if not self._truncated:
            self._size += size or 1
            if self._size > MAX_COLLECTED:
                self._truncated = True
            else:
                self._collected.append(value)
                if len(self._collected) >= _JOIN_EVERY and self._kind is str:
                    self._joined.append("".join(self._collected))
                    self._lengths.extend(map(len, self._collected))
                    self._collected.clear()
        for buffer in self._buffers:
            buffer.add(self, number, value)
        if self._is_timed:
            self.last_ns = get_clock().monotonic_ns()
        if not number:
            self._first_ns = get_clock().monotonic_ns()
            self._streams.stream_started(self._index)

    def record_read_by(self, reader: int) -> None:
        """Record that a reader has received a chunk of the current attempt."""
        self.readers.add(reader)
        self._streams.chunk_read(self._index, reader)

    def collected(self) -> StageOutput:
        """Return the output of an attempt that sent these chunks and returned nothing."""
        value: Any
        if self._kind is str:
            key, value = "text", "".join([*self._joined, *self._collected])
        elif self._kind is bytes:
            key, value = "bytes", b"".join(self._collected)
        else:
            key, value = "chunks", [*self._joined_chunks(), *self._collected]
        data = {key: value, "truncated": True} if self._truncated else {key: value}
        return StageOutput(StageStatus.OK, data, returned=value)

    def _joined_chunks(self) -> Iterator[str]:
        text, start = "".join(self._joined), 0
        for length in self._lengths:
            yield text[start : start + length]
            start += length

    def summary(self, began_ns: int) -> Stream:
        """Return the record of the stream of an attempt that began at `began_ns`."""
        first = None if self._first_ns is None else max(0, self._first_ns - began_ns) // 1000 / 1000
        blocked = self._blocked_ns
        if self.waiting:
            blocked += get_clock().monotonic_ns() - self._blocked_since
        return Stream(self.chunks, self._bytes, first, blocked // 1000 / 1000, self.abandoned)

    def restart(self) -> None:
        """The attempt is retried: its chunks are no longer valid."""
        for buffer in self._buffers:
            buffer.restart(self)
        self.readers.clear()

    def end(self, *, is_incomplete: bool = False) -> None:
        """The stage has ended. If its stream is incomplete, the stages that are reading it are cancelled."""
        for buffer in self._buffers:
            if buffer.reader != OUTSIDE:
                buffer.end()
                if is_incomplete:
                    buffer.interrupt()


class ChunkReader:
    """The stream of another stage, as a stage reads it: an asynchronous iterator over the chunks.

    A synchronous stage, which runs in a thread, iterates over it with `for`.

    The stream ends when its stage has ended. If that stage fails, the stage that reads is cancelled.
    """

    __slots__ = ("_buffer", "_loop", "_streams")

    def __init__(self, streams: Streams, buffer: Buffer, loop: asyncio.AbstractEventLoop) -> None:
        self._streams = streams
        self._buffer = buffer
        self._loop = loop

    def __aiter__(self) -> ChunkReader:
        return self

    async def __anext__(self) -> Any:
        if not self._buffer:
            await self._buffer.wait()
        return self._buffer.get()[2]

    async def aclose(self) -> None:
        """Stop reading: the other stage no longer waits for this one."""
        self._streams.detach(self._buffer)

    def __iter__(self) -> ChunkReader:
        return self

    def __next__(self) -> Any:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("`for` would block the event loop\n  hint: in a coroutine, write `async for`")
        if self._buffer.interrupted:
            raise asyncio.CancelledError
        try:
            return run_from_thread(self.__anext__(), self._loop)
        except StopAsyncIteration:
            raise StopIteration from None


class Streams:
    """The streams of one run.

    Args:
        owner: Notified when a stage sends its first chunk.
        plan: The pipeline.
        state: The state of the run.

    Attributes:
        loop: The event loop of the run.
    """

    __slots__ = (
        "_buffers",
        "_outside",
        "_owner",
        "_plan",
        "_selected",
        "_state",
        "_streams",
        "_was_abandoned",
        "loop",
    )

    def __init__(self, owner: Owner, plan: Plan, state: RunState) -> None:
        self._owner: Owner | None = owner
        self.loop = owner.loop
        self._plan = plan
        self._state = state
        self._streams: dict[int, StageStream] = {}
        self._buffers: dict[tuple[int, int], Buffer] = {}
        self._outside: Buffer | None = None
        self._selected: frozenset[int] = frozenset()
        self._was_abandoned = False

    def open_external_reader(
        self, selected: Iterable[int], limit: int, encode: Callable[[Chunk], Any] | None
    ) -> Buffer:
        """Return the buffer for a reader outside the run of the streams of the selected stages."""
        self._selected = frozenset(selected)
        self._outside = Buffer(OUTSIDE, limit, "the reader outside the run", encode)
        return self._outside

    def of(self, index: int) -> StageStream:
        """Return the stream of a stage."""
        stream = self._streams.get(index)
        if stream is None:
            node = self._plan.nodes[index]
            is_timed = node.idle_timeout is not None
            stream = self._streams[index] = StageStream(self, index, node.name, is_timed=is_timed)
            for reader in node.stream_dependents:
                if self._state.phases[reader] != DONE:
                    stream.attach(self._buffer(index, reader))
            if self._outside is not None and index in self._selected:
                if self._outside.closed:
                    stream.abandoned = self._was_abandoned
                else:
                    stream.attach(self._outside)
        return stream

    def open(self, ctx: StageContext) -> StageStream:
        """Return the stream of an attempt that starts, or that sends its first chunk.

        Raises:
            StageflowError: The attempt has ended.
        """
        if ctx._sealed or ctx.abandoned:
            raise sent_too_late(ctx)
        stream = self.of(ctx._sequence)
        stream.attempt_started(ctx, get_clock().monotonic_ns())
        return stream

    def _buffer(self, index: int, reader: int) -> Buffer:
        buffer = self._buffers.get((index, reader))
        if buffer is None:
            node = self._plan.nodes[reader]
            ref = next(ref for ref in node.streams if ref.name == self._plan.nodes[index].name)
            limit = None if ref.buffer == "collect" else ref.buffer
            buffer = self._buffers[index, reader] = Buffer(reader, limit, node.name)
        return buffer

    def reader(self, reader: int, stage: str) -> ChunkReader:
        """Return the stream of another stage for a stage that reads it.

        Raises:
            InputError: The stage does not read the stream of that stage.
        """
        node = self._plan.nodes[reader]
        names = [ref.name for ref in node.streams]
        if stage not in names:
            raise InputError(
                f"stage {node.name!r} does not read the stream of {stage!r}{did_you_mean(stage, names)}",
                stage=node.name,
                pipeline=self._plan.name,
                hint=f"add streams=({stage!r},) to the stage",
            )
        index = self._plan.index[stage]
        self.of(index)
        buffer = self._buffer(index, reader)
        if self._state.phases[index] == DONE:
            buffer.end()
        return ChunkReader(self, buffer, self.loop)

    # ------------------------------------------------------------ events

    def stream_started(self, index: int) -> None:
        """A stage sent the first chunk of an attempt."""
        if self._owner is not None and self._plan.nodes[index].stream_dependents:
            self._owner.stream_started(index)

    def blocked(self, index: int) -> None:
        """A stage waits for a reader."""
        if self._owner is not None and self._plan.max_concurrency is not None:
            self._owner.sender_blocked(index)

    def unblocked(self, index: int) -> None:
        """A stage continues."""
        self._state.reading.blocked.pop(index, None)

    def chunk_read(self, index: int, reader: int) -> None:
        """A reader received the first chunk of an attempt of a stage."""
        self._state.reading.chunk_read(index, reader)

    def detach(self, buffer: Buffer) -> None:
        """A stage has stopped reading a stream."""
        buffer.close()
        for (index, reader), each in self._buffers.items():
            if each is buffer:
                self._state.reading.detach(index, reader)
        buffer.leave_senders()

    def interrupt(self, index: int) -> None:
        """Wake a stage in a thread that was cancelled, and that reads or sends."""
        for buffer in self._read_by(index):
            buffer.interrupt()
        if (stream := self._streams.get(index)) is not None:
            stream.wake()

    def _read_by(self, reader: int) -> Iterator[Buffer]:
        for sender in self._plan.nodes[reader].senders:
            if (buffer := self._buffers.get((sender, reader))) is not None:
                yield buffer

    def leave(self, *, abandoned: bool) -> None:
        """The reader outside the run has left."""
        if self._outside is None:
            return
        self._outside.close()
        for index, stream in self._streams.items():
            stream.detach(self._outside)
            if abandoned and index in self._selected and self._state.phases[index] != DONE:
                stream.abandoned = True
        self._was_abandoned = abandoned

    def process_results(self, results: Iterable[StageResult]) -> None:
        """Process results of attempts, in order: restart or end the streams that they sent and read."""
        for result in results:
            index = result.sequence
            stream = self._streams.get(index)
            if result.status is StageStatus.RETRY:
                if stream is not None:
                    stream.restart()
                for buffer in self._read_by(index):
                    buffer.interrupted = False
                continue
            if stream is not None:
                stream.end(is_incomplete=result.status in _INCOMPLETE and stream.chunks > 0)
            for buffer in self._read_by(index):
                buffer.close()
                buffer.leave_senders()
        if self._outside is not None and all(self._state.phases[each] == DONE for each in self._selected):
            self._outside.end()

    def close(self) -> None:
        """The run has ended."""
        self._owner = None
        for stream in self._streams.values():
            stream.end()
        if self._outside is not None:
            self._outside.end()
