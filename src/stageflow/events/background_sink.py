"""A sink that gives another one a thread and a loop of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from typing import Any

from .channel import channel_of
from .loops import BackgroundLoop
from .sink import EventSink

__all__ = ["BackgroundEventSink"]


class BackgroundEventSink(EventSink):
    """Calls `sink` in a thread of its own, so that it may block as long as it likes.

    The caller pays for one append to a bounded queue. The thread starts with the first event.

    Raises:
        TypeError: `sink` has neither `emit` nor `try_emit`.

    Example:
        sink = BackgroundEventSink(SlowWarehouseSink())
    """

    def __init__(self, sink: EventSink | Any) -> None:
        channel_of(sink)
        self.sink = sink
        self._background: tuple[int, BackgroundLoop] | None = None

    def _wrapped(self) -> EventSink | Any:
        return self.sink

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        # The pid: a forked child has the object, but not the thread behind it.
        with _lock:
            return self._started().loop

    def _started(self) -> BackgroundLoop:
        if self._background is None or self._background[0] != os.getpid():
            background = BackgroundLoop(f"stageflow-{type(self.sink).__name__}")
            weakref.finalize(self, background.stop).atexit = False
            self._background = (os.getpid(), background)
        return self._background[1]


_lock = threading.RLock()


def _forget_parent() -> None:
    # A lock that a thread of the parent held would stay locked in a forked child.
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_forget_parent)
