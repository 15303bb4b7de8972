"""Keeps numbered, immutable snapshots of the records, and builds the next one in the background."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Generator

from .._time import get_clock, rfc3339
from ..errors import StageflowError
from ..store import Interruption, PinnedStore

__all__ = ["Snapshot", "SnapshotGone", "Snapshots"]


log = logging.getLogger("stageflow.ui")

_INTERVAL_S = 1.0
"""Minimum time in seconds between two checks for new events."""

_PAUSE_FACTOR = 2
"""After building a snapshot, pause for this multiple of the build time before building the next one."""

_IDLE_S = 60.0
"""Seconds without a request after which snapshots are no longer built."""

_KEPT = 2
"""Number of snapshots that remain available, in addition to those that a query reads."""


class SnapshotGone(StageflowError):
    """The requested snapshot is no longer available."""


class Snapshot:
    """An immutable snapshot of the records.

    Attributes:
        number: Its number; later snapshots have higher numbers.
        store: The store that reads it.
        read_at: When it was read, RFC 3339.
        read_monotonic: The same on the monotonic clock, in seconds.
    """

    def __init__(self, number: int, store: PinnedStore) -> None:
        self.number = number
        self.store = store
        self.read_at = rfc3339(get_clock().wall_ns() // 1000)
        self.read_monotonic = time.monotonic()
        self._readers = 0
        self._is_retired = False
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def reading(self) -> Generator[PinnedStore]:
        """Keep the store open while the block runs."""
        with self._lock:
            if self._is_retired and self._readers == 0:
                raise SnapshotGone(f"snapshot {self.number} is no longer available")
            self._readers += 1
        try:
            yield self.store
        finally:
            with self._lock:
                self._readers -= 1
                close = self._is_retired and self._readers == 0
            if close:
                self.store.close()

    def retire(self) -> None:
        """Close the store when no query uses it anymore."""
        with self._lock:
            self._is_retired = True
            close = self._readers == 0
        if close:
            self.store.close()


class Snapshots:
    """The available snapshots of a journal and its archive.

    Args:
        open_store: Reads the current records. It is called in a thread.
        changed: Called in the event loop after a new snapshot was built.
    """

    def __init__(self, open_store: Callable[[], PinnedStore], changed: Callable[[Snapshot], None]) -> None:
        self._open_store = open_store
        self._changed = changed
        self._kept: list[Snapshot] = []
        self.use_running_loop()
        self._used_at = time.monotonic()
        self._build_s = 0.0
        self._numbers = 0
        self._opening = Interruption()
        self.error: str | None = None

    def use_running_loop(self) -> None:
        """Wait in the event loop that runs now; an earlier one has ended."""
        self._building = asyncio.Lock()
        self._wake = asyncio.Event()

    async def get(self, number: int | None = None) -> Snapshot:
        """Return the newest snapshot, or an earlier one that is still available.

        Raises:
            SnapshotGone: The snapshot is not available.
            StageflowError: The records cannot be read, and there is no snapshot yet.
            OSError: The same.
        """
        was_idle = time.monotonic() - self._used_at > _IDLE_S
        self._used_at = time.monotonic()
        if not self._kept:
            await self._build_if_changed()
        elif was_idle and number is None:
            await self._try_to_build()
        elif was_idle:
            self._wake.set()
        if number is None:
            return self._kept[-1]
        for snapshot in self._kept:
            if snapshot.number == number:
                return snapshot
        raise SnapshotGone(f"snapshot {number} is no longer available")

    async def keep_current(self) -> None:
        """Build the next snapshot whenever the records change while the UI is in use; never returns."""
        while True:
            await asyncio.sleep(max(_INTERVAL_S, _PAUSE_FACTOR * self._build_s))
            if time.monotonic() - self._used_at > _IDLE_S:
                self._wake.clear()
                await self._wake.wait()
            await self._try_to_build()

    async def _try_to_build(self) -> None:
        try:
            await self._build_if_changed()
        except Exception as error:
            # The last snapshot remains available, and the logger `stageflow.ui` reports the error.
            if str(error) != self.error:
                log.warning("cannot read the records: %s", error)
            self.error = str(error)

    def stay_awake(self) -> None:
        """Record that the UI is in use."""
        self._used_at = time.monotonic()
        self._wake.set()

    async def _build_if_changed(self) -> None:
        async with self._building:
            newest = self._kept[-1] if self._kept else None
            if newest is not None and await asyncio.to_thread(newest.store.is_current):
                self.error = None
                return
            began = time.monotonic()
            self._opening = Interruption()
            with self._opening:
                store = await asyncio.to_thread(self._open_store)
            self._build_s = time.monotonic() - began
            self._numbers += 1
            snapshot = Snapshot(self._numbers, store)
            self._kept.append(snapshot)
            while len(self._kept) > _KEPT:
                self._kept.pop(0).retire()
            self.error = None
            self._changed(snapshot)

    def interrupt(self) -> None:
        """Interrupt the reading of the records: its thread would delay the end of the process."""
        self._opening.interrupt()

    def close(self) -> None:
        """Close each snapshot when no query uses it anymore."""
        while self._kept:
            self._kept.pop().retire()
