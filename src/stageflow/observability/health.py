"""`stageflow.health`: what became of the events of this process, as an event among them."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from .._fork import reset_in_child
from ..clock import get_clock
from ..events import Event, NoOpEventSink, stats
from ..events._delivery import offer
from ..ids import uuid7
from ..schema import SCHEMA_VERSION
from ..timestamps import rfc3339
from .defaults import defaults, on_change
from .process import sample
from .resource import resource, service_name

__all__ = ["HEALTH", "emit_health", "emit_health_if_due"]

HEALTH = "stageflow.health"


class _Last:
    """When the event was last emitted."""

    def __init__(self) -> None:
        self.ns = 0
        self.reset()

    def reset(self) -> None:
        """Restart the interval: in a forked child, and after a change of settings."""
        self.ns = time.monotonic_ns()


_last = _Last()


def emit_health_if_due(sink: Any) -> None:
    """Emit the event where it is configured, and the last one is long enough ago; asked at each run's end."""
    seconds = defaults().health_seconds
    if seconds is not None and time.monotonic_ns() - _last.ns >= seconds * 1e9:
        emit_health(sink)


def emit_health(sink: Any) -> None:
    """Emit the event now: the counters of every sink as they stand before it."""
    _last.reset()
    if type(sink) is NoOpEventSink:
        return
    counted = stats()
    wall_ns = get_clock().wall_ns()
    body = {
        "event_id": uuid7(wall_ns),
        "emitted_at": rfc3339(wall_ns // 1000),
        "schema_version": SCHEMA_VERSION,
        "service": service_name() or "unknown_service",
        "resource": resource(),
        "process": sample(),
        "sinks": counted.sinks,
        "emitter_errors": counted.emitter_errors,
        "coerced_values": counted.coerced_values,
    }
    offer(sink, Event(HEALTH, msgspec.to_builtins(body)))


on_change(_last.reset)
reset_in_child(_last.reset)
