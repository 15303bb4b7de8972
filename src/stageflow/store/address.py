"""Where the archive of a journal is: beside it, or wherever `archive.json` in its directory says."""

from __future__ import annotations

import contextlib
import os

import msgspec
from msgspec import Struct

from ..errors import SettingsError
from ..journal.disk import make_private, replace_file
from .archive import is_remote

__all__ = ["has_archive", "read_address", "remember_address"]

BESIDE = "archive"
"""The archive's folder in the directory of its journal, unless another address was given."""

REMEMBERED = "archive.json"


class _Remembered(Struct):
    address: str


def read_address(journal: str) -> str:
    """Return the address of a journal's archive.

    Raises:
        SettingsError: What was written down cannot be read.
    """
    try:
        with open(os.path.join(journal, REMEMBERED), "rb") as file:
            return msgspec.json.decode(file.read(), type=_Remembered).address
    except (FileNotFoundError, NotADirectoryError):
        return os.path.join(journal, BESIDE)
    except msgspec.DecodeError as error:
        # Beside the journal there would be another one, without anything.
        raise SettingsError(
            f"it does not say where the archive is: {error}; say it anew, `Compactor(journal, archive=...)`",
            os.path.join(journal, REMEMBERED),
        ) from error


def remember_address(journal: str, address: str) -> None:
    """Write down where the archive of a journal is, for whoever opens that journal next.

    Credentials belong into the environment, and are not written down.

    Raises:
        OSError: The directory cannot be written.
    """
    address = address if is_remote(address) else os.path.abspath(address)
    known = None
    with contextlib.suppress(SettingsError):
        known = read_address(journal)
    if known is None or (known if is_remote(known) else os.path.abspath(known)) != address:
        make_private(journal)
        replace_file(os.path.join(journal, REMEMBERED), msgspec.json.encode(_Remembered(address)))


def has_archive(journal: str) -> bool:
    """Tell whether a journal has an archive, without opening it."""
    address = read_address(journal)
    return is_remote(address) or os.path.isdir(os.path.join(address, "_delta_log"))
