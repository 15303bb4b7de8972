"""What became of many runs: a table of their outcomes, and one of their stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .figures import count, milliseconds, percentile, share
from .foreign import visible
from .palette import OUTCOMES, QUIET, STATUSES, coloured

__all__ = ["draw_summary"]

Record = dict[str, Any]

_NAME = 15
"""Columns that a name has at least, so that the figures of both tables stand near each other."""


def draw_summary(runs: Iterable[Record], stages: Iterable[Record]) -> RenderableType:
    """Return two tables: runs by outcome, and what each stage took and came to.

    A record that was sampled counts for as many as its `sample_rate` says. Times of stages are
    those of their last attempts; a stage that never started has none.

    Args:
        runs: The data of `pipeline.wide` events.
        stages: The data of their `stage.wide` events.

    Example:
        Console().print(draw_summary(runs, stages))
    """
    return Group(_outcomes(runs), "", _stages(stages))


def _outcomes(runs: Iterable[Record]) -> Table:
    took: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        # A run that an older or a foreign writer recorded has a status and no outcome.
        took[run.get("outcome") or run["status"]].append((run["duration_ms"], _weight(run)))
    table = _table("runs by outcome", ("runs", "share", "p50 ms", "p95 ms"))
    total = sum(weight for outcome in took.values() for _, weight in outcome)
    known = [outcome for outcome in OUTCOMES if outcome in took]
    for outcome in (*known, *sorted(took.keys() - OUTCOMES.keys())):
        weighted = took[outcome]
        many = sum(weight for _, weight in weighted)
        p50, p95 = percentile(weighted, 50), percentile(weighted, 95)
        row = (count(many), share(many, total), milliseconds(p50), milliseconds(p95))
        table.add_row(coloured(visible(outcome)), *row)
    table.add_section()
    everything = [pair for weighted in took.values() for pair in weighted]
    p50, p95 = percentile(everything, 50), percentile(everything, 95)
    table.add_row("all", count(total) or "0", "", milliseconds(p50), milliseconds(p95), style="bold")
    return table


class _Stage:
    """What the events of one stage add up to."""

    def __init__(self) -> None:
        self.took: list[tuple[float, float]] = []
        self.of_status: dict[str, float] = defaultdict(float)

    def add(self, event: Record) -> None:
        status, weight = event["status"], _weight(event)
        self.of_status[status] += weight
        # A page-shaped event does not say how many attempts there were: then a time says so.
        if status != "RETRY" and event.get("attempts", event["duration_ms"]):
            self.took.append((event["duration_ms"], weight))


def _stages(events: Iterable[Record]) -> Table:
    stages: dict[str, _Stage] = defaultdict(_Stage)
    for event in events:
        stages[event["stage_name"]].add(event)
    columns = ("FAIL", "RETRY", "SKIP", "CANCEL")
    table = _table("stage", ("ran", "p50 ms", "p95 ms", *(status.lower() for status in columns)))
    for name, stage in stages.items():
        ran = count(sum(weight for _, weight in stage.took))
        p50, p95 = percentile(stage.took, 50), percentile(stage.took, 95)
        ends = [Text(count(stage.of_status[status]), style=STATUSES[status]) for status in columns]
        table.add_row(Text(visible(name)), ran, milliseconds(p50), milliseconds(p95), *ends)
    return table


def _weight(record: Record) -> float:
    return float(record.get("sample_rate") or 1)


def _table(first: str, figures: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    table.add_column(first, no_wrap=True, overflow="ellipsis", min_width=_NAME)
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
