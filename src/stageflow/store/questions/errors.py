"""What goes wrong: failures that are alike, by stage and by what was raised."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

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
        kind: The class of the exception; of a run without one its outcome ("timeout", "crashed").
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


_ALIKE = r"""regexp_replace(regexp_replace(coalesce(error, ''),
    '[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|0x[0-9a-fA-F]+', '#', 'g'), '[0-9]+', '#', 'g')"""


def errors(connection: DuckDBPyConnection, of_stages: str, of_runs: str, *, limit: int) -> list[ErrorGroup]:
    """Return groups of failures, the most frequent first.

    Args:
        connection: That has the views.
        of_stages: Which stages count.
        of_runs: Which runs count.
        limit: How many groups at most.
    """
    # A run whose stage failed is in the group of that stage.
    found = connection.execute(f"""
        with failures as (
            select topology as pipeline, stage_name as stage, coalesce(error_type, 'failed') as kind,
                error, pipeline_run_id, ended_at, sample_rate
            from stages where status = 'FAIL' and {of_stages}
            union all by name
            select pipeline_name as pipeline, null::varchar as stage, coalesce(error_type, outcome) as kind,
                error, pipeline_run_id, ended_at, sample_rate
            from runs where status = 'FAIL' and first_failed_stage is null and {of_runs}
        )
        select pipeline, stage, kind, arg_max(coalesce(error, ''), ended_at),
            count(*), {count_if()} as stands_for,
            count(distinct pipeline_run_id), min(ended_at), max(ended_at),
            array_agg(distinct pipeline_run_id order by pipeline_run_id desc)[1:5]
        from failures group by pipeline, stage, kind, {_ALIKE}
        order by stands_for desc, pipeline, stage, kind limit {limit}
    """).fetchall()
    return [ErrorGroup(pipeline or "", *rest) for pipeline, *rest in found]
