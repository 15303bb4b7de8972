"""What lies where in a journal's directory, and how its files are named.

    journal/
        20261123T160028Z-p4711-9f3a61c2-000001.ndjson        a segment: events, one a line
        20261123T160028Z-p4711-9f3a61c2-000002.ndjson        the next one of the same writer
        20261123T154411Z-p4690-01b77a3e-000001.kept.ndjson   what was kept of a segment when room was made
        cursors/archive.json                                 how far the reader "archive" has come
        broken/...-000001.ndjson-81920                       a damaged line, or a damaged state file
        deleted.json                                         what was deleted so far, counted
        failures.json                                        which outcomes count as failures
        lock                                                 held by whoever makes room

A writer is one sink in one process. Its name says when it began, and its pid; the random part makes
it unique. As long as it lives it holds a lock (`flock`) on the newest of its segments.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator

from msgspec import Struct

__all__ = [
    "BROKEN",
    "CURSORS",
    "DELETED",
    "FAILURES",
    "LOCK",
    "TEMPORARY",
    "Segment",
    "Writers",
    "free_sequence",
    "is_temporary",
    "list_writers",
    "misplaced",
    "new_writer",
    "segment_name",
    "why_not",
]

CURSORS = "cursors"
BROKEN = "broken"
DELETED = "deleted.json"
FAILURES = "failures.json"
LOCK = "lock"
TEMPORARY = ".new-"
"""Prefixes of temporary files, except for those of segments: `.` and the name of the segment."""

_SEGMENT = re.compile(r"(\d{8}T\d{6}Z-p(\d{1,10})-[0-9a-f]{8})-(\d{6,12})(\.kept)?\.ndjson", re.ASCII)


class Segment(Struct, frozen=True):
    """One file of a writer.

    Attributes:
        path: Where it is.
        writer: Name of the writer.
        pid: Process id of the writer.
        sequence: 1 for the first segment of a writer; events of a run stand in this order.
        kept: True where only records of failed runs are left in it.
    """

    path: str
    writer: str
    pid: int
    sequence: int
    kept: bool

    @property
    def name(self) -> str:
        """The name of the file, as it was when it was written."""
        return segment_name(self.writer, self.sequence)


Writers = dict[str, list[Segment]]
"""The segments of each writer, in order, oldest writer first."""


def new_writer() -> str:
    """Return the name of a new writer in this process."""
    began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    return f"{began}-p{os.getpid()}-{os.urandom(4).hex()}"


def segment_name(writer: str, sequence: int, *, kept: bool = False) -> str:
    """Return the name of a segment's file.

    Example:
        >>> segment_name("20261123T160028Z-p4711-9f3a61c2", 2)
        '20261123T160028Z-p4711-9f3a61c2-000002.ndjson'
    """
    return f"{writer}-{sequence:06d}{'.kept' if kept else ''}.ndjson"


def free_sequence(directory: str, writer: str, sequence: int, *, hidden: bool = True) -> int:
    """Return the first sequence from this one on whose name nothing in the directory has.

    Another process that completed the record of this writer may have taken the next one, and so may an
    attacker who placed a link there. A hidden file is incomplete: its writer is creating it, or died and
    left it behind, and `hidden=False` takes its name, so that the sequence has no gap.
    """
    while True:
        name = segment_name(writer, sequence)
        kept = segment_name(writer, sequence, kept=True)
        names = (name, f".{name}", kept) if hidden else (name, kept)
        if not any(os.path.lexists(os.path.join(directory, taken)) for taken in names):
            return sequence
        sequence += 1


def is_temporary(name: str) -> bool:
    """Return whether this is the name of a temporary file of a journal."""
    return name.startswith(TEMPORARY) or (name.startswith(".") and _SEGMENT.fullmatch(name[1:]) is not None)


def misplaced(directory: str) -> list[str]:
    """Return entries that have the name of a journal's file or directory but another type, such as links.

    Raises:
        OSError: The directory cannot be read.
    """
    found = []
    for folder in (directory, os.path.join(directory, CURSORS)):
        if folder != directory and os.path.islink(folder):
            continue  # `cursors` itself is misplaced; what it points to is not part of the journal
        try:
            entries = list(os.scandir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if folder == directory and entry.name in (CURSORS, BROKEN):
                if not entry.is_dir(follow_symlinks=False):
                    found.append(entry.path)
            elif folder == directory and not _is_name(entry.name):
                continue
            elif not entry.is_file(follow_symlinks=False):
                found.append(entry.path)
    return sorted(found)


def _is_name(name: str) -> bool:
    """Return whether a journal, its archive or its alerts may use this file name here."""
    return (
        name == LOCK
        or name.endswith((".json", ".lock"))
        or is_temporary(name)
        or _SEGMENT.fullmatch(name) is not None
    )


def list_writers(directory: str) -> Writers:
    """Return every segment that a directory has now.

    Symbolic links and directories with the name of a segment are excluded; `misplaced` finds them.

    Raises:
        OSError: It cannot be read.
    """
    found = _by_writer(directory, _files_in(directory))
    if not any(len(segments) < segments[-1].sequence for segments in found.values()):
        return found
    # A file that is made while a directory is listed may be left out, and a later one be there. What
    # came before a file that was seen is in a second listing, or is gone.
    again = _by_writer(directory, _files_in(directory))
    return {
        writer: [segment for segment in again[writer] if segment.sequence <= segments[-1].sequence]
        for writer, segments in found.items()
        if writer in again and again[writer][0].sequence <= segments[-1].sequence
    }


def _files_in(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                yield entry.name


def _by_writer(directory: str, names: Iterable[str]) -> Writers:
    found: dict[tuple[str, int], Segment] = {}
    for name in names:
        match = _SEGMENT.fullmatch(name)
        if match is None:
            continue
        writer, pid, sequence, kept = match.groups()
        segment = Segment(os.path.join(directory, name), writer, int(pid), int(sequence), bool(kept))
        # Both are there for the moment between the making of the one and the removal of the other.
        if segment.kept or (writer, segment.sequence) not in found:
            found[writer, segment.sequence] = segment
    writers: Writers = {}
    for key in sorted(found):
        writers.setdefault(key[0], []).append(found[key])
    return writers


def why_not(directory: str) -> str | None:
    """Return why a path is no journal: empty where there is nothing, None where it is one, or may become one.

    Raises:
        OSError: It cannot be read.
    """
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return ""
    except NotADirectoryError:
        return "it is a file"
    ours = {CURSORS, BROKEN, DELETED, FAILURES, LOCK}
    if names and not any(name in ours or _SEGMENT.fullmatch(name.lstrip(".")) for name in names):
        return "that directory has files, and none of a journal"
    return None
