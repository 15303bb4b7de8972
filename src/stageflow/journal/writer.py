"""Appends lines to the segments of one writer, and begins a new one where the last cannot go on."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from .disk import NO_ROOM, lock_file, make_private, open_for_lock, release, sync, sync_directory
from .layout import free_sequence, new_writer, segment_name

__all__ = ["SegmentWriter"]

_LOOK_EVERY_SECONDS = 0.1
"""How often the writer looks whether its file is still there, and whether it is old."""


class SegmentWriter:
    """One writer of a journal. Whoever owns it calls it from one thread at a time.

    Attributes:
        directory: The directory of the journal.
        name: Name of the writer.
        fd: The segment that is written to, or -1.
        unsynced: True when something was written since it was last synced.
        retired: Segments that are full, for somebody to sync and close.
        unsynced_names: True if a segment was created since the directory was last synced.
        began_segment: True when a segment was made since this was last set to False.
    """

    def __init__(
        self, directory: str, *, segment_bytes: int, segment_seconds: float, sync_each: bool
    ) -> None:
        self.directory = directory
        self.name = new_writer()
        self.fd = -1
        self.unsynced = False
        self.unsynced_names = False
        self.began_segment = False
        self.retired: list[int] = []
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._sync_each = sync_each
        self._sequence = 0
        self._end = 0
        self._began = 0.0
        self._look_at = 0.0
        self._blank = False  # whether the last retired segment received no line
        self._busy = False
        self._switching = False
        self._late: list[bytes] = []

    def append(self, line: bytes) -> None:
        """Write one line, whole.

        A signal handler may call it in the middle of another call, in the same thread: its line goes
        where that one was about to write, and never begins a segment.

        Raises:
            OSError: It could not be written; the segment holds whole lines all the same.
        """
        if self._busy:
            if self._switching:
                self._late.append(line)
            elif self.fd >= 0:
                self._write(line)
            else:
                raise OSError(errno.EBUSY, "no segment can be made just now", self.directory)
            return
        self._busy = True
        try:
            now = time.monotonic()
            if now >= self._look_at:
                self._look(now)
            if self.fd < 0 or (self._end and self._end + len(line) > self._segment_bytes):
                self._begin_segment(now)
            while self._late:
                self._write(self._late[0])
                del self._late[0]
            self._write(line)
        finally:
            self._busy = False

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self.fd, line)
            if written == len(line):
                self._end += written
                self.unsynced = True
                if self._sync_each:
                    sync(self.fd)
                    self.unsynced = False
                return
        except OSError as error:
            # Whatever is wrong with this file, the next line gets another: but not each line one.
            if error.errno not in NO_ROOM and time.monotonic() - self._began > _LOOK_EVERY_SECONDS:
                self.retire()
            raise
        self._take_back(written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.directory)

    def _take_back(self, written: int) -> None:
        """Cut off the part of a line that still had room, so that the segment stays whole lines."""
        try:
            # From where the file ends, not from what was counted: a signal may have come in between.
            os.ftruncate(self.fd, os.lseek(self.fd, 0, os.SEEK_CUR) - written)
        except OSError:
            self.retire()  # nothing may ever follow a torn line

    def _look(self, now: float) -> None:
        self._look_at = now + _LOOK_EVERY_SECONDS
        if self.fd < 0:
            return
        if not os.fstat(self.fd).st_nlink:
            self.retire()  # somebody removed the file: what went into it would be lost
        elif self._end and now - self._began >= self._segment_seconds:
            self._begin_segment(now)

    def _begin_segment(self, now: float) -> None:
        """Go on in a new segment; or in the old one, where a new one cannot be made."""
        self._switching = True
        try:
            self._switch_to_new(now)
        except OSError:
            if self.fd < 0:
                raise
            self._began = now  # try again when another such time has passed
        finally:
            self._switching = False

    def _switch_to_new(self, now: float) -> None:
        make_private(self.directory)
        sequence = free_sequence(self.directory, self.name, self._sequence + 1)
        name = segment_name(self.name, sequence)
        hidden = os.path.join(self.directory, f".{name}")
        fd = open_for_lock(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        try:
            # Locked before anybody can see it: one that is seen unlocked has lost its writer.
            if not lock_file(fd):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), hidden)
            os.rename(hidden, os.path.join(self.directory, name))
            self._switch(fd, sequence, now)
            if self._sync_each:
                sync_directory(self.directory)
        except BaseException:
            # A signal handler may raise anywhere. Once its successor can be seen, nothing may be
            # written to the old segment: whoever reads takes it for complete.
            if os.path.exists(hidden):
                with contextlib.suppress(OSError):
                    os.unlink(hidden)
                release(fd)
            else:
                self._switch(fd, sequence, now)
            raise

    def _switch(self, fd: int, sequence: int, now: float) -> None:
        if self.fd != fd:
            self.retire()
        self.fd = fd
        self._sequence = sequence
        self._end = 0
        self._began = now
        self.began_segment = self.unsynced_names = True

    def retire(self) -> None:
        """Write to this segment no more. It stays locked until there is another: its writer lives."""
        if self.fd >= 0:
            if self._blank and self.retired and not self._end:
                release(self.retired.pop())  # of those that never took a line, one is enough
            self._blank = not self._end
            self.retired.append(self.fd)
            self.fd = -1
            self.unsynced = False  # retired segments will be synced

    def close(self) -> None:
        """Close every segment. The writer is dead then, for all who look."""
        self.retire()
        while self.retired:
            release(self.retired.pop())
