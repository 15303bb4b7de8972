"""Renders statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text

from ._escape import format_value, on_one_line
from ._runs import short_ids
from ._style import BAD, QUIET, colored
from ._tables import GAP, Column, count, draw_columns, fit, lines_of, milliseconds, share, size

__all__ = [
    "draw_comparisons",
    "draw_errors",
    "draw_rows",
    "draw_sampled",
    "draw_slowest",
    "draw_stats",
    "draw_totals",
    "draw_volume",
    "sparkline",
]


_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-:=+*#"


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """Return a sparkline from 0 to the largest value, with a space for each None.

    Example:
        >>> sparkline([0, 1, None, 2, 4])
        '▁▃ ▅█'
        >>> sparkline([1, 3], ascii_only=True)
        '-#'
    """
    blocks = _ASCII if ascii_only else _BLOCKS
    top = max((value for value in values if value is not None), default=0.0)
    last = len(blocks) - 1
    return "".join(
        " " if value is None else blocks[min(int(value / top * last + 0.5), last) if top > 0 else 0]
        for value in values
    )


Record = dict[str, Any]


def draw_volume(volume: Record, *, width: int | None, limit: int) -> RenderableType:
    """Return the volume of an archive by day, event type and field.

    Args:
        volume: A `Volume` as plain values.
        width: Width of the terminal in columns; None for no limit.
        limit: Maximum number of days, types and fields.
    """
    events = volume["events"]
    each = f", {volume['bytes'] / events:.1f} B each" if events else ""
    lines = [
        Text(
            f"archive  {events:,} events, {size(volume['bytes'])}{each}; counts {size(volume['count_bytes'])}"
        ),
        Text(f"journal  {size(volume['journal_bytes'])} not archived yet"),
    ]
    parts: list[RenderableType] = [*lines]
    for name, rows in (("day", volume["days"]), ("type", volume["types"]), ("field", volume["fields"])):
        if rows:
            parts += ["", _shares(name, rows[:limit], volume["bytes"], events, width)]
        if len(rows) > limit:
            parts.append(Text(f"... and {len(rows) - limit} more"))
    return Group(*parts)


def _shares(name: str, rows: Sequence[Record], total: int, events: int, width: int | None) -> RenderableType:
    columns = {
        name: Column(name, [Text(on_one_line(row["name"])) for row in rows]),
        "events": Column(
            "present in" if name == "field" else "events",
            [Text(count(row["events"])) for row in rows],
            right=True,
        ),
    }
    if any(row["emitted"] is not None for row in rows):
        columns["emitted"] = Column("emitted", [Text(count(row["emitted"])) for row in rows], right=True)
    columns |= {
        "size": Column("size", [Text(size(row["bytes"])) for row in rows], right=True),
        "share": Column("share", [Text(share(row["bytes"], total)) for row in rows], right=True),
        "each": Column(
            "B/event",
            [Text(f"{row['bytes'] / (events if name == 'field' else row['events']):.2f}") for row in rows],
            right=True,
        ),
    }
    return draw_columns(columns, width=width, spare=("each", "share"), flexible=(name,))


def draw_sampled(rows: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return the effect of a sampler: the runs and events kept for each key and reason, and in total.

    Args:
        rows: `SamplingResult` objects as plain values.
        width: Width of the terminal in columns; None for no limit.
    """
    names = ("runs", "kept", "events", "kept_events")
    totals = {name: sum(row[name] for row in rows) for name in names}
    lines = [*rows, {"key": "all", "reason": "", **totals}]
    columns = {
        "key": Column("key", [Text(on_one_line(row["key"])) for row in lines]),
        "reason": Column("reason", [Text(on_one_line(row["reason"])) for row in lines]),
        "runs": Column("runs", [Text(f"{row['runs']:,}") for row in lines], right=True),
        "kept": Column("kept", [Text(f"{row['kept']:,}") for row in lines], right=True),
        "events": Column("events", [Text(f"{row['events']:,}") for row in lines], right=True),
        "kept_events": Column("kept", [Text(f"{row['kept_events']:,}") for row in lines], right=True),
        "share": Column(
            "share", [Text(share(row["kept_events"], row["events"])) for row in lines], right=True
        ),
    }
    return draw_columns(columns, width=width, spare=("events",), flexible=("reason", "key"))


