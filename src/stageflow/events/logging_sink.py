"""A sink that logs: one readable line an event, its payload as JSON at the end."""

from __future__ import annotations

import logging
from typing import Any

from .event import Event
from .sink import DirectSink

__all__ = ["LoggingEventSink"]


class LoggingEventSink(DirectSink):
    """Logs each event on one line; those with status FAIL at ERROR.

    Args:
        level: Level for events that did not fail, as a number or a name; default INFO.
        logger: Logger to use; default the one named "stageflow".

    Raises:
        ValueError: There is no such level.

    Example:
        sink = LoggingEventSink(level=logging.DEBUG)
    """

    def __init__(self, level: int | str = logging.INFO, logger: logging.Logger | None = None) -> None:
        self._level = level_number(level)
        self._logger = logger or logging.getLogger("stageflow")

    def take(self, event: Event) -> None:
        """Log an event."""
        failed = _field(event.body, "status") == "FAIL"
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
