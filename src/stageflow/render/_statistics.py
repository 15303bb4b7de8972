"""Renders statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ._escape import on_one_line, shown
from ._runs import short_ids
from ._style import BAD, QUIET, coloured
from ._tables import Column, count, draw_columns, fit, lines_of, milliseconds, share, size

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
    """Return a sparkline from 0 to the largest value; a blank where there is none.

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


def draw_volume(held: Record, *, width: int | None, limit: int) -> RenderableType:
    """Return what an archive holds by day, by type and by field.

    Args:
        held: A `Volume` as plain values.
        width: How many columns the terminal has; None for any number.
        limit: Maximum number of days, types and fields.
    """
    events = held["events"]
    each = f", {held['bytes'] / events:.1f} B each" if events else ""
    lines = [
        Text(f"archive  {events:,} events, {size(held['bytes'])}{each}; counts {size(held['count_bytes'])}"),
        Text(f"journal  {size(held['journal_bytes'])} that are not archived"),
    ]
    parts: list[RenderableType] = [*lines]
    for name, rows in (("day", held["days"]), ("type", held["types"]), ("field", held["fields"])):
        if rows:
            parts += ["", _shares(name, rows[:limit], held["bytes"], events, width)]
        if len(rows) > limit:
            parts.append(Text(f"... and {len(rows) - limit} more"))
    return Group(*parts)


def _shares(name: str, rows: Sequence[Record], whole: int, events: int, width: int | None) -> RenderableType:
    columns = {
        name: Column(name, [Text(on_one_line(row["name"])) for row in rows]),
        "events": Column(
            "has it" if name == "field" else "events",
            [Text(count(row["events"])) for row in rows],
            right=True,
        ),
    }
    if any(row["happened"] is not None for row in rows):
        columns["happened"] = Column("happened", [Text(count(row["happened"])) for row in rows], right=True)
    columns |= {
        "size": Column("size", [Text(size(row["bytes"])) for row in rows], right=True),
        "share": Column("share", [Text(share(row["bytes"], whole)) for row in rows], right=True),
        "each": Column(
            "B an event",
            [Text(f"{row['bytes'] / (events if name == 'field' else row['events']):.2f}") for row in rows],
            right=True,
        ),
    }
    return draw_columns(columns, width=width, spare=("each", "share"), flexible=(name,))


