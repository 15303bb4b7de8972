"""`CrashedRuns`: processes died with runs in them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ..store.weights import count_if
from .rule import Measured
from .threshold import Threshold
from .window import Window
from .wording import in_shell

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["CrashedRuns"]

_CRASHED = "outcome = 'crashed'"


class CrashedRuns(Threshold, frozen=True, kw_only=True, tag="crashed_runs"):
    """Fires where more runs than so many crashed: their process died and left them without an end.

    A crashed run ended when its process last wrote to the journal, so the window should be longer than
    a process is ever silent. Default one hour.

    Attributes:
        above: A count; default 0, so that one is enough.
        resolve_below: A count too. An alert resolves as well when there are none.
        min_events: How many runs must have ended in the window; default 1.

    Example:
        >>> CrashedRuns(name="crashes", severity="critical").above
        0.0
    """

    above: float = 0.0
    window: float = 3600.0
    min_events: int = 1

    def measure(self, store: EventStore, now: datetime) -> Measured:
        window = Window.ending(now, self.window)
        ended = window.rows("runs", self.pipeline, self.stage)
        query = f"select count(*), {count_if()}, {count_if(_CRASHED)} from runs where {ended}"
        ((rows, events, crashed),) = store.sql(query, since=window.since).rows
        bad, good = self.verdict(float(crashed), enough=rows >= self.min_events, exact=True)
        crashes = window.rows("runs", self.pipeline, self.stage, _CRASHED)
        return Measured(
            value=float(crashed),
            says=f"{crashed:,.0f} crashed runs",
            threshold=f"above {self.above:g}",
            bad=bad,
            good=good,
            rows=rows,
            events=float(events),
            noun="runs",
            window=window,
            selection=crashes,
            rest=ended,
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, None)
        return [
            f"stageflow runs --status crashed {these}",
            f"stageflow explain {in_shell(_CRASHED)} {these}",
        ]
