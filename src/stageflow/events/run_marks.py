"""The marks of a run's beginning and end, for sinks of ours alone that keep a record."""

from __future__ import annotations

from typing import Any

from ..schema import RunClosed, RunOpen

__all__ = ["mark", "takes_marks"]


def takes_marks(sink: Any) -> bool:
    """Tell whether `sink` wants to know when a run begins, beside its events."""
    # On the class, not the object: a stand-in that has every attribute is none of ours.
    take = getattr(type(sink), "_takes_marks", None)
    return take is not None and bool(take(sink))


def mark(sink: Any, what: RunOpen | RunClosed) -> None:
    """Hand a mark to a sink that takes them. It never raises, and counts as no event."""
    sink._take_mark(what)
