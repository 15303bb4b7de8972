"""The state of an archive: its size, and its damaged files."""

from __future__ import annotations

from typing import Any

from rich.console import RenderableType
from rich.text import Text

from .figures import size
from .foreign import on_one_line

__all__ = ["draw_archive_state", "draw_repaired_archive"]

Record = dict[str, Any]


def draw_archive_state(state: Record) -> RenderableType:
    """Return one or two lines about an archive; the journal's list of problems includes those of the archive.

    Args:
        state: An `ArchiveState` as plain values.
    """
    unknown = state["without_checksum"]
    checked = "" if unknown and unknown == state["files"] else "every checksum matches"
    if state["damaged"]:
        checked = f"{len(state['damaged']):,} damaged"
    if unknown:
        checked += f"{checked and '; '}no checksum is recorded for {unknown:,} of them"
    held = f"{state['files']:,} files, {size(state['bytes'])}"
    line = f"archive {on_one_line(state['address'])}: {held}; {checked}"
    if aside := state["set_aside"]:
        line += f"; {len(aside):,} files moved to _stageflow/"
    return Text(line)


def draw_repaired_archive(repaired: Record) -> RenderableType:
    """Return a description of the repairs of an archive.

    Args:
        repaired: A `RepairedArchive` as plain values.
    """
    lines = [f"repaired: {on_one_line(path)} set aside" for path in repaired["set_aside"]]
    if rows := repaired["lost_rows"]:
        lines.append(f"repaired: {rows:,} rows in damaged files are no longer in the archive")
    return Text("\n".join(lines))
