"""`NoRuns`: a pipeline that should run does not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ..journal import Journal, RunFilter
from ..store.selection import condition
from ..store.weights import count_if
from .rule import Measured, Rule, check_number
from .window import Window
from .wording import exactly, rfc3339_of, second_of, span

if TYPE_CHECKING:
    from ..store import EventStore

__all__ = ["NoRuns"]


class NoRuns(Rule, frozen=True, kw_only=True, tag="no_runs"):
    """Fires where fewer runs than expected began or ended in the window; also where there never was one.

    A run counts that is under way and began in the window. `min_events` means nothing to it.

    Attributes:
        fewer_than: How many runs are expected at least; default 1.

    Example:
        >>> NoRuns(name="the nightly import", pipeline="import", window=26 * 3600).fewer_than
        1
    """

    fewer_than: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "fewer_than", self.fewer_than, least=1)

    def measure(self, store: EventStore, now: datetime) -> Measured:
        window = Window.ending(now, self.window)
        where = RunFilter(pipeline=self.pipeline, stage=self.stage)
        # Who began in the window ended in it, or has not ended.
        query = (
            f"select count(*), {count_if()} from runs where {window.rows('runs', self.pipeline, self.stage)}"
        )
        ((rows, events),) = store.sql(query, since=window.since).rows
        if events < self.fewer_than and store.path is not None:
            since = RunFilter(pipeline=self.pipeline, stage=self.stage, since=rfc3339_of(window.since))
            in_progress = len(Journal(store.path).in_progress(since))
            rows, events = rows + in_progress, float(events) + in_progress
        bad = events < self.fewer_than
        notes = [self._last(store, condition("runs", where, f"ended_at <= '{exactly(now)}'"))] if bad else []
        runs = f"{events:,.0f} runs in {span(self.window)}"
        return Measured(
            value=float(events),
            says=runs if events else f"no runs in {span(self.window)}",
            threshold=f"fewer than {self.fewer_than:,}",
            bad=bad,
            good=not bad,
            rows=rows,
            events=float(events),
            noun="runs",
            window=window,
            notes=tuple(notes),
        )

    def _last(self, store: EventStore, before: str) -> str:
        try:
            ((last,),) = store.sql(f"select max(ended_at) from runs where {before}").rows
        except OSError:  # unknown without the archive; the alert does not depend on it
            return "the end of the last run is unknown: the archive cannot be read"
        return f"the last run ended {second_of(last)}" if last else "no run has ended yet"

    def commands(self, window: Window) -> Sequence[str]:
        return [
            f"stageflow runs --pipeline {shlex.quote(self.pipeline)}" if self.pipeline else "stageflow runs"
        ]
