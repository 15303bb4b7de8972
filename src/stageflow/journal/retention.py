"""Makes room in a journal: deletes what is too old or too much, records of failed runs last, and counts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from .cursor_file import positions_of_all
from .disk import is_locked, only_one, replace_file
from .layout import DELETED, LOCK, Segment, list_writers, segment_name
from .line import PIPELINE_WIDE, RUN_CLOSED, Kept, encode_mark
from .recovery import recover
from .segment import find_lines, read_kept, read_lines

__all__ = ["Deleted", "Room", "deleted_so_far"]

_LOOK_AHEAD = 2
"""In so many later segments the end of a run is looked for, when room is made."""

_FAILED = b'{"type":"pipeline.wide","data":{"status":"FAIL"'


class Deleted(Struct, frozen=True):
    """What was deleted of a journal so far.

    Attributes:
        lines: How many lines.
        bytes: How many bytes.
        unread: How many segments were deleted before every cursor had read them.
    """

    lines: int = 0
    bytes: int = 0
    unread: int = 0

    def __add__(self, other: Deleted) -> Deleted:
        return Deleted(self.lines + other.lines, self.bytes + other.bytes, self.unread + other.unread)


class Room(Struct, frozen=True):
    """How much of a journal may stay, and for how long.

    Attributes:
        max_bytes: Bound on all segments together, or None.
        max_age: Seconds since a segment was last written to, or None.
    """

    max_bytes: int | None = None
    max_age: float | None = None

    def make(self, directory: str) -> Deleted:
        """Delete what is too old and has been read, and then, oldest first, what is too much.

        Segments that are being written to stay. It does nothing while another process does the same.

        Raises:
            OSError: The directory cannot be read or written.
        """
        if self.max_bytes is None and self.max_age is None:
            return Deleted()
        if not self._is_due(directory):
            return Deleted()
        recover(directory)  # what is left of a dead writer must be complete before a part of it goes
        with only_one(os.path.join(directory, LOCK)) as alone:
            if not alone:
                return Deleted()
            deleted = _Cleaning(directory).clean(self)
            if deleted != Deleted():
                total = deleted_so_far(directory) + deleted
                replace_file(os.path.join(directory, DELETED), msgspec.json.encode(total))
            return deleted

    def _is_due(self, directory: str) -> bool:
        """Tell whether anything is too old or too much, without a look into any file."""
        files = [_stat(segment) for segments in list_writers(directory).values() for segment in segments]
        if self.max_bytes is not None and sum(size for size, _ in files) > self.max_bytes:
            return True
        return self.max_age is not None and any(time.time() - at > self.max_age for _, at in files)


def deleted_so_far(directory: str) -> Deleted:
    """Return the counts that a journal keeps of what was deleted."""
    try:
        with open(os.path.join(directory, DELETED), "rb") as file:
            return msgspec.json.decode(file.read(), type=Deleted)
    except (FileNotFoundError, msgspec.DecodeError):
        return Deleted()


class _Cleaning:
    """One time that room is made."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.writers = list_writers(directory)
        self.read = positions_of_all(directory)
        self.deleted = Deleted()
        self.size = sum(_stat(segment)[0] for segments in self.writers.values() for segment in segments)

    def clean(self, room: Room) -> Deleted:
        """Delete what is due, and return what it was."""
        closed = sorted(self._closed(), key=lambda segment: (_stat(segment)[1], segment.path))
        whole = [segment for segment in closed if not segment.kept]
        kept = [segment for segment in closed if segment.kept]
        if room.max_age is not None:
            oldest = time.time() - room.max_age
            for segment in closed:
                if _stat(segment)[1] < oldest and self._was_read(segment):
                    self._delete(segment, _count(segment))
                    (kept if segment.kept else whole).remove(segment)
        if room.max_bytes is not None:
            # First everything but the records of failed runs, oldest first; then those as well.
            while whole and self.size > room.max_bytes:
                if (left := self._reduce(whole.pop(0))) is not None:
                    kept.append(left)
            while kept and self.size > room.max_bytes:
                segment = kept.pop(0)
                self._delete(segment, _count(segment))
        return self.deleted

    def _closed(self) -> Iterator[Segment]:
        """Return the segments that nobody writes to."""
        for segments in self.writers.values():
            with contextlib.suppress(FileNotFoundError):
                yield from segments[:-1] if is_locked(segments[-1].path) else segments

    def _was_read(self, segment: Segment) -> bool:
        return all(
            (segment.sequence, _size_when_whole(segment)) <= positions.get(segment.writer, (0, 0))
            for positions in self.read
        )

    def _reduce(self, segment: Segment) -> Segment | None:
        """Leave of a segment only the lines of runs that failed, or whose end is not known; or nothing."""
        lines = [(line, _run_of(line.text)) for line in read_lines(segment)]
        keep = self._worth_keeping(segment, {run for _, run in lines if run})
        left = [line for line, run in lines if run in keep]
        size, written = _stat(segment)
        if not left or len(left) == len(lines):
            if not left:
                self._delete(segment, len(lines))
            return segment if left else None
        header = encode_mark(Kept(size, [line.offset for line in left]))
        name = segment_name(segment.writer, segment.sequence, kept=True)
        reduced = Segment(
            os.path.join(self.directory, name), segment.writer, segment.pid, segment.sequence, True
        )
        replace_file(reduced.path, header + b"".join(line.text + b"\n" for line in left))
        os.utime(reduced.path, (written, written))
        self._delete(segment, len(lines) - len(left))
        reduced_size = _stat(reduced)[0]
        self.size += reduced_size
        self.deleted += Deleted(bytes=-reduced_size)
        return reduced

    def _worth_keeping(self, segment: Segment, runs: set[str]) -> set[str]:
        later = [other for other in self.writers[segment.writer] if other.sequence > segment.sequence]
        unknown, failed = set(runs), set()
        for place in (segment, *later[:_LOOK_AHEAD]):
            if not unknown:
                break
            for text in find_lines(place, PIPELINE_WIDE, RUN_CLOSED):
                run = _run_of(text)
                if run in unknown:
                    unknown.discard(run)
                    if text.startswith(_FAILED):
                        failed.add(run)
        return failed | unknown

    def _delete(self, segment: Segment, lines: int) -> None:
        size, unread = _stat(segment)[0], not self._was_read(segment)
        os.unlink(segment.path)
        self.size -= size
        self.deleted += Deleted(lines, size, int(unread))


class _Head(Struct):
    """As much of a line as says which run it belongs to."""

    class Body(Struct):
        """Of an event or a mark."""

        class Ids(Struct):
            """The ids of an event."""

            pipeline_run_id: str | None = None

        event_id: str = ""
        correlation_ids: Ids | None = None

    data: Body | None = None
    journal: Body | None = None


_decode_head = msgspec.json.Decoder(_Head).decode


def _run_of(text: bytes) -> str:
    """Return the id of the run that a line belongs to; empty where it is broken or belongs to none."""
    try:
        head = _decode_head(text)
    except msgspec.DecodeError:
        return ""
    body = head.journal or head.data
    if body is None:
        return ""
    ids = body.correlation_ids
    return (ids.pipeline_run_id if ids else None) or body.event_id


def _count(segment: Segment) -> int:
    return sum(1 for _ in read_lines(segment))


def _size_when_whole(segment: Segment) -> int:
    return read_kept(segment).size if segment.kept else _stat(segment)[0]


def _stat(segment: Segment) -> tuple[int, float]:
    found = os.stat(segment.path)
    return found.st_size, found.st_mtime
