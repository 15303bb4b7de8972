"""Reads a journal: from a cursor, or its newest events."""

from __future__ import annotations

import contextlib
import heapq
import logging
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct

from .._files import OwnedFile, absolute_path, make_private_below, only_one, open_owned
from .._log import log_safely
from .._state_file import decode_stored, decoder
from .._time import epoch_us
from ..errors import CursorInUseError, DamagedFileError, JournalNotFoundError
from ._cursor import CursorFile, Position, check_cursor_name, load_cursor, store_cursor
from ._format import decode, is_timestamp
from ._recovery import recover
from ._retention import Deleted, read_deletion_counts
from ._segments import (
    CURSORS,
    LOCK,
    LineAt,
    Segment,
    is_line_start,
    list_writers,
    open_segment,
    original_size,
    quarantine_line,
    read_chunk,
    read_lines,
)

__all__ = ["Entry", "JournalReader", "newest_entries"]


log = logging.getLogger("stageflow.journal")

_RECOVERY_INTERVAL_SECONDS = 1.0
"""How often a reader looks for writers that died."""

_RETRIES = 10
"""How often a reader looks again when what it had listed is gone."""

_PAUSE_SECONDS = 2.0
"""How long a new reader waits for retention to end."""

_POLL_SECONDS = 0.05
"""How often a reader that waits looks for something new."""


class Entry(Struct, frozen=True):
    """One event, as the journal has it.

    Attributes:
        type: "stage.wide", "pipeline.wide", or that of an event of the application's own.
        json: The event's data, as JSON.
        writer: Which writer wrote it.
    """

    type: str
    json: bytes
    writer: str

    def data(self) -> dict[str, Any] | None:
        """Return the event's data.

        Raises:
            ValueError: An application wrote something other than an object, by a sink that it handed JSON.
        """
        data: dict[str, Any] | None = decode_stored(self.json, dict[str, Any] | None)
        return data


class _Step(Struct, frozen=True):
    """One step through the journal: an event, or something else that was come by, and where it leads."""

    writer: str
    position: Position
    entry: Entry | None = None
    broken: int = 0
    torn: int = 0
    missed: int = 0


