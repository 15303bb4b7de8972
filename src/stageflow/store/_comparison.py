"""Built-in queries for errors, the slowest runs, and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct

from ._columns import FAILURE
from ._merge import count_if, percentiles, ranked
from ._selection import Over

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Comparison", "ErrorGroup", "Side", "Slow", "compare", "errors", "slowest"]


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


_MOST_DURATIONS = 5_000
"""So many durations of each side are compared rank by rank; more would not change the answer."""


class Side(Struct, frozen=True):
    """One side of a comparison.

    Attributes:
        rows: How many events were looked at.
        count: How many ends they stand for; 0 for what is new, or gone.
        failure_rate: Share of failures, as in `Stat`; None if all were cancelled.
        p50_ms: Median duration in milliseconds; None where nothing ran.
        p95_ms: 95 % took no longer.
        estimated: True where a row stands for more than one: then the numbers are estimates.
    """

    rows: int = 0
    count: float = 0.0
    failure_rate: float | None = 0.0
    p50_ms: float | None = None
    p95_ms: float | None = None
    estimated: bool = False


class Comparison(Struct, frozen=True):
    """One stage, or one pipeline, before and after.

    Attributes:
        pipeline: Name of the pipeline; of a stage the topology that it ran in.
        stage: Name of the stage; None for whole runs.
        before: The one side.
        after: The other.
        q_failures: How likely the failure rates differ by chance alone (Fisher's exact test), corrected
            for all comparisons made (Benjamini-Hochberg); None where one side has nothing.
        q_durations: The same of durations (Mann-Whitney U test).
    """

    pipeline: str
    stage: str | None
    before: Side
    after: Side
    q_failures: float | None
    q_durations: float | None


class _Found(NamedTuple):
    side: Side
    rated: int  # rows that count in the failure rate
    durations: Sequence[float]


_Name = tuple[str, str]


def compare(
    connection: DuckDBPyConnection, before: str, after: str, over: Over, *, weighted: bool
) -> list[Comparison]:
    """Return each stage, or pipeline, on both sides; what changed most surely first.

    Args:
        connection: That has the views.
        before: Which rows are the one side.
        after: Which are the other.
        over: Runs or stages.
        weighted: Whether any row stands for more than one.
    """
    one, other = (_side(connection, where, over, weighted) for where in (before, after))
    names = sorted({*one, *other})
    nothing = _Found(Side(), 0, ())
    pairs = [(one.get(name, nothing), other.get(name, nothing)) for name in names]
    p_values = [_failures_differ(a, b) for a, b in pairs]
    p_values += [_durations_differ(a.durations, b.durations) for a, b in pairs]
    q_values = _corrected(p_values)
    found = [
        Comparison(pipeline, stage or None, a.side, b.side, q_values[at], q_values[len(names) + at])
        for at, ((pipeline, stage), (a, b)) in enumerate(zip(names, pairs, strict=True))
    ]
    return sorted(
        found, key=lambda row: min(q for q in (row.q_failures, row.q_durations, 1.0) if q is not None)
    )


def _side(connection: DuckDBPyConnection, where: str, over: Over, weighted: bool) -> dict[_Name, _Found]:
    of_stages = over == "stages"
    name, stage = ("topology", "stage_name") if of_stages else ("pipeline_name", "null::varchar")
    ran = "case when attempts > 0 then duration_ms end" if of_stages else "duration_ms"
    rows = f"""select *, {name} as pipeline, {stage} as stage from {over}
        where {"status <> 'RETRY' and " if of_stages else ""}{where}"""
    found = connection.execute(f"""
        select coalesce(pipeline, ''), coalesce(stage, ''), count(*), {count_if()} as stands_for,
            count(*) filter ({FAILURE} is not null),
            {count_if(FAILURE)} / nullif({count_if(f"{FAILURE} is not null")}, 0),
            {percentiles((0.5, 0.95), weighted=weighted)},
            (array_agg(value order by hash(event_id)) filter (value is not null))[1:{_MOST_DURATIONS}]
        from {ranked(rows, ran, ("pipeline", "stage"), weighted=weighted)} group by pipeline, stage
    """).fetchall()
    sides = {}
    for pipeline, stage, rows, count, rated, failure_rate, ranks, durations in found:
        p50_ms, p95_ms = ranks or (None, None)
        side = Side(rows, count, failure_rate, p50_ms, p95_ms, estimated=count != rows)
        sides[pipeline, stage] = _Found(side, rated, durations or ())
    return sides


def _failures_differ(one: _Found, other: _Found) -> float | None:
    from scipy.stats import fisher_exact

    if not one.rated or not other.rated:
        return None
    # Rows, not what they stand for: a weight is no evidence.
    failed = [round(found.rated * (found.side.failure_rate or 0.0)) for found in (one, other)]
    found: Any = fisher_exact([failed, [one.rated - failed[0], other.rated - failed[1]]])
    return float(found.pvalue)


def _durations_differ(one: Sequence[float], other: Sequence[float]) -> float | None:
    from scipy.stats import mannwhitneyu

    if not one or not other:
        return None
    found: Any = mannwhitneyu(one, other)
    # Undefined in scipy 1.18 if all values are equal: then nothing differs.
    return 1.0 if math.isnan(found.pvalue) else float(found.pvalue)


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    from scipy.stats import false_discovery_control

    known = [p for p in p_values if p is not None]
    corrected = iter(false_discovery_control(known) if known else ())
    return [None if p is None else float(next(corrected)) for p in p_values]
