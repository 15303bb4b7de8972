"""Retention: deletes or prunes old segments, records of failed runs last, and counts what it deletes."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator

from msgspec import Struct

from .._failures import FailureOutcomes
from .._files import NO_ROOM, is_locked, is_regular, make_private, replace_file, try_lock
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
    " `stageflow doctor --repair` moves the file to broken/; failed, timeout and crashed then count as"
    " failures",
    after="set `failure_outcomes` again, unless it had its default: failed, timeout and crashed",
)


def read_failures(journal: str | None) -> FailureOutcomes:
    """Return which outcomes count as failures in a journal; the default if it defines none.

    Raises:
        DamagedFileError: The file is damaged. Falling back to the default could change what counts as failed.
        OSError: The file cannot be read.
    """
    if journal is None:
        return FailureOutcomes()
    found = read_state(os.path.join(journal, FAILURES), FailureOutcomes, FAILURES_FILE.remedy)
    return found or FailureOutcomes()


def write_failures(journal: str, failures: FailureOutcomes) -> None:
    """Store which outcomes count as failures. This replaces a damaged file.

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
    """Counts of what retention and archiving have deleted from a journal.

    Attributes:
        lines: Number of deleted lines.
        bytes: Number of deleted bytes.
        unread: Number of segments that were deleted before every named reader had read them.
        events: Number of deleted lines that were events. The others are marks, such as the start of a run.
        files: Number of segments that were deleted as a whole.
        until: RFC 3339: the latest modification time of a segment from which anything was deleted. The
            journal contains every event that was written later. None if nothing was deleted, or if the time
            is unknown.
        missed: Number of events that each named reader had not read, according to its stored position, when
            they were deleted.
    """

    lines: Count = 0
    bytes: Count = 0
    unread: Count = 0
    events: Count = 0
    files: Count = 0
    until: str | None = None
    missed: dict[str, Count] = {}

    def __add__(self, other: Deleted) -> Deleted:
        return Deleted(
            self.lines + other.lines,
            self.bytes + other.bytes,
            self.unread + other.unread,
            self.events + other.events,
            self.files + other.files,
            max(filter(None, (self.until, other.until)), default=None),
            dict(Counter(self.missed) + Counter(other.missed)),
        )


_RISK = 0.8
"""Share of `max_bytes` from which the unread segments of a reader are at risk of being deleted."""


class RetentionPolicy(Struct, frozen=True):
    """The size and age limits of a journal.

    Attributes:
        max_bytes: Maximum total size of all segments, in bytes, or None.
        max_age: Maximum time since a segment was last written to, in seconds, or None.
    """

    max_bytes: int | None = None
    max_age: float | None = None

    def apply(self, directory: str, should_stop: Callable[[], bool] = lambda: False) -> Deleted:
        """Delete old segments that every cursor has read, then the oldest ones beyond the size limit.

        Segments that are being written to are not deleted. If another process is applying retention, this
        call does nothing.

        Args:
            directory: Directory of the journal.
            should_stop: Called between segments; if it returns True, the rest is left for the next call.

        Returns:
            Counts of what was deleted.

        Raises:
            OSError: The directory cannot be read or written.
        """
        if self.max_bytes is None and self.max_age is None:
            return Deleted()
        if not self._is_due(directory):
            return Deleted()
        with contextlib.suppress(OSError):
            recover(directory)  # complete the record of a dead writer before deleting a part of it
        with try_lock(os.path.join(directory, LOCK)) as alone:
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

    def readers_at_risk(self, directory: str) -> dict[str, int]:
        """Return the named readers whose unread segments will soon be deleted, and their unread bytes.

        These are the readers with unread bytes of more than 80 % of `max_bytes`.

        Args:
            directory: Directory of the journal.

        Raises:
            OSError: The directory cannot be read.
        """
        if self.max_bytes is None:
            return {}
        sizes = [
            (segment, _size(segment)) for segments in list_writers(directory).values() for segment in segments
        ]
        if sum(size for _, size in sizes) <= _RISK * self.max_bytes:
            return {}
        found = {}
        for name, positions in positions_of_all(directory).items():
            behind = 0
            for segment, size in sizes:
                at, offset = positions.get(segment.writer, (0, 0))
                if segment.sequence >= at:
                    behind += max(0, size - (offset if segment.sequence == at else 0))
            if behind > _RISK * self.max_bytes:
                found[name] = behind
        return found

    def _is_due(self, directory: str) -> bool:
        """Return whether anything exceeds a limit, without opening any segment."""
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
    """Return whether retention or archiving may have removed anything, counted or not."""
    moved = os.path.join(directory, BROKEN, f"{DELETED}-1")
    return any(os.path.lexists(path) for path in (os.path.join(directory, DELETED), moved))