class JournalReader:
    """Reads the events of every writer of a journal, also of those that go on writing.

    Events of one run come in the order of their emission; runs of different processes in none. A
    run whose process died is completed on the way: `outcome: crashed`.

    A reader that starts after events were archived or deleted does not get them: `removed_events` is their
    number. `EventStore` still has the archived ones.

    A reader with a name resumes where `commit()` was last called: what it had read since then, it
    reads again. It holds no writer up; only the deletion of old files waits for it, and that not
    beyond the journal's `max_bytes`.

    Args:
        path: Directory of the journal.
        name: Under which positions are stored; default None, for a reader that begins afresh.
        at_end: Begin behind what is there now, where the reader has no position yet.

    Attributes:
        events: How many events it has read; with a name, since the name was first used.
        broken: Number of damaged lines that it skipped. It copies each of them to `broken/`.
        torn: How many last lines it left out because their writer died while it wrote them.
        missed: How many files were deleted before it had read them to their end, including those that were
            deleted before it first started, unless it started `at_end`.
        removed_events: How many events were removed from the journal, because they were archived or to make
            room, before it first started.

    Raises:
        JournalNotFoundError: There is no such directory.
        CursorInUseError: Another reader of this name is at work.
        DamagedFileError: The stored positions cannot be read, or the cursor or its lock is not a regular
            file.
        ValueError: The name contains characters other than letters, digits, ".", "_" and "-".

    Example:
        with JournalReader("journal", "warehouse") as reader:
            while entries := reader.read():
                load([entry.data() for entry in entries])
                reader.commit()
    """

    def __init__(
        self, path: str | os.PathLike[str], name: str | None = None, *, at_end: bool = False
    ) -> None:
        self.path = absolute_path(path)
        self.name = name
        self._lock: OwnedFile | None = None
        if not os.path.isdir(self.path):
            raise JournalNotFoundError(self.path)
        if name is not None:
            self._lock = self._acquire(check_cursor_name(name))
        try:
            cursor = self._load(at_end)
        except BaseException:
            self.close()  # the traceback keeps this reader alive, but must not keep the name locked
            raise
        self.events = cursor.events
        self.broken = cursor.broken
        self.torn = cursor.torn
        self.missed = cursor.missed
        self.removed_events = cursor.removed_events
        self._removed_files = cursor.removed_files
        self._positions: dict[str, Position] = dict(cursor.positions)
        self._closed: set[str] = set()
        self._pruned: set[str] = set()
        self._resumed: set[str] = set()
        self._last_recovery = -_RECOVERY_INTERVAL_SECONDS
        self._pending_steps: Iterator[_Step] | None = None
        _readers.add(self)

    def _acquire(self, name: str) -> OwnedFile:
        make_private_below(os.path.join(self.path, CURSORS))
        path = os.path.join(self.path, CURSORS, f"{name}.lock")
        lock = open_owned(path, os.O_RDWR | os.O_CREAT)
        if lock.lock():
            os.truncate(lock.fd, 0)
            os.write(lock.fd, b"%d" % os.getpid())
            return lock
        pid = os.read(lock.fd, 20).decode("ascii", "replace") or "?"
        lock.release()
        raise CursorInUseError(
            f"reader {name!r} of journal {self.path!r} is at work in process {pid}",
            hint="a name serves one reader at a time; give this one another name",
        )

    def _load(self, at_end: bool) -> CursorFile:
        cursor = load_cursor(self.path, self.name) if self.name is not None else None
        if cursor is None:
            # Where it begins is part of its position: what is deleted from now on, it has missed.
            with _retention_paused(self.path):
                gone = Deleted()
                if not at_end:
                    with contextlib.suppress(DamagedFileError):  # the counts are lost
                        gone = read_deletion_counts(self.path)
                positions = {
                    writer: _start(segments, at_end) for writer, segments in list_writers(self.path).items()
                }
            cursor = CursorFile(
                positions, missed=gone.files, removed_files=gone.files, removed_events=gone.events
            )
            if self.name is not None:
                store_cursor(self.path, self.name, cursor)
                if gone.events:
                    log_safely(
                        log,
                        "reader %r of journal %s starts after %d events were removed from the journal, and"
                        " does not receive them; `EventStore` has those that were archived",
                        self.name,
                        self.path,
                        gone.events,
                    )
        return cursor

    # ------------------------------------------------------------ reading

    def read(self, most: int = 1000, *, timeout: float = 0.0) -> list[Entry]:
        """Return the next events, as soon as there are any.

        Args:
            most: How many at most.
            timeout: Seconds to wait for the first; default 0. It blocks: call it in a thread of
                its own from asynchronous code.

        Returns:
            No events when there are no more for now.

        Raises:
            ValueError: `most` or `timeout` is out of range, or the reader is closed.
            OSError: The journal cannot be read.
        """
        self._check_open()
        if not isinstance(most, int) or most < 1:
            raise ValueError(f"read({most!r}); give a whole number of events, 1 or more")
        if not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ValueError(f"read(timeout={timeout!r}); give seconds, 0 or more")
        deadline = time.monotonic() + timeout
        while True:
            # The remainder of an earlier scan does not include files opened since then.
            is_new = self._pending_steps is None
            steps = self._next_steps(most)
            for step in steps:
                self._apply(step)
            found = [step.entry for step in steps if step.entry is not None]
            left = deadline - time.monotonic()
            if found or (is_new and not steps and left <= 0):
                return found
            if is_new and not steps:
                time.sleep(min(_POLL_SECONDS, left))

    def __iter__(self) -> Iterator[Entry]:
        """Return every event that there is now; `commit()` in between stores what was handed out."""
        self._check_open()
        try:
            while steps := self._next_steps(1000):
                for step in steps:
                    self._apply(step)
                    if step.entry is not None:
                        yield step.entry
        finally:
            self._pending_steps = None  # what was looked at and not handed out comes again

    def _apply(self, step: _Step) -> None:
        self._positions[step.writer] = step.position
        self.events += step.entry is not None
        self.broken += step.broken
        self.torn += step.torn
        self.missed += step.missed

    def _next_steps(self, most: int) -> list[_Step]:
        """Return the next steps, up to so many events. Nobody has gone them yet: an error loses none."""
        for _ in range(_RETRIES):
            if self._pending_steps is None:
                self._complete_crashed()
                self._pending_steps = self._steps()
            found: list[_Step] = []
            events = 0
            steps, self._pending_steps = self._pending_steps, None
            try:
                for step in steps:
                    found.append(step)
                    events += step.entry is not None
                    if events >= most:
                        self._pending_steps = steps
                        break
            except FileNotFoundError:
                if not found:
                    continue  # a file was deleted under way: look again what there is
            except OSError:
                if not found:
                    raise  # otherwise return the events found so far; the next read raises
            return found
        return []

    def _complete_crashed(self) -> None:
        now = time.monotonic()
        if now - self._last_recovery >= _RECOVERY_INTERVAL_SECONDS:
            self._last_recovery = now
            # Who may read a journal but not write it reads it as it stands.
            with contextlib.suppress(OSError):
                recover(self.path, closed=self._closed)

    def _steps(self) -> Iterator[_Step]:
        # Listed before anything is read: a segment that has a successor by now is complete.
        writers = list_writers(self.path)
        for gone in self._positions.keys() - writers.keys():
            del self._positions[gone]
        errors: list[OSError] = []
        for writer, segments in writers.items():
            try:
                yield from self._steps_of(writer, segments)
            except FileNotFoundError:
                raise
            except OSError as error:  # only this writer is affected: read the segments of the others
                errors.append(error)
        if errors:
            raise errors[0]

    def _steps_of(self, writer: str, segments: list[Segment]) -> Iterator[_Step]:
        at, offset = self._positions.get(writer, (1, 0))
        for segment in segments:
            if segment.sequence < at:
                continue
            if segment.sequence > at:
                yield _Step(writer, (segment.sequence, 0), missed=segment.sequence - at)
                offset = 0
            elif writer not in self._resumed and not is_line_start(segment, offset):
                # This is not the file that was read before: it was restored or replaced.
                offset = 0
            self._resumed.add(writer)
            complete = segment is not segments[-1]
            yield from self._steps_in(segment, offset, complete)
            at, offset = segment.sequence + complete, 0
            if complete:
                yield _Step(writer, (at, 0))

    def _steps_in(self, segment: Segment, offset: int, complete: bool) -> Iterator[_Step]:
        writer, sequence = segment.writer, segment.sequence
        if segment.pruned and offset < original_size(segment) and segment.path not in self._pruned:
            self._pruned.add(segment.path)
            yield _Step(writer, (sequence, offset), missed=1)  # but for what was kept of it
        while True:
            chunk = read_chunk(segment, offset)
            for line in chunk.lines:
                position = (sequence, line.offset + len(line.text) + 1)
                found = decode(line.text)
                if found is not None and isinstance(found.data, Raw):
                    yield _Step(writer, position, Entry(found.type, bytes(found.data), writer))
                # A line of blanks is where a repair took a broken one out.
                elif found is None and not line.text.isspace():
                    self._quarantine(segment, line)
                    yield _Step(writer, position, broken=1)
            if chunk.end == offset:
                if complete and chunk.torn:
                    yield _Step(writer, (sequence, offset), torn=1)
                return
            offset = chunk.end
            yield _Step(writer, (sequence, offset))

    def _quarantine(self, segment: Segment, line: LineAt) -> None:
        with contextlib.suppress(OSError):  # a reader without write permission cannot copy them
            quarantine_line(self.path, segment.name, line.offset, line.text)

    # ------------------------------------------------------------ the position

    def commit(self) -> None:
        """Store that all that was read so far is done with. It is safe against a crash of the machine.

        Raises:
            ValueError: The reader has no name, or is closed.
            CursorInUseError: Other code in this process closed the reader's lock file, and another reader
                took the name.
            OSError: It could not be written; what was stored before stands.
        """
        if self.name is None:
            raise ValueError('a reader without a name has no position to store; JournalReader(path, "name")')
        self._check_open()
        if self._lock is not None and not self._lock.is_intact():
            self._lock.release()
            self._lock = self._acquire(self.name)
        store_cursor(
            self.path,
            self.name,
            CursorFile(
                self._positions,
                self.events,
                self.broken,
                self.torn,
                self.missed,
                self._removed_files,
                self.removed_events,
            ),
        )

    def _check_open(self) -> None:
        if self.name is not None and self._lock is None:
            raise ValueError(
                f"reader {self.name!r} of journal {self.path!r} is closed (a fork closes it for the child)"
                "\n  hint: make another JournalReader"
            )

    def close(self) -> None:
        """Let another reader have the name. What was not committed will be read again."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()

    def __repr__(self) -> str:
        return f"<JournalReader {self.path!r}{f' {self.name!r}' if self.name else ''}>"


@contextlib.contextmanager
def _retention_paused(directory: str) -> Generator[None]:
    """Keep retention from deleting segments that it has not counted yet, unless it takes too long to end."""
    deadline = time.monotonic() + _PAUSE_SECONDS
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a reader without write permission cannot pause it
            while not stack.enter_context(only_one(os.path.join(directory, LOCK))):
                stack.close()
                if time.monotonic() > deadline:
                    break
                time.sleep(_POLL_SECONDS)
        yield


def _start(segments: list[Segment], at_end: bool) -> Position:
    if not at_end:
        return (segments[0].sequence, 0)
    last = segments[-1]
    try:
        return (last.sequence, original_size(last))
    except FileNotFoundError:  # deleted just now
        return (last.sequence + 1, 0)


_readers: weakref.WeakSet[JournalReader] = weakref.WeakSet()


def _reset_after_fork() -> None:
    # The name is the parent's; its lock was closed with all others.
    for reader in list(_readers):
        reader._lock = None


os.register_at_fork(after_in_child=_reset_after_fork)


_CHUNK = 256 << 10
"""Bytes that are read at once, from the end of a file backwards."""

_MTIME_GRANULARITY_US = 50_000
"""The clock of a file system ticks in milliseconds: a file may look that much older than its last event."""


class _Times(msgspec.Struct):
    ended_at: object = None
    emitted_at: object = None


_decode_times = decoder(_Times)


def newest_entries(
    directory: str, most: int, matches: Callable[[Entry], bool], may_match: Callable[[bytes], bool]
) -> list[Entry]:
    """Return the last events that fit, the newest last.

    Files are read from their ends backwards, a chunk at a time, newest first, until there are enough.
    Those of one process come in the order of its journal.

    Args:
        directory: Of the journal.
        most: How many at most.
        matches: Tells whether an event is wanted.
        may_match: Tells of a line, unread, whether it may be one.

    Raises:
        OSError: The directory cannot be read.
    """
    found: list[Entry] = []
    if most > 0:
        for entry in _entries_backwards(directory, may_match):
            if matches(entry):
                found.append(entry)
                if len(found) == most:
                    break
    return found[::-1]


def _entries_backwards(directory: str, may_match: Callable[[bytes], bool]) -> Iterator[Entry]:
    """Return the events of all writers, newest first.

    A file waits under the time of its last write, and is opened when nothing newer is left.
    """
    heap: list[tuple[int, int, Entry | None, Iterator[Entry]]] = []
    for number, segments in enumerate(list_writers(directory).values()):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            written_us = os.stat(segments[-1].path).st_mtime_ns // 1000 + _MTIME_GRANULARITY_US
            heapq.heappush(heap, (-written_us, number, None, _writer_entries(segments, may_match)))
    while heap:
        later, number, entry, older = heapq.heappop(heap)
        if entry is not None:
            yield entry
        if (following := next(older, None)) is not None:
            event_time_us = _event_time_us(following)
            # What names no time stands beside its neighbour.
            heapq.heappush(
                heap, (later if event_time_us is None else -event_time_us, number, following, older)
            )


def _event_time_us(entry: Entry) -> int | None:
    if (times := _decode_times(entry.json)) is not None:
        for at in (times.ended_at, times.emitted_at):
            if isinstance(at, str) and is_timestamp(at):
                return epoch_us(at)
    return None


def _writer_entries(segments: list[Segment], may_match: Callable[[bytes], bool]) -> Iterator[Entry]:
    for segment in reversed(segments):
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            for text in filter(may_match, _lines_backwards(segment)):
                line = decode(text)
                if line is not None and isinstance(line.data, Raw):
                    yield Entry(line.type, bytes(line.data), segment.writer)


def _lines_backwards(segment: Segment) -> Iterator[bytes]:
    """Return the whole lines of a segment, the last one first."""
    if segment.pruned:  # of which little was kept
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
