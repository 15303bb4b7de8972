"""The events of a run's stages of their own: when, of which stage, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..schema import CUSTOM_EVENT_KEYS
from .figures import milliseconds
from .foreign import on_one_line, pairs
from .palette import QUIET

__all__ = ["draw_own_events", "said_by"]

Record = dict[str, Any]

_MOST = 20
"""So many are drawn: of more, nobody reads the picture."""

_LONGEST = 300
"""Characters of one event."""


def draw_own_events(run: Record, events: Sequence[tuple[str, Record]]) -> RenderableType:
    """Return a table of the first of these events, and how many more there are.

    Args:
        run: The data of the run's `pipeline.wide`.
        events: Type and data of each.
    """
    began = datetime.fromisoformat(run["started_at"])
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", no_wrap=True, style=QUIET)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for type, data in events[:_MOST]:
        text = said_by(data)
        table.add_row(
            _after(began, data.get("emitted_at")),
            Text(on_one_line(type)),
            Text(on_one_line(data.get("stage_name") or "")),
            Text(text if len(text) <= _LONGEST else text[:_LONGEST] + "…"),
        )
    if (more := len(events) - _MOST) > 0:
        table.add_row("", f"and {more:,} more")
    lines = Table.grid()
    lines.add_row(Text("events of its own, after ms", style=QUIET))
    lines.add_row(Padding(table, (0, 0, 0, 2)))
    return lines


def said_by(data: Record) -> str:
    """Return what an event has beside what the library says of each.

    Example:
        >>> said_by({"event_id": "r/a/1/0", "stage_name": "a", "hits": 3})
        'hits=3'
    """
    return pairs({key: value for key, value in data.items() if key not in CUSTOM_EVENT_KEYS})


def _after(began: datetime, emitted_at: Any) -> str:
    try:
        after = datetime.fromisoformat(emitted_at) - began
    except (TypeError, ValueError):  # emitted past the library
        return ""
    return milliseconds(after.total_seconds() * 1000)
