"""The commands that calculate statistics."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
import typer

from ..render import (
    draw_comparisons,
    draw_errors,
    draw_sampled,
    draw_slowest,
    draw_stats,
    draw_totals,
    draw_volume,
)
from ..store import Over
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
    as_filter,
    as_selection,
    describe_empty,
    json_option,
    open_store,
    over_option,
    span_option,
)
from ._output import (
    CsvOption,
    JsonOption,
    NoFormulasOption,
    open_terminal,
    print_json,
    print_page,
    print_rows,
    print_text,
    width_of,
)

__all__ = ["compare", "errors", "sampling", "slowest", "stats", "totals", "volume"]


LimitOption = Annotated[int, typer.Option(min=1, metavar="N", help="Maximum number of rows.")]

_EMPTY = "No matching events."


def _as_rows(values: Any) -> list[dict[str, Any]]:
    # Timestamps stay `datetime` objects: the tables format them.
    rows: list[dict[str, Any]] = msgspec.to_builtins(values, builtin_types=(datetime,))
    return rows


def _is_ascii_only() -> bool:
    return (open_terminal().encoding or "").lower() not in ("utf-8", "utf8")


def stats(
    over: Annotated[Over, over_option("stages")] = "stages",
    by: Annotated[
        str | None,
        typer.Option(
            metavar="FIELD",
            show_default=False,
            help="One row per value of a field or attribute: org_id, service_version, model.",
        ),
    ] = None,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    any_id: IdOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    where: WhereOption = None,
    every: Annotated[
        Any, span_option("--every", "m", description="One value per time span: 10m, 1h, 1d.")
    ] = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Show the count, failure rate and duration percentiles of each stage or pipeline.

    If events were sampled, the numbers are estimates for all events.

    - `stageflow stats --since 1d --pipeline ask`

    - `stageflow stats --over runs --by org_id`

    - `stageflow stats --over runs --every 1h --since 1d`

    - `stageflow stats --where "service_version = '1.5'" --csv`
    """
    filter = as_filter(pipeline=pipeline, stage=stage, id=any_id, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = _as_rows(store.stats(over, filter, where=where, by=by, bucket=every))
        empty = describe_empty(store, filter, _EMPTY) if not found else ""
    print_rows(
        found,
        lambda width: draw_stats(found, width=width, by=by, ascii_only=_is_ascii_only()),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        empty=empty,
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
    """Show failures, grouped by error, most frequent first.

    Failures have the same error if they have the same stage, exception class and application function, and
    if their messages differ only in variable parts, such as numbers and text in quotes. Runs that failed
    without a failed stage (because of their deadline or a crash) form separate groups. The first occurrence
    can be up to 30 days before the period. An error is new if it first occurred in the period, and not in the
    30 days before it. Without `--since`, the period is the most recent 25% of the recorded time.

    - `stageflow errors --since 2h`

    - `stageflow errors --stage search --json | jq -r .message`

    - `stageflow errors --since 1d --json | jq 'select(.is_new)'`
    """
    filter = as_filter(pipeline=pipeline, stage=stage, id=any_id, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = _as_rows(store.errors(filter, where=where, limit=limit))
        empty = describe_empty(store, filter, "No matching failures.") if not found else ""
    print_rows(
        found,
        lambda width: draw_errors(found, width=width, ascii_only=_is_ascii_only()),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        empty=empty,
    )


def slowest(
    over: Annotated[Over, over_option("runs")] = "runs",
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
    """Show the slowest runs, each with the slowest stage on its critical path.

    With `--over stages`, the command shows the slowest stages.

    - `stageflow slowest --since 1d`

    - `stageflow slowest --over stages --stage search`
    """
    filter = as_filter(pipeline=pipeline, stage=stage, id=any_id, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = _as_rows(store.slowest(over, filter, where=where, limit=limit))
        empty = describe_empty(store, filter, _EMPTY) if not found else ""
    print_rows(
        found,
        lambda width: draw_slowest(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        empty=empty,
    )


def compare(
    before: Annotated[
        str,
        typer.Argument(
            metavar="BEFORE", show_default=False, help="failed, a window (2h..1h), version=1.4, or SQL."
        ),
    ],
    after: Annotated[
        str,
        typer.Argument(metavar="AFTER", show_default=False, help="The same: 1h..now, version=1.5, SQL."),
    ],
    over: Annotated[Over, over_option("stages")] = "stages",
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Compare two time windows, two versions or any two selections, stage by stage.

    A `!` after a failure rate or a median duration marks a significant difference (q < 0.05, corrected for
    multiple comparisons). The most significant differences come first.

    - `stageflow compare 2h..1h 1h..now`

    - `stageflow compare version=1.4 version=1.5 --pipeline ask`

    - `stageflow compare "user_id = 'u1'" "user_id <> 'u1'" --over runs`
    """
    filter = as_filter(pipeline=pipeline, stage=stage)
    one, other = as_selection(before, "BEFORE"), as_selection(after, "AFTER")
    with open_store(journal, archive, verify=verify) as store:
        found = _as_rows(store.compare(one, other, over, filter))
        unknown = describe_empty(store, filter, "") if not found else ""
    empty_sides = [
        selection
        for side, selection in (("before", before), ("after", after))
        if not any(row[side]["rows"] for row in found)
    ]
    if as_json or as_csv or no_formulas or not empty_sides:
        print_rows(
            found,
            lambda width: draw_comparisons(found, width=width),
            as_json=as_json,
            as_csv=as_csv,
            no_formulas=no_formulas,
            empty=unknown or _EMPTY,
        )
    elif unknown:
        print_text(unknown, err=True)
    if not unknown:
        for selection in empty_sides:
            print_text(f"{selection} selects no {over}", err=True)


def totals(
    stages: Annotated[bool, typer.Option("--stages", help="Count stages as well as runs.")] = False,
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
    """Show exact run counts by outcome, even if events were sampled or dropped.

    The counts are for full hours: `--since` is rounded down to the hour.

    - `stageflow totals --since 1d`

    - `stageflow totals --stages --pipeline ask --json`
    """
    filter = as_filter(pipeline=pipeline, stage=stage, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = store.totals(since=filter.since, until=filter.until, pipeline=pipeline, stage=stage)
        rows = [msgspec.to_builtins(total) for total in found if stages or stage or total.stage is None]
        empty = describe_empty(store, filter, _EMPTY) if not rows else ""
    print_rows(
        rows,
        lambda width: draw_totals(rows, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        empty=empty,
    )


def volume(
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="Maximum number of fields, and of days, to show.")
    ] = 15,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[bool, json_option("Print one JSON object with every field.")] = False,
) -> None:
    """Show the number and size of archived events by day, by type and by field.

    Sizes are compressed bytes on disk. `emitted` is the number of wide events before sampling.

    - `stageflow volume`

    - `stageflow volume --json | jq '.fields[:5]'`
    """
    with open_store(journal, archive, verify=verify) as store:
        found = store.volume()
    if as_json:
        print_json(msgspec.json.encode(found))
        return
    terminal = open_terminal()
    print_page(terminal, draw_volume(msgspec.to_builtins(found), width=width_of(terminal), limit=limit))


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
    """Show which of the stored runs a sampler would keep, and why, without changing anything.

    `stageflow compact --sampler` applies the sampler to runs that are archived from then on.

    - `stageflow sampling sampling.toml --since 1d`
    """
    filter = as_filter(pipeline=pipeline, since=since, until=until)
    with open_store(journal, archive, verify=verify) as store:
        found = [msgspec.to_builtins(each) for each in store.dry_run(sampler, filter)]
        empty = describe_empty(store, filter, "No matching runs.") if not found else ""
    print_rows(
        found,
        lambda width: draw_sampled(found, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        empty=empty,
    )
