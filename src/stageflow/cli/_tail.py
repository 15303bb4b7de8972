"""The `tail` command."""

from __future__ import annotations

import contextlib
import select
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
import typer

from ..errors import DamagedFileError
from ..journal import Entry, Journal, JournalReader, RunFilter, newest_entries
from ..render import OUTCOMES, STATUSES, EventLines
from ..store import has_archive
from ._options import (
    EventFilter,
    IdOption,
    JournalOption,
    PipelineOption,
    describe_empty,
    find_journal,
    hint_with_journal,
    json_option,
    stage_option,
    status_option,
)
from ._output import open_terminal, print_json, print_text, width_of

__all__ = ["tail"]


_STATUSES = [status for status in STATUSES if status != "OPEN"]

_OUTCOMES = [outcome for outcome in OUTCOMES if outcome not in ("open", "closed")]

_BATCH = 1000

_POLL_SECONDS = 1.0
"""How often `tail -f` checks whether the reader of its output is still there."""


def tail(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Keep printing new events until you press Ctrl-C.")
    ] = False,
    lines: Annotated[int, typer.Option("-n", min=0, metavar="N", help="Number of past events to show.")] = 10,
    journal: JournalOption = None,
    type: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            show_default=False,
            help="Only this type: stage.wide, pipeline.wide or a custom one.",
        ),
    ] = None,
    status: Annotated[
        str | None,
        status_option(*_STATUSES, *_OUTCOMES, description="Only this status, or runs with this outcome."),
    ] = None,
    pipeline: PipelineOption = None,
    stage: Annotated[
        str | None,
        stage_option(
            *_STATUSES, description="Only this stage; search:RETRY selects its events with this status."
        ),
    ] = None,
    any_id: IdOption = None,
    as_json: Annotated[bool, json_option("Print one JSON object per event, with type and data.")] = False,
) -> None:
    """Show the newest events, one per line; with -f, keep printing new events until you press Ctrl-C.

    Times are in UTC and show when a stage or run ended, or when a custom event was emitted.

    - `stageflow tail -f --status FAIL`

    - `stageflow tail -n 100 --stage search:RETRY`

    - `stageflow tail -f -n 0 --json | jq -r '.data.error // empty'`
    """
    filter = EventFilter(type=type, status=status, pipeline=pipeline, stage=stage, id=any_id)
    source = find_journal(journal)
    with contextlib.suppress(OSError):  # without write access, the journal is shown as it is
        source.recover()
    # Created first: events that arrive during the search for the newest ones are found twice, not lost.
    reader = source.reader(at_end=True) if follow else None
    newest = newest_entries(
        source.path, lines, lambda entry: filter.matches(entry.type, _data(entry)), filter.may_match
    )
    write = _print_entries if as_json else _line_printer()
    write(newest)
    if lines and not newest and (empty := _describe_unknown(source, pipeline, stage)):
        print_text(empty, err=True)
    if len(newest) < lines:
        _report_removed(source)
    if reader is not None:
        _follow(reader, filter, write, {entry.json for entry in newest})


def _describe_unknown(journal: Journal, pipeline: str | None, stage: str | None) -> str:
    return describe_empty(journal, RunFilter(pipeline=pipeline, stage=stage), "")


def _report_removed(journal: Journal) -> None:
    """Report older events that are not in the journal, because `tail` reads only the journal."""
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
    reader: JournalReader, filter: EventFilter, write: Callable[[Iterable[Entry]], None], shown: set[bytes]
) -> None:
    while not _output_is_closed():
        found = reader.read(_BATCH, timeout=_POLL_SECONDS)
        matching = (entry for entry in found if filter.matches(entry.type, _data(entry)))
        write(entry for entry in matching if entry.json not in shown)
        if len(found) < _BATCH:
            shown = set()  # all later events are new


def _print_entries(entries: Iterable[Entry]) -> None:
    for entry in entries:
        print_json(b'{"type":%b,"data":%b}' % (msgspec.json.encode(entry.type), entry.json))


def _line_printer() -> Callable[[Iterable[Entry]], None]:
    terminal = open_terminal()
    lines = EventLines(width_of(terminal))

    def write(entries: Iterable[Entry]) -> None:
        for line in lines.draw((entry.type, _data(entry)) for entry in entries):
            terminal.print(line, soft_wrap=True)
        sys.stdout.flush()

    return write


def _data(entry: Entry) -> dict[str, Any]:
    try:
        return entry.data() or {}
    except msgspec.DecodeError:  # an application can pass anything to a sink
        return {}


def _output_is_closed() -> bool:
    """Return whether the reader of the pipe has closed it; a write would raise, but there is none to do."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # POLLERR and POLLHUP are always reported
        # macOS reports that it cannot poll certain terminals: that does not mean that they are closed.
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
