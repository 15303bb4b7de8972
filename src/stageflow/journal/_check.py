"""Checks every line and state file of a journal, and reports its writers, readers and damage."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from msgspec import Struct

from .._files import is_locked, is_regular, network_file_system
from .._state_file import StateFile, read_state
from ..errors import DamagedFileError
from ._cursor import CursorFile, cursor_lock, cursor_names, cursor_state_file, load_cursor
from ._format import decode
from ._losses import MissingSegments, closed_by, missing_segments, runs_without_end
from ._recovery import open_runs, writer_is_alive, writer_is_closed
from ._retention import DELETED_FILE, FAILURES_FILE, Deleted, read_deletion_counts, retention_has_run
from ._segments import (
    BROKEN,
    CURSORS,
    Segment,
    Writers,
    has_intact_header,
    is_temporary,
    list_writers,
    misplaced,
    open_segment,
)

__all__ = [
    "UNREADABLE",
    "CursorState",
    "Damage",
    "DamagedFile",
    "JournalState",
    "Progress",
    "WriterState",
    "check",
    "cursor_state",
    "entry_names",
    "leftover_files",
]


_CHUNK = 4 << 20

_MAX_IDS = 5
"""Maximum number of run ids that a problem lists."""

_MOVE = "`stageflow doctor --repair` moves it to broken/"
_HEADER_DAMAGED = "its first line, which contains the original offsets of the other lines, is damaged"
_REWRITE = "readers read all of its lines again; `stageflow doctor --repair` rewrites the first line"
UNREADABLE = "grant this user read permission, or move the file away"

_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISREG, "a file"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)

Progress = Callable[[int, int], None]
"""Called with the number of bytes checked so far and the total number of bytes."""


class Damage(Struct, frozen=True):
    """A range of bytes in a segment that is not a complete line of JSON.

    Attributes:
        path: Path of the segment.
        offset: Start of the range, in bytes.
        bytes: Length of the range.
    """

    path: str
    offset: int
    bytes: int


class WriterState(Struct, frozen=True):
    """The state of one writer, which is one sink in one process.

    Attributes:
        name: Name of the writer.
        pid: Process id of the writer.
        state: "live", "closed" (it closed its record), "completed" (it died, and a reader completed its
            runs), "dead" (it died, and its runs are not completed yet) or "unreadable".
        segments: Number of its segments.
        bytes: Total size of its segments.
        lines: Number of lines in its segments.
        open_runs: Ids of the runs that started and have not ended.
    """

    name: str
    pid: int
    state: str
    segments: int
    bytes: int
    lines: int
    open_runs: list[str]


class CursorState(Struct, frozen=True):
    """The state of one named reader.

    Attributes:
        name: Name of the reader.
        active: True while a process uses this name.
        behind_bytes: Number of bytes that it has not read yet.
        events: Number of events that it has read.
        broken: Number of damaged lines that it skipped.
        torn: Number of torn last lines that it skipped.
        missed: Number of segments that were deleted before it had read all of their lines.
        removed_files: How many of these were deleted before the reader first started.
        removed_events: Number of events that were removed from the journal before the reader first started.
    """

    name: str
    active: bool
    behind_bytes: int
    events: int
    broken: int
    torn: int
    missed: int
    removed_files: int = 0
    removed_events: int = 0


class JournalState(Struct, frozen=True):
    """The result of `Journal.check()`.

    Attributes:
        path: Directory of the journal.
        bytes: Total size of all segments.
        free_bytes: Free disk space that is available to this user.
        writers: The state of every writer with segments in the journal, oldest first.
        cursors: The state of every named reader.
        torn: Incomplete last lines of segments that are no longer written to.
        broken: Damaged lines (not UTF-8, or not JSON) that are not the last line of their segment.
        damaged: Files that cannot be used at all, such as a damaged cursor or a symbolic link.
        missing: Gaps in the segment sequence of a writer that retention or archiving do not explain.
        without_end: Ids of the runs whose writer has closed and whose end is damaged or missing.
        quarantined: Number of lines and files in `broken/`.
        crashed: Number of runs that were completed after a crash.
        deleted: Counts of what retention and archiving deleted.
        problems: Descriptions of what needs attention, one sentence each.
    """

    path: str
    bytes: int
    free_bytes: int
    writers: list[WriterState]
    cursors: list[CursorState]
    torn: list[Damage]
    broken: list[Damage]
    damaged: list[DamagedFile]
    missing: list[MissingSegments]
    without_end: list[str]
    quarantined: int
    crashed: int
    deleted: Deleted
    problems: list[str]


class DamagedFile(Struct, frozen=True):
    """An unusable file.

    Attributes:
        path: Path of the file.
        reason: Description of the damage.
        remedy: How to fix it.
    """

    path: str
    reason: str
    remedy: str


def check(
    directory: str, progress: Progress | None = None, state_files: Iterable[StateFile] = ()
) -> JournalState:
    """Check every line and every state file of a journal; see `Journal.check`."""
    writers = list_writers(directory)
    total_bytes = sum(_size(segment) for segments in writers.values() for segment in segments)
    states: list[WriterState] = []
    torn: list[Damage] = []
    broken: list[Damage] = []
    damaged = list(_damaged_files(directory, state_files))
    without_end: list[str] = []
    checked_bytes = crashed = 0
    for name, segments in writers.items():
        lines = 0
        state, open_ids, found_crashed, error = _state_of(segments)
        errors = [(segments[-1].path, error)] if error is not None else []
        without_end += _without_end(segments)
        for segment in segments:
            try:
                found = _scan_segment(segment)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except OSError as error:
                errors.append((segment.path, error))
                continue
            lines += found.lines
            broken += found.broken
            if found.header_damaged:
                damaged.append(DamagedFile(segment.path, _HEADER_DAMAGED, _REWRITE))
            if found.torn is not None and not (state == "live" and segment is segments[-1]):
                torn.append(found.torn)
            checked_bytes += _size(segment)
            if progress is not None:
                progress(checked_bytes, total_bytes)
        damaged += (DamagedFile(path, _reason(error), UNREADABLE) for path, error in dict(errors).items())
        crashed += found_crashed
        size = sum(map(_size, segments))
        states.append(WriterState(name, segments[0].pid, state, len(segments), size, lines, open_ids))
    disk = os.statvfs(directory)
    cursors = [cursor_state(directory, name, writers) for name in cursor_names(directory)]
    deleted = _deletion_counts(directory)
    missing = missing_segments(directory, writers, deleted=retention_has_run(directory))
    problems = [
        *_problems(directory, states, cursors, torn, broken, damaged, leftover_files(directory)),
        *_losses(missing, without_end),
    ]
    return JournalState(
        path=directory,
        bytes=total_bytes,
        free_bytes=disk.f_bavail * disk.f_frsize,
        writers=states,
        cursors=cursors,
        torn=torn,
        broken=broken,
        damaged=damaged,
        missing=missing,
        without_end=without_end,
        quarantined=len(entry_names(os.path.join(directory, BROKEN))),
        crashed=crashed,
        deleted=deleted,
        problems=problems,
    )


def _damaged_files(directory: str, state_files: Iterable[StateFile]) -> Iterator[DamagedFile]:
    for path in misplaced(directory):
        yield DamagedFile(path, _describe_misplaced(directory, path), _MOVE)
    known = {file.name: file for file in (DELETED_FILE, FAILURES_FILE, *state_files)}
    for name in cursor_names(directory):
        file = cursor_state_file(name)
        known[file.name] = file
    for name in entry_names(directory):
        if name.endswith(".json") and not name.startswith("."):
            known.setdefault(name, StateFile(name, Any, _MOVE))
    for file in known.values():
        path = os.path.join(directory, file.name)
        if not is_regular(path):
            continue
        try:
            if file.kind is CursorFile:
                load_cursor(directory, os.path.basename(path).removesuffix(".json"))
            else:
                read_state(path, file.kind, file.remedy)
        except DamagedFileError as error:
            yield DamagedFile(path, error.reason, file.remedy)
        except OSError as error:
            yield DamagedFile(path, _reason(error), UNREADABLE)


def _describe_misplaced(directory: str, path: str) -> str:
    """Describe which type of entry is in the place of a file or directory of the journal."""
    expected = (
        "directory"
        if path in (os.path.join(directory, each) for each in (CURSORS, BROKEN))
        else "regular file"
    )
    try:
        mode = os.lstat(path).st_mode
    except OSError:  # removed meanwhile
        mode = 0
    found = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
    return f"the path is {found}, not a {expected}"


def _reason(error: OSError) -> str:
    return error.reason if isinstance(error, DamagedFileError) else error.strerror or str(error)


def _deletion_counts(directory: str) -> Deleted:
    try:
        return read_deletion_counts(directory)
    except OSError:  # `damaged` names it
        return Deleted()


class _SegmentScan(Struct):
    """The lines and the damage found in one segment."""

    lines: int
    broken: list[Damage]
    torn: Damage | None
    header_damaged: bool


def _scan_segment(segment: Segment) -> _SegmentScan:
    """Check every line of a segment. Offsets are those in the file, even for a pruned segment."""
    found = _SegmentScan(0, [], None, False)
    with open_segment(segment) as file:
        pruned = segment.pruned or not is_regular(segment.path)
        offset = 0
        rest = b""
        while data := file.read(_CHUNK):
            *texts, rest = (rest + data).split(b"\n")
            for text in texts:
                is_header = pruned and offset == 0
                if text and not is_header:
                    found.lines += 1
                if decode(text) is None and text and not text.isspace():
                    found.broken.append(Damage(segment.path, offset, len(text)))
                offset += len(text) + 1
    if rest:
        found.torn = Damage(segment.path, offset, len(rest))
    found.header_damaged = pruned and not has_intact_header(segment)
    return found


def _state_of(segments: list[Segment]) -> tuple[str, list[str], int, OSError | None]:
    """Return the state of a writer, its open runs, the number of completed runs, and a read error or None."""
    try:
        if writer_is_closed(segments):
            closed = closed_by(segments[-1])
            return "completed" if closed.adopted_by else "closed", [], closed.crashed, None
        state = "live" if writer_is_alive(segments) else "dead"
    except FileNotFoundError:  # deleted meanwhile
        return "closed", [], 0, None
    except OSError as error:
        return "unreadable", [], 0, error
    try:
        return state, list(open_runs(segments)), 0, None
    except OSError as error:
        return state, [], 0, error


def _without_end(segments: list[Segment]) -> list[str]:
    try:
        return [run_id for run_id, _ in runs_without_end(segments)]
    except OSError:  # `damaged` names it, or it was deleted meanwhile
        return []


def cursor_state(directory: str, name: str, writers: Writers) -> CursorState:
    """Return the state of a reader; that of a new one if its cursor is damaged."""
    try:
        cursor = load_cursor(directory, name) or CursorFile()
    except OSError:  # `damaged` names it
        cursor = CursorFile()
    behind = 0
    for writer, segments in writers.items():
        at, offset = cursor.positions.get(writer, (0, 0))
        for segment in segments:
            if segment.sequence >= at and not segment.pruned:
                behind += max(0, _size(segment) - (offset if segment.sequence == at else 0))
    try:
        active = is_locked(cursor_lock(directory, name))
    except OSError:
        active = False
    return CursorState(
        name,
        active,
        behind,
        cursor.events,
        cursor.broken,
        cursor.torn,
        cursor.missed,
        cursor.removed_files,
        cursor.removed_events,
    )


def _problems(
    directory: str,
    writers: list[WriterState],
    cursors: list[CursorState],
    torn: list[Damage],
    broken: list[Damage],
    damaged: list[DamagedFile],
    leftover_files: list[str],
) -> Iterator[str]:
    dead = [writer for writer in writers if writer.state == "dead"]
    if dead:
        runs = sum(len(writer.open_runs) for writer in dead)
        yield (
            f"{_count(dead, 'writer')} died and {runs:,} of {'its' if len(dead) == 1 else 'their'} runs"
            f" {_were(runs)} not completed; the next reader, or `stageflow doctor --repair`,"
            f" completes {_them(runs)}"
        )
    if torn:
        many = len(torn)
        yield (
            f"{_count(torn, 'last line')} {_are(many)} torn;"
            f" readers skip {_them(many)}, and `stageflow doctor --repair` removes {_them(many)}"
        )
    if broken:
        many = len(broken)
        yield (
            f"{_count(broken, 'line')} {_are(many)} damaged;"
            f" readers skip {_them(many)}, and `stageflow doctor --repair` removes {_them(many)}"
        )
    for file in damaged:
        yield f"{file.path} is damaged: {file.reason}; {file.remedy}"
    if leftover_files:
        many = len(leftover_files)
        yield (
            f"{_count(leftover_files, 'file')} {_were(many)} left behind by a killed process;"
            f" `stageflow doctor --repair` removes {_them(many)}"
        )
    for cursor in cursors:
        # Files that were archived or deleted before the reader first started are not counted as its loss.
        if many := cursor.missed - cursor.removed_files:
            files = f"{many:,} {'file' if many == 1 else 'files'}"
            yield f"reader {cursor.name!r} was too slow: {files} {_were(many)} deleted before it read them"
    if os.stat(directory).st_mode & 0o077:
        yield f"users other than its owner can access {directory}; run chmod 700 {directory}"
    if (kind := network_file_system(directory)) is not None:
        yield (
            f"{directory} is on a network file system ({kind}), where a live writer may be treated as dead;"
            " move the journal to a local disk"
        )


def _losses(missing: list[MissingSegments], without_end: list[str]) -> Iterator[str]:
    for gap in missing:
        many = gap.last - gap.first + 1
        yield (
            f"{gap} {_are(many)} missing; restore {_them(many)} from a backup, or run"
            " `stageflow doctor --repair`, which records the loss so that it is no longer reported"
        )
    if without_end:
        many = len(without_end)
        ids = ", ".join(without_end[:_MAX_IDS]) + (", ..." if many > _MAX_IDS else "")
        yield (
            f"the end of {many:,} {'run' if many == 1 else 'runs'} is damaged or missing ({ids});"
            " `stageflow doctor --repair` marks such runs as closed"
        )


def _count(found: Sized, noun: str) -> str:
    return f"{len(found):,} {noun}{'' if len(found) == 1 else 's'}"


def _are(many: int) -> str:
    return "is" if many == 1 else "are"


def _were(many: int) -> str:
    return "was" if many == 1 else "were"


def _them(many: int) -> str:
    return "it" if many == 1 else "them"


def leftover_files(directory: str) -> list[str]:
    """Return the temporary files of processes that were killed while writing them."""
    minute_ago = time.time() - 60
    found = []
    for folder in (directory, os.path.join(directory, CURSORS), os.path.join(directory, BROKEN)):
        for name in entry_names(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if is_temporary(name) and os.lstat(path).st_mtime < minute_ago and not is_locked(path):
                    found.append(path)
    for segments in list_writers(directory).values():
        for segment in segments:
            replaced = os.path.join(directory, segment.name)
            with contextlib.suppress(OSError):
                if segment.pruned and is_regular(replaced) and has_intact_header(segment):
                    found.append(replaced)
    return sorted(found)


def entry_names(folder: str) -> list[str]:
    """Return the names in a directory, or an empty list if it does not exist."""
    try:
        return [] if os.path.islink(folder) else os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _size(segment: Segment) -> int:
    try:
        return os.path.getsize(segment.path)
    except FileNotFoundError:
        return 0
