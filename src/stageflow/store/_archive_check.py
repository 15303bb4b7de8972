"""Checks and repairs an archive."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

from msgspec import Struct

from ..errors import ArchiveDamagedError
from ._address import check_exists, read_address
from ._archive import Archive, ArchiveFile, is_remote
from ._compactor import Compactor
from ._database import as_os_errors
from ._decisions import Decisions, SamplingCounts, has_decisions
from ._losses import (
    LostFile,
    files_on_disk,
    forget_lost,
    lost_files,
    move_damaged_record,
    record_lost,
    returned_files,
)
from ._parquet import LocalFiles

__all__ = ["ArchiveState", "DamagedFile", "RepairedArchive", "check_archive", "repair_archive"]


Progress = Callable[[int, int], None]
"""Called with the number of bytes checked, and the total number of bytes."""


class DamagedFile(Struct, frozen=True):
    """A file of an archive that is damaged or missing.

    Attributes:
        path: Path of the file; for a data file, relative to the archive.
        problem: Description of the damage.
        rows: Number of its rows; 0 for a file of the log.
    """

    path: str
    problem: str
    rows: int


class ArchiveState(Struct, frozen=True):
    """The result of `check_archive`.

    Attributes:
        address: Address of the archive.
        version: Version of the table; -1 if it cannot be read or does not exist.
        files: Number of files of the table, or in its directories if its log cannot be read.
        bytes: Total size of these files.
        damaged: Files that are damaged or missing.
        without_checksum: Number of files from before checksums were introduced; only their size was checked.
        quarantined: Names of files that a recovery or repair moved to `_stageflow`.
        lost: Files that repairs removed from the table.
        problems: Descriptions of what needs attention, one sentence each, with the remedy.
        sampling: Number of runs that the sampler of the journal kept and sampled out; None if it has none.
    """

    address: str
    version: int
    files: int
    bytes: int
    damaged: list[DamagedFile]
    without_checksum: int
    quarantined: list[str]
    lost: list[LostFile]
    problems: list[str]
    sampling: SamplingCounts | None = None


class RepairedArchive(Struct, frozen=True):
    """The result of `repair_archive`.

    Attributes:
        quarantined: Paths of the files that were moved to `_stageflow`.
        lost_rows: Number of rows that were removed because their file was damaged or missing.
        removed: The files that contained these rows.
        restored: Files that an earlier repair removed, and that were added again from an intact copy.
    """

    quarantined: list[str]
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
            check_exists(archive, os.fspath(journal))
            files = archive.files()
    except ArchiveDamagedError as found:
        error = Compactor(journal, storage_options=storage_options).diagnose(found)
        files = files_on_disk(archive)
        damaged = [DamagedFile(path, "is damaged or missing", 0) for path in error.files]
        problems.append(f"{error.message}; {error.hint}")
    local = LocalFiles(archive)
    total = sum(file.size for file in files)
    done = 0
    for file in files:
        if (problem := local.damage_of(file)) is not None:
            damaged.append(DamagedFile(file.path, problem, file.rows))
            problems.append(
                f"archive {archive.address}: {file.path} {problem}; restore it from a backup"
                + (
                    f", or run a repair to remove it from the archive ({file.rows:,} rows)"
                    if archive.version >= 0
                    else ""
                )
            )
        done += file.size
        if progress is not None:
            progress(done, total)
    lost: list[LostFile] = []
    try:
        lost = lost_files(archive, files)
        if archive.version >= 0:
            problems += [
                f"archive {archive.address}: {file.path} was lost, but there is an intact copy;"
                f" a repair adds it again ({file.rows:,} rows)"
                for file in returned_files(archive, local)
            ]
    except ArchiveDamagedError as error:
        damaged += [DamagedFile(path, "is damaged", 0) for path in error.files]
        problems.append(f"{error.message}; {error.hint}")
    for path in [] if archive.log is None else archive.log.misplaced():
        if all(path != file.path for file in damaged):
            damaged.append(DamagedFile(path, "is not a regular file", 0))
            problems.append(
                f"archive {archive.address}: {path} is not a regular file;"
                " `stageflow doctor --repair` moves it to `_stageflow`"
            )
    problems += _permission_problems(archive)
    return ArchiveState(
        address=archive.address,
        version=archive.version,
        files=len(files),
        bytes=total,
        damaged=damaged,
        without_checksum=sum(file.checksum is None for file in files),
        quarantined=[] if archive.log is None else archive.log.moved_files(),
        lost=lost,
        problems=problems,
        sampling=_sampling_counts(os.fspath(journal), problems),
    )


def _sampling_counts(journal: str, problems: list[str]) -> SamplingCounts | None:
    if not has_decisions(journal):
        return None
    try:
        with Decisions(journal) as decisions:
            return decisions.counts()
    except OSError as error:
        problems.append(str(error))
        return None


def repair_archive(
    journal: str | os.PathLike[str], *, storage_options: Mapping[str, str] | None = None
) -> RepairedArchive:
    """Recover the log, and remove damaged and missing files from the table.

    Damaged files are moved to `_stageflow` in the archive; nothing is deleted. Lost files are recorded
    there in `lost.json`. A log whose durable part is damaged is not repaired: that needs a backup.

    Raises:
        ArchiveDamagedError: A commit that was durable is damaged.
        OSError: The archive cannot be changed, or another process is compacting it.
    """
    compactor = Compactor(journal, storage_options=storage_options)
    archive = compactor.archive
    local = LocalFiles(archive)
    with as_os_errors(archive.address), compactor.locked():
        moved: list[str] = []
        if archive.log is not None:
            # Do this first, because the lock file may be one of them.
            moved += map(archive.log.quarantine, archive.log.misplaced())
            moved += archive.log.move_damaged_record()
        moved += move_damaged_record(archive)
        try:
            moved += compactor.recover_locked()
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
        damaged = [
            (file, problem) for file in archive.files() if (problem := local.damage_of(file)) is not None
        ]
        if damaged:
            files = [file for file, _ in damaged]
            record_lost(archive, damaged)
            archive.commit([], files)
            archive.sync()
            if archive.log is not None:
                moved += [
                    archive.log.quarantine(path) for path in local.paths_of(files) if os.path.lexists(path)
                ]
    removed = [DamagedFile(file.path, problem, file.rows) for file, problem in damaged]
    return RepairedArchive(moved, sum(file.rows for file, _ in damaged), removed, restored)


def _permission_problems(archive: Archive) -> Iterator[str]:
    if is_remote(archive.address):
        return
    count = sum(_is_accessible_to_others(path) for path in _paths_below(archive.address))
    if count:
        yield (
            f"archive {archive.address}: users other than its owner and group can read {count:,} files;"
            f" run chmod -R o= {archive.address}"
        )


def _is_accessible_to_others(path: str) -> bool:
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
