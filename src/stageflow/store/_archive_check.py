"""Checks and repairs an archive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from ..errors import ArchiveDamagedError
from ._address import read_address
from ._archive import Archive, ArchiveFile, is_remote
from ._compactor import Compactor, must_be_there
from ._database import as_os_errors
from ._losses import (
    LostFile,
    files_on_disk,
    forget_lost,
    lost_files,
    record_lost,
    returned_files,
    set_damaged_list_aside,
)
from ._parquet import LocalFiles

__all__ = ["ArchiveState", "DamagedFile", "RepairedArchive", "check_archive", "repair_archive"]


Progress = Callable[[int, int], None]
"""Called with the number of bytes checked, and the total number of bytes."""


class DamagedFile(Struct, frozen=True):
    """A file of an archive that is damaged or missing.

    Attributes:
        path: Its path; for a data file, relative to the archive.
        problem: What is wrong with it.
        rows: Number of its rows; 0 for a file of the log.
    """

    path: str
    problem: str
    rows: int


class ArchiveState(Struct, frozen=True):
    """The result of `check_archive`.

    Attributes:
        address: The archive.
        version: Of the table; -1 if it cannot be read or there is none.
        files: How many files the table has; if its log cannot be read, how many are in its folders.
        bytes: Their size.
        damaged: Files that are damaged or missing.
        without_checksum: Files that were written before checksums existed; only their size was checked.
        set_aside: Names of files that a recovery or repair set aside, in `_stageflow`.
        lost: Files that repairs took out of the table.
        problems: What needs attention, a sentence each, with the remedy.
    """

    address: str
    version: int
    files: int
    bytes: int
    damaged: list[DamagedFile]
    without_checksum: int
    set_aside: list[str]
    lost: list[LostFile]
    problems: list[str]


class RepairedArchive(Struct, frozen=True):
    """The result of `repair_archive`.

    Attributes:
        set_aside: Paths of the files it moved to `_stageflow`.
        lost_rows: How many rows the table no longer has because their file was damaged or missing.
        removed: The files that had these rows.
        restored: Files that an earlier repair had taken out; an intact copy was at their path.
    """

    set_aside: list[str]
    lost_rows: int
    removed: list[DamagedFile] = []
    restored: list[str] = []


def check_archive(
    journal: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ArchiveState:
    """Read every file of a journal's archive and verify its checksum. Changes nothing.

    Args:
        journal: Directory of the journal.
        storage_options: As for `EventStore`.
        progress: Called after each file.

    Raises:
        MissingExtraError: The packages of `stageflow[store]` are not installed.
        SettingsError: The address of the archive cannot be read.
        OSError: The archive cannot be reached.

    Example:
        print(check_archive("journal").problems)
    """
    archive = Archive(read_address(os.fspath(journal)), storage_options)
    damaged: list[DamagedFile] = []
    problems: list[str] = []
    files: list[ArchiveFile] = []
    try:
        with as_os_errors(archive.address):
            archive.refresh()
            must_be_there(archive, os.fspath(journal))
            files = archive.files()
    except ArchiveDamagedError as found:
        error = Compactor(journal, storage_options=storage_options).diagnose(found)
        files = files_on_disk(archive)
        damaged = [DamagedFile(path, "is damaged or missing", 0) for path in error.files]
        problems.append(f"{error.message}; {error.hint}")
    local = LocalFiles(archive)
    whole = sum(file.size for file in files)
    done = 0
    for file in files:
        if (problem := local.damage_of(file)) is not None:
            damaged.append(DamagedFile(file.path, problem, file.rows))
            problems.append(
                f"archive {archive.address}: {file.path} {problem}; restore it from a backup"
                + (
                    f", or a repair takes it out of the archive ({file.rows:,} rows)"
                    if archive.version >= 0
                    else ""
                )
            )
        done += file.size
        if progress is not None:
            progress(done, whole)
    lost: list[LostFile] = []
    try:
        lost = lost_files(archive, files)
        if archive.version >= 0:
            problems += [
                f"archive {archive.address}: {file.path} was lost, and an intact copy is there;"
                f" a repair puts it back ({file.rows:,} rows)"
                for file in returned_files(archive, local)
            ]
    except ArchiveDamagedError as error:
        damaged += [DamagedFile(path, "is damaged", 0) for path in error.files]
        problems.append(f"{error.message}; {error.hint}")
    for path in [] if archive.log is None else archive.log.misplaced():
        if all(path != file.path for file in damaged):
            damaged.append(DamagedFile(path, "is not a regular file", 0))
            problems.append(
                f"archive {archive.address}: {path} is not a regular file; a repair moves it away"
            )
    problems += _permission_problems(archive)
    return ArchiveState(
        address=archive.address,
        version=archive.version,
        files=len(files),
        bytes=whole,
        damaged=damaged,
        without_checksum=sum(file.checksum is None for file in files),
        set_aside=[] if archive.log is None else archive.log.names_set_aside(),
        lost=lost,
        problems=problems,
    )


def repair_archive(
    journal: str | os.PathLike[str], *, storage_options: Mapping[str, str] | None = None
) -> RepairedArchive:
    """Recover the log, and remove damaged and missing files from the table.

    Damaged files are moved to `_stageflow` in the archive; nothing is deleted. What was lost is recorded
    there in `lost.json`. A log whose durable part is damaged is not repaired: that needs a backup.

    Raises:
        ArchiveDamagedError: A commit that was durable is damaged.
        OSError: The archive cannot be changed, or another process is compacting it.
    """
    compactor = Compactor(journal, storage_options=storage_options)
    archive = compactor.archive
    local = LocalFiles(archive)
    with as_os_errors(archive.address), compactor.alone():
        moved: list[str] = []
        if archive.log is not None:
            moved += map(archive.log.set_aside, archive.log.misplaced())  # first: the lock may be one
            moved += archive.log.set_damaged_record_aside()
        moved += set_damaged_list_aside(archive)
        try:
            moved += compactor.recover_alone()
            archive.refresh()
        except ArchiveDamagedError as error:
            raise compactor.diagnose(error) from None
        archive.sync()
        forget_lost(archive, archive.files())
        restored = []
        for file in returned_files(archive, local):
            archive.commit([file])
            forget_lost(archive, [file])
            restored.append(file.path)
        bad = [(file, problem) for file in archive.files() if (problem := local.damage_of(file)) is not None]
        if bad:
            files = [file for file, _ in bad]
            record_lost(archive, bad)
            archive.commit([], files)
            archive.sync()
            if archive.log is not None:
                moved += [
                    archive.log.set_aside(path) for path in local.paths_of(files) if os.path.lexists(path)
                ]
    removed = [DamagedFile(file.path, problem, file.rows) for file, problem in bad]
    return RepairedArchive(moved, sum(file.rows for file, _ in bad), removed, restored)


def _permission_problems(archive: Archive) -> Iterator[str]:
    if is_remote(archive.address):
        return
    readable = sum(_is_open_to_others(path) for path in _paths_below(archive.address))
    if readable:
        yield (
            f"archive {archive.address}: users other than its owner and group can read {readable:,} files;"
            f" chmod -R o= {archive.address}"
        )


def _is_open_to_others(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return bool(os.stat(path).st_mode & 0o007)
    return False


def _paths_below(folder: str) -> Iterator[str]:
    """Yield the files below a directory that other users can enter."""
    with contextlib.suppress(FileNotFoundError):
        if not os.stat(folder).st_mode & 0o001:
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _paths_below(entry.path)
                else:
                    yield entry.path
