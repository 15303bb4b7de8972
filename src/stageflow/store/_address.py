"""Where the archive of a journal is: beside it, or wherever `archive.json` in its directory says."""

from __future__ import annotations

import contextlib
import os
from typing import Annotated

from msgspec import Meta, Struct

from .._files import absolute_path, make_private, replace_file
from .._state_file import StateFile, encode_state, read_state
from ..errors import DamagedFileError
from ..journal import load_cursor
from ._archive import is_remote

__all__ = [
    "ADDRESS_FILE",
    "CURSOR",
    "archived_events",
    "default_address",
    "has_archive",
    "read_address",
    "remember_address",
    "same_address",
]


CURSOR = "archive"
"""The name of the archive among the readers of a journal."""

BESIDE = "archive"
"""The archive's folder in the directory of its journal, unless another address was given."""

REMEMBERED = "archive.json"


class _Remembered(Struct):
    address: Annotated[str, Meta(min_length=1)]


ADDRESS_FILE = StateFile(
    REMEMBERED,
    _Remembered,
    "specify the address of the archive again with `stageflow compact --archive ADDRESS`,"
    f" or delete the file if the archive is in `{BESIDE}`, in the directory of the journal",
    after="specify the address of the archive again with `stageflow compact --archive ADDRESS`,"
    f" unless it is in `{BESIDE}`, in the directory of the journal",
)


def read_address(journal: str) -> str:
    """Return the address of a journal's archive.

    Raises:
        DamagedFileError: The file that contains the address is damaged.
        OSError: It cannot be read.
    """
    # No fallback to the default address if the file is damaged: that would be another, empty archive.
    remembered = read_state(os.path.join(journal, REMEMBERED), _Remembered, ADDRESS_FILE.remedy)
    address = remembered.address if remembered is not None else BESIDE
    # A relative address is relative to the file that has it.
    return address if is_remote(address) else absolute_path(os.path.join(journal, address))


def default_address(journal: str) -> str:
    """Return the address of the archive of a journal that states no other."""
    return os.path.join(journal, BESIDE)


def absolute_address(address: str | os.PathLike[str]) -> str:
    """Return an address that `os.chdir` does not change."""
    text = os.fspath(address)
    return text if is_remote(text) else absolute_path(text)


def same_address(one: str, other: str) -> bool:
    """Return whether two addresses are the same: directories are compared by their absolute paths."""
    one, other = (each.rstrip("/") if is_remote(each) else os.path.abspath(each) for each in (one, other))
    return one == other


def archived_events(journal: str) -> int | None:
    """Return how many events the archive of a journal had, by its cursor; None if nothing was archived."""
    with contextlib.suppress(ValueError, OSError):
        cursor = load_cursor(journal, CURSOR)
        # It has no positions if retention has removed every segment that was archived.
        if cursor is not None and (cursor.positions or cursor.events):
            return cursor.events
    return None


def remember_address(journal: str, address: str) -> None:
    """Write down where the archive of a journal is, for whoever opens that journal next.

    Credentials belong into the environment, and are not written down.

    Raises:
        OSError: The directory cannot be written.
    """
    address = absolute_address(address)
    known = None
    with contextlib.suppress(DamagedFileError):
        known = read_address(journal)
    if known is None or not same_address(known, address):
        make_private(journal)
        replace_file(os.path.join(journal, REMEMBERED), encode_state(_Remembered(address)))


def has_archive(journal: str) -> bool:
    """Return whether a journal has an archive, or had one that is missing now, without opening it."""
    address = read_address(journal)
    # The folder, not its log: an archive whose log is gone is damaged, and not absent.
    return is_remote(address) or os.path.isdir(address) or archived_events(journal) is not None
