"""The loops that deliver: which one an event goes to, and what happens when one of them ends.

The end of `asyncio.run` cancels every task at once and then closes every asynchronous generator.
One such generator of ours, on each loop that has events waiting, drains them at that point: all
runs have written their record by then, and delivery, which is kept out of `asyncio.all_tasks()`,
is still alive.
"""

from __future__ import annotations

import asyncio
import atexit

# Exit hooks run last in, first out. Ours must come before the one that shuts the default
# executor, which a sink may need to look up a host: so that module has to be imported by now.
import concurrent.futures.thread
import contextlib
import math
import os
import threading
import time
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Protocol

__all__ = [
    "BackgroundLoop",
    "Outlet",
    "delivering",
    "delivery_loop",
    "drain_timeout",
    "enter",
    "home_loop",
    "is_draining",
    "leave",
    "open_outlets",
    "set_drain_timeout",
    "sweep",
    "watch_end",
]

Loop = asyncio.AbstractEventLoop


class Outlet(Protocol):
    """Something with events waiting on a loop."""

    @property
    def stalled(self) -> bool:
        """True for a sink that already outlasted a drain: it is not waited for again."""
        ...

    def drained(self) -> concurrent.futures.Future[None]:
        """Return a future that is done when what waits now has been delivered or dropped."""
        ...

    def give_up(self, reason: str) -> None:
        """Drop what waits, counted under `reason`."""
        ...


home_loop: ContextVar[tuple[Loop, int] | None] = ContextVar("stageflow_home_loop", default=None)
"""The loop of the run, for code that runs in its threads, and the pid: a forked child has no such loop."""

delivering: ContextVar[Outlet | None] = ContextVar("stageflow_delivering", default=None)
"""Whose delivery the code at hand runs in: a sink that flushes must not wait for itself."""

_lock = threading.RLock()
_outlets: dict[Loop, set[Outlet]] = {}
_end_watchers: dict[Loop, AsyncGenerator[None, None]] = {}
_ended: set[Loop] = set()
_draining: set[Loop] = set()
_library_loop: BackgroundLoop | None = None
_bound = 5.0
_wasted = 0.0
_hooked = False


class BackgroundLoop:
    """An event loop in a daemon thread of its own, which holds up no exit."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def stop(self) -> None:
        """End the thread; what waits on its loop by then is dropped, counted."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)


def delivery_loop() -> Loop:
    """Return the loop for an event emitted here and now.

    That is the running one; in a thread of a run, the loop of that run; otherwise the library's
    own, in the background.

    Raises:
        RuntimeError: The interpreter is exiting and no thread can be started.
    """
    try:
        loop: Loop | None = asyncio.get_running_loop()
    except RuntimeError:
        loop, pid = home_loop.get() or (None, 0)
        if loop is not None and (pid != os.getpid() or not loop.is_running()):
            loop = None
    if loop is not None and loop not in _ended:
        return loop
    global _library_loop
    with _lock:
        if _library_loop is None:
            _library_loop = BackgroundLoop("stageflow-delivery")
        return _library_loop.loop


def enter(loop: Loop, outlet: Outlet) -> None:
    """Note that `outlet` has events waiting on `loop`."""
    global _hooked
    with _lock:
        if not _hooked:
            _hooked = True
            # Before threads are shut down, so that a sink can still open a connection; plain
            # `atexit` comes too late for that, and serves where this hook does not exist.
            with contextlib.suppress(RuntimeError):  # threads are being shut down already
                getattr(threading, "_register_atexit", atexit.register)(_drain_at_exit)
            # And once more for what the application's own exit handlers emit: they run before this.
            with contextlib.suppress(RuntimeError):
                atexit.register(_drain_at_exit)
        _outlets.setdefault(loop, set()).add(outlet)


def leave(loop: Loop, outlet: Outlet) -> None:
    """Note that `outlet` has nothing waiting any more."""
    with _lock:
        outlets = _outlets.get(loop)
        if outlets is not None:
            outlets.discard(outlet)
            if not outlets:
                del _outlets[loop]


