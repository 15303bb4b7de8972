"""Renders lists of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ._escape import on_one_line, visible
from ._style import BAD, OUTCOMES, QUIET, STATUSES, coloured
from ._tables import GAP, Column, count, cut, lines_of, milliseconds, percentile, share, width_of

__all__ = ["draw_runs", "draw_summary", "note_of", "short_ids"]


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
    return Group(_outcomes(runs), "", _stage_summary(stages))


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


def _stage_summary(events: Iterable[Record]) -> Table:
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


_SHORTEST_ID = 18
"""Characters of a UUIDv7 that say when it was made, to a fraction of a microsecond: few runs share them."""


def draw_runs(runs: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each run, and another one for what went wrong with it.

    Where there is less room, times and ids are shorter, and then columns are left out.

    Args:
        runs: The data of `pipeline.wide` events; also of runs that are under way.
        width: How many columns there are. None for any number: then nothing is cut, and what went
            wrong stands at the end of a run's own line.

    Example:
        Console().print(draw_runs(Journal("journal").runs(), width=80))
    """
    columns = _columns(runs)
    if width is None:
        columns["why"] = Column("why", [note_of(run) for run in runs])
        return Group(*lines_of(columns))
    columns["began"] = Column("began", [Text(f"{run['started_at'][:19]}Z") for run in runs])
    for concede in _concessions(runs):
        if width_of(columns) <= width:
            break
        concede(columns)
    cut(columns, "pipeline", width)
    head, *lines = lines_of(columns)
    indent = columns["began"].width() + GAP if width >= 60 else GAP
    drawn = [head]
    for run, line in zip(runs, lines, strict=True):
        drawn.append(line)
        if note := note_of(run):
            drawn.append(Text(" " * indent).append_text(note))
    for line in drawn:
        line.truncate(width, overflow="ellipsis")
    return Group(*drawn)


def note_of(run: Record) -> Text:
    """Return what went wrong with a run, or why it ended early, on one line; empty where nothing did."""
    if error := run["error"]:
        return Text(on_one_line(error), style=BAD)
    summaries = run["stage_summaries"]
    if failed := [stage for stage in summaries if stage["status"] == "FAIL"]:
        told = "; ".join(on_one_line(f"{stage['stage_name']}: {stage['error']}") for stage in failed)
        return Text(told, style=STATUSES["RETRY"])
    if running := [on_one_line(stage["stage_name"]) for stage in run.get("stages_running") or ()]:
        return Text("running: " + ", ".join(running), style=QUIET)
    if open_stages := [on_one_line(stage["stage_name"]) for stage in summaries if stage["status"] == "OPEN"]:
        return Text("has not ended: " + ", ".join(open_stages), style=QUIET)
    return Text(on_one_line(run.get("reason") or ""), style=QUIET)


def short_ids(ids: Sequence[str]) -> list[str]:
    """Return a beginning of each id that no other one has, and that is not too short to last.

    Example:
        >>> short_ids(["0199-a", "01a20968-4daf-7b4d-b7d6-fe34deaba3ae"])
        ['0199-a', '01a20968-4daf-7b4d']
    """
    ordered = sorted(set(ids))
    shared = dict.fromkeys(ordered, 0)
    for one, other in pairwise(ordered):
        same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
        shared[one], shared[other] = max(shared[one], same), same
    return [known[: max(_SHORTEST_ID, shared[known] + 1)] for known in ids]


def _columns(runs: Sequence[Record]) -> dict[str, Column]:
    def of(values: Callable[[Record], Any]) -> list[Text]:
        return [Text(on_one_line(values(run) or "")) for run in runs]

    columns = {
        "began": Column("began", of(lambda run: run["started_at"])),
        "outcome": Column("outcome", [coloured(on_one_line(_outcome(run))) for run in runs]),
        "pipeline": Column(
            "pipeline", of(lambda run: run.get("pipeline_name") or run["pipeline_metadata"]["topology"])
        ),
        "ms": Column("ms", of(lambda run: milliseconds(run["duration_ms"])), right=True),
        "stages": Column("stages", of(_stages), right=True),
        "run": Column("run", of(lambda run: run["correlation_ids"]["pipeline_run_id"])),
    }
    for name in ("user", "request"):
        cells = [Text(on_one_line(run["correlation_ids"].get(f"{name}_id") or "")) for run in runs]
        if any(cells):
            columns[name] = Column(name, cells)
    return columns


def _outcome(run: Record) -> str:
    return str(run.get("outcome") or run["status"])


def _stages(run: Record) -> str:
    """Return the number of completed stages and of all; empty if another producer left them out."""
    completed, total = run.get("stages_completed"), run.get("stages_total")
    return "" if completed is None or total is None else f"{completed}/{total}"


def _concessions(runs: Sequence[Record]) -> list[Callable[[dict[str, Column]], Any]]:
    """Return what is given up where there is no room, what is missed least first."""

    def no_year(columns: dict[str, Column]) -> None:
        cells = [Text(f"{run['started_at'][5:19].replace('T', ' ')}Z") for run in runs]
        columns["began"] = Column("began", cells)

    def beginnings(columns: dict[str, Column]) -> None:
        ids = short_ids([cell.plain for cell in columns["run"].cells])
        columns["run"] = Column("run", [Text(known) for known in ids])

    def without(name: str) -> Callable[[dict[str, Column]], Any]:
        return lambda columns: columns.pop(name, None)

    return [
        without("request"),
        no_year,
        without("user"),
        beginnings,
        *map(without, ("stages", "ms")),
    ]
