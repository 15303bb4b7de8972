"""Takes closed segments from a journal into its archive, and then off the disk of the journal."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING

from msgspec import Struct

from ..errors import JournalNotFoundError
from ..journal import Journal
from ..journal.cursor_file import CursorFile, load, store
from ..journal.disk import only_one
from ..journal.layout import Segment, list_writers
from ..journal.recovery import writer_is_closed
from ..journal.retention import Room
from .address import read_address, remember_address
from .archive import Archive, ArchiveFile, Conflict
from .database import open_database
from .parquet import LocalFiles, select_rows
from .rows import load_rows
from .settle import BASE, settle

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Compacted", "Compactor", "Progress", "closed_segments", "overlapping"]

CURSOR = "archive"
"""The name of the archive among the readers of a journal."""

_LOCK = "archive.lock"
_TRIES = 50

Progress = Callable[[int, int], None]
"""Called with the bytes of segments that are done, and all there are."""


class Compacted(Struct, frozen=True):
    """What one call did.

    Attributes:
        segments: How many segments are in the archive now that were not.
        rows: How many rows they gave.
        merged_files: How many small files were made into larger ones.
        dropped_rows: How many rows were dropped for their age or for the archive's size.
        busy: True where another process was at it, and nothing was done.
    """

    segments: int = 0
    rows: int = 0
    merged_files: int = 0
    dropped_rows: int = 0
    busy: bool = False


class Compactor:
    """Keeps the archive of a journal.

    Any number of compactors may work on one journal, and each may be killed at any point: each
    event is in the archive once.

    Args:
        journal: Directory of the journal.
        archive: Address of the archive: a directory, or "s3://bucket/events"; default the one that
            this journal has, or `archive` in its directory. It is remembered in the journal.
        storage_options: How to get at object storage; see `EventStore`.
        keep_seconds: How long a segment stays in the journal after it was last written to, at
            least; default 600. It stays until every named reader has read it.
        max_age: Seconds after which events are dropped from the archive, by whole days; default
            None, for never.
        max_bytes: Of the archive; beyond it the oldest days are dropped; default None, for no bound.
        most_attributes: How many attributes have a column of their own; default 256. The others
            stand in `rest`, as JSON.
        batch_bytes: Of segments that are taken at once; default 256 MiB. It bounds the memory.
        target_bytes: Small files are merged until they have about this size; default 128 MiB.

    Raises:
        JournalNotFoundError: There is no journal.

    Example:
        print(Compactor("journal").compact().rows)
    """

    def __init__(
        self,
        journal: str | os.PathLike[str],
        archive: str | os.PathLike[str] | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
        keep_seconds: float = 600.0,
        max_age: float | None = None,
        max_bytes: int | None = None,
        most_attributes: int = 256,
        batch_bytes: int = 256 << 20,
        target_bytes: int = 128 << 20,
    ) -> None:
        self.journal = os.fspath(journal)
        if not os.path.isdir(self.journal):
            raise JournalNotFoundError(self.journal)
        if archive is not None:
            remember_address(self.journal, os.fspath(archive))
        self.archive = Archive(read_address(self.journal), storage_options)
        self._local = LocalFiles(self.archive)
        self._room = Room(max_age=keep_seconds)
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._most_attributes = most_attributes
        self._batch_bytes = batch_bytes
        self._target_bytes = target_bytes

    def compact(self, progress: Progress | None = None) -> Compacted:
        """Take every closed segment into the archive; then merge small files, and drop what is too much.

        Args:
            progress: Called now and then; see `Progress`.

        Raises:
            MissingExtraError: The packages of `stageflow[store]` are not installed.
            OSError: The journal cannot be read, or the archive not be written.
        """
        # For economy alone: two at once would be right, and one of them for nothing.
        with only_one(os.path.join(self.journal, _LOCK)) as alone:
            if not alone:
                return Compacted(busy=True)
            with contextlib.suppress(OSError):
                Journal(self.journal).recover()
            segments, rows = self._take_all(progress or _in_silence)
            self._tell_cursor()
            self._room.make(self.journal)
            merged = self._merge_small_files()
            dropped = self._drop_old()
            if merged or dropped:
                self.archive.remove_unused()
        return Compacted(segments, rows, merged, dropped)

    # ------------------------------------------------------------ into the archive

    def _take_all(self, progress: Progress) -> tuple[int, int]:
        done = taken = rows = 0
        tries = 0
        while True:
            self.archive.refresh()
            waiting = closed_segments(self.journal, self.archive)
            if not waiting:
                return taken, rows
            batch = _first(waiting, self._batch_bytes)
            sizes = {segment.path: _size(segment) for segment in waiting}
            progress(done, done + sum(sizes.values()))
            try:
                rows += self._take(batch)
            except (Conflict, FileNotFoundError):
                # Somebody else was quicker, or made room: look again what there is to do.
                tries += 1
                if tries > _TRIES:
                    raise
                time.sleep(random.uniform(0, 0.05 * tries))
                continue
            taken += len(batch)
            done += sum(sizes[segment.path] for segment in batch)
            progress(done, done + sum(sizes.values()) - sum(sizes[segment.path] for segment in batch))

    def _take(self, batch: Sequence[Segment]) -> int:
        with open_database() as database:
            attributes = load_rows(database, "batch", batch, self.archive.attributes(), self._most_attributes)
            self.archive.prepare(_columns(database, "batch"))
            files = overlapping(self.archive.files(), *_range(database))
            superseded = settle(database, "batch", attributes, select_rows(self._local.paths(files)))
            ((count,),) = database.execute("select count(*) from batch").fetchall()
            rows, replaced = "from batch", []
            if superseded:
                replaced = self._holding(database, files, superseded)
                rows += f""" union all by name (
                    select * from {select_rows(self._local.paths(replaced))}
                    where event_id is null or ({BASE}, event_id) not in (from superseded))"""
            written = self._local.write(database, rows) if count else []
            last = {segment.writer: segment.sequence for segment in batch}
            self.archive.commit(written, replaced, last)
        return int(count) - len(superseded)

    def _holding(
        self,
        database: DuckDBPyConnection,
        files: Sequence[ArchiveFile],
        superseded: Sequence[tuple[str, str]],
    ) -> list[ArchiveFile]:
        """Return the files that have rows which those of the batch supersede."""
        database.execute("create table superseded (base varchar, event_id varchar)")
        database.executemany("insert into superseded values (?, ?)", superseded)
        found = []
        for file, path in zip(files, self._local.paths(files), strict=True):
            held = (
                f"select 1 from {select_rows([path])} where ({BASE}, event_id) in (from superseded) limit 1"
            )
            if database.execute(held).fetchall():
                found.append(file)
        return found

    # ------------------------------------------------------------ off the journal's disk

    def _tell_cursor(self) -> None:
        """Write down what is in the archive, as every reader of a journal does: what has been read may go."""
        writers = list_writers(self.journal)
        positions = {
            writer: (self.archive.watermark(writer) + 1, 0)
            for writer in writers
            if self.archive.watermark(writer)
        }
        known = load(self.journal, CURSOR) or CursorFile()
        if positions != known.positions:
            store(
                self.journal, CURSOR, CursorFile(positions, sum(file.rows for file in self.archive.files()))
            )

    # ------------------------------------------------------------ order in the archive

    def _merge_small_files(self) -> int:
        merged = 0
        for _, files in groupby(sorted(self.archive.files(), key=_day), key=_day):
            small = [file for file in files if file.size < self._target_bytes // 2]
            if len(small) >= _MANY:
                with contextlib.suppress(Conflict, FileNotFoundError):  # another time
                    merged += self._merge(small)
        return merged

    def _merge(self, small: Sequence[ArchiveFile]) -> int:
        with open_database() as database:
            written = self._local.write(database, f"from {select_rows(self._local.paths(small))}")
        self.archive.commit(written, small)
        return len(small)

    def _drop_old(self) -> int:
        files = sorted(self.archive.files(), key=_day)
        size = sum(file.size for file in files)
        oldest = ""
        if self._max_age is not None:
            oldest = str((datetime.now(UTC) - timedelta(seconds=self._max_age)).date())
        gone: list[ArchiveFile] = []
        for day, of_day in groupby(files, key=_day):
            too_much = self._max_bytes is not None and size > self._max_bytes
            if day >= oldest and not too_much:
                break
            of_this_day = list(of_day)
            gone += of_this_day
            size -= sum(file.size for file in of_this_day)
        if gone:
            try:
                self.archive.commit([], gone)
            except Conflict:  # another time
                return 0
        return sum(file.rows for file in gone)


_MANY = 8
"""From so many small files of one day on they are merged."""


def closed_segments(journal: str, archive: Archive) -> list[Segment]:
    """Return the segments that nobody writes to and that are not in the archive, oldest writer first."""
    found: list[Segment] = []
    for writer, segments in list_writers(journal).items():
        rest = [segment for segment in segments if segment.sequence > archive.watermark(writer)]
        if rest:
            with contextlib.suppress(FileNotFoundError):
                found += rest if writer_is_closed(segments) else rest[:-1]
    return found


def _first(waiting: Sequence[Segment], most_bytes: int) -> list[Segment]:
    """Return as many of the first segments as have so many bytes together, and one at least."""
    batch: list[Segment] = []
    size = 0
    for segment in waiting:
        size += _size(segment)
        if batch and size > most_bytes:
            break
        batch.append(segment)
    return batch


def _size(segment: Segment) -> int:
    try:
        return os.stat(segment.path).st_size
    except FileNotFoundError:
        return 0


def overlapping(files: Sequence[ArchiveFile], first: str | None, last: str | None) -> list[ArchiveFile]:
    """Return the files that may have an event whose id lies between these two."""
    if first is None or last is None:
        return []
    return [
        file
        for file in files
        if file.first_id is None or file.last_id is None or (file.first_id <= last and first <= file.last_id)
    ]


def _columns(database: DuckDBPyConnection, table: str) -> dict[str, str]:
    return {name: type for name, type, *_ in database.execute(f"describe {table}").fetchall()}


def _range(database: DuckDBPyConnection) -> tuple[str | None, str | None]:
    found: tuple[str | None, str | None] | None = database.execute(
        "select min(event_id), max(event_id) from batch"
    ).fetchone()
    assert found is not None
    return found


def _day(file: ArchiveFile) -> str:
    return file.day


def _in_silence(done: int, whole: int) -> None:
    pass
