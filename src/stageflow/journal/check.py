"""The state of a journal, looked at in full: who writes, what is open, torn, broken, kept, deleted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from msgspec import Struct

from . import cursor_file
from .disk import is_locked, make_private, network_file_system, replace_file
from .layout import BROKEN, CURSORS, Segment, list_writers
from .recovery import open_runs, recover, writer_is_closed, writer_lives
from .retention import Deleted, deleted_so_far
from .segment import LineAt, decode, read_kept, read_piece

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
