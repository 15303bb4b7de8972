"""A sink that logs: one readable line an event, its payload as JSON at the end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from .._failures import FailureOutcomes
from .event import Event
from .sink import DirectSink

__all__ = ["LoggingEventSink"]


class LoggingEventSink(DirectSink):
    """Logs each event on one line; failed stages, and runs that count as failures, at ERROR.

    Args:
        level: Level for events that did not fail, as a number or a name; default INFO.
        logger: Logger to use; default the one named "stageflow".
        failure_outcomes: The outcomes of runs that count as failures; default `failed`, `timeout` and
            `crashed`. A run that was cancelled externally is logged at `level`.

    Raises:
        ValueError: There is no such level, or no such outcome.

    Example:
        sink = LoggingEventSink(level=logging.DEBUG)
    """

    def __init__(
        self,
        level: int | str = logging.INFO,
        logger: logging.Logger | None = None,
        *,
        failure_outcomes: Iterable[str] | None = None,
    ) -> None:
        self._failures = FailureOutcomes()
        if failure_outcomes is not None:
            self._failures = FailureOutcomes.of(failure_outcomes)
        self._level = level_number(level)
        self._logger = logger or logging.getLogger("stageflow")

    def take(self, event: Event) -> None:
        """Log an event."""
        outcome = _field(event.body, "outcome")
        failed = (
            _field(event.body, "status") == "FAIL" if outcome is None else self._failures.is_failure(outcome)
        )
        level = logging.ERROR if failed and self._level < logging.ERROR else self._level
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s %s", _headline(event), event.json().decode())


def level_number(level: int | str) -> int:
    """Return a logging level, given as a number or by its name.

    Raises:
        ValueError: There is no such level.
    """
    number = logging.getLevelNamesMapping().get(level) if isinstance(level, str) else level
    if not isinstance(number, int):
        raise ValueError(f"level={level!r}; give a logging level such as logging.INFO or 'INFO'")
    return number


def _headline(event: Event) -> str:
    body = event.body
    words = [event.type]
    for name in ("stage_name", "pipeline_name"):
        if value := _field(body, name):
            words.append(str(value))
            break
    if status := _field(body, "status"):
        words.append(str(status))
        duration = _field(body, "duration_ms")
        words.append(f"{duration:.1f} ms" if isinstance(duration, (int, float)) else "")
    error = _field(body, "error")
    if isinstance(error, str):
        # One line an event: the whole message, newlines and all, is in the JSON.
        words.append(error.splitlines()[0] if error else "")
    return " ".join(word for word in words if word)


def _field(body: Any, name: str) -> Any:
    return body.get(name) if isinstance(body, dict) else getattr(body, name, None)
