"""How much an archive holds, and what a sampler would leave of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from .columns import Column, draw_columns
from .figures import count, share, size
from .foreign import on_one_line

__all__ = ["draw_sampled", "draw_volume"]

Record = dict[str, Any]


def draw_volume(held: Record, *, width: int | None, most: int) -> RenderableType:
    """Return what an archive holds by day, by type and by field.

    Args:
        held: A `Volume` as plain values.
        width: How many columns the terminal has; None for any number.
        most: How many days, types and fields at most.
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
            parts += ["", _shares(name, rows[:most], held["bytes"], events, width)]
        if len(rows) > most:
            parts.append(Text(f"... and {len(rows) - most} more"))
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
