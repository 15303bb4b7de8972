"""`FailureRate`: too large a share of the runs, or of the ends of a stage, failed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ..store.columns import FAILURE
from ..store.weights import count_if
from .rule import Measured, WrongField
from .threshold import Threshold
from .window import Window
from .wording import percent

if TYPE_CHECKING:
    from ..store import EventStore
    from ..store.selection import Over

__all__ = ["COUNTED", "FAILED", "FailureRate", "failed_share"]

FAILED = FAILURE
COUNTED = f"{FAILURE} is not null"
"""SQL: true for the runs and ends of stages that a failure rate counts."""


class FailureRate(Threshold, frozen=True, kw_only=True, tag="failure_rate"):
    """Fires if the share of failures is above a threshold.

    Runs whose outcome counts as a failure (by default `failed`, `timeout` and `crashed`) are divided by all
    runs except those that were cancelled externally. For a stage, ends with status FAIL are divided by all
    ends except cancelled ones.

    Attributes:
        above: A share: 0.05 is 5 %.
        resolve_below: A share too.

    Example:
        >>> FailureRate(name="checkout fails", pipeline="checkout", above=0.05).kind
        'failure_rate'
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.above >= 1:
            raise WrongField(
                self.name, "above", f"expected a share below 1 (0.05 is 5 %), got {self.above!r}"
            )

    def measure(self, store: EventStore, now: datetime) -> Measured:
        window = Window.ending(now, self.window)
        rows, events, share = failed_share(store, window, self.pipeline, self.stage)
        bad, good = self.verdict(share, enough=rows >= self.min_events)
        return Measured(
            value=share,
            says=f"failure rate {percent(share)}" if share is not None else "failure rate unknown",
            threshold=f"above {percent(self.above)}, resolves below {percent(self.below)}",
            bad=bad,
            good=good,
            rows=rows,
            events=events,
            noun=f"ends of stage {self.stage}" if self.stage else "runs",
            window=window,
            selection=window.runs(self.pipeline, self.stage, FAILED),
            rest=window.runs(self.pipeline, self.stage, COUNTED),
        )

    def commands(self, window: Window) -> Sequence[str]:
        these = window.options(self.pipeline, self.stage)
        return [f"stageflow errors {these}", f"stageflow explain failed {these}"]


def failed_share(
    store: EventStore, window: Window, pipeline: str | None, stage: str | None, failed: str = FAILED
) -> tuple[int, float, float | None]:
    """Return how many ends were looked at, how many they stand for, and which share of them failed.

    Args:
        store: That is asked.
        window: In which they ended.
        pipeline: Only of this pipeline.
        stage: Ends of this stage; None for runs.
        failed: SQL that says what counts as failed.
    """
    over: Over = "stages" if stage else "runs"
    ended = window.rows(over, pipeline, stage, COUNTED)
    query = f"select count(*), {count_if()}, {count_if(failed)} from {over} where {ended}"
    ((rows, events, bad),) = store.sql(query, since=window.since).rows
    return rows, float(events), float(bad) / float(events) if rows else None
