"""`AlertLoop`: evaluates again and again, in this thread or in one of its own."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .._files import absolute_path
from .._log import log_safely
from ..errors import describe
from ..store import EventStore
from ._rule import check_number
from ._rules_file import read_rules
from ._run import AlertRules, AlertRun, run_alerts

__all__ = ["AlertLoop"]


log = logging.getLogger("stageflow.alerts")


class AlertLoop:
    """Evaluates rules every so many seconds until it is stopped.

    Processes that run one each for the same journal take turns: one evaluates, the others wait for the
    next time. What goes wrong in one evaluation is logged and counted, and the next one comes. The
    thread is a daemon: it does not hold up the end of the process, and what it had not sent is sent by
    the next who evaluates.

    Args:
        store: That is asked, or the directory of a journal.
        rules: What is watched, and whom it is told; or a file of it.
        every: Seconds from the beginning of one evaluation to that of the next; default 60.
        state: File of the state; default `alerts.json` in the directory of the journal.
        on_run: Called after each evaluation with what it did; default None.

    Attributes:
        runs: How many evaluations there were.
        failures: How many of them ended in an error.
        last: What the last one did that ended without; None before.

    Raises:
        AlertRuleError: The file has something wrong in it.
        JournalNotFoundError: There is no such directory.
        ValueError: `every` is no number, more than 0.

    Example:
        with AlertLoop("journal", "alerts.toml", every=60):
            serve()
    """

    def __init__(
        self,
        store: EventStore | str | os.PathLike[str],
        rules: AlertRules | str | os.PathLike[str],
        *,
        every: float = 60.0,
        state: str | os.PathLike[str] | None = None,
        on_run: Callable[[AlertRun], object] | None = None,
    ) -> None:
        check_number("AlertLoop", "every", every, above=0)
        self._rules = rules if isinstance(rules, AlertRules) else read_rules(rules)
        self._owned = not isinstance(store, EventStore)
        self._store = store if isinstance(store, EventStore) else EventStore(store)
        self._every = every
        self._state = absolute_path(state) if state is not None else None
        self._on_run = on_run
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.runs = 0
        self.failures = 0
        self._warned: set[str | None] = set()
        self.last: AlertRun | None = None

    def start(self) -> Self:
        """Begin, in a thread of its own; where it has begun, do nothing."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="stageflow-alerts", daemon=True)
            self._thread.start()
        return self

    def stop(self, timeout: float = 30.0) -> bool:
        """End after the evaluation that is under way, and wait for that. It blocks: not for an event loop.

        Args:
            timeout: Seconds to wait at most; default 30.

        Returns:
            False where it has not ended by then; it will.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        self._close()
        return True

    def run(self) -> None:
        """Evaluate in this thread until `stop` is called."""
        wait = 0.0
        while not self._stop.wait(wait):
            began = time.monotonic()
            try:
                found = run_alerts(self._store, self._rules, state=self._state)
                self.last = found
                self._warn(found)
                if self._on_run is not None:
                    self._on_run(found)
            except Exception as error:
                self.failures += 1
                log_safely(log, "alerts were not evaluated: %s", describe(error))
            self.runs += 1
            wait = max(0.0, self._every - (time.monotonic() - began))

    def _warn(self, found: AlertRun) -> None:
        errors = {finding.archive_error for finding in found.findings} - {None}
        for error in sorted(filter(None, errors - self._warned)):
            log_safely(log, "a part of the archive that no alert rule needs cannot be read: %s", error)
        self._warned = errors

    def _close(self) -> None:
        if self._owned:
            self._store.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