def watch_end() -> None:
    """Drain the running loop when it ends. To be called on that loop."""
    loop = asyncio.get_running_loop()
    if loop in _end_watchers:
        return
    sweep()
    watcher = _drain_when_closed(loop)
    with contextlib.suppress(StopIteration):
        # The first step, by hand: it registers the generator with the loop and suspends in it.
        watcher.__anext__().send(None)
    _end_watchers[loop] = watcher


async def _drain_when_closed(loop: Loop) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        _draining.add(loop)
        await _drain(loop, _bound)
        with _lock:
            _draining.discard(loop)
            # What is emitted between now and the loop's close goes to the library's own loop.
            _ended.add(loop)
            _end_watchers.pop(loop, None)


async def _drain(loop: Loop, bound: float) -> None:
    global _wasted
    began = time.monotonic()
    while waiting := [outlet for outlet in _outlets.get(loop, ()) if not outlet.stalled]:
        left = bound - (time.monotonic() - began)
        if left <= 0:
            break
        futures = [asyncio.wrap_future(outlet.drained()) for outlet in waiting]
        _done, late = await asyncio.wait(futures, timeout=max(0.0, left))
        if late:
            _wasted += time.monotonic() - began
            for future in late:
                future.cancel()
            break
    for outlet in list(_outlets.get(loop, ())):
        outlet.give_up("drain_timeout")
    # One turn, so that what was given up hears of its cancellation before the loop closes.
    await asyncio.sleep(0)


def _drain_at_exit() -> None:
    sweep()
    deadline = time.monotonic() + max(0.0, _bound - _wasted)
    for loop in list(_outlets):
        if not loop.is_running() and not loop.is_closed():
            with contextlib.suppress(Exception):
                loop.run_until_complete(_drain(loop, max(0.0, deadline - time.monotonic())))
    futures = [outlet.drained() for outlet in open_outlets() if not outlet.stalled]
    if futures:
        concurrent.futures.wait(futures, timeout=max(0.0, deadline - time.monotonic()))
    for outlet in open_outlets():
        outlet.give_up("drain_timeout")


def is_draining(loop: Loop) -> bool:
    """Tell whether `loop` is ending: what a sink needs may be gone, and an error has that cause."""
    return loop in _draining


def open_outlets() -> list[Outlet]:
    """Return everything that has events waiting, on any loop."""
    with _lock:
        return [outlet for outlets in _outlets.values() for outlet in outlets]


def sweep() -> None:
    """Drop, counted, what still waits on loops that were closed."""
    with _lock:
        closed = [loop for loop in _outlets if loop.is_closed()]
        gone = [outlet for loop in closed for outlet in _outlets[loop]]
        for loop in [loop for loop in (*_end_watchers, *_ended) if loop.is_closed()]:
            _end_watchers.pop(loop, None)
            _ended.discard(loop)
    for outlet in gone:
        outlet.give_up("loop_closed")


def set_drain_timeout(seconds: float) -> None:
    """Set for how long the end of a loop, the exit of the process and `flush()` wait for sinks.

    Args:
        seconds: One bound for the whole process; 5 until it is set.

    Raises:
        ValueError: For a negative or infinite number.
    """
    global _bound
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"set_drain_timeout({seconds!r}): give seconds, 0 or more")
    _bound = float(seconds)


def drain_timeout() -> float:
    """Return the bound of `set_drain_timeout`, in seconds."""
    return _bound


def _forget_parent() -> None:
    # A forked child has none of its parent's threads, and must not deliver its parent's events.
    global _lock, _library_loop, _wasted
    _lock = threading.RLock()
    _library_loop = None
    _wasted = 0.0
    _outlets.clear()
    _end_watchers.clear()
    _ended.clear()
    _draining.clear()


os.register_at_fork(after_in_child=_forget_parent)
