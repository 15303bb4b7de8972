"""Renders the status of exporters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .._quantities import duration
from ._escape import on_one_line, visible
from ._style import BAD, QUIET, Paragraph
from ._tables import count

__all__ = ["draw_export_status"]


Record = dict[str, Any]

_COUNTS = ("sent", "rejected", "waiting", "missed", "failures")


def draw_export_status(exporters: Sequence[Record]) -> RenderableType:
    """Return the lag and the counters of each exporter, and its last error.

    Args:
        exporters: Each an `ExportStatus` as plain values.

    Example:
        Console().print(draw_export_status(msgspec.to_builtins(export_status("journal"))))
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    table.add_column("exporter", overflow="fold")
    table.add_column("state", overflow="fold")
    for heading in ("lag", "oldest", *_COUNTS):
        table.add_column(heading, overflow="fold", justify="right")
    for exporter in exporters:
        table.add_row(
            on_one_line(exporter["name"]),
            _state(exporter),
            count(exporter["lag_events"]) or "0",
            duration(exporter["lag_seconds"] * 1000) if exporter["lag_events"] else "",
            *(count(exporter[name]) or "0" for name in _COUNTS),
        )
    notes = [Paragraph(note) for exporter in exporters for note in _notes(exporter)]
    return Group(table, "", *notes) if notes else table


def _state(exporter: Record) -> Text:
    if exporter["circuit"] == "open":
        return Text("failing", style=BAD)
    if exporter["retry_at"] is not None:
        return Text("retrying", style="yellow")
    return Text("active", style="green") if exporter["active"] else Text("stopped", style=QUIET)


def _notes(exporter: Record) -> Sequence[Text]:
    name = on_one_line(exporter["name"])
    notes = [Text(f"{name} -> {visible(exporter['target'])}", style=QUIET)]
    if exporter["sampled_out"]:
        notes.append(Text(f"{exporter['sampled_out']:,} events of {name} were sampled out, not lost"))
    if exporter["skipped"]:
        notes.append(
            Text(f"{exporter['skipped']:,} events were archived or deleted before {name} first started")
        )
    if exporter["backfill_left"]:
        notes.append(Text(f"{exporter['backfill_left']:,} archived events are not exported yet by {name}"))
    if exporter["expired"]:
        notes.append(Text(f"{exporter['expired']:,} rejected events of {name} expired", style=BAD))
    if exporter["last_error"] is not None:
        at = f"{exporter['failed_at'][:19].replace('T', ' ')}Z" if exporter["failed_at"] else ""
        style = BAD if exporter["retry_at"] is not None else QUIET
        notes.append(Text(f"last error of {name} ({at}): {visible(exporter['last_error'])}", style=style))
    return notes
