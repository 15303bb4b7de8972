"""The `explain` command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from .._timeparse import is_duration
from ..render import draw_explanations, draw_run_explanation
from ..store import Explanation, Over, explain_one_run, explain_selected, may_be_run_id, select
from ._options import (
    ArchiveOption,
    HtmlOption,
    JournalOption,
    PipelineOption,
    SinceOption,
    StageOption,
    UntilOption,
    VerifyOption,
    as_filter,
    as_selection,
    describe_empty,
    hint_with_journal,
    invalid_selection,
    json_option,
    open_store,
    over_option,
    pinned_store,
)
from ._output import open_terminal, print_json, print_page, print_text, width_of

__all__ = ["explain"]


def explain(
    which: Annotated[
        str,
        typer.Argument(
            metavar="SELECTION",
            help="failed, slow (the slowest 5%), a window (2h..1h), version=1.5, an SQL predicate, or one"
            " run: last, or an id that `show` accepts.",
        ),
    ] = "failed",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SELECTION",
            show_default=False,
            help="Selection to compare with, or an offset such as 1d for the same window that much earlier."
            " Defaults to all other rows.",
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            show_default=False,
            help="SQL predicate that restricts both the selection and the rows to compare with.",
        ),
    ] = None,
    over: Annotated[Over | None, over_option("runs; with --stage, stages")] = None,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    per: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="With slow: compare each run with those that have the same value of this field."
            " Defaults to pipeline_name; with --over stages, stage_name.",
        ),
    ] = None,
    changed: Annotated[
        bool,
        typer.Option(
            "--changed",
            help="Also list versions, values and errors that first occurred shortly before the selected runs"
            " became more frequent.",
        ),
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Compare the runs of all pipelines together, not separately.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="Field that identifies dependent rows. Defaults to session_id, root_run_id or user_id.",
        ),
    ] = None,
    sort: Annotated[
        Literal["deviance", "excess", "lift"],
        typer.Option(help="Order of the differences."),
    ] = "deviance",
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of differences.")] = 10,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[
        bool, json_option("Print one JSON object per pipeline, including SQL for the next query.")
    ] = False,
    html: HtmlOption = None,
) -> None:
    """Explain how failed, slow or any other runs differ from the rest.

    The command compares every field, and omits differences that could be due to chance. `--pipeline`,
    `--stage`, `--since` and `--until` restrict both sides. The runs of each pipeline are compared separately.

    - `stageflow explain --since 2h`

    - `stageflow explain slow --pipeline ask --per model`

    - `stageflow explain 30m..now --against 1d..30m`

    - `stageflow explain failed --since 2h --against 1d`

    - `stageflow explain "outcome = 'timeout'"`

    - `stageflow explain last`
    """
    filter = as_filter(pipeline=pipeline, stage=stage, since=since, until=until)
    view: Over = over or ("stages" if stage else "runs")
    run = None
    if may_be_run_id(which):
        with open_store(journal, archive, verify=verify) as store:
            run = explain_one_run(store, which, filter)
    if run is not None:
        options = ("--against", "--within", "--over", "--cluster", "--per", "--changed", "--together")
        values = (against, within, over, cluster, per, changed, together)
        if wrong := [name for name, value in zip(options, values, strict=True) if value]:
            raise typer.BadParameter(f"{wrong[0]} does not apply to one run", param_hint=wrong[0])
        if as_json:
            print_json(msgspec.json.encode(run))
        else:
            terminal = open_terminal()
            print_page(terminal, draw_run_explanation(run, width=width_of(terminal)))
        return
    if per is not None and (which != "slow" or against is not None):
        raise typer.BadParameter("--per applies to `explain slow`", param_hint="--per")
    earlier = against is not None and is_duration(against)
    if against is not None and not earlier:
        as_selection(against, "--against")
    with invalid_selection("--against" if earlier else "SELECTION"):
        selected = select(which, against, filter, within=within)
    with open_store(journal, archive, verify=verify) as store:
        found = explain_selected(
            store,
            selected,
            over=view,
            per=per,
            cluster=cluster,
            sort=sort,
            limit=limit,
            changed=changed,
            together=together,
        )
        unknown = describe_empty(store, selected.filter, "") if not found[0].selection.rows else ""
    if html is not None and not unknown:
        _save(found[0], journal, archive, html)
        return
    if as_json:
        print_json(*map(msgspec.json.encode, found))
    elif not unknown:
        terminal = open_terminal()
        other_options = {
            "--against": against,
            "--within": within,
            "--per": per,
            "--since": since,
            "--until": until,
        }
        drawing = draw_explanations(
            found,
            width=width_of(terminal),
            others=lambda one: _command_for(one.pipeline, which, other_options),
        )
        print_page(terminal, drawing)
    if unknown:
        print_text(unknown, err=True)


def _save(explanation: Explanation, journal: Path | None, archive: str | None, file: Path) -> None:
    from ..ui import explanation_as_html

    with pinned_store(journal, archive) as store:
        file.write_bytes(explanation_as_html(store, explanation))
    print_text(f"Saved {file}")


def _command_for(pipeline: str | None, which: str, options: dict[str, str | None]) -> str:
    """Return the command that explains another pipeline; empty if nobody could enter its name."""
    if not pipeline or not pipeline.isprintable():
        return ""
    command = ["stageflow", "explain", which]
    for name, value in (options | {"--pipeline": pipeline}).items():
        command += [name, value] if value is not None else []
    return hint_with_journal(f"`{shlex.join(command)}`")[1:-1]
