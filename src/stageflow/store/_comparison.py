"""Built-in queries: the slowest runs or stages, and the comparison of two selections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from ._columns import FAILED
from ._merge import count_if, percentiles, ranked
from ._result_list import ResultList
from ._selection import Over

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "Comparison",
    "Side",
    "SlowRecord",
    "compare",
    "slowest",
]


class SlowRecord(Struct, frozen=True):
    """A slow run or stage.

    Attributes:
        run_id: The `pipeline_run_id`.
        pipeline: Name of the pipeline; for a stage, the topology that it ran in.
        stage: Name of the stage; for a run, the slowest stage on its critical path, if known.
        status: The status of a stage, or the outcome of a run.
        duration_ms: Duration in milliseconds.
        stage_ms: Milliseconds from when `stage` was ready until it ended.
        queue_ms: Milliseconds that a stage waited after it was ready; None for runs.
        attempts: Number of attempts of a stage; None for runs.
        started_at: When the run or stage started.
        user_id: The user of the run.
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


def slowest(connection: DuckDBPyConnection, condition: str, over: Over, *, limit: int) -> list[SlowRecord]:
    """Return the runs or stages with the longest durations."""
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
    found = connection.execute(query).fetchall()
    return ResultList((SlowRecord(run, name or "", *rest) for run, name, *rest in found), "draw_slowest")


_MAX_DURATIONS = 5_000
"""Maximum number of durations per side for the rank test; more do not change the result."""


class Side(Struct, frozen=True):
    """One side of a comparison.

    Attributes:
        rows: Number of events.
        count: The weighted number of events; 0 for a stage or pipeline that is new or was removed.
        failure_rate: Share of failures, as in `Stat`; None if all were cancelled.
        p50_ms: Median duration in milliseconds; None if nothing ran.
        p95_ms: 95th percentile of the duration, in milliseconds.
        estimated: True if a row has a weight other than 1, so that the numbers are estimates.
    """

    rows: int = 0
    count: float = 0.0
    failure_rate: float | None = 0.0
    p50_ms: float | None = None
    p95_ms: float | None = None
    estimated: bool = False


class Comparison(Struct, frozen=True):
    """One stage or pipeline before and after a change.

    Attributes:
        pipeline: Name of the pipeline; for a stage, the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        before: The first selection.
        after: The second selection.
        q_failures: The q-value of the difference between the failure rates: the p-value of Fisher's exact
            test, corrected for all comparisons (Benjamini-Hochberg); None if one side has no rows.
        q_durations: The q-value of the difference between the durations (Mann-Whitney U test).
    """

    pipeline: str
    stage: str | None
    before: Side
    after: Side
    q_failures: float | None
    q_durations: float | None


class _Group(NamedTuple):
    side: Side
    rated: int  # number of rows that the failure rate includes
    durations: Sequence[float]


_Name = tuple[str, str]


def compare(
    connection: DuckDBPyConnection, before: str, after: str, over: Over, *, weighted: bool
) -> list[Comparison]:
    """Compare each stage or pipeline between two selections, and return the most significant changes first.

    Args:
        connection: The connection with the views.
        before: Condition for the rows of the first selection.
        after: Condition for the rows of the second selection.
        over: "runs" or "stages".
        weighted: Whether any row has a weight other than 1.
    """
    one, other = (_side(connection, where, over, weighted) for where in (before, after))
    names = sorted({*one, *other})
    nothing = _Group(Side(), 0, ())
    pairs = [(one.get(name, nothing), other.get(name, nothing)) for name in names]
    p_values = [_failure_p(a, b) for a, b in pairs]
    p_values += [_duration_p(a.durations, b.durations) for a, b in pairs]
    q_values = _correct(p_values)
    found = [
        Comparison(pipeline, stage or None, a.side, b.side, q_values[at], q_values[len(names) + at])
        for at, ((pipeline, stage), (a, b)) in enumerate(zip(names, pairs, strict=True))
    ]
    ordered = sorted(
        found, key=lambda row: min(q for q in (row.q_failures, row.q_durations, 1.0) if q is not None)
    )
    return ResultList(ordered, "draw_comparisons")


def _side(connection: DuckDBPyConnection, where: str, over: Over, weighted: bool) -> dict[_Name, _Group]:
    of_stages = over == "stages"
    name, stage = ("topology", "stage_name") if of_stages else ("pipeline_name", "null::varchar")
    ran = "case when attempts > 0 then duration_ms end" if of_stages else "duration_ms"
    rows = f"""select *, {name} as pipeline, {stage} as stage from {over}
        where {"status <> 'RETRY' and " if of_stages else ""}{where}"""
    found = connection.execute(f"""
        select coalesce(pipeline, ''), coalesce(stage, ''), count(*), {count_if()} as weighted_count,
            count(*) filter ({FAILED} is not null),
            {count_if(FAILED)} / nullif({count_if(f"{FAILED} is not null")}, 0),
            {percentiles((0.5, 0.95), weighted=weighted)},
            (array_agg(value order by hash(event_id)) filter (value is not null))[1:{_MAX_DURATIONS}]
        from {ranked(rows, ran, ("pipeline", "stage"), weighted=weighted)} group by pipeline, stage
    """).fetchall()
    sides = {}
    for pipeline, stage, rows, count, rated, failure_rate, ranks, durations in found:
        p50_ms, p95_ms = ranks or (None, None)
        side = Side(rows, count, failure_rate, p50_ms, p95_ms, estimated=count != rows)
        sides[pipeline, stage] = _Group(side, rated, durations or ())
    return sides


def _failure_p(one: _Group, other: _Group) -> float | None:
    from scipy.stats import fisher_exact

    if not one.rated or not other.rated:
        return None
    # Use the number of rows, so that weighting does not inflate significance.
    failed = [round(found.rated * (found.side.failure_rate or 0.0)) for found in (one, other)]
    found: Any = fisher_exact([failed, [one.rated - failed[0], other.rated - failed[1]]])
    return float(found.pvalue)


def _duration_p(one: Sequence[float], other: Sequence[float]) -> float | None:
    from scipy.stats import mannwhitneyu

    if not one or not other:
        return None
    found: Any = mannwhitneyu(one, other)
    # scipy 1.18 returns nan if all values are equal.
    return 1.0 if math.isnan(found.pvalue) else float(found.pvalue)


def _correct(p_values: Sequence[float | None]) -> list[float | None]:
    from scipy.stats import false_discovery_control

    known = [p for p in p_values if p is not None]
    corrected = iter(false_discovery_control(known) if known else ())
    return [None if p is None else float(next(corrected)) for p in p_values]
