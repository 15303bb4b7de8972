"""Finds lost files of an archive, and counts the events that are lost with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from urllib.parse import unquote

from msgspec import Struct

from .._files import open_regular, replace_file
from .._state_file import decode_stored, encode_state, read_state
from ..errors import ArchiveAddressError, ArchiveDamagedError, DamagedFileError
from ..journal import list_writers
from ._archive import Archive, ArchiveFile, is_remote
from ._columns import AMENDMENTS, text
from ._database import as_os_errors, open_database
from ._delta_log import make_directory, mode_of, restore_hint
from ._parquet import LocalFiles, select_rows

__all__ = [
    "ArchivedOnly",
    "LostFile",
    "address_conflict",
    "copy_lost",
    "count_archived_only",
    "count_on_disk",
    "files_on_disk",
    "forget_lost",
    "lost_files",
    "move_damaged_record",
    "record_lost",
    "returned_files",
    "with_loss_count",
]


class ArchivedOnly(Struct, frozen=True):
    """Events that are in an archive and no longer in the journal.

    Attributes:
        events: Number of events in the intact files of the archive.
        files: Number of these files.
        runs: Number of runs whose end is among the events.
    """

    events: int
    files: int
    runs: int


def address_conflict(
    journal: str, address: str, other: str, storage_options: Mapping[str, str] | None
) -> ArchiveAddressError:
    """Return the error that states what would not be visible if a journal had another archive.

    Args:
        journal: Directory of the journal.
        address: Address of its archive.
        other: The address that was requested.
        storage_options: As for `EventStore`.
    """
    found = count_archived_only(Archive(address, storage_options), journal)
    events = "an unknown number of events, because the archive cannot be read,"
    if found is not None:
        events = f"{found.events:,} events of {found.runs:,} runs"
    return ArchiveAddressError(
        f"journal {journal} is archived in {address}: with archive {other}, {events} would not be visible",
        hint=f"`stageflow compact --archive {other} --move` copies them there first;"
        f" `stageflow compact --archive {other} --forget` abandons them",
        events=None if found is None else found.events,
        runs=None if found is None else found.runs,
    )


def count_archived_only(archive: Archive, journal: str) -> ArchivedOnly | None:
    """Count the events of an archive that the journal no longer has; None if the archive cannot be read."""
    try:
        with as_os_errors(archive.address):
            archive.refresh()
            files = [file for file in archive.files() if file.has_events]
            return _count(LocalFiles(archive).paths(files), journal)
    except ArchiveDamagedError:
        return count_on_disk(archive, journal)
    except OSError:
        return None


def with_loss_count(error: ArchiveDamagedError, archive: Archive, journal: str) -> ArchiveDamagedError:
    """Return an error whose hint states how many events would be lost by moving the archive away."""
    if restore_hint() not in (error.hint or ""):
        return error
    found = count_on_disk(archive, journal)
    if found is None:
        return error
    loss = "no event: the journal still has all events of the intact archive files"
    if found.events:
        loss = f"{found.events:,} archived events in {found.files:,} files, which the journal no longer has"
    hint = (error.hint or "").replace(restore_hint(), restore_hint(loss))
    return ArchiveDamagedError(error.message, files=error.files, hint=hint)


def count_on_disk(archive: Archive, journal: str) -> ArchivedOnly | None:
    """Count the events in the files of a local archive that the journal no longer has.

    This does not require the log. Files that an intact commit replaced are excluded; an event that is in
    several files is counted once.

    Returns:
        None if the events cannot be counted: on object storage, or if DuckDB cannot read the files.
    """
    if is_remote(archive.address):
        return None
    import duckdb

    local = LocalFiles(archive)
    replaced = _replaced(archive)
    files = [
        file
        for file in files_on_disk(archive)
        if file.has_events and file.path not in replaced and local.damage_of(file) is None
    ]
    try:
        return _count(local.paths_of(files), journal)
    except duckdb.Error:
        return None


def _count(paths: list[str], journal: str) -> ArchivedOnly:
    # Exclude segments that retention has shortened: the journal may have lost their other lines.
    segments = [
        os.path.basename(segment.path)
        for of_writer in list_writers(journal).values()
        for segment in of_writer
        if ".kept." not in os.path.basename(segment.path)
    ]
    rows = select_rows(paths)
    if rows is None:
        return ArchivedOnly(0, 0, 0)
    not_in_journal = f"segment not in ({text(*segments)})" if segments else "true"
    with open_database() as database:
        # Custom events have no id.
        ((events, runs),) = database.execute(f"""
            select count(distinct event_id) + count(*) filter (event_id is null),
                count(distinct event_id) filter (type = 'pipeline.wide')
            from {rows} where type not in ({text(*AMENDMENTS)}) and {not_in_journal}""").fetchall()
    return ArchivedOnly(int(events), len(paths), int(runs))


def files_on_disk(archive: Archive) -> list[ArchiveFile]:
    """Return the Parquet files in the folders of a local archive, regardless of its log."""
    if is_remote(archive.address):
        return []
    return [
        ArchiveFile(f"{os.path.basename(folder)}/{name}", size, 0, folder.rpartition("=")[2], None, None)
        for folder in archive.days()
        for name, size in _parquet_files(folder)
    ]


def _parquet_files(folder: str) -> Iterator[tuple[str, int]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet") and entry.is_file(follow_symlinks=False):
                yield entry.name, entry.stat().st_size


def _replaced(archive: Archive) -> set[str]:
    """Return the files that readable commits removed from the table."""
    found: set[str] = set()
    assert archive.log is not None
    for name in archive.log.commit_names():
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError),
            open(open_regular(os.path.join(archive.log.path, name)), "rb") as file,
        ):
            for line in file:
                action = decode_stored(line)
                if "remove" in action:
                    found.add(unquote(action["remove"]["path"]))
    return found


_NAME = os.path.join("_stageflow", "lost.json")


class LostFile(Struct, frozen=True):
    """A file that a repair removed from the table.

    Attributes:
        path: Path of the file in the archive.
        problem: Description of the damage.
        size: Size of the intact file in bytes.
        rows: Number of its rows.
        day: The day of its events.
        since: When a repair removed it, in UTC.
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
    """Return the files that repairs removed from an archive; object storage has no record of them.

    Args:
        archive: The archive.
        present: The files of the table: a repair that was interrupted did not remove its files.

    Raises:
        ArchiveDamagedError: The record is damaged.
        OSError: The record cannot be read.
    """
    paths = {file.path for file in present}
    return [file for file in _read(archive).files if file.path not in paths]


