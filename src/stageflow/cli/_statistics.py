"""The commands that calculate statistics."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from ..journal import RunFilter
from ..render import (
    draw_comparisons,
    draw_errors,
    draw_sampled,
    draw_slowest,
    draw_stats,
    draw_totals,
    draw_volume,
)
from ..store import as_predicate
from ._options import (
    ArchiveOption,
    IdOption,
    JournalOption,
    PipelineOption,
    SamplerOption,
    SinceOption,
    StageOption,
    UntilOption,
    VerifyOption,
    WhereOption,
    open_store,
    span_option,
)
from ._output import (
    CsvOption,
    JsonOption,
    NoFormulasOption,
    give,
    open_terminal,
    print_json,
    print_page,
    room,
)

__all__ = ["compare", "errors", "sampling", "slowest", "stats", "totals", "volume"]


def totals(
    stages: Annotated[bool, typer.Option("--stages", help="Stages as well, not only whole runs.")] = False,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Count how runs ended, to the last one: also where events were sampled, or have been dropped.

    Whole hours are counted: `--since` means from the hour in which it lies.

    - `stageflow totals --since 1d`

    - `stageflow totals --stages --pipeline ask --json`
    """
    with open_store(journal, archive, verify=verify) as store:
        found = store.totals(since=since, until=until, pipeline=pipeline, stage=stage)
    rows = [msgspec.to_builtins(total) for total in found if stages or stage or total.stage is None]
    give(
        rows,
        lambda width: draw_totals(rows, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing="There is nothing that fits.",
    )


def volume(
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many fields and days at most.")] = 15,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with every field.")] = False,
) -> None:
    """Show events and bytes of the archive by day, by type and by field: what a field costs.

    Bytes are those on the disk, compressed. `happened` is how many wide events there were, also where
    they were sampled.

    - `stageflow volume`

    - `stageflow volume --json | jq '.fields[:5]'`
    """
    with open_store(journal, archive, verify=verify) as store:
        held = store.volume()
    if as_json:
        print_json(msgspec.json.encode(held))
        return
    terminal = open_terminal()
    print_page(terminal, draw_volume(msgspec.to_builtins(held), width=room(terminal), most=limit))


def sampling(
    sampler: SamplerOption,
    pipeline: PipelineOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Try a sampler on the runs that are there: what it would keep, and why. Nothing is changed.

    `stageflow compact --sampler` uses it for those to come.

    - `stageflow sampling sampling.toml --since 1d`
    """
    where = RunFilter(pipeline=pipeline, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = [msgspec.to_builtins(each) for each in store.dry_run(sampler, where)]
    give(
        found,
        lambda width: draw_sampled(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing="There is no run that fits.",
    )


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
