"""Compacts a journal now and then, in a thread of the process that writes it or of any other."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Self

from msgspec import Struct

from .._files import absolute_path, try_lock
from .._log import log_safely
from ..errors import ArchiveDamagedError, DamagedFileError, JournalNotFoundError, describe
from ..journal import (
    CursorFile,
    Journal,
    RetentionPolicy,
    Segment,
    list_writers,
    load_cursor,
    read_failures,
    store_cursor,
    writer_is_closed,
)
from ._address import CURSOR, absolute_address, archived_events, read_address, remember_address, same_address
from ._archive import COUNTS, Archive, ArchiveFile, Conflict
from ._database import Workplace, as_os_errors
from ._losses import left_behind, with_count
from ._merge import KINDS, NO_KINDS, Merged, count_rows, merge, summed
from ._parquet import LocalFiles, may_be_damage, select_rows
from ._rows import load_rows
from ._sampling import TailSampler, sample

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "BackgroundCompactor",
    "Compacted",
    "Compactor",
    "Progress",
    "Upkeep",
    "closed_segments",
    "must_be_there",
]


_MANY = 8
"""From so many small files of one day on they are merged."""


class Upkeep(Struct, frozen=True, kw_only=True):
    """What is done to an archive after rows came in.

    Attributes:
        archive: The archive.
        workplace: Where files are merged.
        local: Its files.
        max_age: Seconds after which events are dropped, by whole days; None for never.
        max_bytes: Of events; beyond it the oldest days are dropped; None for no bound.
        counts_max_age: Seconds after which exact counts are dropped; None for never.
        target_bytes: Small files are merged until they have about this size.
    """

    archive: Archive
    workplace: Workplace
    local: LocalFiles
    max_age: float | None
    max_bytes: int | None
    counts_max_age: float | None
    target_bytes: int

    def keep_up(self) -> tuple[int, int]:
        """Merge and drop what is due; return how many small files were merged, and how many rows dropped.

        Raises:
            OSError: The archive cannot be written.
        """
        merged = self._merge_small_files()
        dropped = self._drop_old()
        if merged or dropped:
            self.archive.remove_unused()
        self.archive.shorten_log()
        return merged, dropped

    def _merge_small_files(self) -> int:
        merged = 0
        for _, files in groupby(sorted(self.archive.files(), key=_shelf), key=_shelf):
            small = [file for file in files if file.size < self.target_bytes // 2]
            if len(small) >= _MANY:
                with contextlib.suppress(Conflict, FileNotFoundError):  # another time
                    merged += self._merge(small)
        return merged

    def _merge(self, small: Sequence[ArchiveFile]) -> int:
        # Do not rewrite a damaged file: the new checksum would hide the damage.
        small = [file for file in small if self.local.damage_of(file) is None]
        if len(small) < _MANY:
            return 0
        rows = f"from {select_rows(self.local.paths(small))}"
        with self.workplace.open() as database:
            if small[0].has_events:
                written = self.local.write(database, rows)
            else:
                written = self.local.write(database, summed(rows), COUNTS)
        with self.local.taken_back(written):
            self.archive.commit(written, small)
        return len(small)

    def _drop_old(self) -> int:
        events = sorted((file for file in self.archive.files() if file.has_events), key=_shelf)
        size = sum(file.size for file in events)
        oldest = _day_of(self.max_age)
        gone: list[ArchiveFile] = []
        for (_, day), of_day in groupby(events, key=_shelf):
            too_much = self.max_bytes is not None and size > self.max_bytes
            if day >= oldest and not too_much:
                break
            of_this_day = list(of_day)
            gone += of_this_day
            size -= sum(file.size for file in of_this_day)
        oldest = _day_of(self.counts_max_age)
        old_counts = [file for file in self.archive.files() if not file.has_events and file.day < oldest]
        if gone or old_counts:
            try:
                self.archive.commit([], gone + old_counts)
            except Conflict:  # another time
                return 0
        return sum(file.rows for file in gone)


def _shelf(file: ArchiveFile) -> tuple[bool, str]:
    """Return which files may be merged with each other."""
    return file.has_events, file.day


def _day_of(age: float | None) -> str:
    """Return the oldest day that is kept."""
    return "" if age is None else str((datetime.now(UTC) - timedelta(seconds=age)).date())


_LOCK = "archive.lock"
_TRIES = 50

Progress = Callable[[int, int], None]
"""Called with the bytes of segments that are done, and all there are."""


class Compacted(Struct, frozen=True):
    """What one call did.

    Attributes:
        segments: How many segments are in the archive now that were not.
        rows: How many events they had.
        kept_rows: How many of them are in the archive: all, unless they were sampled.
        merged_files: How many small files were made into larger ones.
        dropped_rows: How many rows were dropped for their age or for the archive's size.
        busy: True where another process was at it, and nothing was done.
    """

    segments: int = 0
    rows: int = 0
    kept_rows: int = 0
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
            this journal has, or `archive` in its directory. The journal stores it with the first commit.
            For a journal whose events are in another archive, see `move_archive` and `forget_archive`.
        storage_options: How to get at object storage; see `EventStore`.
        keep_seconds: How long a segment stays in the journal after it was last written to, at
            least; default 600. It stays until every named reader has read it.
        max_age: Seconds after which events are dropped from the archive, by whole days; default
            None, for never.
        max_bytes: Of the archive; beyond it the oldest days are dropped; default None, for no bound.
        counts_max_age: Seconds after which the exact counts are dropped too; default None, for never.
        sampler: Which runs are kept; default None, for all.
        max_attributes: How many attributes have a column of their own; default 256. The others
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
        counts_max_age: float | None = None,
        sampler: TailSampler | None = None,
        max_attributes: int = 256,
        batch_bytes: int = 256 << 20,
        target_bytes: int = 128 << 20,
    ) -> None:
        self.journal = absolute_path(journal)
        if not os.path.isdir(self.journal):
            raise JournalNotFoundError(self.journal)
        self._given = absolute_address(archive) if archive is not None else None
        self._storage_options = storage_options
        self._workplace = Workplace()
        self._room = RetentionPolicy(max_age=keep_seconds)
        self._new_upkeep = functools.partial(
            Upkeep,
            workplace=self._workplace,
            max_age=max_age,
            max_bytes=max_bytes,
            counts_max_age=counts_max_age,
            target_bytes=target_bytes,
        )
        self._use(read_address(self.journal) if self._given is None else self._given)
        self._sampler = sampler
        self._max_attributes = max_attributes
        self._batch_bytes = batch_bytes

    def _use(self, address: str) -> None:
        self.archive = Archive(address, self._storage_options)
        self._local = LocalFiles(self.archive)
        self._upkeep = self._new_upkeep(archive=self.archive, local=self._local)

    def compact(self, progress: Progress | None = None) -> Compacted:
        """Take every closed segment into the archive; then merge small files, and drop what is too much.

        Args:
            progress: Called now and then; see `Progress`.

        Raises:
            ArchiveAddressError: Events of the journal are in the archive at another address.
            ArchiveDamagedError: A file of the archive, or the archive itself, is damaged or missing.
            MissingExtraError: The packages of `stageflow[store]` are not installed.
            OSError: The journal cannot be read, or the archive not be written.
        """
        # For economy alone: two at once would be right, and one of them for nothing.
        with as_os_errors(self.archive.address), try_lock(os.path.join(self.journal, _LOCK)) as alone:
            if not alone:
                return Compacted(busy=True)
            self._check_address()
            try:
                self.recover_alone()
                self.archive.refresh()
            except ArchiveDamagedError as error:
                raise self.diagnose(error) from None
            must_be_there(self.archive, self.journal)
            with contextlib.suppress(OSError):
                Journal(self.journal).recover()
            try:
                segments, rows, kept = self._take_all(progress or _in_silence)
                self.archive.sync()
                if self._given is not None and self.archive.version >= 0:
                    remember_address(self.journal, self._given)
                self._tell_cursor()
                self._room.apply(self.journal)
                merged, dropped = self._upkeep.keep_up()
            except Exception as error:
                if may_be_damage(error):
                    self._local.forget()
                    self._local.must_be_intact(self.archive.files())
                raise
        return Compacted(segments, rows, kept, merged, dropped)

    def interrupt(self) -> None:
        """Break off the step that another thread is at, if it can be; there `compact` raises then.

        Nothing is lost: whoever compacts next begins that step anew.
        """
        self._workplace.interrupt()

    def recover(self) -> list[str]:
        """Make an archive readable again after a crash of the machine; `compact` calls this method.

        Returns:
            New paths of incomplete files at the end of the log, which were moved to `_stageflow`.

        Raises:
            ArchiveDamagedError: A durable file is damaged.
            OSError: The archive cannot be written.
        """
        with try_lock(os.path.join(self.journal, _LOCK)) as alone:
            return self.recover_alone() if alone else []

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Hold the lock that excludes other compactors of this journal.

        Raises:
            OSError: Another compactor is running.
        """
        with try_lock(os.path.join(self.journal, _LOCK)) as alone:
            if not alone:
                raise OSError(errno.EBUSY, "another process is compacting", self.journal)
            yield

    def recover_alone(self) -> list[str]:
        """Do what `recover` does, for a caller that keeps other compactors away."""
        if self.archive.log is not None and not os.path.isdir(self.archive.address):
            return []
        return self.archive.recover(self._promised(), self._keeps())

    def _check_address(self) -> None:
        """Use the archive that the journal has now: another process may have changed its address."""
        try:
            address = read_address(self.journal)
        except DamagedFileError:
            if self._given is None:
                raise
            return  # the address that was given replaces it
        if same_address(address, self.archive.address):
            return
        if self._given is None:
            self._use(address)
        elif archived_events(self.journal) is not None:
            raise left_behind(self.journal, address, self.archive.address, self._storage_options)

    def diagnose(self, error: ArchiveDamagedError) -> ArchiveDamagedError:
        """Return an error that says whether a compaction would recover the archive, and what is at stake.

        Args:
            error: That reading the archive raised. Nothing is changed.
        """
        with contextlib.suppress(OSError):
            error = self.archive.why_not_recoverable(self._promised(), self._keeps()) or error
        return with_count(error, self.archive, self.journal)

    def _promised(self) -> dict[str, int]:
        """Return how far each writer's segments are archived, according to the journal."""
        with contextlib.suppress(ValueError):
            if known := load_cursor(self.journal, CURSOR):
                return {writer: at - 1 for writer, (at, _) in known.positions.items()}
        return {}

    def _keeps(self) -> Callable[[str, int, int], bool]:
        """Return a function that says whether the journal has the segments between two sequences."""
        segments = {
            writer: {segment.sequence for segment in found}
            for writer, found in list_writers(self.journal).items()
        }
        return lambda writer, after, last: segments.get(writer, set()).issuperset(range(after + 1, last + 1))

    # ------------------------------------------------------------ into the archive

    def _take_all(self, progress: Progress) -> tuple[int, int, int]:
        done = taken = rows = kept = 0
        tries = 0
        while True:
            self.archive.refresh()
            waiting = closed_segments(self.journal, self.archive)
            if not waiting:
                return taken, rows, kept
            batch = _first(waiting, self._batch_bytes)
            sizes = {segment.path: _size(segment) for segment in waiting}
            progress(done, done + sum(sizes.values()))
            try:
                found, left = self._take(batch)
            except (Conflict, FileNotFoundError):
                # Somebody else was quicker, or made room: look again what there is to do.
                tries += 1
                if tries > _TRIES:
                    raise
                if tries > _TRIES // 10:
                    self.archive.refresh()
                    self._local.paths(self.archive.files())  # after so many tries, a missing file is damage
                time.sleep(random.uniform(0, 0.05 * tries))
                continue
            taken += len(batch)
            rows += found
            kept += left
            done += sum(sizes[segment.path] for segment in batch)
            progress(done, done + sum(sizes.values()) - sum(sizes[segment.path] for segment in batch))

    def _take(self, batch: Sequence[Segment]) -> tuple[int, int]:
        """Take some segments into the archive; return how many events they had, and how many are kept."""
        with self._workplace.open() as database:
            attributes = load_rows(database, "batch", batch, self.archive.attributes(), self._max_attributes)
            self.archive.prepare(_columns(database, "batch"))
            merged = merge(database, "batch", attributes, self.archive.files(), self._local)
            superseded = merged.superseded
            count = _count(database)
            written = self._local.write(database, count_rows("batch", superseded), COUNTS) if count else []
            with self._local.taken_back(written):
                if self._sampler is not None:
                    failures = read_failures(self.journal)
                    sample(database, self._sampler, "batch", merged.near, self._kinds(), failures)
                kept = _count(database)
                rows, replaced = "from batch", []
                if superseded.count:
                    replaced = self._holding(database, merged)
                    self._local.must_be_intact(replaced)  # a new file would hide the damage
                    rows += f""" union all by name (
                        select * from {select_rows(self._local.paths(replaced))} where {superseded.spares})"""
                written += self._local.write(database, rows)
                last = {segment.writer: segment.sequence for segment in batch}
                self.archive.commit(written, replaced, last)
        return count - superseded.count, kept - superseded.count

    def _kinds(self) -> str:
        """Return in SQL the kinds of runs that are known."""
        counts = [file for file in self.archive.files() if not file.has_events]
        return KINDS.format(counts=select_rows(self._local.paths(counts))) if counts else NO_KINDS

    def _holding(self, database: DuckDBPyConnection, merged: Merged) -> list[ArchiveFile]:
        """Return the archive files with rows that the batch supersedes."""
        found = []
        for file, path in zip(merged.files, self._local.paths(merged.files), strict=True):
            held = f"select 1 from {select_rows([path])} where {merged.superseded.replaces} limit 1"
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
        try:
            known = load_cursor(self.journal, CURSOR)
        except ValueError:  # what it says is in the archive as well
            known = None
        # Also where nothing is in the archive yet: what no reader has to read goes for its age alone.
        if known is None or positions != known.positions:
            store_cursor(
                self.journal,
                CURSOR,
                CursorFile(positions, sum(file.rows for file in self.archive.files() if file.has_events)),
            )


