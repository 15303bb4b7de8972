"""The process-wide default settings, which `stageflow.configure` sets."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from .._log_tail import MAX_LOG_LINES

__all__ = ["Defaults", "defaults", "on_change", "use_defaults"]


class Defaults(Struct, frozen=True, kw_only=True):
    """The default settings of a process.

    Attributes:
        emit_wide_events: True to emit wide events for graphs that do not set this option.
        service: Name of the service; None to detect it from the environment.
        version: Version of the service.
        environment: Deployment environment, for example "production".
        commit: Commit that the service was built from.
        health_seconds: Interval between two `stageflow.health` events, in seconds; None to emit none.
        max_threads: Maximum number of synchronous stages that run in threads at the same time.
        log_tail: Number of log lines that an attempt keeps; 0 to record no log lines.
    """

    emit_wide_events: bool = False
    service: str | None = None
    version: str | None = None
    environment: str | None = None
    commit: str | None = None
    health_seconds: float | None = None
    max_threads: int = 256
    log_tail: int = MAX_LOG_LINES


_defaults = Defaults()
_listeners: list[Callable[[], None]] = []


def defaults() -> Defaults:
    """Return the current settings."""
    return _defaults


def use_defaults(new: Defaults) -> Defaults:
    """Replace the settings, including those of existing graphs, and return the previous ones."""
    global _defaults
    before, _defaults = _defaults, new
    for listener in _listeners:
        listener()
    return before


def on_change(listener: Callable[[], None]) -> None:
    """Call `listener` after every change of the settings."""
    _listeners.append(listener)
