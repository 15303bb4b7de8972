"""The commands `runs` and `show`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from ..errors import RunNotFoundError
from ..journal import RunFilter, RunRecord
from ..render import OUTCOMES, STATUSES, draw_run, draw_runs, shown_child_runs
from ._options import (
    ArchiveOption,
    HtmlOption,
    IdOption,
    JournalOption,
    PipelineOption,
    SinceOption,
    UntilOption,
    VerifyOption,
    WhereOption,
    as_filter,
    describe_empty,
    id_option,
    json_option,
    open_records,
    open_store,
    pinned_store,
    span_option,
    stage_option,
    status_option,
)
from ._output import is_interactive, open_terminal, print_json, print_page, print_text, width_of

__all__ = ["runs", "show"]


_OUTCOMES = [outcome for outcome in OUTCOMES if outcome != "closed"]
"""The outcomes in a list of runs; only `show` reports "closed"."""

_STAGE_STATUSES = [status for status in STATUSES if status != "RETRY"]

_DEFAULT_LIMIT = 20

_MAX_LEVELS = 3
"""Maximum number of levels of child runs that `show` reads."""

_MAX_NESTED = 40
"""Maximum number of child runs that `show` reads: each is a separate search."""


def show(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            show_default=False,
            help="Run id or a unique prefix of it, or the id of a request, session, user or org."
            " Defaults to `last`.",
        ),
    ] = "last",
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[
        bool,
        json_option("Print one JSON object: run, stages, events (type and data), children."),
    ] = False,
    html: HtmlOption = None,
) -> None:
    """Show one run in full: its stages over time, their attributes and errors, and its custom events.

    For a run in progress, the command shows what is known so far. Times are in UTC.

    - `stageflow show`

    - `stageflow show 01a20a3d-5320-7a04`

    - `stageflow show req-597`

    - `stageflow show last --json | jq .stages`
    """
    if not run:
        raise typer.BadParameter("the id is empty; is a shell variable unset?", param_hint="RUN")
    if html is not None:
        _save(run, journal, archive, html)
        return
    with open_records(journal, archive, verify=verify) as records:
        story = records.run(run)
        nested = {} if as_json else _nested_runs(records, story)
    if as_json:
        record = {
            "run": story.run,
            "stages": story.stages,
            "events": [{"type": type, "data": data} for type, data in story.events],
            "children": story.children,
        }
        print_json(msgspec.json.encode(record))
        return
    terminal = open_terminal()
    width = None if is_interactive(terminal) else terminal.width
    drawing = draw_run(
        story.run,
        story.stages,
        events=story.events,
        children=story.children,
        nested={run_id: (child.run, child.stages) for run_id, child in nested.items()},
        width=width,
    )
    print_page(terminal, drawing)


def _save(run: str, journal: Path | None, archive: str | None, file: Path) -> None:
    from ..ui import run_as_html

    with pinned_store(journal, archive) as store:
        file.write_bytes(run_as_html(store, run))
    print_text(f"Saved {file}")


def _nested_runs(records: Any, story: RunRecord) -> dict[str, RunRecord]:
    """Return the records of the runs below a run that its waterfall shows, by run id."""
    found: dict[str, RunRecord] = {}
    level = [story]
    for _ in range(_MAX_LEVELS):
        ids = [
            run_id
            for parent in level
            for stage in [*parent.stages, *parent.run.get("stages_running", ())]
            if stage.get("status") != "RETRY"
            for _, run_id in shown_child_runs(stage)
        ]
        level = []
        for run_id in ids[: _MAX_NESTED - len(found)]:
            with contextlib.suppress(RunNotFoundError):  # retention may have deleted it
                child = found[run_id] = records.run(run_id)
                level.append(child)
    return found


def runs(
    journal: JournalOption = None,
    status: Annotated[
        str | None,
        status_option(
            "OK",
            "FAIL",
            *_OUTCOMES,
            description=f"Only this status (OK, FAIL) or outcome ({', '.join(_OUTCOMES)}).",
        ),
    ] = None,
    pipeline: PipelineOption = None,
    stage: Annotated[
        str | None,
        stage_option(
            *_STAGE_STATUSES,
            description="Only runs with this stage; search:FAIL selects runs in which it has this status.",
        ),
    ] = None,
    any_id: IdOption = None,
    request: Annotated[str | None, id_option("request")] = None,
    session: Annotated[str | None, id_option("session")] = None,
    user: Annotated[str | None, id_option("user")] = None,
    org: Annotated[str | None, id_option("org")] = None,
    where: WhereOption = None,
    slower_than: Annotated[
        Any,
        span_option(
            "--slower-than",
            "ms",
            description="Only runs that took longer than this: 500ms, 2s, 1m.",
            from_zero=True,
        ),
    ] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    roots: Annotated[
        bool, typer.Option("--roots", help="Only root runs, not those that a stage of another run started.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            show_default=False,
            help=f"Maximum number of runs; 0 for all. Defaults to {_DEFAULT_LIMIT}.",
        ),
    ] = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[
        bool, json_option("Print the full data of each run, one JSON object per line.")
    ] = False,
) -> None:
    """List runs, newest first, including runs in progress.

    Times are in UTC. On a narrow terminal, the id of a run is shortened to a prefix that `stageflow show`
    accepts. Runs whose process died have the outcome `crashed`. `--where` excludes runs in progress.

    - `stageflow runs --status FAIL --since 2h`

    - `stageflow runs --stage search:FAIL --limit 0 --json | jq -r .error`

    - `stageflow runs --user u-7 --slower-than 500ms`

    - `stageflow runs --where "service_version = '1.5' and stages_failed > 1"`
    """
    filter = as_filter(
        status=status,
        pipeline=pipeline,
        stage=stage,
        id=any_id,
        request=request,
        session=session,
        user=user,
        org=org,
        slower_than=slower_than,
        since=since,
        until=until,
        roots=roots,
    )
    maximum = _DEFAULT_LIMIT if limit is None else limit
    # Request an additional run, to detect whether there are more than are shown.
    requested = maximum + 1 if maximum else None
    if where is not None:
        with open_store(journal, archive, verify=verify) as store:
            found = store.runs(filter, where=where, limit=requested)
            empty = _describe_empty(store, filter, where, store.path or archive) if not found else ""
    else:
        with open_records(journal, archive, verify=verify) as records:
            found = records.runs(filter, limit=requested)
            empty = _describe_empty(records, filter, None, records.path or archive) if not found else ""
    shown = found[:maximum] if maximum else found
    if as_json:
        print_json(*map(msgspec.json.encode, shown))
    elif shown:
        terminal = open_terminal()
        print_page(terminal, draw_runs(shown, width=width_of(terminal)))
    if empty:
        print_text(empty, err=True)
    if limit is None and len(found) > len(shown):
        # On standard error: standard output may be counted, or read by another program.
        print_text(
            f"Only the newest {maximum} runs are shown; --limit N shows more, --limit 0 all.", err=True
        )


def _describe_empty(records: Any, filter: RunFilter, where: str | None, place: object) -> str:
    if filter == RunFilter() and where is None:
        return f"There are no runs in {place} yet."
    return describe_empty(records, filter, f"No runs in {place} match.")
