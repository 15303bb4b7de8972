"""When each stage of one run waited and ran, a line a stage."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from .figures import milliseconds
from .foreign import visible
from .palette import QUIET, STATUSES, coloured
from .timeline import RETRIED, RUNNING, WAITING, Span, Timeline

__all__ = ["StageStory", "draw_waterfall", "stories_of"]

Record = dict[str, Any]

_BAR_FROM = 64
"""Columns from which on there is room for the bars."""


class StageStory(NamedTuple):
    """Everything a record has of one stage.

    Attributes:
        name: Name of the stage.
        end: Its terminal `stage.wide`, or its line in the run's `stage_summaries`.
        retried: Its `stage.wide` with status RETRY, in order.
    """

    name: str
    end: Record
    retried: list[Record]


def stories_of(run: Record, stages: Iterable[Record]) -> list[StageStory]:
    """Return a story for each stage of a run, in the order in which they became ready."""
    stories = {
        summary["stage_name"]: StageStory(summary["stage_name"], summary, [])
        for summary in run["stage_summaries"]
    }
    for event in stages:
        name = event["stage_name"]
        known = stories.get(name) or StageStory(name, event, [])
        if event["status"] == "RETRY":
            known.retried.append(event)
        else:
            known = known._replace(end=event)
        stories[name] = known
    began = datetime.fromisoformat(run["started_at"])
    # Sorting is stable: what became ready at the same moment keeps the order of the pipeline.
    return sorted(stories.values(), key=lambda story: _ready(story, began))


def draw_waterfall(run: Record, stages: Iterable[StageStory], *, width: int) -> Table:
    """Return a table of stages with a bar each, across `width` columns.

    A `*` marks the critical path: the stages that the run had to wait for.
    """
    began = datetime.fromisoformat(run["started_at"])
    critical = set(run.get("critical_path") or ())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET, width=width)
    table.add_column("  stage", no_wrap=True, overflow="ellipsis", min_width=8)
    table.add_column("status", no_wrap=True)
    for heading in ("tries", "queue ms", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    bars = width >= _BAR_FROM
    if bars:
        table.add_column(f"0 to {milliseconds(run['duration_ms'])} ms", ratio=1, no_wrap=True)
    for stage in stages:
        end = stage.end
        tries = end.get("attempts")
        row: list[Any] = [
            Text.assemble(("* ", "bold") if stage.name in critical else "  ", visible(stage.name)),
            coloured(visible(end["status"])),
            "" if tries is None else str(tries),
            milliseconds(end.get("queue_ms")) if tries != 0 or _waited_in_vain(end) else "",
            milliseconds(end["duration_ms"]) if tries != 0 and end["status"] != "OPEN" else "",
        ]
        if bars:
            row.append(Timeline(_spans(stage, began), run["duration_ms"]))
        table.add_row(*row)
    return table


def _spans(stage: StageStory, began: datetime) -> list[Span]:
    end = stage.end
    spans = [_span(event, began, RETRIED) for event in stage.retried]
    if "started_at" not in end:  # under way, or known by its summary alone
        return spans
    spans.insert(0, Span(_ready(stage, began), _started(end, began), WAITING, QUIET))
    if _ran(stage):
        spans.append(_span(end, began, RUNNING))
    elif not stage.retried and not _waited_in_vain(end):
        return []
    return spans


def _waited_in_vain(end: Record) -> bool:
    """Tell whether a stage was ready when its run ended: in a crash it may have been running."""
    return end["status"] == "CANCEL" and bool(end.get("queue_ms"))


def _ran(stage: StageStory) -> bool:
    """Tell whether the times of a stage's end are those of an attempt that is not yet drawn."""
    end = stage.end
    attempts = end.get("attempts", 1)
    if not attempts or end.get("attempt", attempts) > attempts:
        return False  # it waited, for its first attempt or for another
    return not stage.retried or stage.retried[-1]["started_at"] != end["started_at"]


def _span(event: Record, began: datetime, mark: tuple[str, str]) -> Span:
    start = _started(event, began)
    return Span(start, start + event["duration_ms"], mark, STATUSES.get(event["status"], ""))


def _ready(stage: StageStory, began: datetime) -> float:
    first = stage.retried[0] if stage.retried else stage.end
    if "started_at" not in first:
        return 0.0
    return _started(first, began) - (first.get("queue_ms") or 0.0)


def _started(event: Record, began: datetime) -> float:
    return (datetime.fromisoformat(event["started_at"]) - began).total_seconds() * 1000
