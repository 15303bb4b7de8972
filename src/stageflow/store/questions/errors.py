"""What goes wrong: failures that are alike, by stage and by what was raised."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from ..columns import FAILURE
from ..weights import count_if

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["ErrorGroup", "errors"]


class ErrorGroup(Struct, frozen=True):
    """Failures that are alike: of one stage, or of runs that failed as a whole, by one kind of error.

    Messages that differ in numbers and ids alone are alike.

    Attributes:
        pipeline: Name of the pipeline; of a stage the topology that it ran in.
        stage: Name of the stage; None where the run itself failed: its deadline, its process.
        kind: The class of the exception; of a run without one its outcome ("timeout", "crashed"). Runs
            whose outcome does not count as a failure are left out, by default those that were cancelled.
        message: The newest message.
        rows: How many events there are.
        count: How many they stand for.
        runs: How many runs had it.
        first: When it first happened.
        last: When it last happened.
        examples: Ids of the newest runs that had it, five at most.
    """

    pipeline: str
    stage: str | None
    kind: str
    message: str
    rows: int
    count: float
    runs: int
    first: datetime
    last: datetime
    examples: list[str]


_EXAMPLES = 5

_ALIKE = r"""regexp_replace(regexp_replace(message,
    '[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|0x[0-9a-fA-F]+', '#', 'g'), '[0-9]+', '#', 'g')"""


def errors(connection: DuckDBPyConnection, of_stages: str, of_runs: str, *, limit: int) -> list[ErrorGroup]:
    """Return groups of failures, the most frequent first.

    Args:
        connection: That has the views.
        of_stages: Which stages count.
        of_runs: Which runs count.
        limit: How many groups at most.
    """
    # A run whose stage failed is in the group of that stage. Texts are made alike when the same ones
    # are together already: most failures say the same as others, to the letter.
    found = connection.execute(f"""
        with failures as (
            select if(type = 'stage.wide', topology, pipeline_name) as pipeline,
                stage_name as stage, coalesce(error_type, outcome, 'failed') as kind,
                coalesce(error, '') as message, count(*) as n, {count_if()} as stands_for,
                count(distinct pipeline_run_id) as runs, min(ended_at) as first, max(ended_at) as last,
                arg_max(pipeline_run_id, ended_at, {_EXAMPLES}) as examples
            from events
            where {FAILURE} and ((type = 'stage.wide' and {of_stages})
                or (type = 'pipeline.wide' and first_failed_stage is null and {of_runs}))
            group by 1, 2, 3, 4
        )
        select pipeline, stage, kind, arg_max(message, last), sum(n)::bigint, sum(stands_for) as stands_for,
            sum(runs)::bigint, min(first), max(last),
            list_distinct(flatten(list(examples order by last desc)))[1:{_EXAMPLES}]
        from failures group by pipeline, stage, kind, {_ALIKE}
        order by stands_for desc, pipeline, stage, kind limit {limit}
    """).fetchall()
    return [ErrorGroup(pipeline or "", *rest) for pipeline, *rest in found]
