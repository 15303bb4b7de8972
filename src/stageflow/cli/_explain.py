"""The command `explain`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from ..errors import RunNotFoundError
from ..journal import RunFilter
from ..render import draw_explanations, draw_run_explanation
from ..store import Explanation, Over, RunExplanation, compare_with_earlier, parenthesized
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
    is_duration,
    json_option,
    open_store,
    over_option,
    pinned_store,
)
from ._output import open_terminal, print_json, print_page, print_text, width_of

__all__ = ["explain"]


_SLOWEST = 0.05
"""The share of the runs that `slow` selects."""


def explain(
    which: Annotated[
        str,
        typer.Argument(
            metavar="SELECTION",
            help="failed, slow (the slowest 5%), a window (2h..1h), version=1.5, an SQL predicate, or one"
            " run: last, or its id as `show` accepts it.",
        ),
    ] = "failed",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="SELECTION",
            show_default=False,
            help="Selection to compare against, or 1d or 1w: the same window that much earlier."
            " Defaults to all other rows.",
        ),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="SQL",
            show_default=False,
            help="SQL predicate that restricts both sides: the selection and the rows to compare with.",
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
            help="Show what occurred for the first time shortly before: versions, values, errors.",
        ),
    ] = False,
    together: Annotated[
        bool, typer.Option("--together", help="Compare the runs of all pipelines with each other.")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="Field whose values are independent units. Defaults to session_id, root_run_id or user_id.",
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

    Every field is compared, and differences that could be due to chance are omitted. `--pipeline`, `--stage`,
    `--since` and `--until` restrict both sides. The runs of each pipeline are compared separately.

    - `stageflow explain --since 2h`

    - `stageflow explain slow --pipeline ask --per model`

    - `stageflow explain 30m..now --against 1d..30m`

    - `stageflow explain failed --since 2h --against 1d`

    - `stageflow explain "outcome = 'timeout'"`

    - `stageflow explain last`
    """
    filter = as_filter(pipeline=pipeline, stage=stage, since=since, until=until)
    view: Over = over or ("stages" if stage else "runs")
    if _is_id(which) and (run := _explain_run(which, filter, journal, archive, verify=verify)) is not None:
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
    slow = which == "slow" and against is None
    if per is not None and not slow:
        raise typer.BadParameter("--per applies to `explain slow`", param_hint="--per")
    where, rest = None, None
    if against is not None and is_duration(against):
        with invalid_selection("--against"):
            windows = compare_with_earlier(which, against, filter)
        where, rest, filter = windows.where, windows.against, windows.filter
        given = [one for one in (within, windows.within) if one is not None]
        within = " and ".join(map(parenthesized, given)) if len(given) > 1 else next(iter(given), None)
    else:
        where = None if slow or which == "failed" else as_selection(which, "SELECTION")
        rest = None if against is None else as_selection(against, "--against")
    with open_store(journal, archive, verify=verify) as store:
        if view == "runs" and not together:
            found = store.explain_by_pipeline(
                where,
                against=rest,
                within=within,
                slowest=_SLOWEST if slow else None,
                per=per,
                filter=filter,
                cluster=cluster,
                sort=sort,
                limit=limit,
                changed=changed,
            )
        elif slow:
            found = (
                store.explain_slow(
                    view,
                    filter,
                    per=per,
                    within=within,
                    cluster=cluster,
                    sort=sort,
                    limit=limit,
                    changed=changed,
                ),
            )
        else:
            found = (
                store.explain(
                    where,
                    against=rest,
                    within=within,
                    over=view,
                    filter=filter,
                    cluster=cluster,
                    sort=sort,
                    limit=limit,
                    changed=changed,
                ),
            )
        unknown = describe_empty(store, filter, "") if not found[0].selection.rows else ""
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


_ID = re.compile(r"[\w:@#/+-][\w.:@#/+-]*")
_NAME = re.compile(r"[^\W\d][\w.]*")


def _is_id(text: str) -> bool:
    """Return whether a selection can be the id of a run: a single word, unless it is another selection."""
    return text not in ("failed", "slow") and ".." not in text and _ID.fullmatch(text) is not None


def _explain_run(
    run_id: str, filter: RunFilter, journal: Path | None, archive: str | None, *, verify: bool
) -> RunExplanation | None:
    """Return the explanation of a run; None if no run matches and the text can be a predicate.

    Raises:
        RunNotFoundError: No run matches, and the text cannot be a predicate.
    """
    with open_store(journal, archive, verify=verify) as store:
        try:
            return store.explain_run(run_id, filter)
        except RunNotFoundError:
            if run_id == "last" or not _NAME.fullmatch(run_id):
                raise
            return None


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