_SIGNIFICANT = 0.05
"""Changes with a q-value below this are marked."""


def draw_stats(
    stats: Sequence[Record], *, width: int | None, by: str | None = None, ascii_only: bool = False
) -> RenderableType:
    """Return one line per stage or pipeline; sparklines if there are time buckets.

    Args:
        stats: `Stat` objects as plain values.
        width: Width of the terminal in columns; None for no limit.
        by: Name of the field whose values are in `group`; default None.
        ascii_only: True for terminals without block characters.
    """
    by_name: dict[tuple[Any, Any, Any], list[Record]] = {}
    for stat in stats:
        by_name.setdefault((stat["pipeline"], stat["stage"], stat.get("group")), []).append(stat)
    times = sorted({stat["since"] for stat in stats if stat["since"] is not None})
    if times:
        return _draw_trends(by_name, times, width, by, ascii_only)
    rows = [only for (only,) in by_name.values()]
    columns = _name_columns(rows, by) | {
        "count": _estimate_column("count", rows, "count", "count_interval", count),
        "fail": _estimate_column("fail %", rows, "failure_rate", "failure_rate_interval", _percent),
    }
    for name in ("skipped", "cancelled", "retried"):
        if any(row[name] for row in rows):
            columns[name] = _number_column(name, rows, name, count)
    for rank in ("p50", "p90", "p95", "p99"):
        interval = "p95_interval" if rank == "p95" else None
        columns[rank] = _estimate_column(f"{rank} ms", rows, f"{rank}_ms", interval, milliseconds)
    spare = ("p90", "skipped", "cancelled", "retried", "pipeline", "p99", "p50")
    return draw_columns(columns, width=width, spare=spare, flexible=("pipeline", "stage", "group"))


def _draw_trends(
    by_name: dict[tuple[Any, Any, Any], list[Record]],
    times: Sequence[Any],
    width: int | None,
    by: str | None,
    ascii_only: bool,
) -> RenderableType:
    named = [stats[0] for stats in by_name.values()]
    lines: dict[str, list[str]] = {"count": [], "fail": [], "p95": []}
    for stats in by_name.values():
        at = {stat["since"]: stat for stat in stats}

        def trend(value: str, at: dict[Any, Record] = at) -> str:
            found = [at[time][value] if time in at else None for time in times]
            return sparkline(found, ascii_only=ascii_only)

        lines["count"].append(trend("count"))
        lines["fail"].append(trend("failure_rate"))
        lines["p95"].append(trend("p95_ms"))
    last = [stats[-1] for stats in by_name.values()]
    columns = _name_columns(named, by)
    for name, heading, latest in (
        ("count", "count", [count(stat["count"]) for stat in last]),
        ("fail", "fail %", [_percent(stat["failure_rate"]) for stat in last]),
        ("p95", "p95 ms", [milliseconds(stat["p95_ms"]) for stat in last]),
    ):
        columns[f"{name} trend"] = Column(heading, [Text(line) for line in lines[name]])
        columns[name] = Column("last", [Text(value) for value in latest], right=True)
    return draw_columns(
        columns, width=width, spare=("pipeline", "count"), flexible=("pipeline", "stage", "group")
    )


_MAX_EXAMPLES = 3
"""Maximum number of runs to show for each group of failures."""


