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
from ._style import BAD, OUTCOMES, QUIET, STATUSES, colored
from ._tables import GAP, Column, count, lines_of, milliseconds, percentile, share, truncate_column, width_of

__all__ = ["draw_runs", "draw_summary", "note_of", "short_ids"]


Record = dict[str, Any]

_MIN_NAME = 15
"""Minimum width of the first column, so that the numbers of both tables are roughly aligned."""


def draw_summary(runs: Iterable[Record], stages: Iterable[Record]) -> RenderableType:
    """Return two tables: runs by outcome, and the durations and statuses of each stage.

    A sampled record is counted `sample_rate` times. The duration of a stage is that of its last attempt; a
    stage that never started has none.

    Args:
        runs: The data of `pipeline.wide` events.
        stages: The data of their `stage.wide` events.

    Example:
        Console().print(draw_summary(runs, stages))
    """
    return Group(_outcomes(runs), "", _stage_summary(stages))


def _outcomes(runs: Iterable[Record]) -> Table:
    durations: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        # Runs recorded by older versions or other producers have a status and no outcome.
        durations[run.get("outcome") or run["status"]].append((run["duration_ms"], _weight(run)))
    table = _table("runs by outcome", ("runs", "share", "p50 ms", "p95 ms"))
    total = sum(weight for outcome in durations.values() for _, weight in outcome)
    known = [outcome for outcome in OUTCOMES if outcome in durations]
    for outcome in (*known, *sorted(durations.keys() - OUTCOMES.keys())):
        weighted = durations[outcome]
        number = sum(weight for _, weight in weighted)
        p50, p95 = percentile(weighted, 50), percentile(weighted, 95)
        row = (count(number), share(number, total), milliseconds(p50), milliseconds(p95))
        table.add_row(colored(visible(outcome)), *row)
    table.add_section()
    everything = [pair for weighted in durations.values() for pair in weighted]
    p50, p95 = percentile(everything, 50), percentile(everything, 95)
    table.add_row("all", count(total) or "0", "", milliseconds(p50), milliseconds(p95), style="bold")
    return table


class _Stage:
    """Aggregates of the events of one stage."""

    def __init__(self) -> None:
        self.durations: list[tuple[float, float]] = []
        self.by_status: dict[str, float] = defaultdict(float)

    def add(self, event: Record) -> None:
        status, weight = event["status"], _weight(event)
        self.by_status[status] += weight
        # Events of other producers have no number of attempts; a duration then implies an attempt.
        if status != "RETRY" and event.get("attempts", event["duration_ms"]):
            self.durations.append((event["duration_ms"], weight))


def _stage_summary(events: Iterable[Record]) -> Table:
    stages: dict[str, _Stage] = defaultdict(_Stage)
    for event in events:
        stages[event["stage_name"]].add(event)
    columns = ("FAIL", "RETRY", "SKIP", "CANCEL")
    table = _table("stage", ("ran", "p50 ms", "p95 ms", *(status.lower() for status in columns)))
    for name, stage in stages.items():
        ran = count(sum(weight for _, weight in stage.durations))
        p50, p95 = percentile(stage.durations, 50), percentile(stage.durations, 95)
        ends = [Text(count(stage.by_status[status]), style=STATUSES[status]) for status in columns]
        table.add_row(Text(visible(name)), ran, milliseconds(p50), milliseconds(p95), *ends)
    return table


def _weight(record: Record) -> float:
    return float(record.get("sample_rate") or 1)


