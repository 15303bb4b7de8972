"""How many, how good, how fast: by stage or by pipeline, and over time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from ..selection import Over
from ..weights import count_if, percentiles, ranked

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Stat", "stats"]

_RANKS = (0.5, 0.9, 0.95, 0.99)


class Stat(Struct, frozen=True):
    """What is known of one stage, or of one pipeline, as a whole or in one stretch of time.

    Counts are of runs, or of ends of a stage, each as often as its `sample_rate` says.

    Attributes:
        pipeline: Name of the pipeline; of a stage the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        since: When the stretch of time begins; None for all of it.
        rows: How many events were looked at.
        count: How many ends there were.
        ok: How many of them were OK.
        failed: How many were FAIL.
        skipped: How many stages were skipped; 0 for runs.
        cancelled: How many stages were cancelled; 0 for runs.
        retried: How many attempts were tried again; 0 for runs.
        failure_rate: `failed / count`; None where nothing ended.
        p50_ms: Median duration in milliseconds: of runs, or of stages that ran. None where none did.
        p90_ms: 90 % took no longer.
        p95_ms: 95 % took no longer.
        p99_ms: 99 % took no longer.
    """

    pipeline: str
    stage: str | None
    since: datetime | None
    rows: int
    count: float
    ok: float
    failed: float
    skipped: float
    cancelled: float
    retried: float
    failure_rate: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


def stats(
    connection: DuckDBPyConnection, condition: str, over: Over, *, bucket_s: float | None, weighted: bool
) -> list[Stat]:
    """Return the figures of each stage, or pipeline, those with most ends first, and in the order of time."""
    of_stages = over == "stages"
    name = "topology" if of_stages else "pipeline_name"
    ended = "status <> 'RETRY'" if of_stages else "true"
    ran = f"case when {'attempts > 0 and ' if of_stages else ''}{ended} then duration_ms end"
    since = (
        "null::timestamptz"
        if bucket_s is None
        else f"time_bucket(to_seconds({float(bucket_s)!r}), started_at)"
    )

    def of_stage(status: str) -> str:
        return count_if(f"status = '{status}'") if of_stages else "0"

    stage = "stage_name" if of_stages else "null::varchar"
    rows = f"select *, {name} as pipeline, {stage} as stage, {since} as since from {over} where {condition}"
    found = connection.execute(f"""
        select pipeline, stage, since,
            count(*), {count_if(ended)} as ended, {count_if("status = 'OK'")}, {count_if("status = 'FAIL'")},
            {of_stage("SKIP")}, {of_stage("CANCEL")}, {of_stage("RETRY")},
            {count_if("status = 'FAIL'")} / nullif(ended, 0),
            {percentiles(_RANKS, weighted=weighted)}
        from {ranked(rows, ran, ("pipeline", "stage", "since"), weighted=weighted)}
        group by pipeline, stage, since order by since nulls first, ended desc, pipeline, stage
    """).fetchall()
    return [Stat(pipeline or "", *rest, *(ranks or (None,) * 4)) for pipeline, *rest, ranks in found]
