"""The commands `runs` and `show`."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..journal import RunFilter
from ..render import OUTCOMES, STATUSES, draw_run, draw_runs
from ._options import (
    ArchiveOption,
    IdOption,
    JournalOption,
    PipelineOption,
    SinceOption,
    UntilOption,
    VerifyOption,
    json_option,
    open_records,
    stage_option,
    status_option,
)
from ._output import is_interactive, open_terminal, print_json, print_page, print_text, room

__all__ = ["runs", "show"]


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            help="Id of the run, or a beginning of it that no other has; default `last`.",
        ),
    ] = "last",
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[
        bool,
        json_option("One JSON object: run, stages, events (type and data), children."),
    ] = False,
) -> None:
    """Tell all about one run: when each stage waited and ran, what it said, what went wrong.

    Of a run under way it shows what is known so far. Times are in UTC.

    - `stageflow show`

    - `stageflow show 01a20a3d-5320-7a04`

    - `stageflow show last --json | jq .stages`
    """
    if not run:
        raise typer.BadParameter("an empty id names no run", param_hint="RUN")
    with open_records(journal, archive, verify=verify) as records:
        story = records.run(run)
    if as_json:
        told = {
            "run": story.run,
            "stages": story.stages,
            "events": [{"type": type, "data": data} for type, data in story.events],
            "children": story.children,
        }
        print_json(msgspec.json.encode(told))
        return
    terminal = open_terminal()
    width = None if is_interactive(terminal) else terminal.width
    picture = draw_run(story.run, story.stages, events=story.events, children=story.children, width=width)
    print_page(terminal, picture)


_OUTCOMES = [outcome for outcome in OUTCOMES if outcome != "closed"]
"""All that a list of runs can have; "closed" is told of a single one."""

_USUALLY = 20

_OF_STAGES = [status for status in STATUSES if status != "RETRY"]


def runs(
    journal: JournalOption = None,
    status: Annotated[
        str | None,
        status_option(
            "OK",
            "FAIL",
            *_OUTCOMES,
            says=f"Only with this status (OK, FAIL) or outcome ({', '.join(_OUTCOMES)}).",
        ),
    ] = None,
    pipeline: PipelineOption = None,
    stage: Annotated[
        str | None,
        stage_option(
            *_OF_STAGES, says="Only with this stage; with a status, only where it ended so: search:FAIL."
        ),
    ] = None,
    any_id: IdOption = None,
    slower_than: Annotated[
        float | None,
        typer.Option(metavar="MS", min=0, show_default=False, help="Only what took more milliseconds."),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    roots: Annotated[
        bool, typer.Option("--roots", help="Only root runs, not those that a stage of another run started.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", show_default=False, help="How many at most; 0 for all; default 20."),
    ] = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[bool, json_option("The full data of each run, one JSON object a line.")] = False,
) -> None:
    """List runs, those that began last first, also those under way.

    Times are in UTC. Where the terminal is narrow, a run's id is cut to a beginning that `stageflow show`
    takes. Runs whose process died read `crashed`.

    - `stageflow runs --status FAIL --since 2h`

    - `stageflow runs --stage search:FAIL --limit 0 --json | jq -r .error`

    - `stageflow runs --id u-7 --slower-than 500`

    - `stageflow runs --roots`
    """
    where = RunFilter(
        status=status,
        pipeline=pipeline,
        stage=stage,
        id=any_id,
        slower_than=None if slower_than is None else slower_than / 1000,
        since=since,
        until=until,
        roots=roots,
    )
    # One more than is shown, to know whether there are more.
    most = _USUALLY if limit is None else limit
    with open_records(journal, archive, verify=verify) as records:
        found = records.runs(where, limit=most + 1 if most else None)
    shown = found[:most] if most else found
    if as_json:
        print_json(*map(msgspec.json.encode, shown))
    elif shown:
        terminal = open_terminal()
        print_page(terminal, draw_runs(shown, width=room(terminal)))
    else:
        fits = "that fits" if where != RunFilter() else "yet"
        print_text(f"There is no run {fits} in {records.path or archive}.", err=True)
    if limit is None and len(found) > len(shown):
        # Not into the output: that may be counted, or read by another program.
        print_text(f"These are the newest {most}; --limit shows more, --limit 0 all.", err=True)
