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
from .database import open_database
from .parquet import LocalFiles, select_rows
from .permissions import make_directory, mode_of

__all__ = [
    "LostFile",
    "copy_lost",
    "forget_lost",
    "lost_files",
    "record_lost",
    "returned_files",
    "set_damaged_list_aside",
]

_NAME = os.path.join("_stageflow", "lost.json")


class LostFile(Struct, frozen=True):
    """A file that a repair took out of the table.

    Attributes:
        path: Its path in the archive.
        problem: What was wrong with it.
        size: Its bytes when it was written.
        rows: How many rows it had.
        day: Of its events.
        since: When a repair took it out, in UTC.
    """

    path: str
    problem: str
    size: int
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
        lost[file.path] = LostFile(file.path, problem, file.size, file.rows, file.day, now)
    _write(archive, lost.values())


def copy_lost(archive: Archive, to: Archive) -> None:
    """Copy the record of lost files to another archive, if both are on a local disk."""
    lost = _read(archive)
    if lost.files and to.log is not None:
        _write(to, lost.files)


def forget_lost(archive: Archive, files: Iterable[ArchiveFile]) -> None:
    """Take files that the table has off the record.

    Raises:
        OSError: It cannot be written.
    """
    present = {file.path for file in files}
    lost = _read(archive).files
    if any(file.path in present for file in lost):
        _write(archive, [file for file in lost if file.path not in present])


def returned_files(archive: Archive, local: LocalFiles) -> list[ArchiveFile]:
    """Return lost files of which an intact copy is back at their path.

    A file is left out if the table has one of its events: it would be there twice.
    """
    files = archive.files()
    found = []
    for lost in lost_files(archive, files):
        file = ArchiveFile(lost.path, lost.size, lost.rows, lost.day, None, None)
        if file.checksum is not None and local.damage_of(file) is None and not _overlaps(file, files, local):
            found.append(file)
    return found


def _overlaps(file: ArchiveFile, files: Iterable[ArchiveFile], local: LocalFiles) -> bool:
    others = select_rows(
        path for one in files if one.has_events and os.path.exists(path := local.paths_of([one])[0])
    )
    if others is None or not file.has_events:
        return False
    with open_database() as database:
        same = f"""select 1 from {select_rows(local.paths_of([file]))}
            where event_id in (select event_id from {others}) limit 1"""
        return bool(database.execute(same).fetchall())


def set_damaged_list_aside(archive: Archive) -> list[str]:
    """Move a damaged record away; return its new path, if it was moved."""
    try:
        _read(archive)
    except ArchiveDamagedError:
        assert archive.log is not None
        return [archive.log.set_aside(_path(archive))]
    return []


def _write(archive: Archive, files: Iterable[LostFile]) -> None:
    path = _path(archive)
    make_directory(archive.address, os.path.dirname(path))
    replace_file(path, encode_state(_Lost([*files])))
    os.chmod(path, mode_of(archive.address).file)


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
