"""The state of a journal, looked at in full: who writes, what is open, torn, broken, kept, deleted."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Raw, Struct

from . import cursor_file
from .disk import is_locked, make_private, network_file_system, only_one, replace_file
from .layout import BROKEN, CURSORS, LOCK, Segment, Writers, list_writers
from .line import WRITER_CLOSED, WriterClosed
from .recovery import open_runs, recover, writer_is_closed, writer_lives
from .retention import Deleted, deleted_so_far
from .segment import decode, ends_with, find_lines, read_piece

__all__ = ["CursorState", "Damage", "JournalState", "Repaired", "WriterState", "check", "repair"]

Progress = Callable[[int, int], None]
"""Called with the bytes that were looked at, and all there are."""


class Damage(Struct, frozen=True):
    """A place in a segment that is not a line of JSON.

    Attributes:
        path: Of the segment.
        offset: Where it begins.
        bytes: How long it is.
    """

    path: str
    offset: int
    bytes: int


class WriterState(Struct, frozen=True):
    """One writer: a sink in a process.

    Attributes:
        name: Its name.
        pid: Process id.
        state: "live", "closed" (it ended by itself), "completed" (it died, and a reader completed its
            runs) or "dead" (it died, and that is still to be done).
        segments: How many files it has here.
        bytes: How large they are.
        lines: How many lines they have.
        open_runs: Ids of the runs that began and have not ended.
    """

    name: str
    pid: int
    state: str
    segments: int
    bytes: int
    lines: int
    open_runs: list[str]


class CursorState(Struct, frozen=True):
    """One named reader.

    Attributes:
        name: Its name.
        at_work: True while a process reads under this name.
        behind_bytes: How much it has not read.
        events: How many events it has read.
        broken: How many broken lines it came by.
        torn: How many torn last lines.
        missed: How many files were deleted before it had read them to their end.
    """

    name: str
    at_work: bool
    behind_bytes: int
    events: int
    broken: int
    torn: int
    missed: int


class JournalState(Struct, frozen=True):
    """What `Journal.check()` found.

    Attributes:
        path: Directory of the journal.
        bytes: Size of all segments.
        free_bytes: What its disk has left for this user.
        writers: Everybody who has segments here, oldest first.
        cursors: Everybody who reads under a name.
        torn: Last lines that were cut off, of writers that no longer write there.
        broken: Lines in the middle that are no JSON.
        kept_aside: How many lines lie in `broken/`.
        crashed: How many runs of these writers were completed after a crash.
        deleted: What was deleted to make room.
        problems: What should be seen to, a sentence each.
    """

    path: str
    bytes: int
    free_bytes: int
    writers: list[WriterState]
    cursors: list[CursorState]
    torn: list[Damage]
    broken: list[Damage]
    kept_aside: int
    crashed: int
    deleted: Deleted
    problems: list[str]


class Repaired(Struct, frozen=True):
    """What `Journal.repair()` did.

    Attributes:
        crashed: Ids of the runs whose record it completed.
        torn: How many torn last lines it cut off, and kept aside.
        broken: How many broken lines it blanked out, and kept aside.
        removed: Left-over files that it removed.
    """

    crashed: list[str]
    torn: int
    broken: int
    removed: list[str]


def check(directory: str, progress: Progress | None = None) -> JournalState:
    """Look at every line of a journal; see `Journal.check`."""
    writers = list_writers(directory)
    whole = sum(_size(segment) for segments in writers.values() for segment in segments)
    states: list[WriterState] = []
    torn: list[Damage] = []
    broken: list[Damage] = []
    looked_at = crashed = 0
    for name, segments in writers.items():
        state = _state_of(segments)
        lines = 0
        for segment in segments:
            found = _look(segment)
            lines += found.lines
            broken += found.broken
            if found.torn is not None and not (state == "live" and segment is segments[-1]):
                torn.append(found.torn)
            looked_at += _size(segment)
            if progress is not None:
                progress(looked_at, whole)
        crashed += _crashed(segments[-1])
        states.append(
            WriterState(
                name,
                segments[0].pid,
                state,
                len(segments),
                sum(map(_size, segments)),
                lines,
                list(open_runs(segments)) if state in ("live", "dead") else [],
            )
        )
    disk = os.statvfs(directory)
    cursors = [_cursor(directory, name, writers) for name in cursor_file.names(directory)]
    left_over = _left_over(directory)
    return JournalState(
        path=directory,
        bytes=whole,
        free_bytes=disk.f_bavail * disk.f_frsize,
        writers=states,
        cursors=cursors,
        torn=torn,
        broken=broken,
        kept_aside=len(_names_in(os.path.join(directory, BROKEN))),
        crashed=crashed,
        deleted=deleted_so_far(directory),
        problems=list(_problems(directory, states, cursors, torn, broken, left_over)),
    )


def repair(directory: str, progress: Progress | None = None) -> Repaired:
    """Mend what can be mended; see `Journal.repair`."""
    crashed = recover(directory)
    found = check(directory, progress)
    with only_one(os.path.join(directory, LOCK)) as alone:
        if not alone:
            raise OSError(errno.EBUSY, "another process is mending or making room just now", directory)
        for damage in (*found.torn, *found.broken):
            _mend(directory, damage)
        removed = _left_over(directory)
        for path in removed:
            os.unlink(path)
    return Repaired(crashed, len(found.torn), len(found.broken), removed)


class _Found(Struct):
    """What is in one segment."""

    lines: int
    broken: list[Damage]
    torn: Damage | None


def _look(segment: Segment) -> _Found:
    found = _Found(0, [], None)
    offset = 0
    try:
        while True:
            piece = read_piece(segment, offset)
            for line in piece.lines:
                found.lines += 1
                if decode(line.text) is None and not line.text.isspace():
                    found.broken.append(Damage(segment.path, line.offset, len(line.text)))
            if piece.end == offset:
                if piece.torn:
                    found.torn = Damage(segment.path, offset, piece.torn)
                return found
            offset = piece.end
    except FileNotFoundError:  # deleted meanwhile
        return found


def _mend(directory: str, damage: Damage) -> None:
    """Keep a broken line aside and put blanks in its place: all that follows stays where it is."""
    with open(damage.path, "r+b") as file:
        file.seek(damage.offset)
        text = file.read(damage.bytes)
        make_private(os.path.join(directory, BROKEN))
        name = os.path.basename(damage.path).replace(".kept.", ".")
        replace_file(os.path.join(directory, BROKEN, f"{name}-{damage.offset}"), text + b"\n")
        file.seek(damage.offset)
        if file.read(damage.bytes + 1).endswith(b"\n"):
            file.seek(damage.offset)
            file.write(b" " * damage.bytes)
        else:
            file.truncate(damage.offset)


def _state_of(segments: list[Segment]) -> str:
    try:
        if writer_is_closed(segments):
            return "completed" if _closed_by(segments[-1]).adopted_by else "closed"
        return "live" if writer_lives(segments) else "dead"
    except FileNotFoundError:  # deleted meanwhile
        return "closed"


def _closed_by(segment: Segment) -> WriterClosed:
    for text in find_lines(segment, WRITER_CLOSED):
        line = decode(text)
        if line is not None and isinstance(line.journal, Raw):
            return msgspec.json.decode(line.journal, type=WriterClosed)
    return WriterClosed()


def _crashed(segment: Segment) -> int:
    try:
        return _closed_by(segment).crashed if ends_with(segment, WRITER_CLOSED) else 0
    except FileNotFoundError:
        return 0


def _cursor(directory: str, name: str, writers: Writers) -> CursorState:
    try:
        cursor = cursor_file.load(directory, name) or cursor_file.CursorFile()
    except ValueError:
        cursor = cursor_file.CursorFile()
    behind = 0
    for writer, segments in writers.items():
        at, offset = cursor.positions.get(writer, (0, 0))
        for segment in segments:
            if segment.sequence >= at and not segment.kept:
                behind += max(0, _size(segment) - (offset if segment.sequence == at else 0))
    lock = os.path.join(directory, CURSORS, f"{name}.lock")
    at_work = os.path.exists(lock) and is_locked(lock)
    return CursorState(name, at_work, behind, cursor.events, cursor.broken, cursor.torn, cursor.missed)


def _problems(
    directory: str,
    writers: list[WriterState],
    cursors: list[CursorState],
    torn: list[Damage],
    broken: list[Damage],
    left_over: list[str],
) -> Iterator[str]:
    dead = [writer for writer in writers if writer.state == "dead"]
    if dead:
        runs = sum(len(writer.open_runs) for writer in dead)
        yield (
            f"{len(dead)} writers died and {runs} of their runs were not completed;"
            " a reader, or a repair, does it"
        )
    if torn:
        yield f"{len(torn)} last lines are torn; readers leave them out, a repair cuts them off"
    if broken:
        yield f"{len(broken)} lines are no JSON; readers leave them out, a repair takes them out"
    if left_over:
        yield f"{len(left_over)} files were left half made; a repair removes them"
    for cursor in cursors:
        if cursor.missed:
            yield f"reader {cursor.name!r} was too slow: {cursor.missed} files were deleted unread"
    if os.stat(directory).st_mode & 0o077:
        yield f"others than its owner may enter {directory}; chmod 700 {directory}"
    if (kind := network_file_system(directory)) is not None:
        yield f"{directory} is on a network file system ({kind}), where a live writer may look dead"


def _left_over(directory: str) -> list[str]:
    """Return files that somebody was making when he was killed."""
    minute_ago = time.time() - 60
    found = []
    for folder in (directory, os.path.join(directory, CURSORS), os.path.join(directory, BROKEN)):
        for name in _names_in(folder):
            path = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):
                if name.startswith(".") and os.stat(path).st_mtime < minute_ago and not is_locked(path):
                    found.append(path)
    for segments in list_writers(directory).values():
        for segment in segments:
            replaced = os.path.join(directory, segment.name)
            if segment.kept and os.path.exists(replaced):
                found.append(replaced)
    return sorted(found)


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def _size(segment: Segment) -> int:
    try:
        return os.path.getsize(segment.path)
    except FileNotFoundError:
        return 0
