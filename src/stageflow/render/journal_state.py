"""The state of a journal: who writes it, who reads it, what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .figures import count, size
from .foreign import on_one_line, visible
from .palette import BAD, QUIET

__all__ = ["draw_journal_state", "draw_repaired"]

Record = dict[str, Any]

_MOST = 15
"""Rows of a table: every process that ever wrote is one."""

_WIDE, _NARROW = 90, 72
"""Columns from which on there is room for all of a table, and below which for little."""

_STATES = {"live": "green", "dead": BAD, "completed": "yellow", "closed": QUIET}


def draw_journal_state(state: Record, archive: RenderableType | None = None) -> RenderableType:
    """Return tables of a journal's writers, readers and damages, and what should be seen to.

    Args:
        state: A `JournalState`, as plain values.
        archive: What `draw_archive_state` returned; it is printed before the problems.

    Example:
        Console().print(draw_journal_state(msgspec.to_builtins(Journal("journal").check())))
    """
    return _Told(state, archive)


class _Told:
    """The state, laid out when the width is known."""

    def __init__(self, state: Record, archive: RenderableType | None) -> None:
        self.state = state
        self.archive = archive

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        state = self.state
        yield _totals(state)
        for table in (
            _writers(state["writers"], options.max_width),
            _cursors(state["cursors"]),
            _damages(state),
            self.archive,
        ):
            if table is not None:
                yield from ("", table)
        yield from ("", _problems(state["problems"]))


def draw_repaired(repaired: Record) -> RenderableType:
    """Return what a repair did.

    Args:
        repaired: A `Repaired`, as plain values.
    """
    done = [
        f"{len(ids):,} {_plural('run', len(ids))} of dead processes completed: {_some(ids)}"
        for ids in [repaired["crashed"]]
        if ids
    ]
    for key, what in (("torn", "torn last line"), ("broken", "damaged line")):
        if many := repaired[key]:
            done.append(f"{many:,} {_plural(what, many)} taken out and kept in broken/")
    for moved in repaired["moved"]:
        after = f"; {moved['remedy']}" if moved["remedy"] else ""
        done.append(f"{moved['path']} was damaged and is now {moved['to']}{after}")
    if missing := repaired["missing"]:
        many = sum(gap["last"] - gap["first"] + 1 for gap in missing)
        done.append(f"{many:,} missing {_plural('segment', many)} recorded as missing")
    if ids := repaired["without_end"]:
        runs = f"{len(ids):,} {_plural('run', len(ids))}"
        done.append(f"{runs} marked as closed, because the end is damaged or missing: {_some(ids)}")
    if removed := repaired["removed"]:
        done.append(f"{len(removed):,} left-over {_plural('file', len(removed))} removed")
    return Text("\n".join(f"repaired: {visible(line)}" for line in done) or "There was nothing to repair.")


def _totals(state: Record) -> RenderableType:
    writers, deleted = state["writers"], state["deleted"]
    lines = sum(writer["lines"] for writer in writers)
    files = sum(writer["segments"] for writer in writers)
    under_way = sum(len(writer["open_runs"]) for writer in writers if writer["state"] == "live")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style=QUIET)
    grid.add_column(overflow="fold")
    for label, value in (
        ("journal", on_one_line(state["path"])),
        ("has", f"{lines:,} lines, {size(state['bytes'])} in {files:,} {_plural('file', files)}"),
        ("free", size(state["free_bytes"])),
        ("runs under way", count(under_way) or "0"),
        ("runs completed after a crash", count(state["crashed"]) or "0"),
        ("removed when archived, or to make room", _deleted(deleted)),
        ("kept aside in broken/", count(state["kept_aside"])),
    ):
        if value:
            grid.add_row(label, Text(value))
    return grid


def _deleted(deleted: Record) -> str:
    if not deleted["lines"]:
        return ""
    unread = f", {deleted['unread']:,} files before every reader had read them" if deleted["unread"] else ""
    return f"{deleted['lines']:,} lines, {size(deleted['bytes'])}{unread}"


def _writers(writers: Sequence[Record], width: int) -> Table | None:
    if not writers:
        return None
    # What a narrow terminal has no room for: the pid stands in the name as well.
    left_out = {"pid", "files"} if width < _WIDE else set()
    left_out |= {"size"} if width < _NARROW else set()
    headings = [name for name in ("state", "pid", "files", "size", "lines", "open") if name not in left_out]
    table = _table("writer", headings, left={"state"})
    # Those that matter now, then the newest of the others.
    matter = [writer for writer in writers if writer["state"] in ("live", "dead")]
    ordered = [*matter[::-1], *(writer for writer in writers[::-1] if writer not in matter)]
    for writer in ordered[:_MOST]:
        cells: dict[str, str | Text] = {
            "state": Text(writer["state"], style=_STATES.get(writer["state"], "")),
            "pid": str(writer["pid"]),
            "files": count(writer["segments"]),
            "size": size(writer["bytes"]),
            "lines": count(writer["lines"]),
            "open": count(len(writer["open_runs"])),
        }
        table.add_row(on_one_line(writer["name"]), *(cells[heading] for heading in headings))
    _and_more(table, ordered)
    return table


def _cursors(cursors: Sequence[Record]) -> Table | None:
    if not cursors:
        return None
    table = _table("reader", ("at work", "behind", "events", "broken", "torn", "files missed"))
    for cursor in cursors[:_MOST]:
        missed = Text(count(cursor["missed"]), style=BAD)
        figures = [count(cursor[key]) for key in ("events", "broken", "torn")]
        at_work = "yes" if cursor["at_work"] else "no"
        table.add_row(on_one_line(cursor["name"]), at_work, size(cursor["behind_bytes"]), *figures, missed)
    _and_more(table, cursors)
    return table


def _damages(state: Record) -> Table | None:
    damages = [(kind, damage) for kind in ("torn", "broken") for damage in state[kind]]
    if not damages:
        return None
    table = _table("damaged", ("kind", "at byte", "bytes"), left={"kind"})
    for kind, damage in damages[:_MOST]:
        name = on_one_line(damage["path"].rpartition("/")[2])
        table.add_row(name, Text(kind, style=BAD), str(damage["offset"]), count(damage["bytes"]))
    _and_more(table, damages)
    return table


def _problems(problems: Sequence[str]) -> RenderableType:
    if not problems:
        return Text("All is well.", style="green")
    grid = Table.grid()
    for problem in problems:
        grid.add_row(Text("- ", style=BAD), Text(visible(problem), style=BAD))
    return Group(Text("To be seen to:", style=BAD), Padding(grid, (0, 0, 0, 2)))


def _table(first: str, headings: Iterable[str], left: Iterable[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style=QUIET)
    table.add_column(first, no_wrap=True, overflow="ellipsis", min_width=10)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    return table


def _and_more(table: Table, rows: Sequence[object]) -> None:
    if (more := len(rows) - _MOST) > 0:
        table.add_row(Text(f"and {more:,} more", style=QUIET))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_MOST]) + (", ..." if len(ids) > _MOST else "")


def _plural(word: str, many: int) -> str:
    return word if many == 1 else f"{word}s"
