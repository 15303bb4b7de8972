"""Moves closed segments of a journal into its archive, once or periodically in a thread."""

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

import msgspec
from msgspec import Struct

from .._decodable import decodable
from .._files import absolute_path, try_lock
from .._log import log_safely
from ..errors import (
    ArchiveDamagedError,
    CursorInUseError,
    DamagedFileError,
    JournalNotFoundError,
    describe,
    invalid_argument,
)
from ..journal import (
    CursorFile,
    Journal,
    RetentionPolicy,
    Segment,
    list_writers,
    load_cursor,
    original_size,
    store_cursor,
    writer_is_closed,
)
from ._address import (
    CURSOR,
    absolute_address,
    archived_events,
    check_exists,
    read_address,
    same_address,
    store_address,
)
from ._archive import COUNTS, Archive, ArchiveFile, Conflict
from ._backfill import has_pins
from ._database import InterruptibleDatabase, as_os_errors
from ._decider import Decider
from ._decisions import Decisions, has_decisions
from ._losses import address_conflict, with_loss_count
from ._merge import Merged, count_rows, merge, sum_counts
from ._parquet import LocalFiles, may_be_damage, select_rows
from ._rows import load_rows
from ._sampling import TailSampler, apply_decisions

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "BackgroundCompactor",
    "CompactionResult",
    "Compactor",
    "Maintenance",
    "Progress",
    "closed_segments",
    "sampler_of_archive",
]


_MIN_MERGED_FILES = 8
"""Minimum number of small files of one day that are worth merging."""


