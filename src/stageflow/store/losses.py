"""Which archived events the journal no longer has: what is given up if a damaged archive is moved away."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from msgspec import Struct

from ..errors import ArchiveAddressError, ArchiveDamagedError
from ..journal.disk import open_regular
from ..journal.layout import list_writers
from ..journal.stored import decode_stored
from .archive import Archive, is_remote
from .archive_file import ArchiveFile
from .columns import AMENDMENTS, text
from .database import as_os_errors, open_database
from .delta_log import restore_hint
from .parquet import LocalFiles, select_rows

__all__ = ["Remains", "archived_alone", "files_on_disk", "left_behind", "remains_of", "with_count"]


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
