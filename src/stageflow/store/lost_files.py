"""The files that repairs took out of an archive: what was lost stays on record."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec import Struct

from ..errors import ArchiveDamagedError, DamagedFileError
from ..journal.disk import replace_file
from ..journal.stored import encode_state, read_state
from .archive import Archive
from .archive_file import ArchiveFile
from .permissions import make_directory, mode_of

__all__ = ["LostFile", "lost_files", "record_lost", "set_damaged_list_aside"]

_NAME = os.path.join("_stageflow", "lost.json")


class LostFile(Struct, frozen=True):
    """A file that a repair took out of the table.

    Attributes:
        path: Its path in the archive.
        problem: What was wrong with it.
        rows: How many rows it had.
        day: Of its events.
        since: When a repair took it out, in UTC.
    """

    path: str
    problem: str
    rows: int
    day: str
    since: str


class _Lost(Struct, frozen=True):
    files: list[LostFile] = []


def lost_files(archive: Archive, present: Iterable[ArchiveFile]) -> list[LostFile]:
    """Return the files that repairs took out of an archive; object storage has no record of them.

    Args:
        archive: The archive.
        present: The files that the table has: a repair that was interrupted did not take its files out.

    Raises:
        ArchiveDamagedError: The record is damaged.
        OSError: It cannot be read.
    """
    there = {file.path for file in present}
    return [file for file in _read(archive).files if file.path not in there]


def record_lost(archive: Archive, files: Iterable[tuple[ArchiveFile, str]]) -> None:
    """Record files, and what is wrong with each, before a repair takes them out of the table.

    Raises:
        ArchiveDamagedError: The record is damaged.
        OSError: It cannot be written.
    """
    if archive.log is None:
        return
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lost = {file.path: file for file in _read(archive).files}
    for file, problem in files:
        lost[file.path] = LostFile(file.path, problem, file.rows, file.day, now)
    path = _path(archive)
    make_directory(archive.address, os.path.dirname(path))
    replace_file(path, encode_state(_Lost([*lost.values()])))
    os.chmod(path, mode_of(archive.address).file)


def set_damaged_list_aside(archive: Archive) -> list[str]:
    """Move a damaged record away; return its new path, if it was moved."""
    try:
        _read(archive)
    except ArchiveDamagedError:
        assert archive.log is not None
        return [archive.log.set_aside(_path(archive))]
    return []


def _path(archive: Archive) -> str:
    return os.path.join(archive.address, _NAME)


def _read(archive: Archive) -> _Lost:
    if archive.log is None:
        return _Lost()
    try:
        return read_state(_path(archive), _Lost, "") or _Lost()
    except DamagedFileError as error:
        raise ArchiveDamagedError(
            f"archive {archive.address}: {error.message}",
            files=[error.file],
            hint="`stageflow doctor --repair` moves it away; the archive does not need it",
        ) from error
