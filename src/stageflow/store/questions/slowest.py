"""What took longest: runs, or stages, one by one."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from ..selection import Over

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Slow", "slowest"]


class Slow(Struct, frozen=True):
    """A run or a stage that took long.

    Attributes:
        run_id: `pipeline_run_id`.
        pipeline: Name of the pipeline; of a stage the topology that it ran in.
        stage: Name of the stage; of a run the slowest one on its critical path, where that is known.
        status: How it ended.
        duration_ms: Milliseconds that it took.
        stage_ms: Milliseconds that `stage` took, from ready to ended.
        queue_ms: Milliseconds that a stage was ready and waited; None for runs.
        attempts: How often a stage was tried; None for runs.
        started_at: When it began.
        user_id: For whom.
    """

    run_id: str
    pipeline: str
    stage: str | None
    status: str
    duration_ms: float
    stage_ms: float | None
    queue_ms: float | None
    attempts: int | None
    started_at: datetime
    user_id: str | None


def slowest(connection: DuckDBPyConnection, condition: str, over: Over, *, limit: int) -> list[Slow]:
    """Return what took longest, the longest first."""
    if over == "stages":
        query = f"""
            select pipeline_run_id, topology, stage_name, status, duration_ms, total_ms, queue_ms, attempts,
                started_at, user_id
            from stages where status <> 'RETRY' and {condition}
            order by duration_ms desc, event_id limit {limit}"""
    else:
        query = f"""
            with slow as (
                select * from runs where {condition} order by duration_ms desc, event_id limit {limit}
            ), longest as (
                select pipeline_run_id, arg_max(stage_name, total_ms) as stage, max(total_ms) as stage_ms
                from stages join (select pipeline_run_id, unnest(critical_path) as stage_name from slow)
                    using (pipeline_run_id, stage_name)
                where pipeline_run_id in (select pipeline_run_id from slow)
                group by 1
            )
            select pipeline_run_id, pipeline_name, stage, outcome, duration_ms, stage_ms, null, null,
                started_at, user_id
            from slow left join longest using (pipeline_run_id) order by duration_ms desc, event_id"""
    return [Slow(run, name or "", *rest) for run, name, *rest in connection.execute(query).fetchall()]
