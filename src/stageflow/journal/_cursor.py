"""How far named readers have come: one small file each, replaced whole."""

from __future__ import annotations

import os
import re
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from .._files import make_private_below, replace_file
from .._state_file import StateFile, encode_state, read_state
from ..errors import DamagedFileError
from ._format import Offset
from ._segments import CURSORS, list_writers

__all__ = [
    "CursorFile",
    "Position",
    "check_cursor_name",
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
"""The sequence of a segment, and how many bytes of it were read."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class CursorFile(Struct, frozen=True):
    """What is stored of a named reader.

    Attributes:
        positions: By writer.
        events: How many events it has read since it was made.
        broken: How many broken lines it came by.
        torn: How many torn last lines.
        missed: How many segments were deleted before it had read them to their end.
        removed_files: How many of these were deleted before it was made.
        removed_events: How many events were removed from the journal before it was made.
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
    """Return the name of a reader, if it can be one.

    Raises:
        ValueError: It can not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be the name of a reader: letters, digits, '.', '_' and '-', 100 at most"
        )
    return name


def cursor_path(directory: str, name: str) -> str:
    """Return where a reader's positions are stored."""
    return os.path.join(directory, CURSORS, f"{name}.json")


def cursor_state_file(name: str) -> StateFile:
    """Return the state file of a reader."""
    return StateFile(
        os.path.join(CURSORS, f"{name}.json"),
        CursorFile,
        "`stageflow doctor --repair` moves it to broken/, and the reader reads everything again;"
        " deleting the file has the same effect",
    )


def load_cursor(directory: str, name: str) -> CursorFile | None:
    """Return how far a reader has come; None for a new one.

    Raises:
        DamagedFileError: The content of the file is damaged.
        OSError: It cannot be read.
    """
    _refuse_link(directory)
    path, file = cursor_path(directory, name), cursor_state_file(name)
    cursor = read_state(path, CursorFile, file.remedy)
    if cursor is not None and cursor.name not in ("", name):
        raise DamagedFileError(path, f"it is the cursor of reader {cursor.name!r}", hint=file.remedy)
    return cursor


def store_cursor(directory: str, name: str, cursor: CursorFile) -> None:
    """Store the positions of a reader durably.

    Raises:
        DamagedFileError: The path is a directory, or `cursors` is a symbolic link.
        OSError: It could not be written; what was stored before stands.
    """
    make_private_below(os.path.join(directory, CURSORS))
    replace_file(cursor_path(directory, name), encode_state(replace(cursor, name=name)))


def reset_cursor(directory: str, name: str) -> None:
    """Store a cursor at the beginning of all current segments.

    A repair replaces a damaged cursor in this way instead of removing it: otherwise a reader with
    `at_end=True` would start at the end, and miss events that it had not read.
    """
    positions = {writer: (segments[0].sequence, 0) for writer, segments in list_writers(directory).items()}
    store_cursor(directory, name, CursorFile(positions))


def _refuse_link(directory: str) -> None:
    path = os.path.join(directory, CURSORS)
    if os.path.islink(path):
        raise DamagedFileError(
            path,
            "a symbolic link is in place of this directory",
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


def positions_of_all(directory: str) -> list[dict[str, Position]]:
    """Return the positions of every named reader: none, for one whose file cannot be read."""
    found = []
    for name in cursor_names(directory):
        try:
            cursor = load_cursor(directory, name)
        except OSError:
            cursor = CursorFile()  # as if it had read nothing: what is not known is not deleted by age
        if cursor is not None:
            found.append(cursor.positions)
    return found
