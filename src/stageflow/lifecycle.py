"""The life of an application: set up, and nothing left behind, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Unpack

from ._fork import FORKED, reset_in_child
from ._log import log_safely
from .errors import describe
from .events import DELIVERY, flush, get_event_sink
from .observability import emit_health
from .pipeline import active_runs
from .settings import Given, Settings, close_journal, configure, settings

__all__ = ["session"]

log = logging.getLogger("stageflow.lifecycle")

_LOOK_EVERY_SECONDS = 0.01


@contextlib.asynccontextmanager
async def session(*, flush_timeout: float | None = None, **given: Unpack[Given]) -> AsyncGenerator[Settings]:
    """Set up the process as `configure` does, and leave nothing behind on the way out.

    On the way out it waits for the runs that are under way, emits a last `stageflow.health`
    event, flushes every sink, and syncs and closes the journal, also where it is cancelled again
    meanwhile: each wait has its bound. Under SIGTERM the body is cancelled, so that every run
    writes its record, and the process exits with 143; where the application has a handler of its
    own for SIGTERM (uvicorn, gunicorn, Celery), that one stays. A forked child that leaves the
    session closes its own journal, and waits for nothing.

    Args:
        flush_timeout: Seconds to wait for runs and sinks at most, each; default the bound of
            `set_drain_timeout`, 5 s.
        given: As for `configure`. Without any, what is in force stays.

    Raises:
        SettingsError: As for `configure`.
        ValueError: `flush_timeout` is no number of seconds, 0 or more.
        SystemExit: With 143, after a SIGTERM.

    Example:
        async with stageflow.session(journal="journal", service="shop"):
            await serve()
    """
    # At once: on the way out it would be in the way of all that is to be done there.
    if flush_timeout is not None and not (isinstance(flush_timeout, (int, float)) and flush_timeout >= 0):
        raise ValueError(f"session(flush_timeout={flush_timeout!r}): give seconds, 0 or more")
    found = settings()
    if found is None or given:
        found = configure(**given)
    task, process = asyncio.current_task(), os.getpid()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if task is not None:
            task.cancel("SIGTERM")

    caught = _sigterm.handle(terminate)
    seconds = DELIVERY.drain_timeout if flush_timeout is None else flush_timeout
    try:
        try:
            yield found
        finally:
            if os.getpid() != process:
                close_journal()  # the forked child's own journal; it has nothing to wait for
                FORKED.return_to_loop()
            elif (cancelled := await _wind_up(seconds)) is not None:
                raise cancelled
    except asyncio.CancelledError:
        if not terminated:
            raise
    finally:
        # Last: a second SIGTERM would end the process in the middle of the above.
        if caught and os.getpid() == process:
            _sigterm.release(asyncio.get_running_loop())
    if terminated:
        raise SystemExit(128 + signal.SIGTERM)


async def _wind_up(seconds: float) -> asyncio.CancelledError | None:
    """Do what a session does on its way out, all of it; return the first cancellation that came meanwhile."""
    try:
        first = await _in_spite_of_cancels(_runs_end, seconds)
        try:
            emit_health(get_event_sink())
        except Exception as error:
            log_safely(log, "could not emit stageflow.health: %s", describe(error))
        second = await _in_spite_of_cancels(flush, seconds)
        return first or second
    finally:  # also at a Ctrl-C in the middle of it
        close_journal()


async def _in_spite_of_cancels(
    wait: Callable[[float], Awaitable[object]], seconds: float
) -> asyncio.CancelledError | None:
    """Wait on when cancelled, as long as was said at first; return the first cancellation."""
    cancelled: asyncio.CancelledError | None = None
    until = time.monotonic() + seconds
    while True:
        try:
            await wait(max(0.0, until - time.monotonic()))
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            if time.monotonic() < until:
                continue
        return cancelled


class _Sigterm:
    """The handler of SIGTERM, unless the application has installed one."""

    def __init__(self) -> None:
        self._handled = False

    def handle(self, handler: Callable[[], None]) -> bool:
        """Call `handler` on SIGTERM; return False if a handler exists or this is not the main thread."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        ):
            return False
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handler)
        self._handled = True
        return True

    def release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Remove the handler."""
        self._handled = False
        loop.remove_signal_handler(signal.SIGTERM)

    def reset(self) -> None:
        """Remove the handler of the parent in a forked child.

        A socket notifies a loop of signals, and a forked child shares that socket with its parent: a SIGTERM
        sent to the child would terminate the parent. CPython 3.12 and later handle this.
        """
        if self._handled:
            self._handled = False
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


_sigterm = _Sigterm()
reset_in_child(_sigterm.reset)


async def _runs_end(seconds: float) -> None:
    """Wait for runs that were cancelled beside this one, by a server that does not wait for them itself."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while active_runs():  # noqa: ASYNC110 - they may end on other loops, and tell nobody
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
