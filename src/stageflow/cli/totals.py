"""`stageflow totals`: how often pipelines and stages ended, exactly."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..render.answers import draw_totals
from .answer import CsvOption, JsonOption, NoFormulasOption, give
from .choice import PipelineOption, SinceOption, StageOption, UntilOption
from .journal_option import JournalOption
from .store_option import ArchiveOption, VerifyOption, open_store

__all__ = ["totals"]


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
