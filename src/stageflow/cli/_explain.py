"""`stageflow explain`: what is different about some runs."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from ..journal import RunFilter
from ..render import draw_explanation
from ..store import Over, as_predicate
from ._options import (
    ArchiveOption,
    JournalOption,
    PipelineOption,
    SinceOption,
    StageOption,
    UntilOption,
    VerifyOption,
    open_store,
)
from ._output import open_terminal, print_json, print_page, room

__all__ = ["explain"]


def explain(
    which: Annotated[
        str,
        typer.Argument(
            metavar="WHICH",
            help="failed, slow (the slowest 5 %), a window (2h..1h), version=1.5, or SQL.",
        ),
    ] = "failed",
    against: Annotated[
        str | None,
        typer.Option(metavar="WHICH", show_default=False, help="The others; default all but these."),
    ] = None,
    stages: Annotated[bool, typer.Option("--stages", help="Stages one by one, not whole runs.")] = False,
    pipeline: PipelineOption = None,
    stage: StageOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many differences at most.")] = 10,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, with the SQL to go on.")] = False,
) -> None:
    """Tell what is different about the failed, the slow or any other runs, against all the rest.

    Every field is compared, and what chance alone would show is left out. `--pipeline`, `--stage`, `--since`
    and `--until` say among which.

    - `stageflow explain --since 2h`

    - `stageflow explain slow --pipeline ask`

    - `stageflow explain 30m..now --against 1d..30m`

    - `stageflow explain "outcome = 'timeout'"`
    """
    filter = RunFilter(pipeline=pipeline, stage=stage, since=since, until=until)
    over: Over = "stages" if stages or stage else "runs"
    with open_store(journal, archive, verify=verify) as store:
        if which == "slow" and against is None:
            found = store.explain_slow(over, filter, limit=limit)
        else:
            found = store.explain(
                None if which == "failed" else as_predicate(which),
                against=None if against is None else as_predicate(against),
                over=over,
                filter=filter,
                limit=limit,
            )
    if as_json:
        print_json(msgspec.json.encode(found))
        return
    terminal = open_terminal()
    print_page(terminal, draw_explanation(found, width=room(terminal)))
