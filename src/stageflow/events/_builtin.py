"""The built-in sinks."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Iterable
from typing import Any

from .._failures import FailureOutcomes
from .._fork import reset_in_child
from ..errors import invalid_argument
from ..schema import Heartbeat, RunClosed, RunOpen
from ._delivery import DELIVERY, BackgroundLoop, accepts_marks, offer
from ._sink import DirectSink, Event, EventSink, ForwardingSink

__all__ = ["BackgroundEventSink", "FanoutEventSink", "LoggingEventSink", "MemoryEventSink"]


class MemoryEventSink(DirectSink):
    """Stores every event in memory, as pairs of type and data in `events`. Its size is unbounded.

    Example:
        >>> sink = MemoryEventSink()
        >>> sink.try_emit(type="note", data={"n": 1}) and sink.events
        [('note', {'n': 1})]
    """

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any] | None]] = []

    def deliver(self, event: Event) -> None:
        """Append an event to `events`."""
        self.events.append((event.type, event.data()))

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """Return the data of all events of this type."""
        return [data or {} for event_type, data in self.events if event_type == type]

    def clear(self) -> None:
        """Remove all events."""
        self.events.clear()


class FanoutEventSink(DirectSink):
    """Delivers each event to all of `sinks`, independently of each other.

    A sink that raises, hangs or is slow does not affect the others. Each sink has its own counters and
    receives its own copy of each event.

    Raises:
        TypeError: A sink has neither `emit` nor `try_emit`.

    Example:
        sink = FanoutEventSink(JournalSink("journal"), LoggingEventSink())
    """

    def __init__(self, *sinks: EventSink | Any) -> None:
        for sink in sinks:
            DELIVERY.channel_of(sink)
        self.sinks = sinks

    def deliver(self, event: Event) -> None:
        """Offer an event to every sink."""
        for sink in self.sinks:
            offer(sink, event)

    @property
    def accepts_marks(self) -> bool:
        """Whether any of the sinks accepts marks."""
        return any(accepts_marks(sink) for sink in self.sinks)

    def accept_mark(self, mark: RunOpen | RunClosed | Heartbeat) -> None:
        """Pass a mark to each sink that accepts marks."""
        for sink in self.sinks:
            if accepts_marks(sink):
                sink.accept_mark(mark)


class BackgroundEventSink(ForwardingSink):
    """Calls `sink` in a separate thread, so that the sink can block.

    Emission only appends the event to a bounded queue. The thread starts with the first event.

    Raises:
        TypeError: `sink` has neither `emit` nor `try_emit`.

    Example:
        sink = BackgroundEventSink(SlowWarehouseSink())
    """

    def __init__(self, sink: EventSink | Any) -> None:
        DELIVERY.channel_of(sink)
        self.sink = sink
        self._reset()
        _sinks.add(self)

    def _reset(self) -> None:
        # A forked child inherits this object, but not its thread, and another thread may have held the lock.
        self._lock = threading.RLock()
        self._background: BackgroundLoop | None = None

    def delivery_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop of this sink's thread; start the thread on first use."""
        with self._lock:
            if self._background is None:
                self._background = BackgroundLoop(f"stageflow-{type(self.sink).__name__}")
                weakref.finalize(self, self._background.stop).atexit = False
            return self._background.loop


_sinks: weakref.WeakSet[BackgroundEventSink] = weakref.WeakSet()


@reset_in_child
def _reset() -> None:
    for sink in list(_sinks):
        sink._reset()


class LoggingEventSink(DirectSink):
    """Logs each event on one line. Failed stages, and runs that count as failures, are logged at ERROR.

    Args:
        level: Level of all other events, as a number or a name; default INFO.
        logger: The logger; default `logging.getLogger("stageflow")`.
        failure_outcomes: The outcomes of runs that count as failures; default `failed`, `timeout` and
            `crashed`. A run that was cancelled externally is logged at `level`.

    Raises:
        InvalidArgumentError: The level or an outcome is unknown.

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

    def deliver(self, event: Event) -> None:
        """Log an event."""
        outcome = _field(event.body, "outcome")
        failed = (
            _field(event.body, "status") == "FAIL" if outcome is None else self._failures.is_failure(outcome)
        )
        level = logging.ERROR if failed and self._level < logging.ERROR else self._level
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s %s", _log_summary(event), event.json().decode())


def level_number(level: int | str) -> int:
    """Return the number of a logging level.

    Raises:
        InvalidArgumentError: The level is unknown.
    """
    number = logging.getLevelNamesMapping().get(level) if isinstance(level, str) else level
    if not isinstance(number, int):
        raise invalid_argument(
            "LoggingEventSink", "level", level, "a logging level such as logging.INFO or 'INFO'"
        )
    return number


def _log_summary(event: Event) -> str:
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
        # Only the first line, so that each event is one log line. The JSON contains the complete message.
        words.append(error.splitlines()[0] if error else "")
    return " ".join(word for word in words if word)


def _field(body: Any, name: str) -> Any:
    return body.get(name) if isinstance(body, dict) else getattr(body, name, None)
