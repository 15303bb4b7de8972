"""Renders events in arrival order, one per line, with columns that widen as needed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from ._escape import format_pairs, on_one_line
from ._run import custom_fields, stream_note
from ._style import BAD, QUIET, colored
from ._tables import milliseconds

__all__ = ["EventLines"]


Record = dict[str, Any]

_WIDE = 110
"""Minimum width of the terminal for types and full ids."""

_NARROW = 70
"""Minimum width of the terminal for milliseconds."""

_MIN_DETAILS = 8
"""Minimum width of the remaining fields of an event; they are omitted if fewer columns are left."""

_TIME = 9
_ID = 18
"""Characters of a run id that encode its creation time, to a fraction of a microsecond."""


class EventLines:
    """Renders events in arrival order.

    Args:
        width: Width of the terminal in columns. None for no limit: nothing is truncated, and every event is
            one line.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._full = width is None or width >= _WIDE
        self._day = ""
        self._widths = {"status": 9, "type": 13, "name": 10, "ms": 8}
        if not self._full:
            del self._widths["type"]
        if width is not None and width < _NARROW:
            del self._widths["ms"]

    def draw(self, events: Iterable[tuple[str, Record]]) -> list[Text]:
        """Return the lines of events; an error that does not fit is on a separate line."""
        rows = [(type, data, self._cells(type, data)) for type, data in events]
        for column in self._widths:
            widest = max((cells[column].cell_len for _, _, cells in rows), default=0)
            self._widths[column] = max(self._widths[column], widest)
        return [line for row in rows for line in self._lines(*row)]

    def _cells(self, type: str, data: Record) -> dict[str, Text]:
        status, duration = data.get("outcome") or data.get("status"), data.get("duration_ms")
        cells = {
            "status": colored(on_one_line(status or "")),
            "type": Text(on_one_line(type)),
            "name": _name(type, data, self._full),
            "ms": Text(milliseconds(duration) if isinstance(duration, (int, float)) else ""),
        }
        if self._width is not None:  # a long name must not displace the other columns
            for cell in cells.values():
                cell.truncate(24 if self._full else 16, overflow="ellipsis")
        return cells

    def _lines(self, type: str, data: Record, cells: dict[str, Text]) -> list[Text]:
        at = _time_of(data)
        lines: list[Text] = []
        if self._width is not None and at[:10] != self._day:
            self._day = at[:10]
            lines.append(Text(f"{self._day} (UTC)", style=QUIET))
        line = Text(no_wrap=True, overflow="ignore")
        line.append(at if self._width is None else f"{at[11:19]}Z".rjust(_TIME), style=QUIET).append("  ")
        for column, width in self._widths.items():
            cell = cells[column]
            padding = " " * (width - cell.cell_len)
            line.append(padding if column == "ms" else "").append_text(cell)
            line.append(("" if column == "ms" else padding) + "  ")
        ids = data.get("correlation_ids")
        run = on_one_line((ids.get("pipeline_run_id") if isinstance(ids, dict) else None) or "")
        line.append(f"{run if self._full else run[:_ID]}  ")
        error, details = Text(on_one_line(data.get("error") or ""), style=BAD), _details(type, data)
        fits = self._width is None or line.cell_len + error.cell_len <= self._width
        if error and fits:
            line.append_text(error).append("  ")
        if self._width is None or line.cell_len + _MIN_DETAILS <= self._width:
            line.append_text(details)
        lines.append(line)
        if error and not fits:
            lines.append(Text(" " * (_TIME + 2)).append_text(error))
        for each in lines:
            each.rstrip()
            if self._width is not None:
                each.truncate(self._width, overflow="ellipsis")
        return lines


def _time_of(data: Record) -> str:
    at = next((at for at in map(data.get, ("ended_at", "emitted_at")) if isinstance(at, str)), "")
    return on_one_line(at)


def _name(type: str, data: Record, with_type: bool) -> Text:
    if type == "pipeline.wide":
        return Text(on_one_line(data.get("pipeline_name") or ""), style="bold")
    if type == "stage.wide" or with_type:
        return Text(on_one_line(data.get("stage_name") or ""))
    return Text(on_one_line(type))


def _details(type: str, data: Record) -> Text:
    """Return the reason of an event and the attributes that the application added."""
    if type not in ("stage.wide", "pipeline.wide"):
        return Text(custom_fields(data))
    reason = data.get("reason")
    redundant = not reason or str(reason) in str(data.get("error"))
    shown = Text("" if redundant else on_one_line(reason), style=QUIET)
    attributes = data.get("attributes")
    added = Text(format_pairs(attributes) if isinstance(attributes, dict) else "")
    stream = stream_note(data) if isinstance(data.get("stream"), dict) else Text("")
    return Text("  ").join(text for text in (shown, stream, added) if text)
