"""Events as they come, a line each, with columns that widen as they must."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.text import Text

from ._escape import on_one_line, pairs
from ._run import said_by
from ._style import BAD, QUIET, coloured
from ._tables import milliseconds

__all__ = ["EventLines"]


Record = dict[str, Any]

_WIDE = 110
"""Columns from which on there is room for types and whole ids."""

_NARROW = 70
"""Columns below which there is none for milliseconds."""

_LEAST = 8
"""Columns below which what else an event says is left out: a letter of it says nothing."""

_TIME = 9
_ID = 18
"""Characters of a run's id that say when it was made, to a fraction of a microsecond."""


class EventLines:
    """Draws events as they come.

    Args:
        width: How many columns there are. None for any number: then nothing is cut, and every
            event is one line.
    """

    def __init__(self, width: int | None) -> None:
        self._width = width
        self._all = width is None or width >= _WIDE
        self._day = ""
        self._widths = {"status": 9, "type": 13, "name": 10, "ms": 8}
        if not self._all:
            del self._widths["type"]
        if width is not None and width < _NARROW:
            del self._widths["ms"]

    def draw(self, events: Iterable[tuple[str, Record]]) -> list[Text]:
        """Return the lines of some events: an error that does not fit gets one of its own."""
        drawn = [(type, data, self._cells(type, data)) for type, data in events]
        for column in self._widths:
            widest = max((cells[column].cell_len for _, _, cells in drawn), default=0)
            self._widths[column] = max(self._widths[column], widest)
        return [line for each in drawn for line in self._lines(*each)]

    def _cells(self, type: str, data: Record) -> dict[str, Text]:
        status, took = data.get("outcome") or data.get("status"), data.get("duration_ms")
        cells = {
            "status": coloured(on_one_line(status or "")),
            "type": Text(on_one_line(type)),
            "name": _name(type, data, self._all),
            "ms": Text(milliseconds(took) if isinstance(took, (int, float)) else ""),
        }
        if self._width is not None:  # one long name must not push all others out
            for cell in cells.values():
                cell.truncate(24 if self._all else 16, overflow="ellipsis")
        return cells

    def _lines(self, type: str, data: Record, cells: dict[str, Text]) -> list[Text]:
        at = _moment(data)
        lines: list[Text] = []
        if self._width is not None and at[:10] != self._day:
            self._day = at[:10]
            lines.append(Text(f"{self._day} (UTC)", style=QUIET))
        line = Text(no_wrap=True, overflow="ignore")
        line.append(at if self._width is None else f"{at[11:19]}Z".rjust(_TIME), style=QUIET).append("  ")
        for column, width in self._widths.items():
            cell = cells[column]
            blanks = " " * (width - cell.cell_len)
            line.append(blanks if column == "ms" else "").append_text(cell)
            line.append(("" if column == "ms" else blanks) + "  ")
        ids = data.get("correlation_ids")
        run = on_one_line((ids.get("pipeline_run_id") if isinstance(ids, dict) else None) or "")
        line.append(f"{run if self._all else run[:_ID]}  ")
        error, said = Text(on_one_line(data.get("error") or ""), style=BAD), _said(type, data)
        beside = self._width is None or line.cell_len + error.cell_len <= self._width
        if error and beside:
            line.append_text(error).append("  ")
        if self._width is None or line.cell_len + _LEAST <= self._width:
            line.append_text(said)
        lines.append(line)
        if error and not beside:
            lines.append(Text(" " * (_TIME + 2)).append_text(error))
        for each in lines:
            each.rstrip()
            if self._width is not None:
                each.truncate(self._width, overflow="ellipsis")
        return lines


def _moment(data: Record) -> str:
    at = next((at for at in map(data.get, ("ended_at", "emitted_at")) if isinstance(at, str)), "")
    return on_one_line(at)


def _name(type: str, data: Record, with_type: bool) -> Text:
    if type == "pipeline.wide":
        return Text(on_one_line(data.get("pipeline_name") or ""), style="bold")
    if type == "stage.wide" or with_type:
        return Text(on_one_line(data.get("stage_name") or ""))
    return Text(on_one_line(type))


def _said(type: str, data: Record) -> Text:
    """Return the reason of an event, and what the application added to it."""
    if type not in ("stage.wide", "pipeline.wide"):
        return Text(said_by(data))
    reason = data.get("reason")
    told = not reason or str(reason) in str(data.get("error"))
    said = Text("" if told else on_one_line(reason), style=QUIET)
    attributes = data.get("attributes")
    added = Text(pairs(attributes) if isinstance(attributes, dict) else "")
    return Text("  ").join(text for text in (said, added) if text)
