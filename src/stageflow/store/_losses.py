"""Finds lost archive files, and what is lost with them."""

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
    "LostFile",
    "Remains",
    "archived_alone",
    "copy_lost",
    "files_on_disk",
    "forget_lost",
    "left_behind",
    "lost_files",
    "record_lost",
    "remains_of",
    "returned_files",
    "set_damaged_list_aside",
    "with_count",
]


class Remains(Struct, frozen=True):
    """What an archive has that the journal no longer has.

    Attributes:
        events: Number of events in its intact files.
        files: Number of these files.
        runs: Number of runs whose end is among the events.
    """

    events: int
    files: int
    runs: int


def left_behind(
    journal: str, address: str, other: str, storage_options: Mapping[str, str] | None
) -> ArchiveAddressError:
    """Return the error that states what would not be visible if a journal had another archive.

    Args:
        journal: Directory of the journal.
        address: Address of its archive.
        other: The address that was requested.
        storage_options: As for `EventStore`.
    """
    found = archived_alone(Archive(address, storage_options), journal)
    what = "an unknown number of events, because the archive cannot be read,"
    if found is not None:
        what = f"{found.events:,} events of {found.runs:,} runs"
    return ArchiveAddressError(
        f"journal {journal} is archived in {address}: with archive {other}, {what} would not be visible",
        hint=f"`stageflow compact --archive {other} --move` copies them there first;"
        f" `stageflow compact --archive {other} --forget` gives them up",
        events=None if found is None else found.events,
        runs=None if found is None else found.runs,
    )


def archived_alone(archive: Archive, journal: str) -> Remains | None:
    """Count the events of an archive that the journal no longer has; None if the archive cannot be read."""
    try:
        with as_os_errors(archive.address):
            archive.refresh()
            files = [file for file in archive.files() if file.has_events]
            return _count(LocalFiles(archive).paths(files), journal)
    except ArchiveDamagedError:
        return remains_of(archive, journal)
    except OSError:
        return None


def with_count(error: ArchiveDamagedError, archive: Archive, journal: str) -> ArchiveDamagedError:
    """Return an error whose hint says how many events are given up if the archive is moved away."""
    if restore_hint() not in (error.hint or ""):
        return error
    remains = remains_of(archive, journal)
    if remains is None:
        return error
    what = "no event: the journal still has all that are in intact files of the archive"
    if remains.events:
        what = (
            f"{remains.events:,} archived events in {remains.files:,} files, which the journal no longer has"
        )
    hint = (error.hint or "").replace(restore_hint(), restore_hint(what))
    return ArchiveDamagedError(error.message, files=error.files, hint=hint)


def remains_of(archive: Archive, journal: str) -> Remains | None:
    """Count the events in the files of a local archive that the journal no longer has.

    Its log is not needed. Files that an intact commit replaced are left out; an event that is in several
    files counts once.

    Returns:
        None where they cannot be counted: on object storage, or if DuckDB cannot read the files.
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


def _count(paths: list[str], journal: str) -> Remains:
    # A segment of which retention kept a part does not count: the journal may have lost the other lines.
    kept = [
        os.path.basename(segment.path)
        for segments in list_writers(journal).values()
        for segment in segments
        if ".kept." not in os.path.basename(segment.path)
    ]
    rows = select_rows(paths)
    if rows is None:
        return Remains(0, 0, 0)
    elsewhere = f"segment not in ({text(*kept)})" if kept else "true"
    with open_database() as database:
        # Custom events have no id.
        ((events, runs),) = database.execute(f"""
            select count(distinct event_id) + count(*) filter (event_id is null),
                count(distinct event_id) filter (type = 'pipeline.wide')
            from {rows} where type not in ({text(*AMENDMENTS)}) and {elsewhere}""").fetchall()
    return Remains(int(events), len(paths), int(runs))


def files_on_disk(archive: Archive) -> list[ArchiveFile]:
    """Return the Parquet files in the folders of a local archive, whatever its log says."""
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
