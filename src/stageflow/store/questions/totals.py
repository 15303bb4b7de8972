"""How often pipelines and stages ended, exactly: also where events were sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

from ..columns import FAILURE, text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Total", "totals"]


class Total(Struct, frozen=True):
    """How often a pipeline, or a stage, ended so, counted before anything was sampled.

    Attributes:
        pipeline: Name of the pipeline; of a stage the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        status: OK, FAIL, SKIP, CANCEL, RETRY.
        outcome: Of runs: ok, degraded, failed, ...; None for stages.
        count: How often.
        failure: Whether it counts as a failure: True or False; None if failure rates leave it out, because
            it was cancelled, suspended or retried.
    """

    pipeline: str
    stage: str | None
    status: str
    outcome: str | None
    count: float
    failure: bool | None = None


def totals(
    connection: DuckDBPyConnection,
    *,
    since: str | None,
    until: str | None,
    pipeline: str | None,
    stage: str | None,
) -> list[Total]:
    """Return totals of whole hours, those of runs first."""
    conditions = [
        *([f"hour >= date_trunc('hour', {text(since)}::timestamptz)"] if since else []),
        *([f"hour < {text(until)}::timestamptz"] if until else []),
        *([f"coalesce(pipeline_name, topology) = {text(pipeline)}"] if pipeline else []),
        *([f"stage_name = {text(stage)}"] if stage else []),
    ]
    found = connection.execute(f"""
        select coalesce(pipeline_name, topology, '') as pipeline, stage_name as stage, status, outcome,
            sum(count) as ended, any_value({FAILURE})
        from counts where {" and ".join(conditions) or "true"}
        group by 1, 2, 3, 4 order by stage nulls first, pipeline, ended desc, status, outcome
    """).fetchall()
    return [Total(*row) for row in found]
