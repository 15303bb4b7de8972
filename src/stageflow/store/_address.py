"""The address of a journal's archive: the default, or the one that `archive.json` in its directory states."""

from __future__ import annotations

import contextlib
import os
from typing import Annotated

from msgspec import Meta, Struct

from .._files import absolute_path, make_private, replace_file
from .._state_file import StateFile, encode_state, read_state
from ..errors import ArchiveDamagedError, DamagedFileError
from ..journal import load_cursor
from ._archive import Archive, is_remote

__all__ = [
    "ADDRESS_FILE",
    "CURSOR",
    "archived_events",
    "check_exists",
    "default_address",
    "has_archive",
    "read_address",
    "same_address",
    "store_address",
]


CURSOR = "archive"
"""Name of the cursor of the archive in the journal."""

DEFAULT_FOLDER = "archive"
"""Default directory of the archive, in the journal directory."""

ADDRESS_FILE_NAME = "archive.json"


class _StoredAddress(Struct):
    address: Annotated[str, Meta(min_length=1)]


ADDRESS_FILE = StateFile(
    ADDRESS_FILE_NAME,
    _StoredAddress,
    "specify the address of the archive again with `stageflow compact --archive ADDRESS`,"
    f" or delete the file if the archive is in `{DEFAULT_FOLDER}`, in the journal directory",
    after="specify the address of the archive again with `stageflow compact --archive ADDRESS`,"
    f" unless it is in `{DEFAULT_FOLDER}`, in the journal directory",
)


def read_address(journal: str) -> str:
    """Return the address of a journal's archive.

    Raises:
        DamagedFileError: The file that contains the address is damaged.
        OSError: The file cannot be read.
    """
    # Do not fall back to the default address if the file is damaged: it would be another, empty archive.
    remembered = read_state(os.path.join(journal, ADDRESS_FILE_NAME), _StoredAddress, ADDRESS_FILE.remedy)
    address = remembered.address if remembered is not None else DEFAULT_FOLDER
    # A relative address is relative to the directory of the file.
    return address if is_remote(address) else absolute_path(os.path.join(journal, address))


def default_address(journal: str) -> str:
    """Return the default address of the archive of a journal."""
    return os.path.join(journal, DEFAULT_FOLDER)


def absolute_address(address: str | os.PathLike[str]) -> str:
    """Return an address that `os.chdir` does not change."""
    text = os.fspath(address)
    return text if is_remote(text) else absolute_path(text)


def same_address(one: str, other: str) -> bool:
    """Return whether two addresses are the same: directories are compared by their absolute paths."""
    one, other = (each.rstrip("/") if is_remote(each) else os.path.abspath(each) for each in (one, other))
    return one == other


def archived_events(journal: str) -> int | None:
    """Return the number of events in the archive according to its cursor; None if nothing was archived."""
    with contextlib.suppress(ValueError, OSError):
        cursor = load_cursor(journal, CURSOR)
        # The cursor has no positions if retention has removed every archived segment.
        if cursor is not None and (cursor.positions or cursor.events):
            return cursor.events
    return None


def check_exists(archive: Archive, journal: str) -> None:
    """Raise an error if an archive does not exist, although events of the journal were archived.

    Args:
        archive: The archive, after `refresh`.
        journal: Directory of the journal.

    Raises:
        ArchiveDamagedError: The archive is missing: its disk may not be mounted, or its address may be wrong.
    """
    if archive.version < 0 and (events := archived_events(journal)) is not None:
        raise ArchiveDamagedError(
            f"archive {archive.address} does not exist, but {events:,} events of journal {journal}"
            " were archived",
            files=[archive.address],
            hint="mount or restore the archive, or correct its address. To abandon it and start a new one,"
            " run `stageflow compact --forget`",
        )


def store_address(journal: str, address: str) -> None:
    """Store the address of a journal's archive in the journal directory.

    Credentials are not stored; they are read from the environment.

    Raises:
        OSError: The directory cannot be written.
    """
    address = absolute_address(address)
    known = None
    with contextlib.suppress(DamagedFileError):
        known = read_address(journal)
    if known is None or not same_address(known, address):
        make_private(journal)
        replace_file(os.path.join(journal, ADDRESS_FILE_NAME), encode_state(_StoredAddress(address)))


def has_archive(journal: str) -> bool:
    """Return whether a journal has an archive, or had one that is missing now, without opening it."""
    address = read_address(journal)
    # Check for the directory, not the log: an archive without its log is damaged, not absent.
    return is_remote(address) or os.path.isdir(address) or archived_events(journal) is not None
