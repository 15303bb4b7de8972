"""Renders the state of a journal and its archive."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from ._escape import on_one_line, visible
from ._style import BAD, QUIET, Pairs, Paragraph
from ._tables import count, size

__all__ = ["draw_archive_state", "draw_journal_state", "draw_repaired", "draw_repaired_archive"]


Record = dict[str, Any]

_MAX_ROWS = 15
"""Maximum number of rows of a table: each process that ever wrote is one row."""

_WIDE, _NARROW = 90, 72
"""Minimum width for all columns of a table, and for all but the least important."""

_UNLIMITED = 10_000
"""A width at which every table has its natural width."""

_STATES = {"live": "green", "dead": BAD, "completed": "yellow", "closed": QUIET}


def draw_journal_state(state: Record, archive: RenderableType | None = None) -> RenderableType:
    """Return tables of the writers, readers and damage of a journal, and its problems.

    Args:
        state: A `JournalState` as plain values.
        archive: The result of `draw_archive_state`; it is printed before the problems.

    Example:
        Console().print(draw_journal_state(msgspec.to_builtins(Journal("journal").check())))
    """
    return _StateView(state, archive)


class _StateView:
    """The state, which is laid out when the width is known."""

    def __init__(self, state: Record, archive: RenderableType | None) -> None:
        self.state = state
        self.archive = archive

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = self.state
        yield _totals(state)
        for table in (
            _writers(state["writers"], options.max_width),
            _cursors(state["cursors"]),
            _damage(state),
            self.archive,
        ):
            if table is not None:
                yield from ("", table)
        yield from ("", _problems(state["problems"]))


def draw_repaired(repaired: Record) -> RenderableType:
    """Return a description of the repairs of a journal.

    Args:
        repaired: A `Repaired` as plain values.
    """
    done = [
        f"{len(ids):,} {_plural('run', len(ids))} of dead processes completed: {_first_ids(ids)}"
        for ids in [repaired["crashed"]]
        if ids
    ]
    for key, kind in (("torn", "torn last line"), ("broken", "damaged line")):
        if number := repaired[key]:
            done.append(f"{number:,} {_plural(kind, number)} moved to broken/")
    for moved in repaired["moved"]:
        after = f"; {moved['remedy']}" if moved["remedy"] else ""
        done.append(f"{moved['path']} was damaged and is now {moved['to']}{after}")
    if missing := repaired["missing"]:
        number = sum(gap["last"] - gap["first"] + 1 for gap in missing)
        done.append(f"{number:,} missing {_plural('segment', number)} recorded as missing")
    if ids := repaired["without_end"]:
        runs = f"{len(ids):,} {_plural('run', len(ids))}"
        done.append(f"{runs} marked as closed, because the end is damaged or missing: {_first_ids(ids)}")
    if removed := repaired["removed"]:
        done.append(f"{len(removed):,} temporary {_plural('file', len(removed))} deleted")
    if not done:
        return Text("Nothing to repair.")
    return Group(*(Paragraph(Text(f"repaired: {visible(line)}")) for line in done))


def _totals(state: Record) -> RenderableType:
    writers, deleted = state["writers"], state["deleted"]
    lines = sum(writer["lines"] for writer in writers)
    files = sum(writer["segments"] for writer in writers)
    in_progress = sum(len(writer["open_runs"]) for writer in writers if writer["state"] == "live")
    rows = (
        ("journal", on_one_line(state["path"])),
        ("content", f"{lines:,} lines, {size(state['bytes'])} in {files:,} {_plural('file', files)}"),
        ("free", size(state["free_bytes"])),
        ("runs in progress", count(in_progress) or "0"),
        ("runs completed after a crash", count(state["crashed"]) or "0"),
        ("deleted after archiving, or to free space", _deleted(deleted)),
        ("kept in broken/", count(state["quarantined"])),
    )
    return Pairs([(label, Text(value)) for label, value in rows if value])


def _deleted(deleted: Record) -> str:
    if not deleted["lines"]:
        return ""
    unread = f", {deleted['unread']:,} files before every reader had read them" if deleted["unread"] else ""
    return f"{deleted['lines']:,} lines, {size(deleted['bytes'])}{unread}"


def _writers(writers: Sequence[Record], width: int) -> RenderableType | None:
    if not writers:
        return None
    # Omitted on a narrow terminal; the name contains the pid as well.
    omitted = {"pid", "files"} if width < _WIDE else set()
    omitted |= {"size"} if width < _NARROW else set()
    headings = [name for name in ("state", "pid", "files", "size", "lines", "open") if name not in omitted]
    table = _Listing(["writer", *headings], left={"state"})
    # Live and dead writers first, then the newest of the others.
    first = [writer for writer in writers if writer["state"] in ("live", "dead")]
    ordered = [*first[::-1], *(writer for writer in writers[::-1] if writer not in first)]
    for writer in ordered:
        cells: dict[str, str | Text] = {
            "state": Text(writer["state"], style=_STATES.get(writer["state"], "")),
            "pid": str(writer["pid"]),
            "files": count(writer["segments"]),
            "size": size(writer["bytes"]),
            "lines": count(writer["lines"]),
            "open": count(len(writer["open_runs"])),
        }
        table.add(on_one_line(writer["name"]), *(cells[heading] for heading in headings))
    return table


def _cursors(cursors: Sequence[Record]) -> RenderableType | None:
    if not cursors:
        return None
    table = _Listing(["reader", "active", "behind", "events", "broken", "torn", "files missed"])
    for cursor in cursors:
        missed = Text(count(cursor["missed"]), style=BAD)
        numbers = [count(cursor[key]) for key in ("events", "broken", "torn")]
        active = "yes" if cursor["active"] else "no"
        table.add(on_one_line(cursor["name"]), active, size(cursor["behind_bytes"]), *numbers, missed)
    return table


def _damage(state: Record) -> RenderableType | None:
    damaged = [(kind, damage) for kind in ("torn", "broken") for damage in state[kind]]
    if not damaged:
        return None
    table = _Listing(["damaged", "kind", "at byte", "bytes"], left={"kind"})
    for kind, damage in damaged:
        name = on_one_line(damage["path"].rpartition("/")[2])
        table.add(name, Text(kind, style=BAD), str(damage["offset"]), count(damage["bytes"]))
    return table


def _problems(problems: Sequence[str]) -> RenderableType:
    if not problems:
        return Text("No problems found.", style="green")
    return Group(
        Text("Needs attention:", style=BAD),
        *(Paragraph(Text(visible(problem), style=BAD), "  - ") for problem in problems),
    )


class _Listing:
    """A table whose first column is never truncated: if it does not fit, names are on separate lines.

    Args:
        headings: Headings of all columns.
        left: Headings of columns that are aligned to the left, in addition to the first one.
    """

    def __init__(self, headings: Sequence[str], left: Iterable[str] = ()) -> None:
        self._headings = headings
        self._left = {headings[0], *left}
        self._rows: list[Sequence[str | Text]] = []

    def add(self, *cells: str | Text) -> None:
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
        for heading in self._headings:
            table.add_column(heading, justify="left" if heading in self._left else "right", no_wrap=True)
        shown, more = self._rows[:_MAX_ROWS], len(self._rows) - _MAX_ROWS
        for row in shown:
            table.add_row(*row)
        if Measurement.get(console, options.update(max_width=_UNLIMITED), table).minimum <= options.max_width:
            yield table
        else:
            yield Text(self._headings[0], style=QUIET)
            for name, *cells in shown:
                yield Paragraph(Text.assemble(name), "  ")
                labeled = zip(self._headings[1:], cells, strict=True)
                parts = [Text.assemble((f"{heading} ", QUIET), cell) for heading, cell in labeled if cell]
                yield Paragraph(Text("   ").join(parts), "      ")
        if more > 0:
            yield Text(f"and {more:,} more", style=QUIET)


def _first_ids(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_MAX_ROWS]) + (", ..." if len(ids) > _MAX_ROWS else "")


def _plural(word: str, number: int) -> str:
    return word if number == 1 else f"{word}s"


def draw_archive_state(state: Record) -> RenderableType:
    """Return one or two lines about an archive; the journal's list of problems includes those of the archive.

    Args:
        state: An `ArchiveState` as plain values.
    """
    unknown = state["without_checksum"]
    checked = "" if unknown and unknown == state["files"] else "every checksum matches"
    if damaged := [file["path"] for file in state["damaged"]]:
        data_files = sum(not os.path.isabs(path) for path in damaged)  # the others have absolute paths
        checked = f"{data_files:,} damaged or missing" if data_files else checked
        if others := len(damaged) - data_files:
            checked += f"; {others:,} {_plural('file', others)} of its log or state damaged or missing"
    if unknown:
        checked += f"{checked and '; '}no checksum is recorded for {unknown:,} of them"
    content = f"{state['files']:,} {_plural('file', state['files'])}, {size(state['bytes'])}"
    line = f"archive {on_one_line(state['address'])}: {content}; {checked}"
    if sampling := state["sampling"]:
        runs = sampling["kept"] + sampling["sampled_out"]
        line += f"; {sampling['sampled_out']:,} of {runs:,} {_plural('run', runs)} sampled out"
    if moved := state["quarantined"]:
        line += f"; {len(moved):,} {_plural('file', len(moved))} moved to _stageflow/"
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
    lines = [f"repaired: {on_one_line(path)} moved to _stageflow/" for path in repaired["quarantined"]]
    lines += [
        f"repaired: {on_one_line(path)} is intact and part of the archive again"
        for path in repaired["restored"]
    ]
    lines += [
        f"repaired: {on_one_line(file['path'])} {file['problem']};"
        f" the archive no longer has its {file['rows']:,} {_plural('row', file['rows'])}"
        for file in repaired["removed"]
    ]
    return Paragraph(Text("\n".join(lines)))
