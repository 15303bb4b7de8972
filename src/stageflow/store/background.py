"""Compacts a journal now and then, in a thread of the process that writes it or of any other."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from types import TracebackType
from typing import Self

from .._safe_log import log_safely
from ..errors import describe
from .compactor import Compactor

__all__ = ["BackgroundCompactor"]

log = logging.getLogger("stageflow.store")


class BackgroundCompactor:
    """Calls `compact` of a compactor again and again, in a daemon thread, until it is closed.

    What goes wrong is logged, once for each kind of error, and tried again. DuckDB and Delta Lake
    work outside of Python's lock, but they take processor time: a process with a service level to
    keep leaves it to another one, `stageflow compact --every 1m`. When the interpreter ends, what is
    under way is broken off: nothing is lost, and another one does it.

    Args:
        compactor: What is called.
        every: Seconds between the end of one call and the next; default 60.

    Raises:
        ValueError: `every` is no positive number.

    Example:
        with BackgroundCompactor(Compactor("journal"), every=60):
            serve()
    """

    def __init__(self, compactor: Compactor, every: float = 60.0) -> None:
        if not (isinstance(every, int | float) and every > 0):
            raise ValueError(f"BackgroundCompactor(every={every!r}); give seconds, more than 0")
        self._compactor = compactor
        self._every = every
        self._closed = threading.Event()
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="stageflow-compactor", daemon=True)
        atexit.register(self._break_off)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self._compactor.compact()
            except Exception as error:
                if self._closed.is_set():  # it was broken off
                    return
                kind = type(error).__name__
                if kind not in self._told:
                    self._told.add(kind)
                    log_safely(
                        log,
                        "journal %s could not be compacted: %s (further occurrences are not logged)",
                        self._compactor.journal,
                        describe(error),
                    )
            if self._closed.wait(self._every):
                return

    def close(self, timeout: float = 5.0) -> None:
        """Let what is under way end, for so many seconds at most, and stop."""
        self._closed.set()
        self._thread.join(timeout)
        if not self._thread.is_alive():
            atexit.unregister(self._break_off)

    def _break_off(self, seconds: float = 10.0) -> None:
        """End the thread: one that comes back from native code into an interpreter that is gone crashes."""
        self._closed.set()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            # Again and again: it ends a statement, and there may be none at this moment.
            self._compactor.interrupt()
            self._thread.join(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
