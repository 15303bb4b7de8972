"""Appends lines to the segments of one process, and syncs them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from .._files import NO_ROOM, OwnedFile, make_private, open_owned, sync, sync_directory
from ._segments import free_sequence, new_writer, segment_name

__all__ = ["SegmentSyncer", "SegmentWriter", "SyncThread"]


_MAX_UNSYNCED = 100
"""Maximum number of full segments kept open while their syncs fail; each uses a file descriptor."""

_CHECK_INTERVAL_SECONDS = 0.1
"""Interval at which the writer checks whether its file was removed or is too old."""


class SyncTarget(Protocol):
    """The part of a journal sink that the sync thread uses."""

    def sync_if_due(self) -> None:
        """Sync written events if a sync is due. Never raises."""
        ...


class SyncThread:
    """A daemon thread that calls `sync_if_due` of a journal sink at an interval while the sink exists.

    Args:
        journal: The sink; the thread does not keep it alive.
        seconds: The interval.

    Raises:
        RuntimeError: No thread can be started.
    """

    def __init__(self, journal: SyncTarget, seconds: float) -> None:
        self._stopped = threading.Event()
        # A weak reference: a sink that is no longer referenced is closed, and its thread ends.
        self._journal = weakref.ref(journal)
        self._seconds = seconds
        threading.Thread(target=self._run, name="stageflow-journal", daemon=True).start()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            journal = self._journal()
            if journal is None:
                return
            journal.sync_if_due()
            del journal

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Stop the thread after the current call of `sync_if_due`. Does not wait for it."""
        self._stopped.set()


class SegmentSyncer:
    """Syncs and closes the segments of a writer.

    Code that needs both locks must acquire `lock` before the lock of the writer.

    Args:
        writer: The writer whose segments are synced.
        writing: The lock of the writer.
        sync: Syncs one file; None to close full segments without syncing them.

    Attributes:
        lock: Held while syncing or closing a segment, so that no segment is closed while it is being synced.
        abandoned: Number of segments that were closed without a successful sync.
    """

    def __init__(
        self, writer: SegmentWriter, writing: threading.RLock, sync: Callable[[int], None] | None
    ) -> None:
        self.lock = threading.RLock()
        self.abandoned = 0
        self._writer = writer
        self._writing = writing
        self._sync = sync
        self._full: dict[OwnedFile, bool] = {}  # for each full segment, whether it was synced

    def sync(self) -> None:
        """Sync everything that was written before the call, and close full segments.

        Segments that could not be synced stay open; the next call syncs them again.

        Raises:
            OSError: A segment could not be synced; the others were.
        """
        with self.lock:
            writer = self._writer
            with self._writing:
                self._full |= dict.fromkeys(writer.retired, False)
                writer.retired = []
                current = writer.file if writer.unsynced else None
                names, writer.unsynced_names = writer.unsynced_names, False
                writer.unsynced = False
            errors: list[OSError] = []
            for file, synced in self._full.items():
                self._full[file] = synced or self._try_to_sync(file, errors)
            failed = current is not None and not self._try_to_sync(current, errors)
            if names and self._sync is not None:
                try:
                    sync_directory(writer.directory)
                    names = False
                except OSError as error:
                    errors.append(error)
            with self._writing:
                # The next call syncs a segment that was retired in the meantime, whatever is stored here.
                writer.unsynced |= failed
                writer.unsynced_names |= names
                self._close_full()
            if errors:
                raise errors[0]

    def _try_to_sync(self, file: OwnedFile, errors: list[OSError]) -> bool:
        try:
            if self._sync is not None:
                file.sync(self._sync)
        except OSError as error:
            errors.append(error)
            return False
        return True

    def _close_full(self) -> None:
        """Close synced segments, except the newest one while it has no successor: it carries the lock."""
        done = [file for file, synced in self._full.items() if synced]
        if self._writer.file is None and not self._writer.retired and done and done[-1] == [*self._full][-1]:
            done.pop()
        surplus = len(self._full) - len(done) - _MAX_UNSYNCED
        if surplus > 0:
            done += [file for file, synced in self._full.items() if not synced][:surplus]
            self.abandoned += surplus
        for file in done:
            file.release()
            del self._full[file]

    def close(self) -> None:
        """Sync as much as possible, and close every segment.

        Raises:
            OSError: A segment could not be synced.
        """
        with self.lock, self._writing:
            try:
                self.sync()
            finally:
                for file in self._full:
                    file.release()
                self._full.clear()
                self._writer.close()