def draw_errors(errors: Sequence[Record], *, width: int | None, ascii_only: bool = False) -> RenderableType:
    """Return a line for each group of failures, followed by lines with its newest message and its runs.

    Args:
        errors: `ErrorGroup` objects as plain values.
        width: Width of the terminal in columns; None for no limit: each group has one line.
        ascii_only: True for terminals without block characters.
    """
    columns = {
        "count": Column("count", [Text(_event_count(row)) for row in errors], right=True),
        "runs": _number_column("runs", errors, "runs", count),
        "users": _number_column("users", errors, "users", count),
        **_name_columns(errors),
        "trend": Column("trend", [Text(sparkline(row["trend"], ascii_only=ascii_only)) for row in errors]),
        "first": Column("first", [Text(_minute(row["first"])) for row in errors]),
        "last": Column("last", [Text(_minute(row["last"])) for row in errors]),
    }
    ids = iter(short_ids([run_id or "" for row in errors for run_id in row["examples"]]))
    examples = [[on_one_line(next(ids)) for _ in row["examples"]] for row in errors]
    messages = [Text(on_one_line(_message(row)), style=BAD) for row in errors]
    new = [Text("new" if row["is_new"] else "", style=f"bold {BAD}") for row in errors]
    if width is None:
        columns |= {
            "new": Column("new", new),
            "kind": Column("kind", [Text(on_one_line(row["kind"])) for row in errors]),
            "example": Column("example", [Text(row[0] if row else "") for row in examples]),
            "fingerprint": Column("fingerprint", [Text(row["fingerprint"] or "") for row in errors]),
            "message": Column("message", messages),
        }
        return draw_columns(columns, width=None)
    head, *lines = lines_of(
        fit(columns, width, ("runs", "pipeline", "users", "first"), ("pipeline", "stage"))
    )
    output = [head]
    for line, mark, message, runs in zip(lines, new, messages, examples, strict=True):
        mark = mark.append("  ") if mark.plain else mark
        output += [line, Text("  ").append_text(mark).append_text(message)]
        if runs:
            output.append(Text(_runs_line(runs, width), style=QUIET))
    for line in output:
        line.truncate(width, overflow="ellipsis")
    return Group(*output)


def _message(row: Record) -> str:
    """Return the message of a group of failures, with the outcome of runs that failed as a whole."""
    kind, message = str(row["kind"]), str(row["message"])
    # The message of an exception begins with its class, without the number of others in its group.
    if not (message and (kind == "failed" or message.startswith(kind.partition(" ")[0]))):
        message = f"{kind}: {message}" if message else kind
    others = int(row["messages"]) - 1
    return f"{message} (and {others:,} other message{'s' if others > 1 else ''})" if others > 0 else message


def _runs_line(runs: Sequence[str], width: int) -> str:
    """Return a line with the first runs, as many as fit."""
    line = f"  runs  {runs[0]}"
    for run_id in runs[1:_MAX_EXAMPLES]:
        if cell_len(line) + GAP + cell_len(run_id) > width:
            break
        line += " " * GAP + run_id
    return line


