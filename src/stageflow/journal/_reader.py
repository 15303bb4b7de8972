"""Reads a journal from a cursor, or backwards from its newest events."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Raw, Struct

from .._files import OwnedFile, absolute_path, make_private_below, open_owned, try_lock
from .._log import log_safely
from .._state_file import decode_stored, decoder
from .._time import epoch_us
from ..errors import (
    ClosedError,
    CursorInUseError,
    DamagedFileError,
    InvalidArgumentError,
    JournalNotFoundError,
    invalid_argument,
)
from ._cursor import CursorFile, Position, check_cursor_name, cursor_lock, load_cursor, store_cursor
from ._format import decode, is_event, is_timestamp
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

__all__ = ["Entry", "JournalReader", "Unread", "newest_entries", "unread"]


log = logging.getLogger("stageflow.journal")

_RECOVERY_INTERVAL_SECONDS = 1.0
"""Interval at which a reader checks for writers that died."""

_MAX_ATTEMPTS = 10
"""Number of times that a reader lists the directory if a listed file was deleted before it was read."""

_PAUSE_SECONDS = 2.0
"""Maximum time that a new reader waits for retention to finish."""

_POLL_SECONDS = 0.05
"""Interval at which a waiting reader checks for new events."""


_CHUNK = 256 << 10
"""Number of bytes read at a time when reading a file backwards."""

_MTIME_GRANULARITY_US = 50_000
"""File systems have coarse clocks: a file can appear this much older than its last event."""


class Entry(Struct, frozen=True):
    """One event in the journal.

    Attributes:
        type: "stage.wide", "pipeline.wide", or the type of a custom event.
        json: The data of the event, as JSON.
        writer: Name of the writer that wrote it.
        segment: Sequence number of the segment that contains it.
        offset: Offset of its line in the segment, in bytes. Retention and repairs do not change it.
    """

    type: str
    json: bytes
    writer: str
    segment: int = 0
    offset: int = 0

    def data(self) -> dict[str, Any] | None:
        """Return the data of the event.

        Raises:
            ValueError: The data is not a JSON object. Only code that calls a sink directly can write such
                data.
        """
        data: dict[str, Any] | None = decode_stored(self.json, dict[str, Any] | None)
        return data


class _Step(Struct, frozen=True):
    """One read step: an event or a skipped range, and the position after it."""

    writer: str
    position: Position
    entry: Entry | None = None
    broken: int = 0
    torn: int = 0
    missed: int = 0


class JournalReader:
    """Reads the events of all writers of a journal, including those that are still writing.

    The events of one run are returned in the order in which they were emitted. There is no order between runs
    of different processes. The reader completes runs whose process died, with `outcome: crashed`.

    A reader that starts after events were archived or deleted does not receive them; `removed_events` is
    their number. `EventStore` can still query the archived ones.

    A named reader resumes at its last `commit()`, and rereads the events that it read after that. Readers
    never block a writer. Segments older than `max_age` are deleted only after every named reader has read
    them, but a journal that exceeds its `max_bytes` deletes segments that were not read.

    Args:
        path: Directory of the journal.
        name: Name under which the position is stored; default None, for a reader without a stored position.
        at_end: Start after the events that exist now, unless the reader has a stored position.

    Attributes:
        events: Number of events read; for a named reader, since the name was first used.
        broken: Number of damaged lines that were skipped. Each of them is copied to `broken/`.
        torn: Number of incomplete last lines that were skipped because their writer died while writing them.
        missed: Number of segments that were deleted before the reader had read all of their lines. Unless it
            started with `at_end`, this includes those that were deleted before it first started.
        removed_events: Number of events that were archived or deleted before the reader first started.

    Raises:
        JournalNotFoundError: The directory does not exist.
        CursorInUseError: Another reader is using this name.
        DamagedFileError: The stored position cannot be read, or the cursor or its lock is not a regular file.
        InvalidArgumentError: The name is empty, longer than 100 characters, or contains characters other
            than letters, digits, ".", "_" and "-".

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
        self._held_step: _Step | None = None  # taken from `_pending_steps`, but larger than a read allowed
        _readers.add(self)

    def _acquire(self, name: str) -> OwnedFile:
        make_private_below(os.path.join(self.path, CURSORS))
        lock = open_owned(cursor_lock(self.path, name), os.O_RDWR | os.O_CREAT)
        if lock.lock():
            os.truncate(lock.fd, 0)
            os.write(lock.fd, b"%d" % os.getpid())
            return lock
        pid = os.read(lock.fd, 20).decode("ascii", "replace") or "?"
        lock.release()
        raise CursorInUseError(
            f"cursor {name!r} of journal {self.path!r} is in use by process {pid}",
            hint="only one reader can use a name at a time; use another name",
        )

    def _load(self, at_end: bool) -> CursorFile:
        cursor = load_cursor(self.path, self.name) if self.name is not None else None
        if cursor is None:
            # Store the start position: the reader counts segments that are deleted from now on as missed.
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
                        "reader %r of journal %s does not receive %d events that were removed before it"
                        " started; use `EventStore` to query those that were archived",
                        self.name,
                        self.path,
                        gone.events,
                    )
        return cursor

    # ------------------------------------------------------------ reading

    def read(
        self,
        limit: int = 1000,
        *,
        max_bytes: int | None = None,
        larger_alone: bool = True,
        until: Mapping[str, Position] | None = None,
        timeout: float = 0.0,
    ) -> list[Entry]:
        """Return the next events, or an empty list if there are none yet.

        Args:
            limit: Maximum number of events; default 1000.
            max_bytes: Maximum total size of their JSON, in bytes; default None for no maximum.
            larger_alone: Whether to return an event that is larger than `max_bytes`, alone; default True.
                Otherwise the list is empty, and the next call returns the event.
            until: Position in the segments of each writer before which to stop; no event of another writer is
                returned. Later calls must not pass earlier positions. Default None, for no such limit.
            timeout: Maximum time to wait for the first event, in seconds; default 0. The call blocks, so
                asynchronous code must call it in a separate thread.

        Raises:
            InvalidArgumentError: `limit`, `max_bytes` or `timeout` is out of range.
            ClosedError: The reader is closed.
            OSError: The journal cannot be read.
        """
        self._check_open()
        if not isinstance(limit, int) or limit < 1:
            raise invalid_argument("read()", "limit", limit, "a positive integer")
        if max_bytes is not None and (not isinstance(max_bytes, int) or max_bytes < 1):
            raise invalid_argument("read()", "max_bytes", max_bytes, "a positive integer or None")
        if not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise invalid_argument("read()", "timeout", timeout, "0 or more seconds")
        deadline = time.monotonic() + timeout
        while True:
            # The remainder of an earlier scan does not include files opened since then.
            is_new = self._pending_steps is None
            steps = self._next_steps(limit, max_bytes, larger_alone, until)
            for step in steps:
                self._apply(step)
            found = [step.entry for step in steps if step.entry is not None]
            left = deadline - time.monotonic()
            if found or self._held_step is not None or (is_new and not steps and left <= 0):
                return found
            if is_new and not steps:
                time.sleep(min(_POLL_SECONDS, left))

    def start_after(self, positions: Mapping[str, Position]) -> None:
        """Skip the events before the given positions; those of other writers are not skipped."""
        for writer, position in positions.items():
            if position > self._positions.get(writer, (0, 0)):
                self._positions[writer] = position
                self._resumed.add(writer)
        self._pending_steps = self._held_step = None

    def count(self, events: int) -> None:
        """Count events that were read elsewhere, so that `events` also numbers them."""
        self.events += events

    @property
    def positions(self) -> Mapping[str, Position]:
        """The position in the segments of each writer, after the events that were read."""
        return self._positions

    @property
    def has_more(self) -> bool:
        """True if the last `read` reached one of its limits, so that there may be more events."""
        return self._pending_steps is not None

    def __iter__(self) -> Iterator[Entry]:
        """Yield all events that exist now.

        Calling `commit()` during iteration commits the events yielded so far.
        """
        self._check_open()
        try:
            while steps := self._next_steps(1000):
                for step in steps:
                    self._apply(step)
                    if step.entry is not None:
                        yield step.entry
        finally:
            self._pending_steps = self._held_step = None  # the next read repeats steps that were not yielded

    def _apply(self, step: _Step) -> None:
        self._positions[step.writer] = step.position
        self.events += step.entry is not None
        self.broken += step.broken
        self.torn += step.torn
        self.missed += step.missed

    def _next_steps(
        self,
        limit: int,
        max_bytes: int | None = None,
        larger_alone: bool = True,
        until: Mapping[str, Position] | None = None,
    ) -> list[_Step]:
        """Return the next steps, with up to `limit` events. An error loses none: nothing is applied yet."""
        for _ in range(_MAX_ATTEMPTS):
            if self._pending_steps is None:
                self._complete_crashed()
                self._pending_steps = self._steps(until)
            found: list[_Step] = []
            events = size = 0
            steps, self._pending_steps = self._pending_steps, None
            held, self._held_step = self._held_step, None
            try:
                for step in steps if held is None else itertools.chain((held,), steps):
                    if max_bytes is not None and step.entry is not None:
                        size += len(step.entry.json)
                        if size > max_bytes and (events or not larger_alone):
                            self._pending_steps, self._held_step = steps, step
                            break
                    found.append(step)
                    events += step.entry is not None
                    if events >= limit:
                        self._pending_steps = steps
                        break
            except FileNotFoundError:
                if not found:
                    continue  # a file was deleted in the meantime: list the directory again
            except OSError:
                if not found:
                    raise  # otherwise return the events found so far; the next read raises
            return found
        return []

    def _complete_crashed(self) -> None:
        now = time.monotonic()
        if now - self._last_recovery >= _RECOVERY_INTERVAL_SECONDS:
            self._last_recovery = now
            # A reader without write permission reads the journal without completing crashed runs.
            with contextlib.suppress(OSError):
                recover(self.path, closed=self._closed)

    def _steps(self, until: Mapping[str, Position] | None) -> Iterator[_Step]:
        # List the segments before reading any: a segment with a successor in the list is complete.
        writers = list_writers(self.path)
        for gone in self._positions.keys() - writers.keys():
            del self._positions[gone]
        errors: list[OSError] = []
        for writer, segments in writers.items():
            try:
                steps = self._steps_of(writer, segments)
                if until is not None:
                    end = until.get(writer, (0, 0))
                    steps = itertools.takewhile(lambda step, end=end: step.position <= end, steps)  # type: ignore[misc]
                yield from steps
            except FileNotFoundError:
                raise
            except OSError as error:  # only this writer is affected; read the segments of the others
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
                # This is not the file that was read before; it was restored or replaced.
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
            yield _Step(writer, (sequence, offset), missed=1)  # the remaining lines are still read
        while True:
            chunk = read_chunk(segment, offset)
            for line in chunk.lines:
                position = (sequence, line.offset + len(line.text) + 1)
                found = decode(line.text)
                if found is not None and isinstance(found.data, Raw):
                    yield _Step(
                        writer, position, Entry(found.type, bytes(found.data), writer, sequence, line.offset)
                    )
                # A repair replaces a damaged line with spaces.
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
        with contextlib.suppress(OSError):  # a reader without write permission cannot copy the line
            quarantine_line(self.path, segment.name, line.offset, line.text)

    # ------------------------------------------------------------ position

    def commit(self) -> None:
        """Store the current position, so that the events read so far are not read again.

        The position is synced to disk, so it survives a machine crash.

        Raises:
            InvalidArgumentError: The reader has no name.
            ClosedError: The reader is closed.
            CursorInUseError: Other code in this process closed the reader's lock file, and another reader
                acquired the name.
            OSError: The position could not be written; the previously stored position is unchanged.
        """
        if self.name is None:
            raise InvalidArgumentError("commit() requires a named reader", hint='JournalReader(path, "name")')
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
            raise ClosedError(
                f"reader {self.name!r} of journal {self.path!r} is closed"
                " (a reader is closed in the child process after a fork)",
                hint="create a new JournalReader",
            )

    def close(self) -> None:
        """Release the name. Events that were not committed will be read again."""
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
    """Wait for retention to finish, and block it, so that all deleted segments are counted.

    After `_PAUSE_SECONDS`, continue without blocking it.
    """
    deadline = time.monotonic() + _PAUSE_SECONDS
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a reader without write permission cannot pause it
            while not stack.enter_context(try_lock(os.path.join(directory, LOCK))):
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
    except FileNotFoundError:  # deleted in the meantime
        return (last.sequence + 1, 0)


