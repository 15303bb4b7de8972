"""Repairs a journal: completes crashed runs, and moves damaged lines and files to `broken/`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable

from msgspec import Struct

from .._files import open_regular, replace_file, try_lock
from .._state_file import StateFile
from ._check import UNREADABLE, Damage, Progress, check, leftover_files
from ._cursor import reset_cursor
from ._format import encode_mark
from ._losses import MissingSegments, close_runs_without_end, mark_missing, missing_segments
from ._recovery import recover
from ._retention import FAILURES_FILE, retention_has_run
from ._segments import (
    BROKEN,
    CURSORS,
    LOCK,
    Segment,
    has_intact_header,
    list_writers,
    misplaced,
    pruned_header,
    quarantine_file,
    quarantine_line,
    readable,
    split_pruned,
)

__all__ = ["Moved", "Repaired", "repair"]


class Moved(Struct, frozen=True):
    """An unusable file that was moved away.

    Attributes:
        path: Its previous path.
        to: Its new path.
        remedy: What else needs to be done.
    """

    path: str
    to: str
    remedy: str = ""


class Repaired(Struct, frozen=True):
    """The result of `Journal.repair()`.

    Attributes:
        crashed: Ids of the runs whose record it completed.
        torn: Number of torn last lines that it moved to `broken/`.
        broken: Number of damaged lines that it copied to `broken/` and overwrote with spaces.
        moved: Damaged files that it moved to `broken/`.
        removed: Leftover files of killed processes that it removed.
        missing: Missing segments that it recorded, so that `check` no longer reports them.
        without_end: Ids of the runs that it marked as closed because their end is damaged or missing.
    """

    crashed: list[str]
    torn: int
    broken: int
    moved: list[Moved]
    removed: list[str]
    missing: list[MissingSegments]
    without_end: list[str]


def repair(
    directory: str, progress: Progress | None = None, state_files: Iterable[StateFile] = ()
) -> Repaired:
    """Repair a journal; see `Journal.repair`."""
    state_files = list(state_files)
    # Do this first, because the lock itself may be misplaced. Move `broken/` before the entries that are
    # moved into it.
    broken = os.path.join(directory, BROKEN)
    in_order = sorted(misplaced(directory), key=lambda path: path != broken)
    moved = [Moved(path, quarantine_file(directory, path)) for path in in_order]
    crashed = recover(directory)
    found = check(directory, progress, state_files)
    with try_lock(os.path.join(directory, LOCK)) as alone:
        if not alone:
            raise OSError(
                errno.EBUSY, "another process is repairing this journal or applying retention", directory
            )
        for damage in (*found.torn, *found.broken):
            _remove_line(directory, damage)
        damaged = {file.path for file in found.damaged}
        for segments in list_writers(directory).values():
            for segment in segments:
                if segment.pruned and (segment.path in damaged or not has_intact_header(segment)):
                    _write_header(directory, segment)
        moved += [
            _move_state(directory, file.path, state_files)
            for file in found.damaged
            if file.path.endswith(".json") and file.remedy != UNREADABLE
        ]
        removed = leftover_files(directory)
        for path in removed:
            os.unlink(path)
    # A writer whose closing line was damaged counts as dead from now on.
    crashed += recover(directory)
    with try_lock(os.path.join(directory, LOCK)) as alone:
        missing, without_end = _record_losses(directory) if alone else ([], [])
    return Repaired(crashed, len(found.torn), len(found.broken), moved, removed, missing, without_end)


def _record_losses(directory: str) -> tuple[list[MissingSegments], list[str]]:
    writers = list_writers(directory)
    missing = missing_segments(directory, writers, deleted=retention_has_run(directory))
    for gap in missing:
        mark_missing(directory, gap)
    without_end: list[str] = []
    for segments in writers.values():
        without_end += readable(close_runs_without_end(directory, segments))
    return missing, without_end


def _remove_line(directory: str, damage: Damage) -> None:
    """Copy a damaged line to `broken/` and overwrite it with spaces; other lines keep their offsets."""
    with open(open_regular(damage.path, os.O_RDWR), "r+b") as file:
        status = os.fstat(file.fileno())
        file.seek(damage.offset)
        text = file.read(damage.bytes)
        name = os.path.basename(damage.path).replace(".kept.", ".")
        quarantine_line(directory, name, damage.offset, text)
        file.seek(damage.offset)
        if file.read(damage.bytes + 1).endswith(b"\n"):
            file.seek(damage.offset)
            file.write(b" " * damage.bytes)
        else:
            file.truncate(damage.offset)
        file.flush()
        # Retention uses the modification time as the age of the events.
        os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))


def _write_header(directory: str, segment: Segment) -> None:
    """Rewrite the first line of a pruned segment; see `pruned_header`."""
    with open(open_regular(segment.path), "rb") as file:
        content, status = file.read(), os.fstat(file.fileno())
    header, rest = split_pruned(content)
    if header.strip():
        quarantine_line(directory, segment.name, 0, header)
    replace_file(segment.path, encode_mark(pruned_header(content)) + rest)
    os.utime(segment.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _move_state(directory: str, path: str, state_files: Iterable[StateFile]) -> Moved:
    name = os.path.relpath(path, directory)
    remedy = next((file.after for file in (FAILURES_FILE, *state_files) if file.name == name), "")
    moved = Moved(path, quarantine_file(directory, path), remedy)
    if os.path.dirname(path) == os.path.join(directory, CURSORS):
        reset_cursor(directory, os.path.basename(path).removesuffix(".json"))
    return moved