def _table(first: str, headings: Iterable[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    table.add_column(first, no_wrap=True, overflow="ellipsis", min_width=_MIN_NAME)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


_SHORTEST_ID = 18
"""Number of characters of a UUIDv7 that encode its creation time; ids rarely share such a prefix."""


def draw_runs(runs: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each run, and a second line with its error or reason.

    On narrow terminals, times and ids are shortened first, and then columns are omitted.

    Args:
        runs: The data of `pipeline.wide` events, or of runs in progress.
        width: Width of the terminal in columns. None for no limit: nothing is truncated, and each run is one
            line, with the error or reason at its end.

    Example:
        Console().print(draw_runs(Journal("journal").runs(), width=80))
    """
    columns = _columns(runs)
    if width is None:
        columns["why"] = Column("why", [note_of(run) for run in runs])
        return Group(*lines_of(columns))
    columns["began"] = Column("began", [Text(f"{run['started_at'][:19]}Z") for run in runs])
    for reduce in _reductions(runs):
        if width_of(columns) <= width:
            break
        reduce(columns)
    truncate_column(columns, "pipeline", width)
    head, *lines = lines_of(columns)
    indent = columns["began"].width() + GAP if width >= 60 else GAP
    output = [head]
    for run, line in zip(runs, lines, strict=True):
        output.append(line)
        if note := note_of(run):
            output.append(Text(" " * indent).append_text(note))
    for line in output:
        line.truncate(width, overflow="ellipsis")
    return Group(*output)


def note_of(run: Record) -> Text:
    """Return the error of a run, or the reason why it ended early, on one line; empty if there is neither."""
    if error := run["error"]:
        return Text(on_one_line(error), style=BAD)
    summaries = run["stage_summaries"]
    if failed := [stage for stage in summaries if stage["status"] == "FAIL"]:
        errors = "; ".join(on_one_line(f"{stage['stage_name']}: {stage['error']}") for stage in failed)
        return Text(errors, style=STATUSES["RETRY"])
    if running := [on_one_line(stage["stage_name"]) for stage in run.get("stages_running") or ()]:
        return Text("running: " + ", ".join(running), style=QUIET)
    if open_stages := [on_one_line(stage["stage_name"]) for stage in summaries if stage["status"] == "OPEN"]:
        return Text("not ended: " + ", ".join(open_stages), style=QUIET)
    return Text(on_one_line(run.get("reason") or ""), style=QUIET)


def short_ids(ids: Sequence[str]) -> list[str]:
    """Return a prefix of each id that is unique among them, and long enough to remain unique.

    Example:
        >>> short_ids(["0199-a", "01a20968-4daf-7b4d-b7d6-fe34deaba3ae"])
        ['0199-a', '01a20968-4daf-7b4d']
    """
    ordered = sorted(set(ids))
    shared = dict.fromkeys(ordered, 0)
    for left, right in pairwise(ordered):
        same = next((at for at, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), len(left))
        shared[left], shared[right] = max(shared[left], same), same
    return [run_id[: max(_SHORTEST_ID, shared[run_id] + 1)] for run_id in ids]


def _columns(runs: Sequence[Record]) -> dict[str, Column]:
    def of(values: Callable[[Record], Any]) -> list[Text]:
        return [Text(on_one_line(values(run) or "")) for run in runs]

    columns = {
        "began": Column("began", of(lambda run: run["started_at"])),
        "outcome": Column("outcome", [colored(on_one_line(_outcome(run))) for run in runs]),
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
    """Return the numbers of completed and of all stages; empty if another producer omitted them."""
    completed, total = run.get("stages_completed"), run.get("stages_total")
    return "" if completed is None or total is None else f"{completed}/{total}"


def _reductions(runs: Sequence[Record]) -> list[Callable[[dict[str, Column]], Any]]:
    """Return functions that make the table narrower, starting with the least important columns."""

    def omit_year(columns: dict[str, Column]) -> None:
        cells = [Text(f"{run['started_at'][5:19].replace('T', ' ')}Z") for run in runs]
        columns["began"] = Column("began", cells)

    def shorten_ids(columns: dict[str, Column]) -> None:
        ids = short_ids([cell.plain for cell in columns["run"].cells])
        columns["run"] = Column("run", [Text(run_id) for run_id in ids])

    def without(name: str) -> Callable[[dict[str, Column]], Any]:
        return lambda columns: columns.pop(name, None)

    return [
        without("request"),
        omit_year,
        without("user"),
        shorten_ids,
        *map(without, ("stages", "ms")),
    ]