_readers: weakref.WeakSet[JournalReader] = weakref.WeakSet()


def _reset_after_fork() -> None:
    # The name belongs to the parent. Its lock was closed with all other inherited locks.
    for reader in list(_readers):
        reader._lock = None


os.register_at_fork(after_in_child=_reset_after_fork)


class Unread(Struct, frozen=True):
    """What a named reader has not read yet, according to its stored position.

    Attributes:
        events: Number of events.
        bytes: Number of bytes, including marks.
        oldest: RFC 3339 time of the oldest of these events, or None.
    """

    events: int = 0
    bytes: int = 0
    oldest: str | None = None


def unread(directory: str, name: str) -> Unread:
    """Return what a named reader has not read yet. Reads all of it; a reader without a position read nothing.

    Args:
        directory: Directory of the journal.
        name: Name of the reader.

    Raises:
        DamagedFileError: The stored position cannot be read.
        OSError: The journal cannot be read.
    """
    cursor = load_cursor(directory, name) or CursorFile()
    events = size = 0
    oldest: str | None = None
    for writer, segments in list_writers(directory).items():
        at, offset = cursor.positions.get(writer, (0, 0))
        first = True  # the events of a writer are ordered by time
        for segment in segments:
            if segment.sequence >= at:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    for line in _lines_from(segment, offset if segment.sequence == at else 0):
                        size += len(line) + 1
                        if is_event(line):
                            events += 1
                            if first and (written := _time_of_line(line)) is not None:
                                first, oldest = False, min(oldest or written, written)
    return Unread(events, size, oldest)