class Maintenance(Struct, frozen=True, kw_only=True):
    """Maintains an archive after rows have been added.

    Attributes:
        journal: Directory of the journal.
        archive: The archive.
        database: The database in which files are merged.
        local: The local paths of the archive's files.
        max_age: Maximum age of events in seconds; only whole days are dropped. None to keep all events.
        max_bytes: Maximum size of the events; beyond it, the oldest days are dropped. None for no limit.
        counts_max_age: Maximum age of exact counts in seconds; None to keep all counts.
        target_bytes: Approximate size up to which small files are merged.
    """

    journal: str
    archive: Archive
    database: InterruptibleDatabase
    local: LocalFiles
    max_age: float | None
    max_bytes: int | None
    counts_max_age: float | None
    target_bytes: int

    def run(self) -> tuple[int, int]:
        """Merge small files and drop expired rows; return the numbers of merged files and dropped rows.

        Raises:
            OSError: The archive cannot be written.
        """
        merged = self._merge_small_files()
        dropped = self._drop_expired()
        if (merged or dropped) and not has_pins(self.journal):
            self.archive.remove_unused()
        self.archive.shorten_log()
        return merged, dropped

    def _merge_small_files(self) -> int:
        merged = 0
        for _, files in groupby(sorted(self.archive.files(), key=_merge_key), key=_merge_key):
            small = [file for file in files if file.size < self.target_bytes // 2]
            if len(small) >= _MIN_MERGED_FILES:
                with contextlib.suppress(Conflict, FileNotFoundError):  # the next call tries again
                    merged += self._merge(small)
        return merged

    def _merge(self, small: Sequence[ArchiveFile]) -> int:
        # Do not rewrite a damaged file: the new checksum would hide the damage.
        small = [file for file in small if self.local.damage_of(file) is None]
        if len(small) < _MIN_MERGED_FILES:
            return 0
        rows = f"from {select_rows(self.local.paths(small))}"
        with self.database.open() as database:
            if small[0].has_events:
                written = self.local.write(database, rows)
            else:
                written = self.local.write(database, sum_counts(rows), COUNTS)
        with self.local.deleted_on_failure(written):
            self.archive.commit(written, small)
        return len(small)

    def _drop_expired(self) -> int:
        events = sorted((file for file in self.archive.files() if file.has_events), key=_merge_key)
        size = sum(file.size for file in events)
        oldest = _oldest_day(self.max_age)
        expired: list[ArchiveFile] = []
        for (_, day), of_day in groupby(events, key=_merge_key):
            too_large = self.max_bytes is not None and size > self.max_bytes
            if day >= oldest and not too_large:
                break
            of_this_day = list(of_day)
            expired += of_this_day
            size -= sum(file.size for file in of_this_day)
        oldest = _oldest_day(self.counts_max_age)
        old_counts = [file for file in self.archive.files() if not file.has_events and file.day < oldest]
        if expired or old_counts:
            try:
                self.archive.commit([], expired + old_counts)
            except Conflict:  # the next call tries again
                return 0
        return sum(file.rows for file in expired)


def _merge_key(file: ArchiveFile) -> tuple[bool, str]:
    """Return the sort key of a file; files with the same key can be merged."""
    return file.has_events, file.day


def _oldest_day(age: float | None) -> str:
    """Return the oldest day to keep."""
    return "" if age is None else str((datetime.now(UTC) - timedelta(seconds=age)).date())


_LOCK = "archive.lock"
_MAX_ATTEMPTS = 50

Progress = Callable[[int, int], None]
"""Called with the number of bytes archived so far, and the total."""


class CompactionResult(Struct, frozen=True):
    """The result of `Compactor.compact`.

    Attributes:
        segments: Number of segments that were added to the archive.
        rows: Number of their events.
        kept_rows: Number of these events that are in the archive; all of them, unless they were sampled.
        merged_files: Number of small files that were merged into larger ones.
        dropped_rows: Number of rows that were dropped because of their age or the size of the archive.
        busy: True if another process was compacting, and nothing was done.
    """

    segments: int = 0
    rows: int = 0
    kept_rows: int = 0
    merged_files: int = 0
    dropped_rows: int = 0
    busy: bool = False


class Compactor:
    """Moves closed segments of a journal into its archive, and maintains the archive.

    Any number of compactors can work on one journal, and each can be killed at any point: the archive
    contains each event exactly once.

    Args:
        journal: Directory of the journal.
        archive: Address of the archive: a directory, or "s3://bucket/events"; default the current archive
            of the journal, or `archive` in its directory. The journal stores the address with the first
            commit. For a journal whose events are in another archive, see `move_archive` and
            `forget_archive`.
        storage_options: Options for object storage; see `EventStore`.
        keep_seconds: Minimum time in seconds that a segment stays in the journal after the last write to it;
            default 600. It stays longer if a named reader has not read it yet.
        max_age: Maximum age of archived events in seconds; only whole days are dropped. Default None, to
            keep all events.
        max_bytes: Maximum size of the archive; beyond it, the oldest days are dropped. Default None, for no
            limit.
        counts_max_age: Maximum age of the exact counts in seconds; default None, to keep all counts.
        sampler: Selects the runs to keep; default None, for all.
        max_attributes: Maximum number of attributes that have separate columns; default 256. Others are
            stored in `rest`, as JSON.
        batch_bytes: Maximum size of the segments archived in one batch; limits memory use. Default 256 MiB.
        target_bytes: Approximate size up to which small files are merged; default 128 MiB.

    Raises:
        JournalNotFoundError: The directory does not exist.

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
        self._database = InterruptibleDatabase()
        self._retention = RetentionPolicy(max_age=keep_seconds)
        self._new_maintenance = functools.partial(
            Maintenance,
            journal=self.journal,
            database=self._database,
            max_age=max_age,
            max_bytes=max_bytes,
            counts_max_age=counts_max_age,
            target_bytes=target_bytes,
        )
        self._use(read_address(self.journal) if self._given is None else self._given)
        self._sampler = sampler
        self._decider: Decider | None = None
        self._max_attributes = max_attributes
        self._batch_bytes = batch_bytes

    def _use(self, address: str) -> None:
        self.archive = Archive(address, self._storage_options)
        self._local = LocalFiles(self.archive)
        self._maintenance = self._new_maintenance(archive=self.archive, local=self._local)

    def compact(self, progress: Progress | None = None) -> CompactionResult:
        """Move every closed segment into the archive; then merge small files and drop expired rows.

        Args:
            progress: Called after each batch; see `Progress`.

        Raises:
            ArchiveAddressError: Events of the journal are in an archive at another address.
            ArchiveDamagedError: A file of the archive, or the archive itself, is damaged or missing.
            MissingExtraError: The packages of `stageflow[store]` are not installed.
            OSError: The journal cannot be read, or the archive cannot be written.
        """
        # The lock only avoids redundant work: two concurrent compactors would still be correct.
        with as_os_errors(self.archive.address), try_lock(os.path.join(self.journal, _LOCK)) as locked:
            if not locked:
                return CompactionResult(busy=True)
            self._check_address()
            try:
                self.recover_locked()
                self.archive.refresh()
            except ArchiveDamagedError as error:
                raise self.diagnose(error) from None
            check_exists(self.archive, self.journal)
            with contextlib.suppress(OSError):
                Journal(self.journal).recover()
            try:
                segments, rows, kept = self._archive_all(progress or _ignore_progress)
                self.archive.sync()
                if self._given is not None and self.archive.version >= 0:
                    store_address(self.journal, self._given)
                self._store_cursor()
                self._retention.apply(self.journal)
                merged, dropped = self._maintenance.run()
            except Exception as error:
                if may_be_damage(error):
                    self._local.invalidate()
                    self._local.verify(self.archive.files())
                raise
        return CompactionResult(segments, rows, kept, merged, dropped)

    def interrupt(self) -> None:
        """Interrupt the current step of another thread, if possible.

        `compact` raises an error in that thread. Nothing is lost: the next compaction repeats the step.
        """
        self._database.interrupt()
        if (decider := self._decider) is not None:
            decider.interrupt()

    def recover(self) -> list[str]:
        """Make an archive readable again after a machine crash; `compact` calls this method.

        Returns:
            The new paths of incomplete files at the end of the log that were moved to `_stageflow`.

        Raises:
            ArchiveDamagedError: A file that was already synced to disk is damaged.
            OSError: The archive cannot be written.
        """
        with try_lock(os.path.join(self.journal, _LOCK)) as locked:
            return self.recover_locked() if locked else []

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Hold the lock that excludes other compactors of this journal.

        Raises:
            OSError: Another compactor is running.
        """
        with try_lock(os.path.join(self.journal, _LOCK)) as locked:
            if not locked:
                raise OSError(errno.EBUSY, "another process is compacting", self.journal)
            yield

    def recover_locked(self) -> list[str]:
        """Do the same as `recover`; the caller holds the lock of the journal."""
        if self.archive.log is not None and not os.path.isdir(self.archive.address):
            return []
        return self.archive.recover(self._archived_sequences(), self._segment_check())

    def _check_address(self) -> None:
        """Use the current archive of the journal: another process may have changed its address."""
        try:
            address = read_address(self.journal)
        except DamagedFileError:
            if self._given is None:
                raise
            return  # the requested address replaces it
        if same_address(address, self.archive.address):
            return
        if self._given is None:
            self._use(address)
        elif archived_events(self.journal) is not None:
            raise address_conflict(self.journal, address, self.archive.address, self._storage_options)

    def diagnose(self, error: ArchiveDamagedError) -> ArchiveDamagedError:
        """Return an error that states whether a compaction would recover the archive, and the possible loss.

        Args:
            error: The error that was raised while reading the archive. Nothing is changed.
        """
        with contextlib.suppress(OSError):
            error = self.archive.recovery_error(self._archived_sequences(), self._segment_check()) or error
        return with_loss_count(error, self.archive, self.journal)

    def _archived_sequences(self) -> dict[str, int]:
        """Return the last archived sequence of each writer, according to the journal."""
        with contextlib.suppress(ValueError):
            if known := load_cursor(self.journal, CURSOR):
                return {writer: at - 1 for writer, (at, _) in known.positions.items()}
        return {}

    def _segment_check(self) -> Callable[[str, int, int], bool]:
        """Return a function that returns whether the journal has the segments between two sequences."""
        segments = {
            writer: {segment.sequence for segment in found}
            for writer, found in list_writers(self.journal).items()
        }
        return lambda writer, after, last: segments.get(writer, set()).issuperset(range(after + 1, last + 1))

    # ------------------------------------------------------------ archiving segments

    def _archive_all(self, progress: Progress) -> tuple[int, int, int]:
        if self._sampler is None:
            return self._archive_decided(progress, None)
        with contextlib.suppress(CursorInUseError), Decider(self.journal, self._sampler) as decider:
            self._decider = decider
            try:
                decider.decide()
            finally:
                self._decider = None
        with Decisions(self.journal) as decisions:
            with decisions.transaction():
                decisions.store_fact(ARCHIVE_SAMPLER, msgspec.json.encode(self._sampler).decode())
            return self._archive_decided(progress, decisions)

    def _archive_decided(self, progress: Progress, decisions: Decisions | None) -> tuple[int, int, int]:
        done = archived = rows = kept = 0
        attempts = 0
        while True:
            self.archive.refresh()
            waiting = closed_segments(self.journal, self.archive, decisions)
            if not waiting:
                return archived, rows, kept
            batch = _first_batch(waiting, self._batch_bytes)
            sizes = {segment.path: _size(segment) for segment in waiting}
            progress(done, done + sum(sizes.values()))
            try:
                found, left = self._archive_batch(batch, decisions)
            except (Conflict, FileNotFoundError):
                # Another process archived or deleted a segment first: list the segments again.
                attempts += 1
                if attempts > _MAX_ATTEMPTS:
                    raise
                if attempts > _MAX_ATTEMPTS // 10:
                    self.archive.refresh()
                    # After repeated failures, raise an error if a file is missing.
                    self._local.paths(self.archive.files())
                time.sleep(random.uniform(0, 0.05 * attempts))
                continue
            archived += len(batch)
            rows += found
            kept += left
            done += sum(sizes[segment.path] for segment in batch)
            progress(done, done + sum(sizes.values()) - sum(sizes[segment.path] for segment in batch))

    def _archive_batch(self, batch: Sequence[Segment], decisions: Decisions | None) -> tuple[int, int]:
        """Archive a batch of segments; return the number of its events, and how many of them are kept."""
        with self._database.open() as database:
            attributes = load_rows(database, "batch", batch, self.archive.attributes(), self._max_attributes)
            self.archive.prepare(_columns(database, "batch"))
            merged = merge(database, "batch", attributes, self.archive.files(), self._local)
            superseded = merged.superseded
            count = _count(database)
            written = self._local.write(database, count_rows("batch", superseded), COUNTS) if count else []
            with self._local.deleted_on_failure(written):
                if decisions is not None:
                    apply_decisions(database, "batch", merged.related_rows, decisions)
                kept = _count(database)
                rows, replaced = "from batch", []
                if superseded.count:
                    replaced = self._files_to_replace(database, merged)
                    self._local.verify(replaced)  # a new file would hide the damage
                    old_rows = select_rows(self._local.paths(replaced))
                    rows += f" union all by name (select * from {old_rows} where {superseded.is_current})"
                written += self._local.write(database, rows)
                last = {segment.writer: segment.sequence for segment in batch}
                self.archive.commit(written, replaced, last)
        return count - superseded.count, kept - superseded.count

    def _files_to_replace(self, database: DuckDBPyConnection, merged: Merged) -> list[ArchiveFile]:
        """Return the archive files with rows that the batch supersedes."""
        found = []
        for file, path in zip(merged.files, self._local.paths(merged.files), strict=True):
            query = f"select 1 from {select_rows([path])} where {merged.superseded.is_superseded} limit 1"
            if database.execute(query).fetchall():
                found.append(file)
        return found

    # ------------------------------------------------------------ releasing archived segments

    def _store_cursor(self) -> None:
        """Store the archived position of each writer as a cursor, for retention."""
        writers = list_writers(self.journal)
        positions = {
            writer: (self.archive.watermark(writer) + 1, 0)
            for writer in writers
            if self.archive.watermark(writer)
        }
        try:
            known = load_cursor(self.journal, CURSOR)
        except ValueError:  # damaged; the archive has the same information
            known = None
        # Write it even if nothing is archived: otherwise retention would delete segments by age alone.
        if known is None or positions != known.positions:
            store_cursor(
                self.journal,
                CURSOR,
                CursorFile(positions, sum(file.rows for file in self.archive.files() if file.has_events)),
            )


ARCHIVE_SAMPLER = "archive sampler"


def sampler_of_archive(journal: str) -> TailSampler | None:
    """Return the sampler of the last compaction of a journal that had one; None if there was none.

    Raises:
        OSError: The decisions of the journal cannot be read.
    """
    if not has_decisions(journal):
        return None
    with Decisions(journal) as decisions:
        described = decisions.fact(ARCHIVE_SAMPLER)
    return None if described is None else msgspec.json.decode(described, type=decodable(TailSampler))


def closed_segments(journal: str, archive: Archive, decisions: Decisions | None = None) -> list[Segment]:
    """Return the segments that are closed and not yet in the archive, oldest writer first.

    Args:
        journal: Directory of the journal.
        archive: The archive.
        decisions: If given, omit segments with events of undecided runs, and those after them.
    """
    found: list[Segment] = []
    until = decisions.decided_until() if decisions is not None else None
    for writer, segments in list_writers(journal).items():
        rest = [segment for segment in segments if segment.sequence > archive.watermark(writer)]
        if rest:
            with contextlib.suppress(FileNotFoundError):
                closed = rest if writer_is_closed(segments) else rest[:-1]
                if until is not None:
                    end = until.get(writer, (0, 0))
                    closed = [
                        segment for segment in closed if (segment.sequence, original_size(segment)) <= end
                    ]
                found += closed
    return found


def _first_batch(waiting: Sequence[Segment], max_bytes: int) -> list[Segment]:
    """Return the first segments up to a total size, but at least one."""
    batch: list[Segment] = []
    size = 0
    for segment in waiting:
        size += _size(segment)
        if batch and size > max_bytes:
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


def _ignore_progress(done: int, total: int) -> None:
    pass


log = logging.getLogger("stageflow.store")


class BackgroundCompactor:
    """Calls `compact` periodically in a daemon thread until it is closed.

    Errors are logged, once for each type of error, and the next call tries again. DuckDB and Delta Lake
    release the GIL, but they use CPU time: if the latency of a process matters, run
    `stageflow compact --every 1m` as a separate process. When the interpreter exits, the current step is
    interrupted; nothing is lost, and the next compaction repeats it.

    Args:
        compactor: The compactor.
        every: Seconds between the end of a call and the start of the next; default 60.

    Raises:
        InvalidArgumentError: `every` is not a positive number.

    Example:
        with BackgroundCompactor(Compactor("journal"), every=60):
            serve()
    """

    def __init__(self, compactor: Compactor, every: float = 60.0) -> None:
        if not (isinstance(every, int | float) and every > 0):
            raise invalid_argument("BackgroundCompactor", "every", every, "more than 0 seconds")
        self._compactor = compactor
        self._every = every
        self._closed = threading.Event()
        self._logged_kinds: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="stageflow-compactor", daemon=True)
        atexit.register(self._stop_at_exit)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._compactor.compact()
            except Exception as error:
                if self._closed.is_set():  # it was interrupted
                    return
                kind = type(error).__name__
                if kind not in self._logged_kinds:
                    self._logged_kinds.add(kind)
                    log_safely(
                        log,
                        "journal %s could not be compacted: %s (further occurrences are not logged)",
                        self._compactor.journal,
                        describe(error),
                    )
            if self._closed.wait(self._every):
                return

    def close(self, timeout: float = 5.0) -> None:
        """Stop, waiting up to `timeout` seconds for the current call to finish."""
        self._closed.set()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            atexit.unregister(self._stop_at_exit)

    def _stop_at_exit(self, seconds: float = 10.0) -> None:
        """Stop the thread, which would crash on returning from native code after the interpreter exits."""
        self._closed.set()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Repeat: an interrupt affects only a statement that is being executed.
            self._compactor.interrupt()
            self._thread.join(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
