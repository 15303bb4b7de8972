"""The sink that writes the journal: every event on disk, by one write, before its emission returns."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from typing import Any, Literal

from msgspec.structs import replace

from .._files import NO_ROOM, absolute_path, make_private, network_file_system, sync
from .._log import log_safely
from ..errors import describe
from ..events import DELIVERY, DirectSink, Event, EventLost
from ..schema import Heartbeat, PipelineWide, RunClosed, RunOpen
from ._format import WriterClosed, encode_mark
from ._retention import RetentionPolicy
from ._writer import SegmentSyncer, SegmentWriter, SyncThread

__all__ = ["JournalSink"]


log = logging.getLogger("stageflow.journal")

Fsync = Literal["never", "interval", "always"]

_MAX_LOST_ENDS = 10_000
"""So many runs whose `pipeline.wide` could not be written are remembered until their end can be."""

_RETENTION_INTERVAL_SECONDS = 30.0
"""Seconds after which room is made even where no segment was begun."""


class JournalSink(DirectSink):
    """Appends each event as one line of JSON, `{"type": ..., "data": {...}}`, to a file of this process.

    One `write` hands the line to the operating system before emission returns, so a SIGKILL of
    the process loses nothing. Any number of processes and threads may write to one directory.

    Args:
        path: Directory for the files; made, private to its owner, where there is none. On a local
            disk: on a network file system nobody can tell whether a writer lives.
        fsync: What a crash of the *machine* may take. `"interval"`: what was emitted in the last
            `fsync_interval` seconds; a thread syncs, no caller waits. `"never"`: what the kernel
            has not written by itself, mostly the last 30 s. `"always"`: nothing; each emission
            waits for the disk.
        fsync_interval: Seconds; default 0.5.
        segment_bytes: A file that would grow beyond this is followed by another; default 64 MiB,
            and never more than an eighth of `max_bytes`.
        segment_seconds: A file that is older is followed by another; default one hour.
        max_bytes: Bound on the whole directory; default 4 GiB. Beyond it the oldest files are
            deleted, records of failed runs last. None for no bound.
        max_age: Seconds after which a file is deleted, once every cursor has read it; default
            None, for no such end.
        max_line_bytes: An event whose line would be longer is dropped; default 16,000,000, the
            most that DuckDB reads as one object.

    Raises:
        OSError: The directory cannot be made.
        ValueError: A bound is not a positive number, `fsync` is none of the three, or the path is a
            file.

    Example:
        >>> JournalSink("journal", fsync="always")
        <JournalSink '.../journal'>
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fsync: Fsync = "interval",
        fsync_interval: float = 0.5,
        segment_bytes: int = 64 << 20,
        segment_seconds: float = 3600.0,
        max_bytes: int | None = 4 << 30,
        max_age: float | None = None,
        max_line_bytes: int = 16_000_000,
    ) -> None:
        if fsync not in ("never", "interval", "always"):
            raise ValueError(f"JournalSink(fsync={fsync!r}); give 'never', 'interval' or 'always'")
        for name, bound in (
            ("fsync_interval", fsync_interval),
            ("segment_bytes", segment_bytes),
            ("segment_seconds", segment_seconds),
            ("max_bytes", max_bytes),
            ("max_age", max_age),
            ("max_line_bytes", max_line_bytes),
        ):
            if bound is not None and not (isinstance(bound, (int, float)) and bound > 0):
                raise ValueError(f"JournalSink({name}={bound!r}); give a number, more than 0")
        if not os.fspath(path) or os.path.isfile(path):
            raise ValueError(f"JournalSink({os.fspath(path)!r}); give a directory")
        self.path = absolute_path(path)
        self._options = {
            "fsync": fsync,
            "fsync_interval": fsync_interval,
            "segment_bytes": segment_bytes,
            "segment_seconds": segment_seconds,
            "max_bytes": max_bytes,
            "max_age": max_age,
            "max_line_bytes": max_line_bytes,
        }
        self._fsync = fsync
        self._interval = fsync_interval
        self._segment_bytes = (
            segment_bytes if max_bytes is None else min(segment_bytes, max(max_bytes // 8, 1))
        )
        self._segment_seconds = segment_seconds
        self._retention = RetentionPolicy(max_bytes, max_age)
        self._max_line_bytes = max_line_bytes
        make_private(self.path)
        if (kind := network_file_system(self.path)) is not None:
            log_safely(
                log,
                "journal %s is on a network file system (%s): keep it on a local disk, or runs of live"
                " processes on other machines may be taken for crashed",
                self.path,
                kind,
            )
        self._initialize()
        _sinks.add(self)

    def _initialize(self) -> None:
        # Reentrant: a signal handler may emit while its thread is writing.
        self._lock = threading.RLock()
        self._retention_lock = threading.RLock()
        self._closing = threading.Event()
        self._retention_thread: threading.Thread | None = None
        self._warned: set[str] = set()
        self._create_writer()

    def _create_writer(self) -> None:
        self._writer = SegmentWriter(
            self.path,
            segment_bytes=self._segment_bytes,
            segment_seconds=self._segment_seconds,
            sync_each=self._fsync == "always",
        )
        self._syncer = SegmentSyncer(self._writer, self._lock, None if self._fsync == "never" else _sync)
        self._sync_thread: SyncThread | None = None
        self._sync_inline_at = 0.0
        self._open_runs: set[str] = set()
        self._lost_ends: dict[str, str] = {}
        self._retention_at = 0.0

    # ------------------------------------------------------------ what the library calls

    def take(self, event: Event) -> None:
        """Write one event."""
        body = event.body
        try:
            self._write(event.line())
        except EventLost as lost:
            if type(body) is PipelineWide:
                self._record_lost_end(body.event_id, str(lost))
            raise
        if type(body) is PipelineWide:
            self._open_runs.discard(body.event_id)

    @property
    def accepts_marks(self) -> bool:
        """True: the mark of its start allows completing the record of a run whose process died."""
        return True

    def accept_mark(self, mark: RunOpen | RunClosed | Heartbeat) -> None:
        """Write the mark of the start or the end of a run, or a heartbeat."""
        line = encode_mark(mark)
        if isinstance(mark, Heartbeat):
            # The runs may have ended, and the journal may be closed, since the heartbeat was composed.
            with self._lock, contextlib.suppress(EventLost):  # the next one is due in a second
                if self._open_runs:
                    self._write(line)
            return
        if isinstance(mark, RunOpen) and len(line) > self._max_line_bytes:
            line = encode_mark(replace(mark, stages=[]))  # its stages are then known from its events alone
        try:
            self._write(line)
        except EventLost as lost:
            # No event, and so counted nowhere: but whoever looks for crashed runs will miss this one.
            self._warn_once("mark", f"the beginning or end of a run could not be marked: {lost}")
            if isinstance(mark, RunClosed):
                self._record_lost_end(mark.event_id, mark.reason)
        else:
            if isinstance(mark, RunOpen):
                self._open_runs.add(mark.event_id)
            else:
                self._open_runs.discard(mark.event_id)

    # ------------------------------------------------------------ writing

    def _write(self, line: bytes) -> None:
        if len(line) > self._max_line_bytes:
            raise EventLost(
                "line_too_long",
                f"a line of {len(line):,} bytes is longer than the {self._max_line_bytes:,} that"
                f" JournalSink({self.path!r}, max_line_bytes=...) allows",
            )
        try:
            with self._lock:
                self._writer.append(line)
                if self._sync_thread is None:
                    self._start_sync_thread()
                if self._lost_ends:
                    self._write_lost_ends()
            if self._sync_thread is None:
                self._sync_inline()
        except OSError as error:
            full = error.errno in NO_ROOM
            raise EventLost(
                "disk_full" if full else "journal_unwritable",
                f"journal {self.path!r} could not be written: {error.strerror or error}",
            ) from error

    def _start_sync_thread(self) -> None:
        if sys.is_finalizing() or time.monotonic() < self._sync_inline_at:
            return  # the process is exiting and will sync again, or a sync was attempted just now
        try:
            self._sync_thread = SyncThread(self, self._interval)
        except RuntimeError as error:
            self._warn_once(
                "thread",
                f"no thread can be started ({error}): every {self._interval} s one caller waits for the disk,"
                " retention does not run, and events emitted before a pause are synced after it",
            )

    def _sync_inline(self) -> None:
        # Without waiting for another thread that is syncing: a signal handler may have interrupted this
        # thread.
        if time.monotonic() >= self._sync_inline_at and self._syncer.lock.acquire(blocking=False):
            try:
                self._sync_inline_at = time.monotonic() + self._interval
                self._try_to_sync()
            finally:
                self._syncer.lock.release()

    def _write_lost_ends(self) -> None:
        """Write down the ends of runs that could not be written before."""
        with contextlib.suppress(OSError):  # not yet: the next event tries again
            while self._lost_ends:
                run_id, why = next(iter(self._lost_ends.items()))
                self._writer.append(encode_mark(RunClosed(run_id, why)))
                del self._lost_ends[run_id]
                self._open_runs.discard(run_id)

    def _record_lost_end(self, run_id: str, why: str) -> None:
        # Without a word of its end, a run whose `pipeline.wide` was lost would be taken for crashed.
        with self._lock:
            if len(self._lost_ends) < _MAX_LOST_ENDS:
                self._lost_ends[run_id] = f"its pipeline.wide was lost: {why}"

    # ------------------------------------------------------------ what is due now and then

    def sync_if_due(self) -> None:
        """Sync if a sync is due, and apply retention in another thread; called by the sync_thread's thread."""
        try:
            with self._lock:
                if self._open_runs:
                    with contextlib.suppress(OSError):  # the next event tries again, and reports it
                        self._writer.check_descriptor()
                if self._lost_ends:
                    self._write_lost_ends()
            self._report_lost_descriptors()
            self._try_to_sync()
            self._start_retention()
        except Exception as error:
            self._warn_once(type(error).__name__, f"its upkeep failed: {describe(error)}")

    def run_maintenance(self) -> None:
        """Sync and apply retention immediately, in the calling thread."""
        with self._lock:
            if self._lost_ends:
                self._write_lost_ends()
        self._try_to_sync()
        self._retention_is_due()
        self._apply_retention()

    def _report_lost_descriptors(self) -> None:
        if self._writer.closed_by_others:
            self._warn_once(
                "descriptor",
                "other code in this process closed the file descriptor of a segment; events continue in a new"
                " segment. Call os.closerange() and the like before the first event is emitted",
            )

    def _try_to_sync(self) -> None:
        try:
            self._syncer.sync()
        except OSError as error:
            DELIVERY.channel_of(self).count_sync_failure()
            self._warn_once(
                "sync", f"written events could not be synced, retrying: {error.strerror or error}"
            )

    # ------------------------------------------------------------ making room

    def _retention_is_due(self) -> bool:
        with self._lock:
            if self._retention == RetentionPolicy() or not (
                self._writer.started_segment or time.monotonic() >= self._retention_at
            ):
                return False
            self._writer.started_segment = False
            self._retention_at = time.monotonic() + _RETENTION_INTERVAL_SECONDS
            return True

    def _start_retention(self) -> None:
        # A separate thread: reading many segments takes long, and syncing must not wait for it.
        with self._lock:
            thread = self._retention_thread
            if (
                self._closing.is_set()
                or (thread is not None and thread.is_alive())
                or not self._retention_is_due()
            ):
                return
            thread = threading.Thread(
                target=self._apply_retention, name="stageflow-journal-retention", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:
                self._retention_at = 0.0  # in the next interval
                self._warn_once("room", f"no thread can be started for retention: {error}")
            else:
                self._retention_thread = thread

    def _apply_retention(self) -> None:
        with self._retention_lock:
            try:
                self._retention.apply(self.path, should_stop=self._closing.is_set)
            except Exception as error:
                self._warn_once(type(error).__name__, f"retention failed: {describe(error)}")

    def _warn_once(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            log_safely(log, "journal %s: %s (further occurrences are not logged)", self.path, text)

    # ------------------------------------------------------------ ending

    def close(self) -> None:
        """Sync and close the files of this process. A later event opens another one.

        While a run that began here is under way, nothing is closed: whoever reads the journal
        would take it for crashed.
        """
        if (sync_thread := self._sync_thread) is not None:
            sync_thread.stop()
        with self._lock:
            self._closing.set()  # retention may run for a long time
            thread, self._retention_thread = self._retention_thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self._retention_lock, self._syncer.lock, self._lock:
            self._closing.clear()
            self._sync_thread = None  # the next event starts another
            with contextlib.suppress(OSError):
                if self._lost_ends:
                    self._write_lost_ends()
                if self._writer.file is not None and not self._open_runs:
                    self._writer.append(encode_mark(WriterClosed()))
            self._report_lost_descriptors()
            self._try_to_sync()
            if self._open_runs:
                return
            with contextlib.suppress(OSError):
                self._syncer.close()
            # The locks stay: others may be waiting for them.
            self._create_writer()

    def _reset_after_fork(self) -> None:
        # A forked child must never write into its parent's files. They were locked, and are closed.
        self._initialize()

    def __del__(self) -> None:
        # Not made to its end, or so late that half of the interpreter is gone.
        with contextlib.suppress(Exception):
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has a journal of the same directory, and segments of its own.
        return _rebuild, (self.path, self._options)

    def __repr__(self) -> str:
        return f"<JournalSink {self.path!r}>"


def _sync(fd: int) -> None:
    sync(fd)


def _rebuild(path: str, options: dict[str, Any]) -> JournalSink:
    return JournalSink(path, **options)


_sinks: weakref.WeakSet[JournalSink] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for journal in list(_sinks):
        journal._reset_after_fork()


def _close_at_exit() -> None:
    for journal in list(_sinks):
        journal.close()


os.register_at_fork(after_in_child=_reset_after_fork)
# Handlers run last in, first out: those of sinks, which may still emit, are registered after this.
atexit.register(_close_at_exit)
