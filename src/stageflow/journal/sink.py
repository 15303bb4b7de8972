"""The first journal: every event on disk, by one write, before its emission returns."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref

from ..events import Event, EventSink

__all__ = ["JournalSink"]


_LOOK_EVERY_SECONDS = 0.1
"""How often the journal looks whether its file is still there."""


class JournalSink(EventSink):
    """Appends each event as one line of JSON, `{"type": ..., "data": {...}}`, to a file of this process.

    One `write` hands the line to the operating system before emission returns, so a SIGKILL of
    the process loses nothing. (A crash of the machine may: nothing is synced to the disk.)

    Args:
        path: Directory for the files; made, private to its owner, where there is none. A file's
            name tells when it was opened, by which process, and ends in a random part:
            `20261123T160028Z-p4711-9f3a61c2.ndjson`.

    Raises:
        OSError: The directory cannot be made.

    Example:
        >>> JournalSink("journal")
        <JournalSink 'journal'>
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        # Reentrant: a signal handler may emit while its thread is writing.
        self._lock = threading.RLock()
        self._fd = -1
        self._end = 0
        self._looked = 0.0
        _journals.add(self)

    def _take_event(self, event: Event) -> None:
        line = event.line()
        with self._lock:
            now = time.monotonic()
            if now - self._looked > _LOOK_EVERY_SECONDS:
                self._looked = now
                if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
                    self.close()  # somebody removed the file: what went into it would be lost
            if self._fd < 0:
                self._open()
            written = os.write(self._fd, line)
            if written == len(line):
                self._end += written
                return
            # The disk is full: take the torn line back, so that the file stays whole lines.
            os.ftruncate(self._fd, self._end)
        raise OSError(f"journal {self.path!r}: no room left for an event of {len(line)} bytes")

    def _open(self) -> None:
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        opened = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        name = f"{opened}-p{os.getpid()}-{os.urandom(4).hex()}.ndjson"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(os.path.join(self.path, name), flags, 0o600)
        self._end = 0

    def close(self) -> None:
        """Close the file. A later event opens another one."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _forget_parent(self) -> None:
        # A forked child must never write into its parent's file; it opens one of its own.
        self._lock = threading.RLock()
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)

    def __repr__(self) -> str:
        return f"<JournalSink {self.path!r}>"


_journals: weakref.WeakSet[JournalSink] = weakref.WeakSet()


def _forget_parent() -> None:
    for journal in list(_journals):
        journal._forget_parent()


os.register_at_fork(after_in_child=_forget_parent)
