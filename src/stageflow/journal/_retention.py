"""Makes room in a journal: deletes what is too old or too much, records of failed runs last, and counts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from msgspec import Struct

from .._failures import FailureOutcomes
from .._files import NO_ROOM, is_locked, is_regular, make_private, only_one, replace_file
from .._state_file import StateFile, encode_state, read_state
from .._time import rfc3339
from ..errors import DamagedFileError
from ..schema import RunClosed
from ._cursor import Count, positions_of_all
from ._format import (
    PIPELINE_WIDE,
    RUN_CLOSED,
    RUN_OPEN,
    WRITER_CLOSED,
    PrunedHeader,
    encode_mark,
    is_event,
    outcome_of,
    run_of,
)
from ._recovery import recover
from ._segments import (
    BROKEN,
    DELETED,
    FAILURES,
    LOCK,
    LineAt,
    Segment,
    find_lines,
    has_intact_header,
    last_line_starts_with,
    list_writers,
    original_size,
    quarantine_file,
    read_lines,
    segment_name,
)

__all__ = [
    "DELETED_FILE",
    "FAILURES_FILE",
    "Deleted",
    "RetentionPolicy",
    "is_complete_since",
    "read_deletion_counts",
    "read_failures",
    "retention_has_run",
    "write_failures",
]


FAILURES_FILE = StateFile(
    FAILURES,
    FailureOutcomes,
    "set `failure_outcomes` again, with `stageflow.configure` or in `[tool.stageflow]`;"
    " `stageflow doctor --repair` moves the file to broken/; failed, timeout and crashed are then failures",
    after="set `failure_outcomes` again, unless it had its default: failed, timeout and crashed",
)


def read_failures(journal: str | None) -> FailureOutcomes:
    """Return which outcomes count as failures in a journal; the default if it does not state any.

    Raises:
        DamagedFileError: The file is damaged. The default could be another definition.
        OSError: It cannot be read.
    """
    if journal is None:
        return FailureOutcomes()
    found = read_state(os.path.join(journal, FAILURES), FailureOutcomes, FAILURES_FILE.remedy)
    return found or FailureOutcomes()


def write_failures(journal: str, failures: FailureOutcomes) -> None:
    """Store which outcomes count as failures, also in place of a damaged file.

    Raises:
        OSError: The directory cannot be written.
    """
    try:
        same = read_failures(journal) == failures
    except ValueError:
        same = False
    if not same:
        make_private(journal)
        replace_file(os.path.join(journal, FAILURES), encode_state(failures))


class Deleted(Struct, frozen=True):
    """What was deleted of a journal so far.

    Attributes:
        lines: How many lines.
        bytes: How many bytes.
        unread: How many segments were deleted before every cursor had read them.
        events: How many of the lines were events. The others are marks, such as the start of a run.
        files: How many segments were deleted as a whole.
        until: RFC 3339: the latest modification time of a segment of which something was deleted. The journal
            has every event that was written later. None if nothing was deleted, or if it is unknown.
    """

    lines: Count = 0
    bytes: Count = 0
    unread: Count = 0
    events: Count = 0
    files: Count = 0
    until: str | None = None

    def __add__(self, other: Deleted) -> Deleted:
        return Deleted(
            self.lines + other.lines,
            self.bytes + other.bytes,
            self.unread + other.unread,
            self.events + other.events,
            self.files + other.files,
            max(filter(None, (self.until, other.until)), default=None),
        )


class RetentionPolicy(Struct, frozen=True):
    """How much of a journal may stay, and for how long.

    Attributes:
        max_bytes: Bound on all segments together, or None.
        max_age: Seconds since a segment was last written to, or None.
    """

    max_bytes: int | None = None
    max_age: float | None = None

    def apply(self, directory: str, should_stop: Callable[[], bool] = lambda: False) -> Deleted:
        """Delete what is too old and has been read, and then, oldest first, what is too much.

        Segments that are being written to stay. It does nothing while another process does the same.

        Args:
            directory: Of the journal.
            should_stop: Asked now and then; True to leave the rest for another time.

        Raises:
            OSError: The directory cannot be read or written.
        """
        if self.max_bytes is None and self.max_age is None:
            return Deleted()
        if not self._is_due(directory):
            return Deleted()
        with contextlib.suppress(OSError):
            recover(directory)  # what is left of a dead writer must be complete before a part of it goes
        with only_one(os.path.join(directory, LOCK)) as alone:
            if not alone:
                return Deleted()
            _mark_retention(directory)
            retention = _RetentionPass(directory, should_stop)
            retention.remove_superseded()
            deleted = retention.apply(self)
            if deleted != Deleted():
                _count_deleted(directory, deleted)
            if retention.errors and deleted == Deleted():
                raise retention.errors[0]
            return deleted

    def _is_due(self, directory: str) -> bool:
        """Tell whether anything is too old or too much, without a look into any file."""
        segments = [segment for segments in list_writers(directory).values() for segment in segments]
        if any(segment.pruned and is_regular(os.path.join(directory, segment.name)) for segment in segments):
            return True
        if self.max_bytes is not None and sum(map(_size, segments)) > self.max_bytes:
            return True
        return self.max_age is not None and any(
            time.time() - _age_key(segment)[0] > self.max_age for segment in segments
        )


DELETED_FILE = StateFile(
    DELETED,
    Deleted,
    "`stageflow doctor --repair` moves it to broken/, and the counts of deleted events restart at zero",
)


def read_deletion_counts(directory: str) -> Deleted:
    """Return a journal's counts of deleted events.

    Raises:
        DamagedFileError: The counts cannot be read.
    """
    path = os.path.join(directory, DELETED)
    return read_state(path, Deleted, DELETED_FILE.remedy) or Deleted()


def retention_has_run(directory: str) -> bool:
    """Return whether retention or archiving may have removed something, counted or not."""
    moved = os.path.join(directory, BROKEN, f"{DELETED}-1")
    return any(os.path.lexists(path) for path in (os.path.join(directory, DELETED), moved))


def is_complete_since(directory: str, since: str) -> bool:
    """Return whether a journal has every event that was written at or after a moment.

    Args:
        directory: Directory of the journal.
        since: RFC 3339, in UTC with six decimal places of the second.
    """
    if not retention_has_run(directory):
        return True
    try:
        until = read_deletion_counts(directory).until
    except OSError:
        return False
    return until is not None and since > until


def _mark_retention(directory: str) -> None:
    """Write the counts before the first removal: a process that is killed after it has counted nothing."""
    if not retention_has_run(directory):
        with contextlib.suppress(OSError):  # on a full disk, making room is what matters
            replace_file(os.path.join(directory, DELETED), encode_state(Deleted()))


def _count_deleted(directory: str, deleted: Deleted) -> None:
    path = os.path.join(directory, DELETED)
    try:
        before = read_deletion_counts(directory)
    except DamagedFileError:  # earlier counts are lost; counting restarts here
        quarantine_file(directory, path)
        before = Deleted(until=_latest_write(time.time()))
    replace_file(path, encode_state(before + deleted))


class _RetentionPass:
    """One time that room is made."""

    def __init__(self, directory: str, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop
        self.directory = directory
        self.writers = list_writers(directory)
        self.read = positions_of_all(directory)
        self.failures = _failures(directory)
        self.until: str | None = None
        self.errors: list[OSError] = []
        # What has no end in one of these may be open still, or is yet to be told as crashed.
        self.unfinished = {
            writer for writer, segments in self.writers.items() if not self._is_closed(segments)
        }
        self.live: set[str] = set()
        self._ends_in: dict[str, dict[str, bool]] = {}
        self.deleted = Deleted()
        self.size = sum(_size(segment) for segments in self.writers.values() for segment in segments)

    def apply(self, policy: RetentionPolicy) -> Deleted:
        """Delete what is due, and return what it was."""
        closed = sorted(self._segments_not_in_use(), key=_age_key)
        if policy.max_age is not None:
            oldest = time.time() - policy.max_age
            old = [
                segment
                for segment in closed
                if _age_key(segment)[0] < oldest and self._may_be_deleted(segment)
            ]
            if old:
                self._record_until(max(old, key=_age_key))
            for segment in old:
                if self.should_stop():
                    return self.deleted
                left = self._reduce(segment, failed=False)
                closed[closed.index(segment) : closed.index(segment) + 1] = [left] if left else []
        if policy.max_bytes is not None:
            # First everything but the records of failed runs, oldest first; then those as well.
            kept = [segment for segment in closed if segment.pruned]
            for segment in closed:
                if self.size > policy.max_bytes and not segment.pruned and not self.should_stop():
                    kept += filter(None, [self._reduce(segment)])
            dead = self.unfinished - self.live
            for segment in sorted(kept, key=_age_key):
                if segment.writer in dead:
                    continue
                if self.size > policy.max_bytes and not self.should_stop():
                    try:
                        self._delete(segment, [*read_lines(segment)])
                    except OSError as error:
                        self.errors.append(error)
        return self.deleted

    def _is_closed(self, segments: list[Segment]) -> bool:
        try:
            return last_line_starts_with(segments[-1], WRITER_CLOSED)
        except OSError:
            return False

    def _segments_not_in_use(self) -> Iterator[Segment]:
        """Return the segments that nobody writes to."""
        for segments in self.writers.values():
            try:
                if is_locked(segments[-1].path):
                    self.live.add(segments[-1].writer)
                    yield from segments[:-1]
                else:
                    yield from segments
            except FileNotFoundError:
                pass
            except OSError as error:  # only this writer is affected: continue with the segments of the others
                self.live.add(segments[-1].writer)
                self.errors.append(error)

    def _was_read(self, segment: Segment) -> bool:
        if not self.read:
            return True
        end = (segment.sequence, original_size(segment))
        return all(end <= positions.get(segment.writer, (0, 0)) for positions in self.read)

    def _may_be_deleted(self, segment: Segment) -> bool:
        try:
            return self._was_read(segment)
        except OSError as error:
            self.errors.append(error)
            return False

    def _reduce(self, segment: Segment, *, failed: bool = True) -> Segment | None:
        """Leave of a segment only the lines of runs that failed, or are open; or nothing at all."""
        try:
            return self._reduce_readable(segment, failed)
        except PermissionError:  # another user's: not ours to delete
            return segment
        except OSError as error:  # keep it, and continue with the others
            self.errors.append(error)
            return segment

    def _reduce_readable(self, segment: Segment, failed: bool) -> Segment | None:
        lines = [(line, run_of(line.text)) for line in read_lines(segment)]
        keep = self._runs_to_keep(segment, {run for _, run in lines if run}, failed)
        began = {run for line, run in lines if line.text.startswith(RUN_OPEN)}
        of_writer = self.writers[segment.writer]
        is_first, is_last = segment == of_writer[0], segment == of_writer[-1]
        left: list[LineAt] = []
        for line, run in lines:
            if run in keep:
                left.append(line)
            elif line.text.startswith((PIPELINE_WIDE, RUN_CLOSED)) and run not in began and not is_first:
                # It began in an earlier segment, of which that line may have been kept: without a
                # word of its end, it would be taken for open, and then for crashed.
                end = encode_mark(RunClosed(run, "its record was deleted to make room")).rstrip()
                left.append(LineAt(line.offset, end))
            elif line.text.startswith(WRITER_CLOSED) and is_last and (left or not is_first):
                left.append(line)  # or the writer would be taken for dead, and completed again
        if not left:
            self._delete(segment, [line for line, _ in lines])
            return None
        if left == [line for line, _ in lines]:
            return segment
        return self._replace(segment, left, [line for line, _ in lines])

    def _replace(self, segment: Segment, left: list[LineAt], lines: list[LineAt]) -> Segment | None:
        size, (written, _) = _size(segment), _age_key(segment)
        header = encode_mark(PrunedHeader(original_size(segment), [line.offset for line in left]))
        name = segment_name(segment.writer, segment.sequence, pruned=True)
        path = os.path.join(self.directory, name)
        reduced = Segment(path, segment.writer, segment.pid, segment.sequence, True)
        unread = not self._was_read(segment)
        self._record_until(segment)
        try:
            replace_file(path, header + b"".join(line.text + b"\n" for line in left))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if segment.writer in self.unfinished:
                return segment  # its open runs are yet to be told
            # Not even for that is there room: better these records than all that are to come.
            self._delete(segment, lines)
            return None
        os.utime(path, (written, written))
        if not segment.pruned:
            os.unlink(segment.path)
        self.size += _size(reduced) - size
        # The dropped lines may be shorter than the new header.
        events = _events_in(lines) - _events_in(left)
        self.deleted += Deleted(
            len(lines) - len(left), max(size - _size(reduced), 0), int(unread), max(events, 0)
        )
        segments = self.writers[segment.writer]
        segments[segments.index(segment)] = reduced
        return reduced

    def _runs_to_keep(self, segment: Segment, runs: set[str], failed: bool) -> set[str]:
        unknown, worth = set(runs), set()
        for place in self.writers[segment.writer]:
            if not unknown:
                break
            if place.sequence >= segment.sequence:
                ends = self._run_ends(place)
                worth |= {run for run in unknown if failed and ends.get(run)}
                unknown -= ends.keys()
        # What has no end in a writer that has ended was no run: events that were emitted by hand.
        return worth | unknown if segment.writer in self.unfinished else worth

    def _run_ends(self, segment: Segment) -> dict[str, bool]:
        """Return the runs that ended in a segment, and whether each counts as a failure."""
        known = self._ends_in.get(segment.name)
        if known is None:
            lines = find_lines(segment, PIPELINE_WIDE, RUN_CLOSED)
            known = self._ends_in[segment.name] = {
                run_of(text): self.failures.is_failure(outcome_of(text)) for text in lines
            }
        return known

    def _delete(self, segment: Segment, lines: list[LineAt]) -> None:
        size, unread = _size(segment), not self._was_read(segment)
        self._record_until(segment)
        os.unlink(segment.path)
        self.size -= size
        self.deleted += Deleted(len(lines), size, int(unread), _events_in(lines), files=1)
        self.writers[segment.writer].remove(segment)

    def _record_until(self, segment: Segment) -> None:
        """Store the modification time of a segment before a part of it is deleted; see `Deleted.until`."""
        until = _latest_write(_age_key(segment)[0])
        if self.until is None or until > self.until:
            with contextlib.suppress(OSError):  # on a full disk, making room is what matters
                _count_deleted(self.directory, Deleted(until=until))
            self.until = until
            self.deleted += Deleted(until=until)

    def remove_superseded(self) -> None:
        """Remove what a process that was killed had replaced already, and not yet removed."""
        for segments in self.writers.values():
            for kept in segments:
                path = os.path.join(self.directory, kept.name)
                if kept.pruned and is_regular(path) and has_intact_header(kept):
                    whole = Segment(path, kept.writer, kept.pid, kept.sequence, False)
                    try:
                        lines, size = _line_count(whole) - _line_count(kept), _size(whole)
                        os.unlink(path)
                    except OSError as error:
                        self.errors.append(error)
                        continue
                    self.deleted += Deleted(max(lines, 0), max(size - _size(kept), 0), 0)


def _failures(directory: str) -> FailureOutcomes:
    try:
        return read_failures(directory)
    except OSError:  # a damaged definition must not keep the disk full
        return FailureOutcomes()


def _line_count(segment: Segment) -> int:
    return sum(1 for _ in read_lines(segment))


def _size(segment: Segment) -> int:
    try:
        return os.stat(segment.path).st_size
    except FileNotFoundError:  # deleted since it was listed
        return 0


def _events_in(lines: list[LineAt]) -> int:
    return sum(is_event(line.text) for line in lines)


def _latest_write(seconds: float) -> str:
    """Return a moment up to which events in a file may have been written: file systems have coarse clocks."""
    return rfc3339(int(seconds * 1_000_000) + 1_000_000)


def _age_key(segment: Segment) -> tuple[float, str]:
    """Return when a segment was last written to, and its path, to be sorted by."""
    try:
        return os.stat(segment.path).st_mtime, segment.path
    except FileNotFoundError:
        return time.time(), segment.path
