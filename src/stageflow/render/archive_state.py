"""The state of an archive: its size, and its damaged files."""

from __future__ import annotations

import os
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from .figures import size
from .foreign import on_one_line
from .wrap import Paragraph

__all__ = ["draw_archive_state", "draw_repaired_archive"]

Record = dict[str, Any]


def draw_archive_state(state: Record) -> RenderableType:
    """Return one or two lines about an archive; the journal's list of problems includes those of the archive.

    Args:
        state: An `ArchiveState` as plain values.
    """
    unknown = state["without_checksum"]
    checked = "" if unknown and unknown == state["files"] else "every checksum matches"
    if damaged := [file["path"] for file in state["damaged"]]:
        of_events = sum(not os.path.isabs(path) for path in damaged)  # the others by their whole path
        checked = f"{of_events:,} damaged or missing" if of_events else checked
        if others := len(damaged) - of_events:
            checked += f"; {others:,} {_plural('file', others)} of its log or state damaged or missing"
    if unknown:
        checked += f"{checked and '; '}no checksum is recorded for {unknown:,} of them"
    held = f"{state['files']:,} {_plural('file', state['files'])}, {size(state['bytes'])}"
    line = f"archive {on_one_line(state['address'])}: {held}; {checked}"
    if aside := state["set_aside"]:
        line += f"; {len(aside):,} {_plural('file', len(aside))} set aside in _stageflow/"
    if lost := state["lost"]:
        rows = sum(file["rows"] for file in lost)
        line += (
            f"; {rows:,} {_plural('row', rows)} of {len(lost):,} damaged or missing"
            f" {_plural('file', len(lost))} lost (_stageflow/lost.json)"
        )
    return Paragraph(Text(line))


def draw_repaired_archive(repaired: Record) -> RenderableType:
    """Return a description of the repairs of an archive.

    Args:
        repaired: A `RepairedArchive` as plain values.
    """
    lines = [f"repaired: {on_one_line(path)} set aside" for path in repaired["set_aside"]]
    lines += [
        f"repaired: {on_one_line(path)} is intact, and in the archive again" for path in repaired["restored"]
    ]
    lines += [
        f"repaired: {on_one_line(file['path'])} {file['problem']};"
        f" the archive no longer has its {file['rows']:,} {_plural('row', file['rows'])}"
        for file in repaired["removed"]
    ]
    return Paragraph(Text("\n".join(lines)))


def _plural(word: str, many: int) -> str:
    return word if many == 1 else f"{word}s"
