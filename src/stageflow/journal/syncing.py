"""Syncs the segments of one writer, and retries failed syncs."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .disk import OwnedFile, sync_directory
from .writer import SegmentWriter

__all__ = ["Syncing"]

_MOST_UNSYNCED = 100
"""Maximum number of full segments kept open while their syncs fail; each uses a file descriptor."""


class Syncing:
    """The segments of a writer that are not synced yet.

    Code that needs both locks acquires `lock` before the lock of the writer.

    Args:
        writer: The writer whose segments are synced.
        writing: The lock of the writer.
        sync: Syncs one file; None to close full segments without syncing them.

    Attributes:
        lock: Held while syncing or closing a segment, so that no segment is closed while it is being synced.
        given_up: Number of segments that were closed although their sync had failed.
    """

    def __init__(
        self, writer: SegmentWriter, writing: threading.RLock, sync: Callable[[int], None] | None
    ) -> None:
        self.lock = threading.RLock()
        self.given_up = 0
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
        surplus = len(self._full) - len(done) - _MOST_UNSYNCED
        if surplus > 0:
            done += [file for file, synced in self._full.items() if not synced][:surplus]
            self.given_up += surplus
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