class SegmentWriter:
    """One writer of a journal. It is not thread-safe; its owner serializes the calls.

    Attributes:
        directory: The journal directory.
        name: Name of the writer.
        file: The segment that is written to, or None.
        unsynced: True if something was written since the last sync.
        retired: Full segments that are to be synced and closed by the owner.
        unsynced_names: True if a segment was created since the directory was last synced.
        started_segment: True if a segment was created since the owner last set this to False.
        closed_by_others: Number of segments whose descriptor was closed by other code of the process.
    """

    def __init__(
        self, directory: str, *, segment_bytes: int, segment_seconds: float, sync_each: bool
    ) -> None:
        self.directory = directory
        self.name = new_writer()
        self.file: OwnedFile | None = None
        self.unsynced = False
        self.unsynced_names = False
        self.started_segment = False
        self.closed_by_others = 0
        self.retired: list[OwnedFile] = []
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._sync_each = sync_each
        self._sequence = 0
        self._end = 0
        self._started = 0.0
        self._next_check = 0.0
        self._last_retired_is_empty = False  # whether the last retired segment received no line
        self._busy = False
        self._switching = False
        self._deferred: list[bytes] = []

    def append(self, line: bytes) -> None:
        """Write one complete line.

        A signal handler may call this method during another call in the same thread. The nested call never
        creates a segment: it writes to the open one, or leaves the line to the interrupted call, which writes
        it to the segment that it creates.

        Raises:
            OSError: The line could not be written. The segment still contains only complete lines.
        """
        if self._busy:
            if self._switching or not self._is_open():
                self._deferred.append(line)
            else:
                self._write(line)
            return
        self._busy = True
        try:
            now = time.monotonic()
            if now >= self._next_check:
                self._check_file(now)
            if not self._is_open() or (self._end and self._end + len(line) > self._segment_bytes):
                self._start_segment(now)
            while self._deferred:
                self._write(self._deferred[0])
                del self._deferred[0]
            self._write(line)
        finally:
            self._busy = False

    def check_descriptor(self) -> None:
        """Start a new segment if other code closed the descriptor of this one, which also releases its lock.

        A writer without a lock counts as dead, and its runs in progress would be recorded as crashed.

        Raises:
            OSError: No segment could be created.
        """
        if self.file is not None and not self._busy and not self._is_open():
            self._start_segment(time.monotonic())

    def _is_open(self) -> bool:
        """Return whether there is a segment to write to; retire one whose descriptor other code closed."""
        file = self.file
        if file is None:
            return False
        # The offset of the file is at least the end of what was written: a signal handler may have written
        # too.
        if (self._end and file.is_at(self._end)) or file.is_intact():
            return True
        self._abandon()
        return False

    def _abandon(self) -> None:
        self.closed_by_others += 1
        self.retire()

    def _write(self, line: bytes) -> None:
        file = self.file
        assert file is not None
        try:
            written = os.write(file.fd, line)
            if written == len(line):
                self._end += written
                self.unsynced = True
                if self._sync_each:
                    sync(file.fd)
                    self.unsynced = False
                return
        except OSError as error:
            # The file may be unusable, so write the next line to another one. The delay avoids a new segment
            # for every line.
            if error.errno not in NO_ROOM and time.monotonic() - self._started > _CHECK_INTERVAL_SECONDS:
                self.retire()
            raise
        self._truncate_partial_line(file.fd, written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory)

    def _truncate_partial_line(self, fd: int, written: int) -> None:
        """Remove a partially written line, so that the segment contains only complete lines."""
        try:
            # Use the end of the file instead of the counted size: a signal handler may have written in
            # between.
            os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR) - written)
        except OSError:
            self.retire()  # nothing must be written after a torn line

    def _check_file(self, now: float) -> None:
        self._next_check = now + _CHECK_INTERVAL_SECONDS
        if self.file is None:
            return
        if not self.file.is_intact():
            self._abandon()
        elif self.file.is_removed():
            self.retire()  # the file was removed, so events written to it would be lost
        elif self._end and now - self._started >= self._segment_seconds:
            self._start_segment(now)

    def _start_segment(self, now: float) -> None:
        """Continue in a new segment, or in the current one if a new one cannot be created."""
        self._switching = True
        try:
            self._switch_to_new(now)
        except OSError:
            if self.file is None:
                raise
            self._started = now  # try again after the maximum age of a segment
        finally:
            self._switching = False

    def _switch_to_new(self, now: float) -> None:
        make_private(self.directory)
        sequence = free_sequence(self.directory, self.name, self._sequence + 1)
        name = segment_name(self.name, sequence)
        hidden = os.path.join(self.directory, f".{name}")
        file = open_owned(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            # Lock the file before it becomes visible: readers take an unlocked segment for that of a dead
            # writer.
            if not file.lock():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), hidden)
            file.path = os.path.join(self.directory, name)
            os.rename(hidden, file.path)
            self._switch(file, sequence, now)
            if self._sync_each:
                sync_directory(self.directory)
        except BaseException:
            # A signal handler can raise anywhere. Once the new segment is visible, readers take the old one
            # for complete, so nothing must be written to it.
            if os.path.exists(hidden):
                with contextlib.suppress(OSError):
                    os.unlink(hidden)
                file.release()
            else:
                self._switch(file, sequence, now)
            raise

    def _switch(self, file: OwnedFile, sequence: int, now: float) -> None:
        if self.file is not file:
            self.retire()
        self.file = file
        self._sequence = sequence
        self._end = 0
        self._started = now
        self.started_segment = self.unsynced_names = True

    def retire(self) -> None:
        """Stop writing to the current segment. It stays locked until it has a successor."""
        if self.file is not None:
            if self._last_retired_is_empty and self.retired and not self._end:
                self.retired.pop().release()  # keep only one of the segments without a line
            self._last_retired_is_empty = not self._end
            self.retired.append(self.file)
            self.file = None
            self.unsynced = False  # retired segments will be synced

    def close(self) -> None:
        """Close every segment. From now on, readers treat the writer as dead."""
        self.retire()
        while self.retired:
            self.retired.pop().release()
