"""When each stage of one run waited and ran, a line a stage."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from .figures import milliseconds
from .foreign import visible
from .palette import QUIET, coloured
from .timeline import RAN, RETRIED, RUNNING, WAITING, Span, Timeline

__all__ = ["StageStory", "draw_waterfall", "stories_of"]

Record = dict[str, Any]

_HEADINGS = ("  stage", "status", "tries", "queue ms", "ms")

_GAP = 3
"""Columns between two columns of the table."""

_NARROWEST_BAR = 12
"""Columns that bars get, even if stages have long names."""

_BAR_FROM = 64
"""Columns from which on there is room for the bars."""


class StageStory(NamedTuple):
    """Everything a record has of one stage.

    Attributes:
        name: Name of the stage.
        end: Its terminal `stage.wide`, or its line in the run's `stage_summaries`; for one that is running,
            also what is known of the attempt, with status "RUNNING".
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
    for running in run.get("stages_running") or () if run["status"] == "OPEN" else ():
        story = stories.get(running["stage_name"])
        if story is not None and story.end["status"] == "OPEN":
            stories[story.name] = story._replace(end=_running(story.end, running, run))
    began = datetime.fromisoformat(run["started_at"])
    # Sorting is stable: what became ready at the same moment keeps the order of the pipeline.
    return sorted(stories.values(), key=lambda story: _ready(story, began))


def _running(summary: Record, running: Record, run: Record) -> Record:
    """Return a stage that is running as its `stage.wide` would be if the attempt ended now."""
    started_at = running["started_at"]
    if started_at is None:  # no heartbeat states it: the summary has the time since the stage was ready
        started = datetime.fromisoformat(run["started_at"])
        started += timedelta(milliseconds=run["duration_ms"] - summary["duration_ms"])
        started_at = started.isoformat()
    return summary | {
        "status": "RUNNING",
        "attempt": running["attempt"],
        "attempts": running["attempt"],
        "started_at": started_at,
        "attributes": running.get("attributes"),
    }


def draw_waterfall(
    run: Record, stages: Iterable[StageStory], *, width: int, whole_names: bool = False
) -> Table:
    """Return a table of stages with a bar each, across `width` columns.

    With `whole_names`, the table is wider where long names need it; otherwise they are cut, so that there is
    room for the bars.

    A `*` marks the critical path: the stages that the run had to wait for.
    """
    began = datetime.fromisoformat(run["started_at"])
    critical = set(run.get("critical_path") or ())
    bars = width >= _BAR_FROM
    rows: list[list[Any]] = []
    timelines = []
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
        rows.append(row)
        timelines.append(Timeline(_spans(stage, began), run["duration_ms"]))
    names = max((row[0].cell_len for row in rows), default=0)
    others = sum(
        _GAP + max([len(heading), *(cell_len(str(row[number])) for row in rows)])
        for number, heading in enumerate(_HEADINGS)
        if number
    )
    room = width - others - (_GAP + _NARROWEST_BAR if bars else 0)
    if whole_names:
        width += max(0, names - room)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET, width=width)
    table.add_column(
        _HEADINGS[0], no_wrap=True, overflow="ellipsis", max_width=None if whole_names else max(8, room)
    )
    table.add_column(_HEADINGS[1], no_wrap=True)
    for heading in _HEADINGS[2:]:
        table.add_column(heading, justify="right", no_wrap=True)
    if bars:
        table.add_column(f"0 to {milliseconds(run['duration_ms'])} ms", ratio=1, no_wrap=True)
    for row, timeline in zip(rows, timelines, strict=True):
        table.add_row(*row, *([timeline] if bars else []))
    return table


def _spans(stage: StageStory, began: datetime) -> list[Span]:
    end = stage.end
    spans = [_span(event, began, RETRIED) for event in stage.retried]
    if "started_at" not in end:  # not started yet, or known by its summary alone
        return spans
    spans.insert(0, Span(_ready(stage, began), _started(end, began), WAITING, QUIET))
    if _ran(stage):
        spans.append(_span(end, began, RUNNING if end["status"] == "RUNNING" else RAN))
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
    return Span(start, start + event["duration_ms"], mark, str(coloured(event["status"]).style))


def _ready(stage: StageStory, began: datetime) -> float:
    first = stage.retried[0] if stage.retried else stage.end
    if "started_at" not in first:
        return float("inf") if first["status"] == "OPEN" else 0.0  # those that are not known to run come last
    return _started(first, began) - (first.get("queue_ms") or 0.0)


def _started(event: Record, began: datetime) -> float:
    return (datetime.fromisoformat(event["started_at"]) - began).total_seconds() * 1000
