"""`Settling`: holds back wide events until their amendments were written, and merges these into them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from .._state_file import decoder, is_json
from .._time import epoch_us, get_clock
from ..journal import (
    WRITER_CLOSED,
    Entry,
    JournalReader,
    Position,
    Segment,
    amend,
    is_timestamp,
    list_writers,
    read_after,
)

__all__ = ["Settling"]


_WRITE_SECONDS = 0.25
"""Time after which an amendment has been written, because its time is determined before it is written."""

_MAX_AHEAD = 32 << 20
"""Maximum number of bytes between an event and an amendment that is merged into it."""

_WIDE = (b'{"type":"stage.wide', b'{"type":"pipeline.wide')
"""Prefixes of the lines of wide events and amendments."""

_AMENDMENT = ".amend"


class _Head(Struct, gc=False):
    event_id: str
    ended_at: str = ""
    amended_at: str = ""


class _Line(Struct, gc=False):
    type: str
    data: _Head


class _Additions(Struct, gc=False):
    attributes: dict[str, Raw] | None = None
    redacted: int | None = None
    truncated: list[str] | None = None


class _AmendmentLine(Struct, gc=False):
    data: _Additions


_decode_line = decoder(_Line)
_decode_amendment = decoder(_AmendmentLine)
_decode_fields = decoder(dict[str, Raw])
_decode_additions = decoder(_Additions)


class _Event(Struct, gc=False):
    """A wide event that was found ahead of the reader.

    Attributes:
        key: Its type and id.
        position: Its position.
        ended_us: Its recorded end, in microseconds since the epoch.
        found_at: When it was found, on the monotonic clock.
        found_after: Number of bytes of the writer that were searched before it.
        amendments: The position and the content of each amendment that is merged into it.
    """

    key: tuple[str, str]
    position: Position
    ended_us: int
    found_at: float
    found_after: int
    amendments: list[tuple[Position, _Additions]]


class _Writer:
    """The part of one writer's segments that was searched ahead of the reader.

    Attributes:
        amended: The events with amendments that the reader has not read yet, by position.
    """

    def __init__(self, position: Position, seconds: float) -> None:
        self._position = position
        self._merge_us = int(seconds * 1e6)
        self._settle_us = int((seconds + _WRITE_SECONDS) * 1e6)
        self._searched = 0
        self._closed = False
        self._waiting: deque[_Event] = deque()
        self._by_key: dict[tuple[str, str], _Event] = {}
        self.amended: dict[Position, _Event] = {}

    @property
    def until(self) -> Position:
        """The position before which all events have settled."""
        return self._waiting[0].position if self._waiting else self._position

    @property
    def is_settled(self) -> bool:
        """Whether all events that were found have settled."""
        return not self._waiting

    def forget_before(self, position: Position) -> None:
        """Forget what the reader has read or skipped."""
        while self._waiting and self._waiting[0].position < position:
            self._release()
        for at in [at for at in self.amended if at < position]:
            del self.amended[at]
        self._position = max(self._position, position)

    def search(self, segments: Sequence[Segment], now: float) -> bool:
        """Search the next lines for events and their amendments; return False if there are none yet."""
        is_complete = self._closed and segments[-1].sequence <= self._position[0]
        chunk = None if is_complete else read_after(segments, self._position)
        if chunk is None:
            return False
        for line in chunk.lines:
            while self._waiting and self._searched - self._waiting[0].found_after > _MAX_AHEAD:
                self._release()
            if line.text.startswith(_WIDE):
                self._add(line.text, (chunk.sequence, line.offset), now)
            elif line.text.startswith(WRITER_CLOSED):
                self._closed = True  # no amendment follows
                while self._waiting:
                    self._release()
            self._searched += len(line.text) + 1
        self._position = (chunk.sequence, chunk.end)
        return True

    def _add(self, text: bytes, position: Position, now: float) -> None:
        line = _decode_line(text)
        if line is None:
            return  # the exporter sends it as it is, or the reader skips it
        is_amendment = line.type.endswith(_AMENDMENT)
        at = line.data.amended_at if is_amendment else line.data.ended_at
        if not is_timestamp(at):
            return
        at_us = epoch_us(at)
        while self._waiting and self._waiting[0].ended_us + self._settle_us < at_us:
            self._release()
        if not is_amendment:
            event = _Event((line.type, line.data.event_id), position, at_us, now, self._searched, [])
            self._waiting.append(event)
            self._by_key[event.key] = event
            return
        known = self._by_key.get((line.type.removesuffix(_AMENDMENT), line.data.event_id))
        if known is not None and at_us <= known.ended_us + self._merge_us:
            amendment = _decode_amendment(text) if is_json(text) else None
            if amendment is not None:
                known.amendments.append((position, amendment.data))

    def settle(self, now_us: int, now: float) -> None:
        """Settle the events that are old enough.

        All lines that were written before the given times were searched.

        Args:
            now_us: The wall clock, in microseconds since the epoch.
            now: The monotonic clock. It settles events with a time in the future, if the wall clock was set
                back.
        """
        while self._waiting and (
            self._waiting[0].ended_us + self._settle_us <= now_us
            or self._waiting[0].found_at + self._settle_us / 1e6 <= now
        ):
            self._release()

    def _release(self) -> None:
        event = self._waiting.popleft()
        if self._by_key.get(event.key) is event:
            del self._by_key[event.key]
        if event.amendments:
            self.amended[event.position] = event


class Settling:
    """Determines up to which position the events of a journal have settled, and merges their amendments.

    A wide event has settled `seconds` after its recorded end, or when its writer is closed. By then, the
    segments of its writer have been searched, so all amendments that are merged into it are known before the
    reader reads it. They follow the event, so they can be in a later batch, or be read by another process
    after a restart. The positions of these amendments are therefore part of the stored state of the exporter:
    each of them is sent exactly once, as part of its event or alone.

    An amendment is merged if its recorded time is at most `seconds` after the end of its event, so an event
    that is sent again has the same content. An amendment that a thread wrote before the event is sent alone.

    Args:
        reader: The reader of the journal.
        seconds: Time that an event waits for amendments; 0 for events that do not wait.
    """

    def __init__(self, reader: JournalReader, seconds: float) -> None:
        self._reader = reader
        self._seconds = seconds
        self._writers: dict[str, _Writer] = {}
        self._merged: dict[str, set[Position]] = {}

    def resume(self, merged: Mapping[str, Iterable[Position]]) -> None:
        """Continue with the stored positions of the merged amendments that the reader has not read yet."""
        self._merged = {writer: {*positions} for writer, positions in merged.items()}

    @property
    def seconds(self) -> float:
        """Maximum time until an event has settled, in seconds, if its recorded end is not in the future."""
        return self._seconds + _WRITE_SECONDS if self._seconds > 0 else 0.0

    @property
    def is_settled(self) -> bool:
        """Whether all events that were found by the last call of `until` have settled."""
        return all(writer.is_settled for writer in self._writers.values())

    def until(self, batch_bytes: int) -> dict[str, Position] | None:
        """Return the position of each writer before which all events have settled; None for no limit.

        Args:
            batch_bytes: Number of bytes to search ahead of the reader. If the reader is further behind, the
                segments are not searched up to their end, so that the memory is limited.

        Raises:
            OSError: The journal cannot be read.
        """
        if not self._seconds > 0:
            return None
        # Before the segments are read: a line that was written by then is found.
        now_us, now = get_clock().wall_ns() // 1000, time.monotonic()
        listed = list_writers(self._reader.path)
        for gone in self._writers.keys() - listed.keys():
            del self._writers[gone]
        found = {}
        for name, segments in listed.items():
            at = self._reader.positions.get(name, (1, 0))
            writer = self._writers.setdefault(name, _Writer(at, self._seconds))
            writer.forget_before(at)
            try:
                while not _is_after(writer.until, at, batch_bytes):
                    if not writer.search(segments, now):
                        writer.settle(now_us, now)
                        break
            except FileNotFoundError:
                pass  # deleted since it was listed; the next call lists the segments again
            except OSError:  # the reader reports it
                writer.settle(now_us, now)  # the events before the unreadable part are sent
            found[name] = writer.until
        return found

    def merge(self, entries: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Return the entries, with their amendments, and the amendments among them that were merged."""
        if not self._seconds > 0 and not self._merged:
            return list(entries), []
        remaining, merged = [], []
        for entry in entries:
            position = (entry.segment, entry.offset)
            if position in self._merged.get(entry.writer, ()):
                merged.append(entry)
                continue
            writer = self._writers.get(entry.writer)
            event = writer.amended.pop(position, None) if writer is not None else None
            if event is not None and (json := _amended(entry.json, event)) is not None:
                entry = replace(entry, json=json)
                self._merged.setdefault(entry.writer, set()).update(at for at, _ in event.amendments)
            remaining.append(entry)
        return remaining, merged

    def merged(self) -> dict[str, list[Position]]:
        """Return the positions of the merged amendments that the reader has not read yet."""
        read = self._reader.positions
        found = {
            writer: {at for at in positions if at >= read[writer]}
            for writer, positions in self._merged.items()
            if writer in read
        }
        self._merged = {writer: positions for writer, positions in found.items() if positions}
        return {writer: sorted(positions) for writer, positions in self._merged.items()}


def _is_after(position: Position, start: Position, size: int) -> bool:
    """Return whether a position is in a later segment, or the given number of bytes later in the same one."""
    return position[0] > start[0] or position[1] - start[1] >= size


def _amended(json: bytes, event: _Event) -> bytes | None:
    """Return the JSON of an event with its amendments; None if it is malformed."""
    fields, before = _decode_fields(json), _decode_additions(json)
    if fields is None or before is None:
        return None
    # The values of attributes remain encoded, so that they do not change.
    parts = {event.key[1]: msgspec.structs.asdict(before)}
    for _, amendment in event.amendments:
        amend(parts, {"event_id": event.key[1], **msgspec.structs.asdict(amendment)})
    fields |= {name: Raw(msgspec.json.encode(value)) for name, value in parts[event.key[1]].items()}
    return msgspec.json.encode(fields)
