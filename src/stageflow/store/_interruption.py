"""Interrupts queries: after a timeout, or at the request of another thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Interruption", "interrupted_after"]


_REPEAT_S = 0.05
"""Seconds between interrupts. An interrupt affects only a statement that is running, so an interrupt between
two statements of a query has no effect and must be repeated."""

_current: ContextVar[tuple[Interruption, ...]] = ContextVar("interruptions", default=())
"""The interruptions whose blocks enclose the current code, outermost first."""


class Interruption:
    """Interrupts the queries of an `EventStore` that run inside `with interruption:`, from another thread.

    `asyncio.to_thread` copies the context, so the block can also enclose the `await`. Blocks can be nested,
    and several threads can use the same object: each block that encloses a query can interrupt it.

    Attributes:
        requested: Whether `interrupt` was called. An interrupted query raises `QueryError`.

    Example:
        interruption = Interruption()
        threading.Timer(5, interruption.interrupt).start()
        with interruption:
            store.explain("failed")
    """

    def __init__(self) -> None:
        self.requested = False
        self._watchers: set[threading.Event] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Interruption:
        _current.set((*_current.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        # Without a token, which would belong to one thread and one block.
        _current.set(_current.get()[:-1])

    def interrupt(self) -> None:
        """Interrupt the queries that are running, and those that start later."""
        with self._lock:
            self.requested = True
            for wake in self._watchers:
                wake.set()

    def _wake_on_interrupt(self, wake: threading.Event) -> None:
        with self._lock:
            self._watchers.add(wake)
            if self.requested:
                wake.set()

    def _forget(self, wake: threading.Event) -> None:
        with self._lock:
            self._watchers.discard(wake)


@contextlib.contextmanager
def interrupted_after(
    cursor: DuckDBPyConnection, seconds: float | None
) -> Generator[tuple[Interruption, ...]]:
    """Interrupt the statements of a cursor after a timeout, or when a current `Interruption` requests it.

    Args:
        cursor: The cursor, or the connection.
        seconds: The timeout; None for none.

    Returns:
        The interruptions whose blocks enclose the caller.
    """
    interruptions = _current.get()
    wake, done = threading.Event(), threading.Event()

    def watch() -> None:
        wake.wait(seconds)
        while not done.is_set():
            _interrupt(cursor)
            done.wait(_REPEAT_S)

    watcher = threading.Thread(target=watch, name="stageflow-query-timeout", daemon=True)
    watcher.start()
    try:
        for interruption in interruptions:
            interruption._wake_on_interrupt(wake)
        yield interruptions
    finally:
        for interruption in interruptions:
            interruption._forget(wake)
        done.set()
        wake.set()
        watcher.join()


def _interrupt(cursor: DuckDBPyConnection) -> None:
    import duckdb

    with contextlib.suppress(duckdb.ConnectionException):  # the query ended in the meantime
        cursor.interrupt()