def draw_sampled(rows: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return what a sampler makes of runs: for each key, what is kept for which reason, and all together.

    Args:
        rows: `Sampled`s as plain values.
        width: How many columns the terminal has; None for any number.
    """
    names = ("runs", "kept", "events", "kept_events")
    whole = {name: sum(row[name] for row in rows) for name in names}
    told = [*rows, {"key": "all", "reason": "", **whole}]
    columns = {
        "key": Column("key", [Text(on_one_line(row["key"])) for row in told]),
        "reason": Column("reason", [Text(on_one_line(row["reason"])) for row in told]),
        "runs": Column("runs", [Text(f"{row['runs']:,}") for row in told], right=True),
        "kept": Column("kept", [Text(f"{row['kept']:,}") for row in told], right=True),
        "events": Column("events", [Text(f"{row['events']:,}") for row in told], right=True),
        "kept_events": Column("kept", [Text(f"{row['kept_events']:,}") for row in told], right=True),
        "share": Column(
            "share", [Text(share(row["kept_events"], row["events"])) for row in told], right=True
        ),
    }
    return draw_columns(columns, width=width, spare=("events",), flexible=("reason", "key"))


_SURE = 0.05
"""A q-value below this is worth a colour."""


def draw_stats(
    stats: Sequence[Record], *, width: int | None, by: str | None = None, ascii_only: bool = False
) -> RenderableType:
    """Return one line per stage or pipeline; sparklines if there are time buckets.

    Args:
        stats: `Stat`s as plain values.
        width: Width of the terminal in columns; None for no limit.
        by: Name of the field whose values are in `group`; default None.
        ascii_only: For terminals without block characters.
    """
    by_name: dict[tuple[Any, Any, Any], list[Record]] = {}
    for stat in stats:
        by_name.setdefault((stat["pipeline"], stat["stage"], stat.get("group")), []).append(stat)
    moments = sorted({stat["since"] for stat in stats if stat["since"] is not None})
    if moments:
        return _draw_trends(by_name, moments, width, by, ascii_only)
    rows = [only for (only,) in by_name.values()]
    columns = _names(rows, by) | {
        "count": _estimates("count", rows, "count", "count_interval", count),
        "fail": _estimates("fail %", rows, "failure_rate", "failure_rate_interval", _percent),
    }
    for name in ("skipped", "cancelled", "retried"):
        if any(row[name] for row in rows):
            columns[name] = _numbers(name, rows, name, count)
    for rank in ("p50", "p90", "p95", "p99"):
        interval = "p95_interval" if rank == "p95" else None
        columns[rank] = _estimates(f"{rank} ms", rows, f"{rank}_ms", interval, milliseconds)
    spare = ("p90", "skipped", "cancelled", "retried", "pipeline", "p99", "p50")
    return draw_columns(columns, width=width, spare=spare, flexible=("pipeline", "stage", "group"))


def _draw_trends(
    by_name: dict[tuple[Any, Any, Any], list[Record]],
    moments: Sequence[Any],
    width: int | None,
    by: str | None,
    ascii_only: bool,
) -> RenderableType:
    named = [stats[0] for stats in by_name.values()]
    lines: dict[str, list[str]] = {"count": [], "fail": [], "p95": []}
    for stats in by_name.values():
        at = {stat["since"]: stat for stat in stats}

        def trend(value: str, at: dict[Any, Record] = at) -> str:
            found = [at[moment][value] if moment in at else None for moment in moments]
            return sparkline(found, ascii_only=ascii_only)

        lines["count"].append(trend("count"))
        lines["fail"].append(trend("failure_rate"))
        lines["p95"].append(trend("p95_ms"))
    last = [stats[-1] for stats in by_name.values()]
    columns = _names(named, by)
    for name, told, now in (
        ("count", "count", [count(stat["count"]) for stat in last]),
        ("fail", "fail %", [_percent(stat["failure_rate"]) for stat in last]),
        ("p95", "p95 ms", [milliseconds(stat["p95_ms"]) for stat in last]),
    ):
        columns[f"{name} trend"] = Column(told, [Text(line) for line in lines[name]])
        columns[name] = Column("last", [Text(each) for each in now], right=True)
    return draw_columns(
        columns, width=width, spare=("pipeline", "count"), flexible=("pipeline", "stage", "group")
    )


def draw_errors(errors: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each group of failures, and its newest message on another.

    Args:
        errors: `ErrorGroup`s as plain values.
        width: How many columns the terminal has; None for any number.
    """
    examples = short_ids([(row["examples"] or [""])[0] or "" for row in errors])
    columns = {
        "count": Column("count", [Text(_stands_for(row)) for row in errors], right=True),
        "runs": _numbers("runs", errors, "runs", count),
        **_names(errors),
        "kind": Column("kind", [Text(on_one_line(row["kind"]), style=BAD) for row in errors]),
        "last": Column("last", [Text(_moment(row["last"])) for row in errors]),
        "example": Column("example", [Text(on_one_line(known)) for known in examples]),
    }
    messages = [Text(on_one_line(row["message"]), style=QUIET) for row in errors]
    if width is None:
        return draw_columns({**columns, "message": Column("message", messages)}, width=None)
    head, *lines = lines_of(fit(columns, width, ("runs", "pipeline", "last", "kind"), ("pipeline", "stage")))
    drawn = [head]
    for line, message in zip(lines, messages, strict=True):
        drawn.append(line)
        if message.plain:
            drawn.append(Text("  ").append_text(message))
    for line in drawn:
        line.truncate(width, overflow="ellipsis")
    return Group(*drawn)


def draw_slowest(slow: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each run, or stage, that took long.

    Args:
        slow: `Slow`s as plain values.
        width: How many columns the terminal has; None for any number.
    """
    columns = {
        "ms": _numbers("ms", slow, "duration_ms", milliseconds),
        "status": Column("ended", [coloured(on_one_line(row["status"])) for row in slow]),
        **_names(slow),
        "stage ms": _numbers("stage ms", slow, "stage_ms", milliseconds),
        "queue": _numbers("queue ms", slow, "queue_ms", milliseconds),
        "tries": _numbers("tries", slow, "attempts", count),
        "began": Column("began", [Text(_moment(row["started_at"])) for row in slow]),
        "run": Column(
            "run", [Text(on_one_line(each)) for each in short_ids([row["run_id"] or "" for row in slow])]
        ),
        "user": Column("user", [Text(on_one_line(row["user_id"] or "")) for row in slow]),
    }
    columns = {name: column for name, column in columns.items() if any(column.cells)}
    spare = ("tries", "queue", "user", "began", "stage ms", "pipeline")
    return draw_columns(columns, width=width, spare=spare, flexible=("user", "pipeline", "stage"))


def draw_totals(totals: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each way in which a pipeline, or a stage, ended.

    Args:
        totals: `Total`s as plain values.
        width: How many columns the terminal has; None for any number.
    """
    columns = {
        **_names(totals),
        "status": Column("status", [coloured(on_one_line(row["status"])) for row in totals]),
        "outcome": Column("outcome", [coloured(on_one_line(row["outcome"] or "")) for row in totals]),
        "count": _numbers("count", totals, "count", count),
        "failure": Column("failure", [Text(_counts_as(row["failure"])) for row in totals]),
    }
    return draw_columns(columns, width=width, spare=("failure",), flexible=("pipeline", "stage"))


def _counts_as(failure: bool | None) -> str:
    """Return whether ends count as failures; "not counted" for those that failure rates leave out."""
    return "not counted" if failure is None else "yes" if failure else "no"


def draw_comparisons(rows: Sequence[Record], *, width: int | None) -> RenderableType:
    """Return a line for each stage, or pipeline: both sides, and whether they differ.

    Args:
        rows: `Comparison`s as plain values.
        width: How many columns the terminal has; None for any number.
    """
    sides = ("before", "after")

    def both(heading: str, said: Callable[[Record], str], q: str | None) -> Column:
        cells = []
        for row in rows:
            sure = q is not None and row[q] is not None and row[q] < _SURE
            text = Text(" → ".join(said(row[side]) if row[side]["rows"] else "-" for side in sides))
            if sure:
                text.append(" !", style=BAD)
            cells.append(text)
        return Column(heading, cells)

    columns = _names(rows) | {
        "count": both("count", _stands_for, None),
        "fail": both("fail %", lambda side: _percent(side["failure_rate"]), "q_failures"),
        "p50": both("p50 ms", lambda side: milliseconds(side["p50_ms"]), "q_durations"),
        "p95": both("p95 ms", lambda side: milliseconds(side["p95_ms"]), None),
    }
    return draw_columns(
        columns, width=width, spare=("count", "pipeline", "p95"), flexible=("pipeline", "stage")
    )


def draw_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, width: int | None) -> RenderableType:
    """Return the rows of a query.

    Args:
        columns: Names of the columns.
        rows: Their values.
        width: How many columns the terminal has; None for any number. Long texts are cut first.
    """
    made: dict[str, Column] = {}
    for at, name in enumerate(columns):
        values = [row[at] for row in rows]
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        made[f"{at} {name}"] = Column(on_one_line(name), [_cell(value) for value in values], right=numbers)
    widest = sorted(made, key=lambda name: -made[name].width())
    return draw_columns(made, width=width, flexible=[name for name in widest if not made[name].right])


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style=QUIET)
    if isinstance(value, datetime):
        return Text(_moment(value))
    if isinstance(value, date):
        return Text(value.isoformat())
    if isinstance(value, float):
        return Text(
            f"{value:,.0f}" if value.is_integer() else f"{value:,.4g}" if abs(value) < 1 else f"{value:,.2f}"
        )
    if isinstance(value, str):
        return Text(on_one_line(value))
    return Text(shown(value) if not isinstance(value, int) or isinstance(value, bool) else f"{value}")


