"""A sink that gives another one a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

from .._fork import reset_in_child
from ._delivery import DELIVERY, BackgroundLoop
from .sink import EventSink, ForwardingSink

__all__ = ["BackgroundEventSink"]


class BackgroundEventSink(ForwardingSink):
    """Calls `sink` in a thread of its own, so that it may block as long as it likes.

    The caller pays for one append to a bounded queue. The thread starts with the first event.

    Raises:
        TypeError: `sink` has neither `emit` nor `try_emit`.

    Example:
        sink = BackgroundEventSink(SlowWarehouseSink())
    """

    def __init__(self, sink: EventSink | Any) -> None:
        DELIVERY.channel_of(sink)
        self.sink = sink
        self._reset()
        _sinks.add(self)

    def _reset(self) -> None:
        # A forked child inherits this object, but not its thread, and another thread may have held the lock.
        self._lock = threading.RLock()
        self._background: BackgroundLoop | None = None

    def delivery_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop in the thread of this sink; start the thread on first use."""
        with self._lock:
            if self._background is None:
                self._background = BackgroundLoop(f"stageflow-{type(self.sink).__name__}")
                weakref.finalize(self, self._background.stop).atexit = False
            return self._background.loop


_sinks: weakref.WeakSet[BackgroundEventSink] = weakref.WeakSet()


@reset_in_child
def _reset() -> None:
    for sink in list(_sinks):
        sink._reset()
