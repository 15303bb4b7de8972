"""The life of an application: set up, and nothing left behind, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Unpack

from .events import flush, get_event_sink
from .events.loops import drain_timeout
from .observability.health import emit_health
from .pipeline import active_runs
from .settings import Given, Settings, close_journal, configure, settings

__all__ = ["session"]

_LOOK_EVERY_SECONDS = 0.01


@contextlib.asynccontextmanager
async def session(*, flush_timeout: float | None = None, **given: Unpack[Given]) -> AsyncGenerator[Settings]:
    """Set up the process as `configure` does, and leave nothing behind on the way out.

    On the way out it waits for the runs that are under way, emits a last `stageflow.health`
    event, flushes every sink, and syncs and closes the journal. Under SIGTERM the body is
    cancelled, so that every run writes its record, and the process exits with 143; where the
    application has a handler of its own for SIGTERM (uvicorn, gunicorn, Celery), that one stays.

    Args:
        flush_timeout: Seconds to wait for runs and sinks at most, each; default the bound of
            `set_drain_timeout`, 5 s.
        given: As for `configure`. Without any, what is in force stays.

    Raises:
        SettingsError: As for `configure`.
        SystemExit: With 143, after a SIGTERM.

    Example:
        async with stageflow.session(journal="journal", service="shop"):
            await serve()
    """
    found = settings()
    if found is None or given:
        found = configure(**given)
    task = asyncio.current_task()
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        if task is not None:
            task.cancel("SIGTERM")

    caught = _catch_sigterm(terminate)
    try:
        yield found
    except asyncio.CancelledError:
        if not terminated:
            raise
    finally:
        if caught:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
        await _runs_end(drain_timeout() if flush_timeout is None else flush_timeout)
        emit_health(get_event_sink())
        await flush(flush_timeout)
        close_journal()
    if terminated:
        raise SystemExit(128 + signal.SIGTERM)


def _catch_sigterm(handler: Callable[[], None]) -> bool:
    """Have `handler` called at SIGTERM, where nobody else has a handler and this is the main thread."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        return False
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handler)
    return True


async def _runs_end(seconds: float) -> None:
    """Wait for runs that were cancelled beside this one, by a server that does not wait for them itself."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while active_runs():  # noqa: ASYNC110 - they may end on other loops, and tell nobody
                await asyncio.sleep(_LOOK_EVERY_SECONDS)
