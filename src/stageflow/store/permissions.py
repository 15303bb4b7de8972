"""Permissions of an archive's files: private, or shared with the group of a setgid directory."""

from __future__ import annotations

import contextlib
import os

from msgspec import Struct

from ..journal.disk import sync_directory

__all__ = ["Mode", "make_directory", "mode_of"]


class Mode(Struct, frozen=True):
    """The permissions of new files and directories of an archive."""

    file: int
    directory: int


def mode_of(archive: str) -> Mode:
    """Return the permissions of new files in an archive: group-readable if its directory has setgid."""
    try:
        shared = os.stat(archive).st_mode & 0o2000
    except FileNotFoundError:
        shared = 0
    return Mode(0o640, 0o2750) if shared else Mode(0o600, 0o700)


def make_directory(archive: str, path: str) -> None:
    """Create and sync one directory of an archive if it does not exist."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, mode_of(archive).directory)
        sync_directory(os.path.dirname(path))
