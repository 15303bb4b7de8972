"""Cursors: the stored positions of named readers, one atomically replaced file each."""

from __future__ import annotations

import os
import re
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from .._files import make_private_below, replace_file
from .._state_file import StateFile, encode_state, read_state
from ..errors import DamagedFileError, invalid_argument
from ._format import Offset
from ._segments import CURSORS, list_writers

__all__ = [
    "CursorFile",
    "Position",
    "check_cursor_name",
    "cursor_lock",
    "cursor_names",
    "cursor_path",
    "cursor_state_file",
    "load_cursor",
    "positions_of_all",
    "reset_cursor",
    "store_cursor",
]


Count = Annotated[int, Meta(ge=0, le=(1 << 62))]

Position = tuple[Count, Offset]
"""The sequence number of a segment, and the number of its bytes that were read."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class CursorFile(Struct, frozen=True):
    """The content of a cursor file.

    Attributes:
        positions: Position in the segments of each writer, by the name of the writer.
        events: Number of events read since the cursor was created.
        broken: Number of damaged lines that the reader skipped.
        torn: Number of torn last lines that the reader skipped.
        missed: Number of segments that were deleted before the reader had read all of their lines.
        removed_files: How many of these were deleted before the cursor was created.
        removed_events: Number of events removed from the journal before the cursor was created.
        name: Name of the reader; empty if an earlier version wrote the file.
    """

    positions: dict[str, Position] = {}
    events: Count = 0
    broken: Count = 0
    torn: Count = 0
    missed: Count = 0
    removed_files: Count = 0
    removed_events: Count = 0
    name: str = ""


def check_cursor_name(name: str) -> str:
    """Return the name of a reader if it is valid.

    Raises:
        InvalidArgumentError: The name is invalid.
    """
    if not _NAME.fullmatch(name):
        raise invalid_argument(
            "JournalReader",
            "name",
            name,
            "at most 100 letters, digits, '.', '_' and '-', starting with a letter or a digit",
        )
    return name


def cursor_path(directory: str, name: str) -> str:
    """Return the path of a reader's cursor file."""
    return os.path.join(directory, CURSORS, f"{name}.json")


def cursor_lock(directory: str, name: str) -> str:
    """Return the path of the lock that a reader with this name holds."""
    return os.path.join(directory, CURSORS, f"{name}.lock")


def cursor_state_file(name: str) -> StateFile:
    """Return the state file of a reader."""
    return StateFile(
        os.path.join(CURSORS, f"{name}.json"),
        CursorFile,
        "`stageflow doctor --repair` moves it to broken/, and the reader reads everything again;"
        " deleting the file has the same effect",
    )


def load_cursor(directory: str, name: str) -> CursorFile | None:
    """Return the cursor of a reader, or None for a new reader.

    Raises:
        DamagedFileError: The content of the file is damaged.
        OSError: The file cannot be read.
    """
    _refuse_link(directory)
    path, file = cursor_path(directory, name), cursor_state_file(name)
    cursor = read_state(path, CursorFile, file.remedy)
    if cursor is not None and cursor.name not in ("", name):
        raise DamagedFileError(path, f"it contains the cursor of reader {cursor.name!r}", hint=file.remedy)
    return cursor


def store_cursor(directory: str, name: str, cursor: CursorFile) -> None:
    """Store the positions of a reader durably.

    Raises:
        DamagedFileError: The path is a directory, or `cursors` is a symbolic link.
        OSError: The file could not be written; the previously stored cursor is unchanged.
    """
    make_private_below(os.path.join(directory, CURSORS))
    replace_file(cursor_path(directory, name), encode_state(replace(cursor, name=name)))


def reset_cursor(directory: str, name: str) -> None:
    """Store a cursor at the beginning of all current segments.

    A repair does this instead of removing a damaged cursor. Without a cursor, a reader with `at_end=True`
    would start at the end and miss events that it had not read.
    """
    positions = {writer: (segments[0].sequence, 0) for writer, segments in list_writers(directory).items()}
    store_cursor(directory, name, CursorFile(positions))


def _refuse_link(directory: str) -> None:
    path = os.path.join(directory, CURSORS)
    if os.path.islink(path):
        raise DamagedFileError(
            path,
            "the path is a symbolic link, not a directory",
            hint="`stageflow doctor --repair` removes it",
        )


def cursor_names(directory: str) -> list[str]:
    """Return the names of all readers that have stored a position."""
    folder = os.path.join(directory, CURSORS)
    if os.path.islink(folder):
        return []
    try:
        found = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json") and name[0] != ".")


def positions_of_all(directory: str) -> dict[str, dict[str, Position]]:
    """Return the positions of every named reader; no positions for a reader whose cursor cannot be read."""
    found = {}
    for name in cursor_names(directory):
        try:
            cursor = load_cursor(directory, name)
        except OSError:
            cursor = CursorFile()  # treat it as having read nothing, so that `max_age` deletes nothing unread
        if cursor is not None:
            found[name] = cursor.positions
    return found
