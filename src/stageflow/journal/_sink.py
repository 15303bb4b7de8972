"""`JournalSink`: writes every event to disk with one `write`, before the emit call returns."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from typing import Any, Literal, get_args

from msgspec.structs import replace

from .._files import NO_ROOM, absolute_path, make_private, network_file_system, sync
from .._log import log_safely
from ..errors import describe, invalid_argument
from ..events import DELIVERY, DirectSink, Event, EventLost
from ..schema import Heartbeat, PipelineWide, RunClosed, RunOpen
from ._format import SampleDecision, WriterClosed, encode_mark
from ._retention import RetentionPolicy
from ._writer import SegmentSyncer, SegmentWriter, SyncThread

__all__ = ["JournalSink"]


log = logging.getLogger("stageflow.journal")

Fsync = Literal["never", "interval", "always"]

_MAX_LOST_ENDS = 10_000
"""Maximum number of runs whose `pipeline.wide` was lost and whose end is still to be written."""

_RETENTION_INTERVAL_SECONDS = 30.0
"""Interval after which retention is applied even if no segment was started."""


class JournalSink(DirectSink):
    """Appends each event as one line of JSON, `{"type": ..., "data": {...}}`, to a segment of this process.

    Each line is passed to the operating system with one `write` before the emit call returns, so killing the
    process with SIGKILL loses no event. Any number of processes and threads can write to one directory.

    Args:
        path: Directory of the journal. If it does not exist, it is created with access for its owner only. It
            must be on a local disk, because a network file system does not show reliably whether a writer is
            alive.
        fsync: What a *machine* crash can lose. `"interval"`: the events of the last `fsync_interval`
            seconds; a background thread syncs, and callers do not wait. `"never"`: events that the kernel has
            not written yet, usually those of the last 30 s. `"always"`: nothing; each emission waits for the
            disk.
        fsync_interval: Seconds between two syncs; default 0.5.
        segment_bytes: Maximum size of a segment, in bytes; default 64 MiB, and never more than an eighth of
            `max_bytes`.
        segment_seconds: Maximum age of a segment that is written to, in seconds; default 3600.
        max_bytes: Maximum size of the journal, in bytes; default 4 GiB. Beyond it, the oldest segments are
            deleted, and records of failed runs last. None for no limit.
        max_age: Seconds after the last write to a segment after which it is deleted, once every cursor has
            read it; default None, for no limit.
        max_line_bytes: Maximum size of the line of one event, in bytes; larger events are dropped. The
            default is 16,000,000, the largest object that DuckDB reads.

    Raises:
        OSError: The directory cannot be created.
        InvalidArgumentError: A limit is not a positive number, `fsync` is not one of the three values, or
            the path is a file.

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
        if fsync not in get_args(Fsync):
            raise invalid_argument(
                "JournalSink", "fsync", fsync, "'never', 'interval' or 'always'", known=get_args(Fsync)
            )
        for name, bound in (
            ("fsync_interval", fsync_interval),
            ("segment_bytes", segment_bytes),
            ("segment_seconds", segment_seconds),
            ("max_bytes", max_bytes),
            ("max_age", max_age),
            ("max_line_bytes", max_line_bytes),
        ):
            if bound is not None and not (isinstance(bound, (int, float)) and bound > 0):
                raise invalid_argument("JournalSink", name, bound, "a number greater than 0")
        if not os.fspath(path) or os.path.isfile(path):
            raise invalid_argument("JournalSink", "path", os.fspath(path), "a directory")
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
                "journal %s is on a network file system (%s); move it to a local disk, because runs of live"
                " processes on other machines can be recorded as crashed",
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

    # ------------------------------------------------------------ the sink interface

    def deliver(self, event: Event) -> None:
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
        """True: the start mark allows a reader to complete the record of a run whose process died."""
        return True

    def accept_mark(self, mark: RunOpen | RunClosed | Heartbeat) -> None:
        """Write the mark of the start or the end of a run, or a heartbeat."""
        line = encode_mark(mark)
        if isinstance(mark, Heartbeat):
            # The runs may have ended, and the journal may have been closed, since the heartbeat was built.
            with self._lock, contextlib.suppress(EventLost):  # the next heartbeat is due in a second
                if self._open_runs:
                    self._write(line)
            return
        if isinstance(mark, RunOpen) and len(line) > self._max_line_bytes:
            line = encode_mark(
                replace(mark, stages=[])
            )  # readers then know the stages from their events only
        try:
            self._write(line)
        except EventLost as lost:
            # Marks are not counted as events, but without this one, crash recovery does not find the run.
            self._warn_once("mark", f"the start or end mark of a run could not be written: {lost}")
            if isinstance(mark, RunClosed):
                self._record_lost_end(mark.event_id, mark.reason)
        else:
            if isinstance(mark, RunOpen):
                self._open_runs.add(mark.event_id)
            else:
                self._open_runs.discard(mark.event_id)

    def write_decision(self, decision: SampleDecision) -> None:
        """Write a sampling decision.

        Raises:
            OSError: It could not be written.
        """
        try:
            self._write(encode_mark(decision))
        except EventLost as lost:
            raise OSError(str(lost)) from lost

    # ------------------------------------------------------------ writing

    def _write(self, line: bytes) -> None:
        if len(line) > self._max_line_bytes:
            raise EventLost(
                "line_too_long",
                f"the line of the event is {len(line):,} bytes long, which exceeds the limit of"
                f" {self._max_line_bytes:,} set by JournalSink({self.path!r}, max_line_bytes=...)",
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
                f"cannot write to journal {self.path!r}: {error.strerror or error}",
            ) from error

    def _start_sync_thread(self) -> None:
        if sys.is_finalizing() or time.monotonic() < self._sync_inline_at:
            return  # the process is exiting and will sync again, or a sync was attempted recently
        try:
            self._sync_thread = SyncThread(self, self._interval)
        except RuntimeError as error:
            self._warn_once(
                "thread",
                f"cannot start a thread ({error}): every {self._interval} s one caller waits for a sync,"
                " retention is not applied, and events emitted before a pause are synced after it",
            )

    def _sync_inline(self) -> None:
        # Do not wait for another thread that is syncing: this may be a signal handler that interrupted it.
        if time.monotonic() >= self._sync_inline_at and self._syncer.lock.acquire(blocking=False):
            try:
                self._sync_inline_at = time.monotonic() + self._interval
                self._try_to_sync()
            finally:
                self._syncer.lock.release()

    def _write_lost_ends(self) -> None:
        """Write the ends of runs that could not be written earlier."""
        with contextlib.suppress(OSError):  # the next event tries again
            while self._lost_ends:
                run_id, why = next(iter(self._lost_ends.items()))
                self._writer.append(encode_mark(RunClosed(run_id, why)))
                del self._lost_ends[run_id]
                self._open_runs.discard(run_id)

    def _record_lost_end(self, run_id: str, why: str) -> None:
        # Without an end mark, a run whose `pipeline.wide` was lost would be recorded as crashed.
        with self._lock:
            if len(self._lost_ends) < _MAX_LOST_ENDS:
                self._lost_ends[run_id] = f"pipeline.wide was lost: {why}"

    # ------------------------------------------------------------ periodic work

    def sync_if_due(self) -> None:
        """Sync if a sync is due, and start retention in another thread. Called by the sync thread."""
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
            self._warn_once(type(error).__name__, f"maintenance failed: {describe(error)}")

    def run_maintenance(self) -> None:
        """Sync and apply retention now, in the calling thread."""
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
                "other code in this process closed the file descriptor of a segment; the journal continues in"
                " a new segment. Call os.closerange() and the like before the first event is emitted",
            )

    def _try_to_sync(self) -> None:
        try:
            self._syncer.sync()
        except OSError as error:
            DELIVERY.channel_of(self).count_sync_failure()
            self._warn_once(
                "sync", f"written events could not be synced; the sync is retried: {error.strerror or error}"
            )

    # ------------------------------------------------------------ retention

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
        # Use a separate thread: reading many segments takes long, and syncing must not wait for it.
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
                self._retention_at = 0.0  # try again in the next interval
                self._warn_once("retention thread", f"cannot start a thread for retention: {error}")
            else:
                self._retention_thread = thread

    def _apply_retention(self) -> None:
        with self._retention_lock:
            try:
                for name, behind in self._retention.readers_at_risk(self.path).items():
                    self._warn_once(
                        f"reader {name}",
                        f"reader {name!r} has not read {behind:,} bytes; when the journal exceeds"
                        f" max_bytes={self._retention.max_bytes:,}, segments it has not read are deleted",
                    )
                self._retention.apply(self.path, should_stop=self._closing.is_set)
            except Exception as error:
                self._warn_once(type(error).__name__, f"retention failed: {describe(error)}")

    def _warn_once(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            log_safely(log, "journal %s: %s (further occurrences are not logged)", self.path, message)

    # ------------------------------------------------------------ closing

    def close(self) -> None:
        """Sync and close the segments of this process. The next event opens a new segment.

        While a run of this sink is in progress, the segments are synced but stay open. Otherwise a reader
        would record the run as crashed.
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
            self._sync_thread = None  # the next event starts another thread
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
            # Keep the locks: other threads may be waiting for them.
            self._create_writer()

    def _reset_after_fork(self) -> None:
        # A forked child must never write to its parent's segments. They were locked, and are closed here.
        self._initialize()

    def __del__(self) -> None:
        # `__init__` may have failed, or the interpreter may be shutting down.
        with contextlib.suppress(Exception):
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process writes to the same directory, but to its own segments.
        return _rebuild, (self.path, self._options)

    def __repr__(self) -> str:
        return f"<JournalSink {self.path!r}>"


def _sync(fd: int) -> None:
    sync(fd)


def _rebuild(path: str, options: dict[str, Any]) -> JournalSink:
    return JournalSink(path, **options)


_sinks: weakref.WeakSet[JournalSink] = weakref.WeakSet()


def _reset_after_fork() -> None:
    for sink in list(_sinks):
        sink._reset_after_fork()


def _close_at_exit() -> None:
    for sink in list(_sinks):
        sink.close()


os.register_at_fork(after_in_child=_reset_after_fork)
# Exit handlers run in reverse order. Those of other sinks, which may still emit, are registered after this
# one.
atexit.register(_close_at_exit)
