"""`AlertLoop`: evaluates rules repeatedly, in the current thread or a background thread."""

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
    """Evaluates rules periodically until it is stopped.

    Several processes can run a loop for the same journal: one evaluates, the others skip that evaluation.
    An error in one evaluation is logged and counted, and does not affect the next one. The thread is a
    daemon: it does not delay the end of the process, and the next evaluation of any process sends the
    notifications that it had not sent.

    Args:
        store: The store, or the directory of a journal.
        rules: The rules and receivers, or a TOML file.
        every: Seconds from the start of one evaluation to the start of the next; default 60.
        state: File for the state; default `alerts.json` in the journal directory.
        on_run: Called after each evaluation with its result; default None.

    Attributes:
        runs: Number of evaluations.
        failures: Number of evaluations that raised an error.
        last: Result of the last successful evaluation; None before the first.

    Raises:
        AlertRuleError: The file is invalid.
        JournalNotFoundError: The directory does not exist.
        InvalidArgumentError: `every` is not a number above 0.

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
        """Start the background thread, unless it is running."""
        if self._thread is None:
            self._thread = threading.Thread(target=self.run, name="stageflow-alerts", daemon=True)
            self._thread.start()
        return self

    def stop(self, timeout: float = 30.0) -> bool:
        """Stop after the current evaluation, and wait for it. Blocks: do not call it from an event loop.

        Args:
            timeout: Maximum number of seconds to wait; default 30.

        Returns:
            False if the current evaluation did not end in time; the thread stops after it.
        """
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
            if self._thread.is_alive():
                return False
        self._close()
        return True

    def run(self) -> None:
        """Evaluate in the current thread until `stop` is called."""
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
                log_safely(log, "cannot evaluate alerts: %s", describe(error))
            self.runs += 1
            wait = max(0.0, self._every - (time.monotonic() - began))

    def _warn(self, found: AlertRun) -> None:
        errors = {finding.archive_error for finding in found.findings} - {None}
        for error in sorted(filter(None, errors - self._warned)):
            log_safely(log, "cannot read part of the archive (no alert rule needs it): %s", error)
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
