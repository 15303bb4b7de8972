"""Many runs, a line each: when, how it ended, how long it took, and which it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from .figures import milliseconds
from .foreign import on_one_line
from .palette import BAD, QUIET, STATUSES, coloured

__all__ = ["draw_runs", "note_of", "short_ids"]

Record = dict[str, Any]

_GAP = 2
_SHORTEST_ID = 18
"""Characters of a UUIDv7 that say when it was made, to a fraction of a microsecond: few runs share them."""

_SHORTEST_NAME = 6


class _Column(NamedTuple):
    heading: str
    cells: list[Text]
    right: bool = False

    def width(self) -> int:
        return max([cell_len(self.heading), *(cell.cell_len for cell in self.cells)])


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
        columns["why"] = _Column("why", [note_of(run) for run in runs])
        return Group(*_lines(columns))
    columns["began"] = _Column("began", [Text(f"{run['started_at'][:19]}Z") for run in runs])
    for concede in _concessions(runs):
        if _width(columns) <= width:
            break
        concede(columns)
    _cut(columns, "pipeline", width)
    head, *lines = _lines(columns)
    indent = columns["began"].width() + _GAP if width >= 60 else _GAP
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


def _columns(runs: Sequence[Record]) -> dict[str, _Column]:
    def of(values: Callable[[Record], Any]) -> list[Text]:
        return [Text(on_one_line(values(run) or "")) for run in runs]

    columns = {
        "began": _Column("began", of(lambda run: run["started_at"])),
        "outcome": _Column("outcome", [coloured(on_one_line(_outcome(run))) for run in runs]),
        "pipeline": _Column(
            "pipeline", of(lambda run: run.get("pipeline_name") or run["pipeline_metadata"]["topology"])
        ),
        "ms": _Column("ms", of(lambda run: milliseconds(run["duration_ms"])), right=True),
        "stages": _Column(
            "stages", of(lambda run: f"{run['stages_completed']}/{run['stages_total']}"), right=True
        ),
        "run": _Column("run", of(lambda run: run["correlation_ids"]["pipeline_run_id"])),
    }
    for name in ("user", "request"):
        cells = [Text(on_one_line(run["correlation_ids"].get(f"{name}_id") or "")) for run in runs]
        if any(cells):
            columns[name] = _Column(name, cells)
    return columns


def _outcome(run: Record) -> str:
    return str(run.get("outcome") or run["status"])


def _concessions(runs: Sequence[Record]) -> list[Callable[[dict[str, _Column]], Any]]:
    """Return what is given up where there is no room, what is missed least first."""

    def no_year(columns: dict[str, _Column]) -> None:
        cells = [Text(f"{run['started_at'][5:19].replace('T', ' ')}Z") for run in runs]
        columns["began"] = _Column("began", cells)

    def beginnings(columns: dict[str, _Column]) -> None:
        ids = short_ids([cell.plain for cell in columns["run"].cells])
        columns["run"] = _Column("run", [Text(known) for known in ids])

    def without(name: str) -> Callable[[dict[str, _Column]], Any]:
        return lambda columns: columns.pop(name, None)

    return [
        without("request"),
        no_year,
        without("user"),
        beginnings,
        *map(without, ("stages", "ms")),
    ]


def _cut(columns: dict[str, _Column], name: str, width: int) -> None:
    over = _width(columns) - width
    if over > 0:
        column = columns[name]
        for cell in column.cells:
            cell.truncate(max(_SHORTEST_NAME, column.width() - over), overflow="ellipsis")


def _width(columns: dict[str, _Column]) -> int:
    return sum(column.width() + _GAP for column in columns.values()) - _GAP


def _lines(columns: dict[str, _Column]) -> list[Text]:
    rows = zip(*(column.cells for column in columns.values()), strict=True)
    heading = [Text(column.heading, style=QUIET) for column in columns.values()]
    widths = [column.width() for column in columns.values()]
    rights = [column.right for column in columns.values()]
    lines = []
    for row in (heading, *rows):
        line = Text(no_wrap=True, overflow="ignore")
        for cell, width, right in zip(row, widths, rights, strict=True):
            blanks = " " * (width - cell.cell_len)
            line.append(blanks if right else "").append_text(cell)
            line.append(("" if right else blanks) + " " * _GAP)
        line.rstrip()
        lines.append(line)
    return lines
