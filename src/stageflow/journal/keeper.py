"""The thread of a journal that syncs written events, and never waits for anything else."""

from __future__ import annotations

import threading
import weakref
from typing import Protocol

__all__ = ["Keeper"]


class Kept(Protocol):
    """A journal, as far as its keeper needs it."""

    def keep_synced(self) -> None:
        """Sync written events if a sync is due. Never raises."""
        ...


class Keeper:
    """Calls `keep_synced` of a journal at an interval, in a daemon thread, while the journal exists.

    Raises:
        RuntimeError: No thread can be started.
    """

    def __init__(self, journal: Kept, seconds: float) -> None:
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
            journal.keep_synced()
            del journal

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stopped.is_set()

    def stop(self) -> None:
        """Let the thread end; what it is doing it does to its end."""
        self._stopped.set()
