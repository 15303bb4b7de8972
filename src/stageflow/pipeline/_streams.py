"""The streams of a run: what its stages send, and who reads it."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from .._time import get_clock
from ..context import StageContext
from ..errors import InputError, StageflowError, did_you_mean
from ..schema import Stream
from ..stages import Chunk, StageOutput, StageResult, StageStatus
from ._buffer import OUTSIDE, Buffer
from ._collected import Collected
from ._plan import Plan
from ._run_state import DONE, RunState

__all__ = ["ChunkReader", "Owner", "StageStream", "Streams", "run_from_thread"]

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
        index: Number of the stage.
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
        "_collected",
        "_ctx",
        "_first_ns",
        "_is_timed",
        "_room",
        "_streams",
        "abandoned",
        "chunks",
        "full_buffers",
        "index",
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
        self.index = index
        self._streams = streams
        self._ctx: StageContext | None = None
        self._buffers: list[Buffer] = []
        self._room: asyncio.Future[None] | None = None
        self._begin(0)

    def _begin(self, now: int) -> None:
        self.last_ns = now
        self.chunks = 0
        self._collected = Collected()
        self._first_ns: int | None = None
        self._blocked_ns = 0
        self._blocked_since = now

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
            self._streams.blocked(self.index)
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
                self._streams.unblocked(self.index)
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
        self._collected.add(value)
        for buffer in self._buffers:
            buffer.add(self, number, value)
        if self._is_timed:
            self.last_ns = get_clock().monotonic_ns()
        if not number:
            self._first_ns = get_clock().monotonic_ns()
            self._streams.stream_started(self.index)

    def record_read_by(self, reader: int) -> None:
        """Record that a reader has received a chunk of the current attempt."""
        self.readers.add(reader)
        self._streams.chunk_read(self.index, reader)

    def collected(self) -> StageOutput:
        """Return the output of an attempt that sent these chunks and returned nothing."""
        return self._collected.output()

    def summary(self, began_ns: int) -> Stream:
        """Return the record of the stream of an attempt that began at `began_ns`."""
        first = None if self._first_ns is None else max(0, self._first_ns - began_ns) // 1000 / 1000
        blocked = self._blocked_ns
        if self.waiting:
            blocked += get_clock().monotonic_ns() - self._blocked_since
        return Stream(self.chunks, self._collected.bytes, first, blocked // 1000 / 1000, self.abandoned)

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

    def is_selected(self, index: int) -> bool:
        """Return whether a reader outside the run reads the stream of a stage."""
        return index in self._selected

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
        self._state.streams.blocked.pop(index, None)

    def chunk_read(self, index: int, reader: int) -> None:
        """A reader received the first chunk of an attempt of a stage."""
        self._state.streams.chunk_read(index, reader)

    def detach(self, buffer: Buffer) -> None:
        """A stage has stopped reading a stream."""
        buffer.close()
        for sender in buffer.senders:
            self._state.streams.detach(sender.index, buffer.reader)

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
        self._was_abandoned = abandoned
        for index, stream in self._streams.items():
            if abandoned and index in self._selected and self._state.phases[index] != DONE:
                stream.abandoned = True

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
        if self._outside is not None and all(self._state.phases[each] == DONE for each in self._selected):
            self._outside.end()

    def close(self) -> None:
        """The run has ended."""
        self._owner = None
        for stream in self._streams.values():
            stream.end()
        if self._outside is not None:
            self._outside.end()