def must_be_there(archive: Archive, journal: str) -> None:
    """Raise an error if an archive does not exist, although events of the journal were archived.

    Args:
        archive: After `refresh`.
        journal: Directory of the journal.

    Raises:
        ArchiveDamagedError: It is missing: its disk may not be mounted, or its address may be wrong.
    """
    if archive.version < 0 and (events := archived_events(journal)) is not None:
        raise ArchiveDamagedError(
            f"archive {archive.address} does not exist, but {events:,} events of journal {journal}"
            " were archived",
            files=[archive.address],
            hint="mount or restore the archive, or correct its address. To give it up and start a new one:"
            " `stageflow compact --forget`",
        )


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


def _count(database: DuckDBPyConnection) -> int:
    ((count,),) = database.execute("select count(*) from batch").fetchall()
    return int(count)


def _columns(database: DuckDBPyConnection, table: str) -> dict[str, str]:
    return {name: type for name, type, *_ in database.execute(f"describe {table}").fetchall()}


def _in_silence(done: int, whole: int) -> None:
    pass


log = logging.getLogger("stageflow.store")


class BackgroundCompactor:
    """Calls `compact` of a compactor again and again, in a daemon thread, until it is closed.

    What goes wrong is logged, once for each kind of error, and tried again. DuckDB and Delta Lake
    work outside of Python's lock, but they take processor time: a process with a service level to
    keep leaves it to another one, `stageflow compact --every 1m`. When the interpreter ends, what is
    under way is broken off: nothing is lost, and another one does it.

    Args:
        compactor: What is called.
        every: Seconds between the end of one call and the next; default 60.

    Raises:
        ValueError: `every` is no positive number.

    Example:
        with BackgroundCompactor(Compactor("journal"), every=60):
            serve()
    """

    def __init__(self, compactor: Compactor, every: float = 60.0) -> None:
        if not (isinstance(every, int | float) and every > 0):
            raise ValueError(f"BackgroundCompactor(every={every!r}); give seconds, more than 0")
        self._compactor = compactor
        self._every = every
        self._closed = threading.Event()
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="stageflow-compactor", daemon=True)
        atexit.register(self._break_off)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._compactor.compact()
            except Exception as error:
                if self._closed.is_set():  # it was broken off
                    return
                kind = type(error).__name__
                if kind not in self._told:
                    self._told.add(kind)
                    log_safely(
                        log,
                        "journal %s could not be compacted: %s (further occurrences are not logged)",
                        self._compactor.journal,
                        describe(error),
                    )
            if self._closed.wait(self._every):
                return

    def close(self, timeout: float = 5.0) -> None:
        """Let what is under way end, for so many seconds at most, and stop."""
        self._closed.set()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            atexit.unregister(self._break_off)

    def _break_off(self, seconds: float = 10.0) -> None:
        """End the thread: one that comes back from native code into an interpreter that is gone crashes."""
        self._closed.set()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Again and again: it ends a statement, and there may be none at this moment.
            self._compactor.interrupt()
            self._thread.join(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