def is_complete_since(directory: str, since: str) -> bool:
    """Return whether a journal contains every event that was written at or after a time.

    Args:
        directory: Directory of the journal.
        since: RFC 3339 time in UTC, with six decimal places.
    """
    if not retention_has_run(directory):
        return True
    try:
        until = read_deletion_counts(directory).until
    except OSError:
        return False
    return until is not None and since > until


def _mark_retention(directory: str) -> None:
    """Write the counts file before the first removal, because the process may be killed before it counts."""
    if not retention_has_run(directory):
        with contextlib.suppress(OSError):  # on a full disk, deleting is more important than counting
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
    """One application of a retention policy."""

    def __init__(self, directory: str, should_stop: Callable[[], bool]) -> None:
        self.should_stop = should_stop
        self.directory = directory
        self.writers = list_writers(directory)
        self.read = positions_of_all(directory)
        self.failures = _failures(directory)
        self.until: str | None = None
        self.errors: list[OSError] = []
        # A run of one of these writers that has no end is in progress, or has not been recorded as crashed
        # yet.
        self.unfinished = {
            writer for writer, segments in self.writers.items() if not self._is_closed(segments)
        }
        self.live: set[str] = set()
        self._ends_in: dict[str, dict[str, bool]] = {}
        self.deleted = Deleted()
        self.size = sum(_size(segment) for segments in self.writers.values() for segment in segments)

    def apply(self, policy: RetentionPolicy) -> Deleted:
        """Delete what exceeds the limits, and return the counts."""
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
                remaining = self._prune(segment, keep_failed=False)
                closed[closed.index(segment) : closed.index(segment) + 1] = [remaining] if remaining else []
        if policy.max_bytes is not None:
            # First prune segments to the records of failed runs, oldest first. Then delete those records.
            pruned = [segment for segment in closed if segment.pruned]
            for segment in closed:
                if self.size > policy.max_bytes and not segment.pruned and not self.should_stop():
                    pruned += filter(None, [self._prune(segment)])
            dead = self.unfinished - self.live
            for segment in sorted(pruned, key=_age_key):
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
        """Yield the segments that no process is writing to."""
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
        return all(end <= positions.get(segment.writer, (0, 0)) for positions in self.read.values())

    def _missed_by(self, segment: Segment, removed: list[LineAt]) -> dict[str, int]:
        """Return the number of removed events that each named reader has not read."""
        missed = {}
        for name, positions in self.read.items():
            at, offset = positions.get(segment.writer, (0, 0))
            if segment.sequence >= at:
                start = offset if segment.sequence == at else 0
                missed[name] = _events_in([line for line in removed if line.offset >= start])
        return {name: count for name, count in missed.items() if count}

    def _may_be_deleted(self, segment: Segment) -> bool:
        try:
            return self._was_read(segment)
        except OSError as error:
            self.errors.append(error)
            return False

    def _prune(self, segment: Segment, *, keep_failed: bool = True) -> Segment | None:
        """Keep only the lines of failed and open runs of a segment; delete the segment if none remain."""
        try:
            return self._prune_readable(segment, keep_failed)
        except PermissionError:  # the segment belongs to another user
            return segment
        except OSError as error:  # keep it, and continue with the others
            self.errors.append(error)
            return segment

    def _prune_readable(self, segment: Segment, keep_failed: bool) -> Segment | None:
        lines = [(line, run_of(line.text)) for line in read_lines(segment)]
        keep = self._runs_to_keep(segment, {run for _, run in lines if run}, keep_failed)
        started = {run for line, run in lines if line.text.startswith(RUN_OPEN)}
        writer_segments = self.writers[segment.writer]
        is_first, is_last = segment == writer_segments[0], segment == writer_segments[-1]
        remaining: list[LineAt] = []
        for line, run in lines:
            if run in keep:
                remaining.append(line)
            elif line.text.startswith((PIPELINE_WIDE, RUN_CLOSED)) and run not in started and not is_first:
                # The run started in an earlier segment, which may still contain its start. Without an end,
                # the run would be treated as open, and then as crashed.
                end = encode_mark(RunClosed(run, "its record was deleted by retention")).rstrip()
                remaining.append(LineAt(line.offset, end))
            elif line.text.startswith(WRITER_CLOSED) and is_last and (remaining or not is_first):
                remaining.append(line)  # otherwise the writer would be treated as dead, and completed again
        if not remaining:
            self._delete(segment, [line for line, _ in lines])
            return None
        if remaining == [line for line, _ in lines]:
            return segment
        return self._replace(segment, remaining, [line for line, _ in lines])

    def _replace(self, segment: Segment, remaining: list[LineAt], lines: list[LineAt]) -> Segment | None:
        size, (written, _) = _size(segment), _age_key(segment)
        header = encode_mark(PrunedHeader(original_size(segment), [line.offset for line in remaining]))
        name = segment_name(segment.writer, segment.sequence, pruned=True)
        path = os.path.join(self.directory, name)
        pruned = Segment(path, segment.writer, segment.pid, segment.sequence, True)
        unread = not self._was_read(segment)
        self._record_until(segment)
        try:
            replace_file(path, header + b"".join(line.text + b"\n" for line in remaining))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if segment.writer in self.unfinished:
                return segment  # its open runs have not been recorded as crashed yet
            # The disk has no space for the pruned copy. Lose these records instead of all future ones.
            self._delete(segment, lines)
            return None
        os.utime(path, (written, written))
        if not segment.pruned:
            os.unlink(segment.path)
        self.size += _size(pruned) - size
        # The dropped lines may be shorter than the new header.
        events = _events_in(lines) - _events_in(remaining)
        kept = {line.offset for line in remaining if is_event(line.text)}
        self.deleted += Deleted(
            len(lines) - len(remaining),
            max(size - _size(pruned), 0),
            int(unread),
            max(events, 0),
            missed=self._missed_by(segment, [line for line in lines if line.offset not in kept]),
        )
        segments = self.writers[segment.writer]
        segments[segments.index(segment)] = pruned
        return pruned

    def _runs_to_keep(self, segment: Segment, runs: set[str], keep_failed: bool) -> set[str]:
        open_runs, failed = set(runs), set()
        for later in self.writers[segment.writer]:
            if not open_runs:
                break
            if later.sequence >= segment.sequence:
                ends = self._run_ends(later)
                failed |= {run for run in open_runs if keep_failed and ends.get(run)}
                open_runs -= ends.keys()
        # Ids without an end in a closed writer are not runs: they belong to manually emitted events.
        return failed | open_runs if segment.writer in self.unfinished else failed

    def _run_ends(self, segment: Segment) -> dict[str, bool]:
        """Return for each run that ended in a segment whether it counts as a failure."""
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
        missed = self._missed_by(segment, lines)
        self.deleted += Deleted(len(lines), size, int(unread), _events_in(lines), files=1, missed=missed)
        self.writers[segment.writer].remove(segment)

    def _record_until(self, segment: Segment) -> None:
        """Store the modification time of a segment before a part of it is deleted; see `Deleted.until`."""
        until = _latest_write(_age_key(segment)[0])
        if self.until is None or until > self.until:
            with contextlib.suppress(OSError):  # on a full disk, deleting is more important than counting
                _count_deleted(self.directory, Deleted(until=until))
            self.until = until
            self.deleted += Deleted(until=until)

    def remove_superseded(self) -> None:
        """Remove the originals of pruned segments that a killed process had replaced but not removed."""
        for segments in self.writers.values():
            for pruned in segments:
                path = os.path.join(self.directory, pruned.name)
                if pruned.pruned and is_regular(path) and has_intact_header(pruned):
                    original = Segment(path, pruned.writer, pruned.pid, pruned.sequence, False)
                    try:
                        lines, size = _line_count(original) - _line_count(pruned), _size(original)
                        os.unlink(path)
                    except OSError as error:
                        self.errors.append(error)
                        continue
                    self.deleted += Deleted(max(lines, 0), max(size - _size(pruned), 0), 0)


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
    """Return an upper bound for the time of the last write, because file systems have coarse clocks."""
    return rfc3339(int(seconds * 1_000_000) + 1_000_000)


def _age_key(segment: Segment) -> tuple[float, str]:
    """Return a sort key: the time of the last write to a segment, and its path."""
    try:
        return os.stat(segment.path).st_mtime, segment.path
    except FileNotFoundError:
        return time.time(), segment.path
