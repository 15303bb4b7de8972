"""The `query` command."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..render import draw_rows
from ._options import ArchiveOption, JournalOption, VerifyOption, find_journal, show_progress, span_option
from ._output import CsvOption, JsonOption, NoFormulasOption, print_rows, print_text

__all__ = ["query"]


def query(
    sql: Annotated[
        str,
        typer.Argument(metavar="SQL", show_default=False, help="One query; - reads it from standard input."),
    ],
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="Maximum number of rows; 0 for all.")] = 1000,
    timeout: Annotated[
        Any, span_option("--timeout", "s", description="Time limit of the query.", show_default=True)
    ] = "60s",
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    verify: VerifyOption = False,
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
    no_formulas: NoFormulasOption = False,
) -> None:
    """Run an SQL query over the `runs`, `stages` and `events` views, in DuckDB's dialect.

    The query can read only these views. It runs in a separate process that is killed when the time limit
    expires, and that can use at most 3 GB of memory and 10 GB of temporary files. Quote the names of
    attribute columns: `"attributes.hits"`.

    - `stageflow query "select status, count(*) from runs group by 1"`

    - `stageflow query "from runs where user_id = 'u1' order by started_at desc limit 5" --json`

    - `stageflow query "describe stages"`
    """
    text = sys.stdin.read() if sql == "-" else sql
    from ..store import query_in_subprocess

    path = None if journal is None and archive is not None else find_journal(journal).path
    with show_progress("archiving") as progress:
        rows = query_in_subprocess(
            path,
            archive,
            text,
            limit=limit or None,
            timeout=timeout,
            verify=verify,
            progress=progress,
        )
    print_rows(
        rows.dicts(),
        lambda width: draw_rows(rows.columns, rows.rows, width=width),
        as_json=as_json,
        as_csv=as_csv,
        no_formulas=no_formulas,
        empty="The query returned no rows.",
    )
    if rows.more:
        print_text(f"Only the first {limit} rows are shown; --limit N shows more, --limit 0 all.", err=True)
