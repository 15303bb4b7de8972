"""Waiting for events to arrive, and reading what became of them."""

from __future__ import annotations

import asyncio
import time

from . import loops
from .channel import channels
from .counters import TALLY, EventStats

__all__ = ["flush", "stats"]


async def flush(timeout: float | None = None) -> bool:
    """Wait until every event accepted so far has been delivered or dropped, by any sink, on any loop.

    Call it before you close what a sink needs: a connection pool, a client.

    Args:
        timeout: Seconds to wait at most; default the bound of `set_drain_timeout`, 5 s. The time
            is kept, whatever the sinks do. Events that are late stay pending, and are not lost.

    Returns:
        True when all of them were taken care of in time.
    """
    loops.sweep()
    own = loops.delivering.get()
    futures = [asyncio.wrap_future(outlet.drained()) for outlet in loops.open_outlets() if outlet is not own]
    if not futures:
        return True
    deadline = time.monotonic() + (loops.drain_timeout() if timeout is None else timeout)
    _done, late = await asyncio.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
    for future in late:
        future.cancel()
    return not late


def stats() -> EventStats:
    """Return the counters of every sink that was offered an event, as they stand now.

    Example:
        >>> stats().emitter_errors >= 0
        True
    """
    loops.sweep()
    return EventStats(
        sinks=[channel.stats() for channel in channels()],
        emitter_errors=TALLY.emitter_errors,
        coerced_values=TALLY.coerced_values,
    )
