"""A pinned version of an archive, whose events a new exporter sends before those of the journal."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Generator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from .._files import make_private_below, replace_file
from .._state_file import encode_state, read_state
from ..journal import Entry, list_writers
from ._address import check_exists, read_address
from ._archive import Archive, ArchiveFile, is_remote
from ._columns import text
from ._database import InterruptibleDatabase, as_os_errors
from ._parquet import LocalFiles, select_rows
from ._rows import event_of_row

__all__ = ["ArchivePin", "ArchivedEntry", "has_pins", "pin_archive", "pinned_archive", "unpin_archive"]


PINS = "pins"
"""Name of the directory of the pins of a journal."""

_REMEDY = "delete the file; the exporter then continues without the remaining archived events"

_FETCH_ROWS = 1_000

_TIME = "coalesce(ended_at, emitted_at, amended_at, started_at, day::timestamptz)"


class ArchivePin(Struct, frozen=True):
    """A version of an archive. No file of the archive is deleted while a journal has a pin.

    Attributes:
        address: Address of the archive.
        files: Its files with events.
        archived: The last archived sequence of each writer whose segments are in the journal.
    """

    address: str
    files: list[ArchiveFile]
    archived: dict[str, int]

    @property
    def events(self) -> int:
        """Number of events."""
        return sum(file.rows for file in self.files)

    def start(self) -> Mapping[str, tuple[int, int]]:
        """Return the position of the first event of each writer that is not in this version."""
        return {writer: (sequence + 1, 0) for writer, sequence in self.archived.items()}

    def entries(self, day: str, rows: int) -> Generator[ArchivedEntry]:
        """Yield the events in the order in which they ended; those of one run are in order.

        Args:
            day: The UTC day of the position after which to continue; "" for the beginning.
            rows: Number of rows of this day that were read.

        Raises:
            ArchiveDamagedError: A file is damaged.
            OSError: The archive cannot be read.
        """
        archive = Archive(self.address)
        with as_os_errors(self.address):
            source = select_rows(LocalFiles(archive).paths(self.files))
            if source is None:
                return
            with InterruptibleDatabase().open() as database:
                days = [
                    found
                    for (found,) in database.execute(
                        f"select distinct strftime({_TIME}, '%Y-%m-%d') from {source} order by 1"
                    ).fetchall()
                    if found >= day
                ]
                for each in days:
                    # The end of a run has the time of its last stage, or a later one.
                    cursor = database.execute(f"""
                        select * from {source} event where strftime({_TIME}, '%Y-%m-%d') = {text(each)}
                        order by {_TIME}, type in ('stage.wide', 'pipeline.wide'), type = 'pipeline.wide',
                            type, event_id, rest, hash(event)
                        offset {rows if each == day else 0}
                    """)
                    names = [name for name, *_ in cursor.description or ()]
                    read = rows if each == day else 0
                    while batch := cursor.fetchmany(_FETCH_ROWS):
                        for values in batch:
                            read += 1
                            yield ArchivedEntry(each, read, _entry_of(dict(zip(names, values, strict=True))))


class ArchivedEntry(Struct, frozen=True, gc=False):
    """An event of the archive.

    Attributes:
        day: The UTC day of the position after this event.
        rows: The number of rows of this day up to this event.
        entry: The event; None if the row is damaged.
    """

    day: str
    rows: int
    entry: Entry | None


def _entry_of(row: Mapping[str, Any]) -> Entry | None:
    event = event_of_row(row)
    if event is None:
        return None
    type, data = event
    json = msgspec.json.encode(data)
    # An event without an id is identified by its content, because its position in the journal is unknown.
    return Entry(type, json, f"archive-{hashlib.sha256(json).hexdigest()[:32]}")


def _path(journal: str, name: str) -> str:
    return os.path.join(journal, PINS, f"{name}.json")


def pin_archive(journal: str, name: str) -> ArchivePin | None:
    """Pin the current version of the archive of a journal; return None if there is no archive.

    The caller's cursor must exist: segments that are archived from now on then remain in the journal.

    Raises:
        ArchiveDamagedError: The archive is damaged or missing.
        OSError: The archive cannot be read, or the pin cannot be written.
    """
    address = read_address(journal)
    archive = Archive(address)
    with as_os_errors(address):
        archive.refresh()
        check_exists(archive, journal)
        if archive.version < 0:
            return None
        archived = {
            writer: archive.watermark(writer) for writer in list_writers(journal) if archive.watermark(writer)
        }
        pin = ArchivePin(address, [file for file in archive.files() if file.has_events], archived)
    make_private_below(os.path.join(journal, PINS))
    replace_file(_path(journal, name), encode_state(pin))
    return pin


def pinned_archive(journal: str, name: str) -> ArchivePin | None:
    """Return the version of the archive that is pinned under a name, or None.

    If the archive was moved, and the previous one deleted, its address is the current one.

    Raises:
        DamagedFileError: The pin is damaged.
    """
    pin = read_state(_path(journal, name), ArchivePin, _REMEDY)
    if pin is not None and not is_remote(pin.address) and not os.path.isdir(pin.address):
        return msgspec.structs.replace(pin, address=read_address(journal))
    return pin


def unpin_archive(journal: str, name: str) -> None:
    """Remove a pin, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(journal, name))


def has_pins(journal: str) -> bool:
    """Return whether any version of the archive of a journal is pinned."""
    try:
        return any(name.endswith(".json") for name in os.listdir(os.path.join(journal, PINS)))
    except (FileNotFoundError, NotADirectoryError):
        return False
