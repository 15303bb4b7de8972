"""Appends lines to the open segment of a process, and syncs them."""

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


class SyncTarget(Protocol):
    """A journal, as far as its keeper needs it."""

    def sync_if_due(self) -> None:
        """Sync written events if a sync is due. Never raises."""
        ...


class SyncThread:
    """Calls `sync_if_due` of a journal at an interval, in a daemon thread, while the journal exists.

    Raises:
        RuntimeError: No thread can be started.
    """

    def __init__(self, journal: SyncTarget, seconds: float) -> None:
        self._stopped = threading.Event()
        # Weakly: a journal that nobody has any more is closed, and its thread ends.
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
        """Let the thread end; what it is doing it does to its end."""
        self._stopped.set()


_MAX_UNSYNCED = 100
"""Maximum number of full segments kept open while their syncs fail; each uses a file descriptor."""


class SegmentSyncer:
    """The segments of a writer that are not synced yet.

    Code that needs both locks acquires `lock` before the lock of the writer.

    Args:
        writer: The writer whose segments are synced.
        writing: The lock of the writer.
        sync: Syncs one file; None to close full segments without syncing them.

    Attributes:
        lock: Held while syncing or closing a segment, so that no segment is closed while it is being synced.
        abandoned: Number of segments that were closed although their sync had failed.
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
        """Close synced segments, except the newest while it has no successor: it holds the lock."""
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


_CHECK_INTERVAL_SECONDS = 0.1
"""How often the writer looks whether its file is still there, and whether it is old."""


class SegmentWriter:
    """One writer of a journal. Whoever owns it calls it from one thread at a time.

    Attributes:
        directory: The directory of the journal.
        name: Name of the writer.
        file: The segment that is written to, or None.
        unsynced: True when something was written since it was last synced.
        retired: Segments that are full, for somebody to sync and close.
        unsynced_names: True if a segment was created since the directory was last synced.
        started_segment: True when a segment was made since this was last set to False.
        closed_by_others: Number of segments whose descriptor other code of the process closed.
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
        """Write one line, whole.

        A signal handler may call it during another call in the same thread. It then never creates a segment:
        its line is written to the open one, or by the interrupted call to the segment that it creates.

        Raises:
            OSError: It could not be written; the segment holds whole lines all the same.
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
        """Begin another segment if other code closed the descriptor of this one, and with it its lock.

        A writer without a lock counts as dead: its runs in progress would be recorded as crashed.

        Raises:
            OSError: No segment could be made.
        """
        if self.file is not None and not self._busy and not self._is_open():
            self._start_segment(time.monotonic())

    def _is_open(self) -> bool:
        """Return whether there is a segment to write to; give up one whose descriptor other code closed."""
        file = self.file
        if file is None:
            return False
        # The offset is the end of what was written. It may be more: a signal handler may have written since.
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
            # Whatever is wrong with this file, the next line gets another: but not each line one.
            if error.errno not in NO_ROOM and time.monotonic() - self._started > _CHECK_INTERVAL_SECONDS:
                self.retire()
            raise
        self._truncate_partial_line(file.fd, written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory)

    def _truncate_partial_line(self, fd: int, written: int) -> None:
        """Cut off the part of a line that still had room, so that the segment stays whole lines."""
        try:
            # From where the file ends, not from what was counted: a signal may have come in between.
            os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR) - written)
        except OSError:
            self.retire()  # nothing may ever follow a torn line

    def _check_file(self, now: float) -> None:
        self._next_check = now + _CHECK_INTERVAL_SECONDS
        if self.file is None:
            return
        if not self.file.is_intact():
            self._abandon()
        elif self.file.is_removed():
            self.retire()  # somebody removed the file: what went into it would be lost
        elif self._end and now - self._started >= self._segment_seconds:
            self._start_segment(now)

    def _start_segment(self, now: float) -> None:
        """Go on in a new segment; or in the old one, where a new one cannot be made."""
        self._switching = True
        try:
            self._switch_to_new(now)
        except OSError:
            if self.file is None:
                raise
            self._started = now  # try again when another such time has passed
        finally:
            self._switching = False

    def _switch_to_new(self, now: float) -> None:
        make_private(self.directory)
        sequence = free_sequence(self.directory, self.name, self._sequence + 1)
        name = segment_name(self.name, sequence)
        hidden = os.path.join(self.directory, f".{name}")
        file = open_owned(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            # Locked before anybody can see it: one that is seen unlocked has lost its writer.
            if not file.lock():
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), hidden)
            file.path = os.path.join(self.directory, name)
            os.rename(hidden, file.path)
            self._switch(file, sequence, now)
            if self._sync_each:
                sync_directory(self.directory)
        except BaseException:
            # A signal handler may raise anywhere. Once its successor can be seen, nothing may be
            # written to the old segment: whoever reads takes it for complete.
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
        """Write to this segment no more. It stays locked until there is another: its writer lives."""
        if self.file is not None:
            if self._last_retired_is_empty and self.retired and not self._end:
                self.retired.pop().release()  # of those that never took a line, one is enough
            self._last_retired_is_empty = not self._end
            self.retired.append(self.file)
            self.file = None
            self.unsynced = False  # retired segments will be synced

    def close(self) -> None:
        """Close every segment. The writer is dead then, for all who look."""
        self.retire()
        while self.retired:
            self.retired.pop().release()