def _names(rows: Sequence[Record], by: str | None = None) -> dict[str, Column]:
    columns = {}
    staged = any(row["stage"] is not None for row in rows)
    # Where all stages are of one pipeline its name says nothing.
    if not staged or len({row["pipeline"] for row in rows}) > 1:
        columns["pipeline"] = Column("pipeline", [Text(on_one_line(row["pipeline"])) for row in rows])
    if staged:
        columns["stage"] = Column("stage", [Text(on_one_line(row["stage"] or "")) for row in rows])
    if by is not None:
        cells = ["-" if row["group"] is None else on_one_line(row["group"]) for row in rows]
        columns["group"] = Column(on_one_line(by), list(map(Text, cells)))
    return columns


def _numbers(heading: str, rows: Iterable[Record], value: str, said: Callable[[Any], str]) -> Column:
    return Column(heading, [Text(said(row[value])) for row in rows], right=True)


def _estimates(
    heading: str,
    rows: Sequence[Record],
    value: str,
    interval: str | None,
    said: Callable[[Any], str],
) -> Column:
    """Return a column of numbers: estimates with a `~`, and half of their interval behind a `±`."""
    cells = []
    for row in rows:
        text = said(row[value])
        if row["estimated"] and text:
            text = f"~{text}"
            if interval is not None and row[interval] is not None:
                low, high = row[interval]
                text += f" ±{said((high - low) / 2) or '0'}"
        cells.append(Text(text, style=BAD if value == "failure_rate" and row["failed"] else ""))
    return Column(heading, cells, right=True)


def _stands_for(row: Record) -> str:
    """Return a count, with a `~` where events were sampled."""
    return f"{'~' if row['count'] != row['rows'] else ''}{count(row['count'])}"


def _percent(rate: float | None) -> str:
    return "" if rate is None else share(rate, 1).removesuffix(" %")


def _moment(moment: datetime) -> str:
    return f"{moment:%m-%d %H:%M:%S}Z"
