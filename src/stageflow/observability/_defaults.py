"""What holds where a graph, a run or an event does not say otherwise; `stageflow.configure` sets it."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

__all__ = ["Defaults", "defaults", "on_change", "use_defaults"]


class Defaults(Struct, frozen=True, kw_only=True):
    """The settings of one process.

    Attributes:
        emits: Emit wide events for graphs that were built without a word on it.
        service: Name of the service; None for "unknown_service".
        version: Its version.
        environment: Where it is deployed: "production", ...
        commit: The commit it was built from.
        health_seconds: Seconds between two `stageflow.health` events; None for none.
        max_threads: The number of synchronous stages that may run in threads at once.
    """

    emits: bool = False
    service: str | None = None
    version: str | None = None
    environment: str | None = None
    commit: str | None = None
    health_seconds: float | None = None
    max_threads: int = 256


_defaults = Defaults()
_listeners: list[Callable[[], None]] = []


def defaults() -> Defaults:
    """Return what holds now."""
    return _defaults


def use_defaults(new: Defaults) -> Defaults:
    """Make `new` hold from now on, also for graphs that are built already, and return what it replaces."""
    global _defaults
    before, _defaults = _defaults, new
    for listener in _listeners:
        listener()
    return before


def on_change(listener: Callable[[], None]) -> None:
    """Have `listener` called when something else holds."""
    _listeners.append(listener)