def draw_slowest(slow: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each of the slowest runs or stages.

    Args:
        slow: `SlowRecord` objects as plain values.
        width: Width of the terminal in columns; None for no limit.
    """
    columns = {
        "ms": _number_column("ms", slow, "duration_ms", milliseconds),
        "status": Column("ended", [colored(on_one_line(row["status"])) for row in slow]),
        **_name_columns(slow),
        "stage ms": _number_column("stage ms", slow, "stage_ms", milliseconds),
        "queue": _number_column("queue ms", slow, "queue_ms", milliseconds),
        "attempts": _number_column("attempts", slow, "attempts", count),
        "began": Column("began", [Text(_time(row["started_at"])) for row in slow]),
        "run": Column(
            "run", [Text(on_one_line(each)) for each in short_ids([row["run_id"] or "" for row in slow])]
        ),
        "user": Column("user", [Text(on_one_line(row["user_id"] or "")) for row in slow]),
    }
    columns = {name: column for name, column in columns.items() if any(column.cells)}
    spare = ("attempts", "queue", "user", "began", "stage ms", "pipeline")
    return draw_columns(columns, width=width, spare=spare, flexible=("user", "pipeline", "stage"))


def draw_totals(totals: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each status and outcome of a pipeline or stage.

    Args:
        totals: `Total` objects as plain values.
        width: Width of the terminal in columns; None for no limit.
    """
    columns = {
        **_name_columns(totals),
        "status": Column("status", [colored(on_one_line(row["status"])) for row in totals]),
        "outcome": Column("outcome", [colored(on_one_line(row["outcome"] or "")) for row in totals]),
        "count": _number_column("count", totals, "count", count),
        "failed": Column("failed", [Text(_failed_text(row["failed"])) for row in totals]),
    }
    return draw_columns(columns, width=width, spare=("failed",), flexible=("pipeline", "stage"))


def _failed_text(failed: bool | None) -> str:
    """Return whether a status counts as a failure; "not counted" if failure rates exclude it."""
    return "not counted" if failed is None else "yes" if failed else "no"


def draw_comparisons(rows: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each stage or pipeline, with both sides; significant changes are marked.

    Args:
        rows: `Comparison` objects as plain values.
        width: Width of the terminal in columns; None for no limit.
    """
    sides = ("before", "after")

    def both(heading: str, text_of: Callable[[Record], str], q: str | None) -> Column:
        cells = []
        for row in rows:
            significant = q is not None and row[q] is not None and row[q] < _SIGNIFICANT
            text = Text(" → ".join(text_of(row[side]) if row[side]["rows"] else "-" for side in sides))
            if significant:
                text.append(" !", style=BAD)
            cells.append(text)
        return Column(heading, cells)

    columns = _name_columns(rows) | {
        "count": both("count", _event_count, None),
        "fail": both("fail %", lambda side: _percent(side["failure_rate"]), "q_failures"),
        "p50": both("p50 ms", lambda side: milliseconds(side["p50_ms"]), "q_durations"),
        "p95": both("p95 ms", lambda side: milliseconds(side["p95_ms"]), None),
    }
    return draw_columns(
        columns, width=width, spare=("count", "pipeline", "p95"), flexible=("pipeline", "stage")
    )


def draw_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int | None) -> RenderableType:
    """Return the rows of a query as a table.

    Args:
        columns: Names of the columns.
        rows: Values of the columns in each row.
        width: Width of the terminal in columns; None for no limit. Long strings are truncated first.
    """
    table: dict[str, Column] = {}
    for at, name in enumerate(columns):
        values = [row[at] for row in rows]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        table[f"{at} {name}"] = Column(on_one_line(name), [_cell(value) for value in values], right=numbers)
    widest = sorted(table, key=lambda name: -table[name].width())
    return draw_columns(table, width=width, flexible=[name for name in widest if not table[name].right])


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style=QUIET)
    if isinstance(value, datetime):
        return Text(_time(value))
    if isinstance(value, date):
        return Text(value.isoformat())
    if isinstance(value, float):
        return Text(
            f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}" if abs(value) < 1 else f"{value:,.2f}"
        )
    if isinstance(value, str):
        return Text(on_one_line(value))
    return Text(format_value(value) if not isinstance(value, int) or isinstance(value, bool) else f"{value}")


def _name_columns(rows: Sequence[Record], by: str | None = None) -> dict[str, Column]:
    columns = {}
    staged = any(row["stage"] is not None for row in rows)
    # If all stages belong to one pipeline, its name is redundant.
    if not staged or len({row["pipeline"] for row in rows}) > 1:
        columns["pipeline"] = Column("pipeline", [Text(on_one_line(row["pipeline"])) for row in rows])
    if staged:
        columns["stage"] = Column("stage", [Text(on_one_line(row["stage"] or "")) for row in rows])
    if by is not None:
        cells = ["-" if row["group"] is None else on_one_line(row["group"]) for row in rows]
        columns["group"] = Column(on_one_line(by), list(map(Text, cells)))
    return columns


def _number_column(heading: str, rows: Iterable[Record], value: str, text_of: Callable[[Any], str]) -> Column:
    return Column(heading, [Text(text_of(row[value])) for row in rows], right=True)


def _estimate_column(
    heading: str,
    rows: Sequence[Record],
    value: str,
    interval: str | None,
    text_of: Callable[[Any], str],
) -> Column:
    """Return a column of numbers. `~` precedes estimates, and `±` half the width of their interval."""
    cells = []
    for row in rows:
        text = text_of(row[value])
        if row["estimated"] and text:
            text = f"~{text}"
            if interval is not None and row[interval] is not None:
                low, high = row[interval]
                text += f" ±{text_of((high - low) / 2) or '0'}"
        cells.append(Text(text, style=BAD if value == "failure_rate" and row["failed"] else ""))
    return Column(heading, cells, right=True)


def _event_count(row: Record) -> str:
    """Return a count, with the prefix `~` if events were sampled."""
    return f"{'~' if row['count'] != row['rows'] else ''}{count(row['count'])}"


def _percent(rate: float | None) -> str:
    return "" if rate is None else share(rate, 1).removesuffix(" %")


def _minute(time: datetime) -> str:
    return f"{time:%m-%d %H:%M}Z"


def _time(time: datetime) -> str:
    return f"{time:%m-%d %H:%M:%S}Z"
