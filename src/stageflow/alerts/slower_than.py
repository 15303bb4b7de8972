"""`SlowerThan`: a percentile of the durations of a stage, or of whole runs, is too high."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ..store.weights import count_if, percentiles, ranked
from .rule import Measured
from .threshold import Threshold
from .window import Window
from .wording import in_shell

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["SlowerThan"]

_RAN = "status <> 'RETRY' and attempts > 0"


class SlowerThan(Threshold, frozen=True, kw_only=True, tag="slower_than"):
    """Fires where a percentile of durations is above a threshold.

    Of a stage its last attempts count, of those that ran.

    Attributes:
        above: Seconds.
        resolve_below: Seconds; default 80 % of `above`.
        quantile: "p50", "p90", "p95" (the default) or "p99".

    Example:
        >>> SlowerThan(name="search is slow", stage="search", quantile="p99", above=0.8).below
        0.64
    """

    quantile: Literal["p50", "p90", "p95", "p99"] = "p95"

    @property
    def _slow(self) -> str:
        return f"duration_ms > {self.above * 1000:.15g}"

    def measure(self, store: EventStore, now: datetime) -> Measured:
        window = Window.ending(now, self.window)
        over: Literal["runs", "stages"] = "stages" if self.stage else "runs"
        ran = _RAN if self.stage else ""
        rows = window.rows(over, self.pipeline, self.stage, ran)
        # Weighted also where nothing was sampled: of the rows of one window it costs little.
        rank = int(self.quantile[1:]) / 100
        source = ranked(f"select * from {over} where {rows}", "duration_ms", (), weighted=True)
        query = f"select count(*), {count_if()}, {percentiles([rank], weighted=True)}[1] from {source}"
        ((looked_at, events, value),) = store.sql(query, since=window.since).rows
        seconds = None if value is None else value / 1000
        bad, good = self.verdict(seconds, enough=looked_at >= self.min_events)
        slow = self._slow
        return Measured(
            value=seconds,
            says=f"{self.quantile} {value:,.0f} ms" if value is not None else f"{self.quantile} unknown",
            threshold=f"above {self.above * 1000:,.0f} ms, resolves below {self.below * 1000:,.0f} ms",
            bad=bad,
            good=good,
            rows=looked_at,
            events=float(events),
            noun=f"ends of stage {self.stage}" if self.stage else "runs",
            window=window,
            selection=window.runs(self.pipeline, self.stage, f"{ran} and {slow}" if ran else slow),
            rest=window.runs(self.pipeline, self.stage, ran),
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        slow = in_shell(self._slow)
        stages = " --stages" if self.stage else ""
        return [f"stageflow slowest{stages} {these}", f"stageflow explain {slow} {these}"]
