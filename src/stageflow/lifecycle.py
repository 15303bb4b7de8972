"""The lifecycle of an application: configure on startup, deliver all events on shutdown."""

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
from .errors import describe, invalid_argument
from .events import DELIVERY, flush, get_event_sink
from .observability import emit_health
from .pipeline import active_runs
from .settings import Given, Settings, close_journal, configure, is_exporting, settings, stop_exporting

__all__ = ["session"]

log = logging.getLogger("stageflow.lifecycle")

_POLL_SECONDS = 0.01


@contextlib.asynccontextmanager
async def session(*, flush_timeout: float | None = None, **given: Unpack[Given]) -> AsyncGenerator[Settings]:
    """Configure the process as `configure` does; on exit, wait for runs and deliver all events.

    On exit, a session waits for the runs in progress, emits a last `stageflow.health` event, flushes every
    sink, exports what the journal contains, and syncs and closes the journal. Further cancellations do not
    interrupt this; each wait has a timeout. On SIGTERM, the session cancels its body, so that every run
    writes its record, and the process exits with status 143. If the application has a handler for SIGTERM
    (uvicorn, gunicorn, Celery), the session does not replace it. A forked child that leaves the session
    closes its own journal and does not wait.

    Args:
        flush_timeout: Maximum number of seconds to wait for the runs, then for the sinks, and then for the
            exporters; default the value of `set_drain_timeout`, 5 s.
        given: As for `configure`. Without arguments, the settings in effect remain.

    Raises:
        SettingsError: As for `configure`.
        InvalidArgumentError: `flush_timeout` is not a number, or negative.
        SystemExit: With status 143, after a SIGTERM.

    Example:
        async with stageflow.session(journal="journal", service="shop"):
            await serve()
    """
    # Checked here, because an error on exit would prevent the shutdown.
    if flush_timeout is not None and not (isinstance(flush_timeout, (int, float)) and flush_timeout >= 0):
        raise invalid_argument("session()", "flush_timeout", flush_timeout, "0 or more seconds")
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
                close_journal()  # that of the forked child, which has nothing to wait for
                FORKED.return_to_loop()
            elif (cancelled := await _shut_down(seconds)) is not None:
                raise cancelled
    except asyncio.CancelledError:
        if not terminated:
            raise
    finally:
        # Last: without the handler, a second SIGTERM would end the process during the shutdown.
        if caught and os.getpid() == process:
            _sigterm.release(asyncio.get_running_loop())
    if terminated:
        raise SystemExit(128 + signal.SIGTERM)


async def _shut_down(seconds: float) -> asyncio.CancelledError | None:
    """Wait for runs, flush all sinks and close the journal; return the first cancellation in the meantime."""
    try:
        first = await _wait_despite_cancellation(_runs_ended, seconds)
        try:
            emit_health(get_event_sink())
        except Exception as error:
            log_safely(log, "could not emit stageflow.health: %s", describe(error))
        second = await _wait_despite_cancellation(flush, seconds)
        third = await _wait_despite_cancellation(_exported, seconds)
        return first or second or third
    finally:  # also after a Ctrl-C
        close_journal()


async def _wait_despite_cancellation(
    wait: Callable[[float], Awaitable[object]], seconds: float
) -> asyncio.CancelledError | None:
    """Continue to wait after a cancellation, within the same timeout; return the first cancellation."""
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


async def _exported(seconds: float) -> None:
    """Export what the journal contains."""
    if is_exporting():
        await asyncio.to_thread(stop_exporting, seconds)


async def _runs_ended(seconds: float) -> None:
    """Wait for the runs in progress, which a server may have cancelled without waiting for them."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while active_runs():  # noqa: ASYNC110 - runs on other loops do not notify this one
                await asyncio.sleep(_POLL_SECONDS)
