"""`stageflow tail`: the newest events, and those to come."""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
import typer

from ..errors import DamagedFileError
from ..journal import Entry, Journal, JournalReader, newest_entries
from ..render import OUTCOMES, STATUSES, EventLines
from ..store import has_archive
from ._options import (
    EventFilter,
    IdOption,
    JournalOption,
    PipelineOption,
    find_journal,
    hint_with_journal,
    json_option,
    stage_option,
    status_option,
)
from ._output import open_terminal, print_json, print_text, room

__all__ = ["tail"]


_STATUSES = [status for status in STATUSES if status != "OPEN"]

_OUTCOMES = [outcome for outcome in OUTCOMES if outcome not in ("open", "closed")]

_AT_ONCE = 1000

_LOOK_SECONDS = 1.0
"""How often a tail that follows looks whether anybody still reads what it writes."""


def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with events as they come.")] = False,
    lines: Annotated[int, typer.Option("-n", min=0, metavar="N", help="How many that are there.")] = 10,
    journal: JournalOption = None,
    type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            show_default=False,
            help="Only of this type: stage.wide, pipeline.wide, or your own.",
        ),
    ] = None,
    status: Annotated[
        str | None,
        status_option(*_STATUSES, *_OUTCOMES, says="Only with this status, or of runs with this outcome."),
    ] = None,
    pipeline: PipelineOption = None,
    stage: Annotated[
        str | None,
        stage_option(
            *_STATUSES, says="Only of this stage; with a status, only its events that say so: search:RETRY."
        ),
    ] = None,
    any_id: IdOption = None,
    as_json: Annotated[
        bool, json_option("Each event as the journal has it: an object with type and data.")
    ] = False,
) -> None:
    """Show the newest events, a line each, and with -f those to come until Ctrl-C.

    Times are in UTC: when a stage or run ended, when an event of its own was emitted.

    - `stageflow tail -f --status FAIL`

    - `stageflow tail -n 100 --stage search:RETRY`

    - `stageflow tail -f -n 0 --json | jq -r '.data.error // empty'`
    """
    where = EventFilter(type=type, status=status, pipeline=pipeline, stage=stage, id=any_id)
    looked_into = find_journal(journal)
    with contextlib.suppress(OSError):  # who may only read sees the journal as it stands
        looked_into.recover()
    # Made first: what comes while the newest are looked for is seen by both, and lost by none.
    reader = looked_into.reader(at_end=True) if follow else None
    newest = newest_entries(
        looked_into.path, lines, lambda entry: where.takes(entry.type, _data(entry)), where.may_take
    )
    write = _print_entries if as_json else _in_lines()
    write(newest)
    if len(newest) < lines:
        _report_removed(looked_into)
    if reader is not None:
        _follow(reader, where, write, {entry.json for entry in newest})


def _report_removed(journal: Journal) -> None:
    """Report the events that precede those of the journal: `tail` reads the journal only."""
    with journal.reader() as reader:
        removed = reader.removed_events
    if not removed:
        return
    older = f"{removed:,} older event{'s' * (removed != 1)}"
    are, were = ("is", "was") if removed == 1 else ("are", "were")
    archived = True
    with contextlib.suppress(DamagedFileError):
        archived = has_archive(journal.path)
    if archived:
        query = "`stageflow query 'from events order by ended_at desc'`"
        text = f"{older} {are} in the archive only; {query} shows archived events"
        print_text(hint_with_journal(text), err=True)
    else:
        print_text(f"{older} {were} deleted to make room in the journal", err=True)


def _follow(
    reader: JournalReader, where: EventFilter, write: Callable[[Iterable[Entry]], None], shown: set[bytes]
) -> None:
    while not _nobody_reads():
        found = reader.read(_AT_ONCE, timeout=_LOOK_SECONDS)
        fitting = (entry for entry in found if where.takes(entry.type, _data(entry)))
        write(entry for entry in fitting if entry.json not in shown)
        if len(found) < _AT_ONCE:
            shown = set()  # whatever comes now was not there yet


def _print_entries(entries: Iterable[Entry]) -> None:
    for entry in entries:
        print_json(b'{"type":%b,"data":%b}' % (msgspec.json.encode(entry.type), entry.json))


def _in_lines() -> Callable[[Iterable[Entry]], None]:
    terminal = open_terminal()
    lines = EventLines(room(terminal))

    def write(entries: Iterable[Entry]) -> None:
        for line in lines.draw((entry.type, _data(entry)) for entry in entries):
            terminal.print(line, soft_wrap=True)
        sys.stdout.flush()

    return write


def _data(entry: Entry) -> dict[str, Any]:
    try:
        return entry.data() or {}
    except msgspec.DecodeError:  # an application may hand a sink whatever it likes
        return {}


def _nobody_reads() -> bool:
    """Tell whether the other end of the pipe was closed: with nothing to write, nothing else says so."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are told without being asked for
        # macOS says of some terminals that it cannot poll them: that is no hang-up.
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
