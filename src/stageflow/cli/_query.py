"""`stageflow query`: any SQL over the views of a store."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..render import draw_rows
from ._options import ArchiveOption, JournalOption, VerifyOption, find_journal, show_progress
from ._output import CsvOption, JsonOption, NoFormulasOption, give, print_text

__all__ = ["query"]


def query(
    sql: Annotated[
        str,
        typer.Argument(metavar="SQL", show_default=False, help="One query; - reads it from stdin."),
    ],
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="How many rows at most; 0 for all.")] = 1000,
    timeout: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How long it may take.")] = 60.0,
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Answer a query over the views `runs`, `stages` and `events`, in DuckDB's SQL.

    The query can read only these views. It runs in a separate process that is killed when the time limit
    expires, and that can use 3 GB of memory and 10 GB of temporary files. Quote the names of attribute
    columns: `"attributes.hits"`.

    - `stageflow query "select status, count(*) from runs group by 1"`

    - `stageflow query "from runs where user_id = 'u1' order by started_at desc limit 5" --json`

    - `stageflow query "describe stages"`
    """
    text = sys.stdin.read() if sql == "-" else sql
    from ..store import query_in_process

    path = None if journal is None and archive is not None else find_journal(journal).path
    with show_progress("archiving") as progress:
        rows = query_in_process(
            path,
            archive,
            text,
            limit=limit or None,
            timeout=timeout,
            verify=verify,
            progress=progress,
        )
    give(
        rows.dicts(),
        lambda width: draw_rows(rows.columns, rows.rows, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        nothing="The query has no rows.",
    )
    if rows.more:
        print_text(f"These are the first {limit}; --limit shows more, --limit 0 all.", err=True)