def record_lost(archive: Archive, files: Iterable[tuple[ArchiveFile, str]]) -> None:
    """Record files and their damage before a repair removes them from the table.

    Raises:
        ArchiveDamagedError: The record is damaged.
        OSError: The record cannot be written.
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
    """Delete the files that the table has from the record.

    Raises:
        OSError: The record cannot be written.
    """
    present = {file.path for file in files}
    lost = _read(archive).files
    if any(file.path in present for file in lost):
        _write(archive, [file for file in lost if file.path not in present])


def returned_files(archive: Archive, local: LocalFiles) -> list[ArchiveFile]:
    """Return the lost files of which there is an intact copy at the original path.

    A file is excluded if the table has one of its events, because the event would occur twice.
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
        common = f"""select 1 from {select_rows(local.paths_of([file]))}
            where event_id in (select event_id from {others}) limit 1"""
        return bool(database.execute(common).fetchall())


def move_damaged_record(archive: Archive) -> list[str]:
    """Move a damaged record away; return a list with its new path, or an empty list if it is intact."""
    try:
        _read(archive)
    except ArchiveDamagedError:
        assert archive.log is not None
        return [archive.log.quarantine(_path(archive))]
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
            hint="`stageflow doctor --repair` moves the file away; the archive does not need it",
        ) from error
