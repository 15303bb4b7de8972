"""`stageflow stats`, `errors`, `slowest` and `compare`: the named questions to a store."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from ..journal import RunFilter
from ..render.answers import draw_comparisons, draw_errors, draw_slowest, draw_stats
from .answer import CsvOption, JsonOption, NoFormulasOption, give
from .choice import IdOption, PipelineOption, SinceOption, StageOption, UntilOption, span_option
from .journal_option import JournalOption
from .side import as_predicate
from .store_option import ArchiveOption, VerifyOption, WhereOption, open_store
from .terminal import open_terminal

__all__ = ["compare", "errors", "slowest", "stats"]

_NOTHING = "There is nothing that fits."

LimitOption = Annotated[int, typer.Option(min=1, metavar="N", help="How many at most.")]
RunsOption = Annotated[bool, typer.Option("--runs", help="Whole runs, by pipeline, instead of their stages.")]


def _plain(rows: Any) -> list[dict[str, Any]]:
    # Moments stay what they are, for the pictures.
    plain: list[dict[str, Any]] = msgspec.to_builtins(rows, builtin_types=(datetime,))
    return plain


def stats(
    runs: RunsOption = False,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    any_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    where: WhereOption = None,
    every: Annotated[
        Any, span_option("--every", "m", says="Over time, a value for each 10m, 1h, 1d, ...")
    ] = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Count, failure rate and percentiles of each stage.

    Where events were sampled, figures are estimates of what there was.

    - `stageflow stats --since 1d --pipeline ask`

    - `stageflow stats --runs --every 1h --since 1d`

    - `stageflow stats --where "service_version = '1.5'" --csv`
    """
    chosen = RunFilter(pipeline=pipeline, stage=stage, id=any_id, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = _plain(store.stats("runs" if runs else "stages", chosen, where=where, bucket=every))
    ascii_only = (open_terminal().encoding or "").lower() not in ("utf-8", "utf8")
    give(
        found,
        lambda width: draw_stats(found, width=width, ascii_only=ascii_only),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing=_NOTHING,
    )


def errors(
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    any_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    where: WhereOption = None,
    limit: LimitOption = 20,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Show what fails, alike failures together, the most frequent first.

    Messages that differ in numbers and ids alone are alike. A run without a failed stage (its deadline,
    its process) is a group of its own.

    - `stageflow errors --since 2h`

    - `stageflow errors --stage search --json | jq -r .message`
    """
    chosen = RunFilter(pipeline=pipeline, stage=stage, id=any_id, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = _plain(store.errors(chosen, where=where, limit=limit))
    give(
        found,
        lambda width: draw_errors(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing="Nothing failed that fits.",
    )


def slowest(
    stages: Annotated[
        bool, typer.Option("--stages", help="Stages one by one instead of whole runs.")
    ] = False,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    any_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    where: WhereOption = None,
    limit: LimitOption = 20,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Show what took longest: runs, with the slowest stage of the critical path, or stages.

    - `stageflow slowest --since 1d`

    - `stageflow slowest --stages --stage search`
    """
    chosen = RunFilter(pipeline=pipeline, stage=stage, id=any_id, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = _plain(store.slowest("stages" if stages else "runs", chosen, where=where, limit=limit))
    give(
        found,
        lambda width: draw_slowest(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing=_NOTHING,
    )


def compare(
    before: Annotated[
        str,
        typer.Argument(metavar="BEFORE", show_default=False, help="A window (2h..1h), version=1.4, or SQL."),
    ],
    after: Annotated[
        str,
        typer.Argument(metavar="AFTER", show_default=False, help="The same (1h..now, version=1.5, SQL)."),
    ],
    runs: RunsOption = False,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Compare two windows of time, two versions, or any two selections, stage by stage.

    What differs more than chance explains (q below 0.05, corrected for all comparisons) has a `!`, and the
    surest stands first. Beside failure rates it says so of them, beside medians of all durations.

    - `stageflow compare 2h..1h 1h..now`

    - `stageflow compare version=1.4 version=1.5 --pipeline ask`

    - `stageflow compare "user_id = 'u1'" "user_id <> 'u1'" --runs`
    """
    chosen = RunFilter(pipeline=pipeline, stage=stage)
    one, other = (as_predicate(text) for text in (before, after))
    with open_store(journal, archive, verify=verify) as store:
        found = _plain(store.compare(one, other, "runs" if runs else "stages", chosen))
    give(
        found,
        lambda width: draw_comparisons(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing=_NOTHING,
    )
