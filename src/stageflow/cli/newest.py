"""The newest events of a journal, without a look at the rest of it."""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Raw

from ..journal import Entry
from ..journal.layout import Segment, list_writers
from ..journal.line import decode, is_timestamp
from ..journal.segment import open_segment, read_lines
from ..journal.stored import decoder
from ..timestamps import epoch_us

__all__ = ["newest_entries"]

_CHUNK = 256 << 10
"""Bytes that are read at once, from the end of a file backwards."""

_TICK_US = 50_000
"""The clock of a file system ticks in milliseconds: a file may look that much older than its last event."""


class _Times(msgspec.Struct):
    ended_at: object = None
    emitted_at: object = None


_decode_times = decoder(_Times)


def newest_entries(
    directory: str, most: int, fits: Callable[[Entry], bool], may_fit: Callable[[bytes], bool]
) -> list[Entry]:
    """Return the last events that fit, the newest last.

    Files are read from their ends backwards, a piece at a time, newest first, until there are enough.
    Those of one process come in the order of its journal.

    Args:
        directory: Of the journal.
        most: How many at most.
        fits: Tells whether an event is wanted.
        may_fit: Tells of a line, unread, whether it may be one.

    Raises:
        OSError: The directory cannot be read.
    """
    found: list[Entry] = []
    if most > 0:
        for entry in _backwards(directory, may_fit):
            if fits(entry):
                found.append(entry)
                if len(found) == most:
                    break
    return found[::-1]


def _backwards(directory: str, may_fit: Callable[[bytes], bool]) -> Iterator[Entry]:
    """Return the events of all writers, newest first.

    A file waits under the time of its last write, and is opened when nothing newer is left.
    """
    heap: list[tuple[int, int, Entry | None, Iterator[Entry]]] = []
    for number, segments in enumerate(list_writers(directory).values()):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            written_us = os.stat(segments[-1].path).st_mtime_ns // 1000 + _TICK_US
            heapq.heappush(heap, (-written_us, number, None, _of_writer(segments, may_fit)))
    while heap:
        later, number, entry, older = heapq.heappop(heap)
        if entry is not None:
            yield entry
        if (following := next(older, None)) is not None:
            happened_us = _happened_us(following)
            # What names no time stands beside its neighbour.
            heapq.heappush(heap, (later if happened_us is None else -happened_us, number, following, older))


def _happened_us(entry: Entry) -> int | None:
    if (times := _decode_times(entry.json)) is not None:
        for at in (times.ended_at, times.emitted_at):
            if isinstance(at, str) and is_timestamp(at):
                return epoch_us(at)
    return None


def _of_writer(segments: list[Segment], may_fit: Callable[[bytes], bool]) -> Iterator[Entry]:
    for segment in reversed(segments):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            for text in filter(may_fit, _lines_backwards(segment)):
                line = decode(text)
                if line is not None and isinstance(line.data, Raw):
                    yield Entry(line.type, bytes(line.data), segment.writer)


def _lines_backwards(segment: Segment) -> Iterator[bytes]:
    """Return the whole lines of a segment, the last one first."""
    if segment.kept:  # of which little was kept
        yield from [line.text for line in read_lines(segment)][::-1]
        return
    with open_segment(segment) as file:
        end = file.seek(0, os.SEEK_END)
        rest: bytes | None = None  # what stands before the first newline of what was read so far
        while end > 0:
            start = max(0, end - _CHUNK)
            data = os.pread(file.fileno(), end - start, start)
            end = start
            first, *lines = data.split(b"\n")
            if not lines:  # a line longer than a chunk
                rest = first + (rest or b"") if rest is not None else None
                continue
            last = lines.pop()
            if rest is not None:  # else it is the end of the file, empty or torn
                lines.append(last + rest)
            rest = first
            yield from filter(None, reversed(lines))
        if rest:
            yield rest