def _lines_from(segment: Segment, offset: int) -> Iterator[bytes]:
    while True:
        chunk = read_chunk(segment, offset)
        if chunk.end == offset:
            return
        for line in chunk.lines:
            yield line.text
        offset = chunk.end


def _time_of_line(text: bytes) -> str | None:
    line = decode(text)
    if line is None or not isinstance(line.data, Raw) or (times := _decode_times(line.data)) is None:
        return None
    for at in (times.ended_at, times.emitted_at, times.amended_at):
        if isinstance(at, str) and is_timestamp(at):
            return at
    return None


class _Times(msgspec.Struct):
    ended_at: object = None
    emitted_at: object = None
    amended_at: object = None


_decode_times = decoder(_Times)


def newest_entries(
    directory: str, limit: int, matches: Callable[[Entry], bool], may_match: Callable[[bytes], bool]
) -> list[Entry]:
    """Return the newest events that match, oldest first.

    Files are read backwards, newest first, until enough events have been found. The events of one process are
    in the order of its journal.

    Args:
        directory: Directory of the journal.
        limit: Maximum number of events.
        matches: Returns whether to include an event.
        may_match: Returns whether an undecoded line can contain a matching event.

    Raises:
        OSError: The directory cannot be read.
    """
    found: list[Entry] = []
    if limit > 0:
        for entry in _entries_backwards(directory, may_match):
            if matches(entry):
                found.append(entry)
                if len(found) == limit:
                    break
    return found[::-1]


def _entries_backwards(directory: str, may_match: Callable[[bytes], bool]) -> Iterator[Entry]:
    """Yield the events of all writers, newest first.

    Writers are ordered by the time of their last write, and the files of a writer are opened only when no
    other writer has newer events.
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
            # An event without a time keeps the time of its neighbor.
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
    """Yield the complete lines of a segment, last one first."""
    if segment.pruned:  # a pruned segment is small
        yield from [line.text for line in read_lines(segment)][::-1]
        return
    with open_segment(segment) as file:
        end = file.seek(0, os.SEEK_END)
        rest: bytes | None = None  # the bytes before the first newline in the part read so far
        while end > 0:
            start = max(0, end - _CHUNK)
            data = os.pread(file.fileno(), end - start, start)
            end = start
            first, *lines = data.split(b"\n")
            if not lines:  # a line longer than a chunk
                rest = first + (rest or b"") if rest is not None else None
                continue
            last = lines.pop()
            if rest is not None:  # otherwise `last` is the end of the file, empty or torn
                lines.append(last + rest)
            rest = first
            yield from filter(None, reversed(lines))
        if rest:
            yield rest
