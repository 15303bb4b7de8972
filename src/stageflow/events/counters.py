"""What became of the events: counted where it happens, sink by sink."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

__all__ = ["EventStats", "SinkStats"]


class SinkStats(Struct, frozen=True):
    """The counters of one sink, read at one moment.

    `offered = accepted + rejected` and `accepted = delivered + dropped + pending` at every moment.

    Attributes:
        sink: Name of the sink's class.
        offered: Events the library had for this sink.
        accepted: Events it took on.
        delivered: Events whose call of the sink returned.
        pending: Events taken on and not yet delivered or dropped.
        rejected: Events it did not take on, by reason: `queue_full`, `no_loop`.
        dropped: Events taken on and lost, by reason: `sink_error`, `sink_closed` (an error while
            the loop was ending), `drain_timeout`, `loop_closed`; by a journal also `disk_full`,
            `journal_unwritable` and `line_too_long`.
        blocked_ms: Milliseconds for which the sink blocked its caller or its loop, counted from
            50 ms a call.
        sync_failures: Number of failed syncs of a journal, which it retries.
    """

    sink: str
    offered: int
    accepted: int
    delivered: int
    pending: int
    rejected: dict[str, int]
    dropped: dict[str, int]
    blocked_ms: float
    sync_failures: int = 0


class EventStats(Struct, frozen=True):
    """The counters of every sink in use, and those of the bridge.

    Attributes:
        sinks: One `SinkStats` for each sink that was offered an event and still exists.
        emitter_errors: How often an overriding `WideEventEmitter` raised.
        coerced_values: Values that JSON cannot carry, recorded by their `repr`.
    """

    sinks: list[SinkStats]
    emitter_errors: int
    coerced_values: int

    def __iter__(self) -> Iterator[SinkStats]:
        return iter(self.sinks)

    def of(self, name: str) -> SinkStats:
        """Return the counters of the newest sink whose class is called `name`.

        Raises:
            KeyError: No such sink was offered an event yet.
        """
        for sink in reversed(self.sinks):
            if sink.sink == name:
                return sink
        known = ", ".join(sorted({sink.sink for sink in self.sinks})) or "none"
        raise KeyError(f"no sink {name!r} was offered an event; known: {known}")


class Tally:
    """Counts of the bridge that belong to no sink."""

    __slots__ = ("coerced_values", "emitter_errors")

    def __init__(self) -> None:
        self.emitter_errors = 0
        self.coerced_values = 0


TALLY = Tally()
