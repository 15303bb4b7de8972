"""How far named readers have come: one small file each, replaced whole."""

from __future__ import annotations

import os
import re

import msgspec
from msgspec import Struct

from .disk import make_private, replace_file
from .layout import CURSORS

__all__ = [
    "CursorFile",
    "Position",
    "check_name",
    "cursor_path",
    "load",
    "names",
    "positions_of_all",
    "store",
]

Position = tuple[int, int]
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
    """

    positions: dict[str, Position] = {}
    events: int = 0
    broken: int = 0
    torn: int = 0
    missed: int = 0


def check_name(name: str) -> str:
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


def load(directory: str, name: str) -> CursorFile | None:
    """Return how far a reader has come; None for a new one.

    Raises:
        ValueError: The file is not what was stored.
    """
    path = cursor_path(directory, name)
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=CursorFile)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise ValueError(
            f"the positions of reader {name!r} in {path} cannot be read: {error}"
            "\n  hint: delete the file, and the reader begins anew"
        ) from error


def store(directory: str, name: str, cursor: CursorFile) -> None:
    """Write down how far a reader has come, safe against a crash of the machine.

    Raises:
        OSError: It could not be written; what was stored before stands.
    """
    make_private(os.path.join(directory, CURSORS))
    replace_file(cursor_path(directory, name), msgspec.json.encode(cursor))


def names(directory: str) -> list[str]:
    """Return the names of all readers that have stored a position."""
    try:
        found = os.listdir(os.path.join(directory, CURSORS))
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(".json") for name in found if name.endswith(".json") and name[0] != ".")


def positions_of_all(directory: str) -> list[dict[str, Position]]:
    """Return the positions of every named reader: none, for one whose file cannot be read."""
    found = []
    for name in names(directory):
        try:
            cursor = load(directory, name)
        except (OSError, ValueError):
            cursor = CursorFile()  # as if it had read nothing: what is not known is not deleted by age
        if cursor is not None:
            found.append(cursor.positions)
    return found
