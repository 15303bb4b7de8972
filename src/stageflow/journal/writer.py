"""Appends lines to the segments of one writer, and begins a new one where the last cannot go on."""

from __future__ import annotations

import contextlib
import errno
import os
import time

from .disk import lock_file, make_private, sync, sync_directory
from .layout import new_writer, segment_name

__all__ = ["NO_ROOM", "SegmentWriter"]

_LOOK_EVERY_SECONDS = 0.1
"""How often the writer looks whether its file is still there, and whether it is old."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors that say that a disk, or the share of it that one may have, is full."""


class SegmentWriter:
    """One writer of a journal. Whoever owns it calls it from one thread at a time.

    Attributes:
        directory: The directory of the journal.
        name: Name of the writer.
        fd: The segment that is written to, or -1.
        unsynced: True when something was written since it was last synced.
        retired: Segments that are full, for somebody to sync and close.
        began_segment: True when a segment was made since this was last set to False.
    """

    def __init__(
        self, directory: str, *, segment_bytes: int, segment_seconds: float, sync_each: bool
    ) -> None:
        self.directory = directory
        self.name = new_writer()
        self.fd = -1
        self.unsynced = False
        self.began_segment = False
        self.retired: list[int] = []
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._sync_each = sync_each
        self._sequence = 0
        self._end = 0
        self._began = 0.0
        self._look_at = 0.0

    def append(self, line: bytes) -> None:
        """Write one line, whole.

        Raises:
            OSError: It could not be written; the segment holds whole lines all the same.
        """
        now = time.monotonic()
        if now >= self._look_at:
            self._look(now)
        if self.fd < 0 or (self._end and self._end + len(line) > self._segment_bytes):
            self._begin_segment(now)
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
            if error.errno not in NO_ROOM:
                self.retire()  # whatever is wrong with this file, the next line gets another
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
        try:
            fd = self._new_segment()
        except OSError:
            if self.fd < 0:
                raise
            self._began = now  # try again when another such time has passed
            return
        self.retire()
        self.fd = fd
        self._end = 0
        self._began = now
        self.began_segment = True

    def _new_segment(self) -> int:
        make_private(self.directory)
        sequence = self._sequence + 1
        # One that completed our record in our absence (our file was removed) may have taken the name.
        while os.path.exists(os.path.join(self.directory, segment_name(self.name, sequence))):
            sequence += 1
        name = segment_name(self.name, sequence)
        hidden = os.path.join(self.directory, f".{name}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(hidden, flags, 0o600)
        try:
            # Locked before anybody can see it: one that is seen unlocked has lost its writer.
            if not lock_file(fd):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), hidden)
            os.rename(hidden, os.path.join(self.directory, name))
            if self._sync_each:
                sync_directory(self.directory)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(hidden)
            raise
        self._sequence = sequence
        return fd

    def retire(self) -> None:
        """Write to this segment no more."""
        if self.fd >= 0:
            self.retired.append(self.fd)
            self.fd = -1

    def close(self) -> None:
        """Close every segment. The writer is dead then, for all who look."""
        self.retire()
        while self.retired:
            with contextlib.suppress(OSError):
                os.close(self.retired.pop())
