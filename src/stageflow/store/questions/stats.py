"""How many, how good, how fast: by stage or by pipeline, and over time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..columns import FAILURE
from ..selection import Over
from ..weights import FEWEST, FEWEST_ABOVE, Z, count_if, percentiles, ranked

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Interval", "Stat", "stats"]

_RANKS = (0.5, 0.9, 0.95, 0.99)

Interval = tuple[float, float]
"""Between these two the number is that all events would have given, in 95 of 100 cases."""


class Stat(Struct, frozen=True):
    """What is known of one stage, or of one pipeline, as a whole or in one stretch of time.

    Counts are of runs, or of ends of a stage, each as often as its `sample_rate` says.

    Attributes:
        pipeline: Name of the pipeline; of a stage the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        since: When the stretch of time begins; None for all of it.
        rows: How many events were looked at.
        count: How many ends there were.
        ok: How many of them were OK and did not count as failures.
        failed: How many stages had status FAIL, or how many runs had an outcome that counts as a failure:
            by default `failed`, `timeout` and `crashed`.
        skipped: How many stages were skipped; 0 for runs.
        cancelled: How many stages were cancelled, or how many runs were cancelled externally.
        retried: How many attempts were tried again; 0 for runs.
        failure_rate: `failed`, divided by the number of ends without those that were cancelled (and
            suspended runs); None if there are none.
        p50_ms: Median duration in milliseconds: of runs, or of stages that ran. None where none did.
        p90_ms: 90 % took no longer.
        p95_ms: 95 % took no longer.
        p99_ms: 99 % took no longer.
        estimated: True where a row stands for more than one: then the numbers are estimates.
        count_interval: The 95 % interval of `count`; None where nothing was sampled, or too little.
        failure_rate_interval: That of `failure_rate`.
        p95_interval: That of `p95_ms`.
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
    estimated: bool = False
    count_interval: Interval | None = None
    failure_rate_interval: Interval | None = None
    p95_interval: Interval | None = None


def stats(
    connection: DuckDBPyConnection, condition: str, over: Over, *, bucket_s: float | None, weighted: bool
) -> list[Stat]:
    """Return the figures of each stage, or pipeline, those with most ends first, and in the order of time."""
    of_stages = over == "stages"
    name = "topology" if of_stages else "pipeline_name"
    stage = "stage_name" if of_stages else "null::varchar"
    ended = "status <> 'RETRY'" if of_stages else "true"
    ran = f"case when {'attempts > 0 and ' if of_stages else ''}{ended} then duration_ms end"
    since = (
        "null::timestamptz"
        if bucket_s is None
        else f"time_bucket(to_seconds({float(bucket_s)!r}), started_at)"
    )

    def of_stage(status: str) -> str:
        return count_if(f"status = '{status}'") if of_stages else "0"

    cancelled = "status = 'CANCEL'" if of_stages else "outcome = 'cancelled'"

    rows = f"select *, {name} as pipeline, {stage} as stage, {since} as since from {over} where {condition}"
    ordered = ranked(rows, ran, ("pipeline", "stage", "since"), weighted=weighted)
    figures = f"""
        select pipeline, stage, since,
            count(*), {count_if(ended)} as ended,
            {count_if(f"status = 'OK' and {FAILURE} is not true")}, {count_if(FAILURE)} as failed,
            {of_stage("SKIP")}, {count_if(cancelled)}, {of_stage("RETRY")},
            failed / nullif({count_if(f"{FAILURE} is not null")}, 0) as failure_rate,
            {percentiles(_RANKS, weighted=weighted)} as ranks
        from ordered group by pipeline, stage, since"""
    intervals = _intervals(ended) if weighted else "select * from figures"
    found = connection.execute(f"""
        with ordered as {"materialized" if weighted else "not materialized"} (from {ordered}),
            figures as ({figures})
        {intervals} order by since nulls first, ended desc, pipeline, stage
    """).fetchall()
    if not weighted:
        return [Stat(pipeline or "", *rest, *(ranks or (None,) * 4)) for pipeline, *rest, ranks in found]
    figured = []
    for pipeline, *rest, ranks, sampled, intervals in found:
        told: list[Any] = [*rest, *(ranks or (None,) * 4), sampled > 0, *_told(sampled, intervals)]
        figured.append(Stat(pipeline or "", *told))
    return figured


def _told(sampled: int, intervals: list[list[float | None]]) -> Iterator[Interval | None]:
    for low, high in intervals:
        yield None if sampled < FEWEST or low is None or high is None else (low, high)


def _intervals(ended: str) -> str:
    """Return SQL that gives, beside the figures, how many rows were sampled, and the three intervals."""
    same = "pipeline is not distinct from f.pipeline and stage is not distinct from f.stage"
    same += " and since is not distinct from f.since"
    extra = "sample_rate * (sample_rate - 1)"  # what a row that was sampled adds to a variance
    # What nothing was kept of at all may still have been there: the low end is what was seen.
    return f"""
        , errors as (
            select f.pipeline, f.stage, f.since,
                count(*) filter (sample_rate > 1) as sampled,
                count(*) filter (sample_rate > 1 and value > f.ranks[3]) as above,
                count(*) filter ({ended}) as seen,
                any_value(f.ended) as ended, any_value(f.failure_rate) as rate,
                {count_if(f"{FAILURE} is not null")} as rated,
                sqrt(coalesce(sum({extra}) filter ({ended}), 0)) as of_count,
                sqrt(coalesce(sum({extra} * power({FAILURE}::int - f.failure_rate, 2))
                    filter ({FAILURE} is not null), 0)) / nullif(rated, 0) as of_rate,
                sqrt(coalesce(sum({extra} * power((value <= f.ranks[3])::int - 0.95, 2))
                    filter (value is not null), 0)) / nullif(max(whole), 0) as of_p95
            from figures f join ordered o on o.{same.replace(" and ", " and o.")}
            group by f.pipeline, f.stage, f.since
        ), ends as (
            select o.pipeline, o.stage, o.since,
                {percentiles(("least(0.95 + " + str(Z) + " * of_p95, 1)",), weighted=True)}[1] as high,
                {percentiles(("greatest(0.95 - " + str(Z) + " * of_p95, 0)",), weighted=True)}[1] as low
            from errors f join ordered o on o.{same.replace(" and ", " and o.")}
            group by o.pipeline, o.stage, o.since
        )
        select f.*, sampled,
            [[greatest(f.ended - {Z} * of_count, seen), f.ended + {Z} * of_count],
            [greatest(rate - {Z} * of_rate, 0), least(rate + {Z} * of_rate, 1)],
            case when above >= {FEWEST_ABOVE} then [low, high] else [null, null] end]
        from figures f
            join errors e on e.{same.replace(" and ", " and e.")}
            join ends x on x.{same.replace(" and ", " and x.")}
        """
