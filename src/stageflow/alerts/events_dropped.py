"""`EventsDropped`: events did not arrive, by the counters that processes write into the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from ..journal.stored import decode_stored
from ..store.columns import text
from .rule import Measured
from .threshold import Threshold
from .window import Window
from .wording import rfc3339_of, second_of

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["EventsDropped"]

_LOOK_BACK = timedelta(days=1)
_SAME_START = 5.0
"""Seconds by which two readings of when a process began may differ."""


class EventsDropped(Threshold, frozen=True, kw_only=True, tag="events_dropped"):
    """Fires where sinks dropped or rejected more events than so many, as `stageflow.health` events say.

    The counters of a process grow from its start on; what counts is by how much they grew in the
    window. `pipeline` and `stage` mean nothing to it: an event that is lost has none.

    Attributes:
        above: A count; default 0, so that one is enough.
        resolve_below: A count too. An alert resolves as well when there are none.
        min_events: How many `stageflow.health` events must be in the window; default 1.

    Example:
        >>> EventsDropped(name="events are lost", window=900).min_events
        1
    """

    above: float = 0.0
    min_events: int = 1

    def measure(self, store: EventStore, now: datetime) -> Measured:
        window = Window.ending(now, self.window)
        back = window.since - _LOOK_BACK
        found = store.sql(
            f"""select rest from events where type = 'stageflow.health'
            and emitted_at > {text(rfc3339_of(back))}::timestamptz
            and emitted_at <= {text(rfc3339_of(window.until))}::timestamptz order by emitted_at""",
            limit=None,
            since=back,
        )
        rows, lost = _growth((row[0] for row in found.rows), rfc3339_of(window.since), rfc3339_of(back))
        whole = sum(lost.values())
        bad, good = self.verdict(float(whole), enough=rows >= self.min_events, exact=True)
        why = sorted(lost.items(), key=lambda item: (-item[1], item[0]))
        return Measured(
            value=float(whole),
            says=f"{whole:,} events lost",
            threshold=f"above {self.above:g}",
            bad=bad,
            good=good,
            rows=rows,
            events=float(rows),
            noun="health events",
            window=window,
            notes=tuple(f"{many:,} by {where}" for where, many in why[:3]),
        )

    def commands(self, window: Window) -> Sequence[str]:
        return [f"stageflow tail --type stageflow.health -n 20  # since {second_of(window.since)}"]


def _growth(lines: Iterable[str | None], since: str, back: str) -> tuple[int, dict[str, int]]:
    """Return how many events there are from a moment on, and by how much each counter grew until the last."""
    known: dict[tuple[Any, ...], tuple[str, dict[str, int]]] = {}
    rows, lost = 0, dict[str, int]()
    for line in lines:
        try:
            data = decode_stored((line or "").encode(), dict[str, Any])
            where = (data["resource"]["host"], data["resource"]["pid"])
            began = msgspec.convert(data["emitted_at"], datetime) - timedelta(
                seconds=data["process"]["uptime_s"]
            )
            counters = _counters(data["sinks"])
            emitted = str(data["emitted_at"])
        except (msgspec.MsgspecError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
            continue  # an application may emit what it likes under this name
        # A pid may be given again: what began later is another process, and counted from nothing.
        earlier = next(
            (
                (process, seen)
                for process, seen in known.items()
                if process[:2] == where and abs((process[2] - began).total_seconds()) < _SAME_START
            ),
            None,
        )
        process = earlier[0] if earlier else (*where, began)
        if emitted > since:
            rows += 1
            # One that is older than what we looked at grew at some time that nobody knows.
            before = earlier[1][1] if earlier else {} if rfc3339_of(began) > back else counters
            for name, many in counters.items():
                grown = many - before.get(name, 0)
                if grown > 0:
                    lost[name] = lost.get(name, 0) + grown
        known[process] = (emitted, counters)
    return rows, lost


def _counters(sinks: Iterable[dict[str, Any]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for sink in sinks:
        for reason, many in (*sink["dropped"].items(), *sink["rejected"].items()):
            name = f"{sink['sink']}: {reason}"
            found[name] = found.get(name, 0) + int(many)
    return found
