"""Errors by fingerprint, and the stages of each pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from .._time import epoch_us, get_clock, rfc3339
from ..store import PinnedStore, Stat, count_if, failed_with, percentiles, ranked, text
from ._api import ErrorRow, Errors, GroupTotal, StageGraph, StageRow, Stages
from ._question import Question
from ._series import Steps, steps_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["error_groups", "stages"]

_MAX_ERRORS = 200
_SPARKLINE_STEPS = 40
_MAX_EDGES = 2_000


def error_groups(store: PinnedStore, question: Question, snapshot: int) -> Errors:
    """Return the groups of failures with the same error; see `Errors`.

    Raises:
        QueryError: The predicate is invalid.
    """
    found = store.errors(question.filter, where=question.where, limit=_MAX_ERRORS)
    rows = tuple(
        ErrorRow(
            group=group,
            where=failed_with(group.pipeline, group.stage, kind=group.kind, fingerprint=group.fingerprint),
        )
        for group in found
    )
    first = min((group.first for group in found), default=None)
    since = question.since or (rfc3339(epoch_us(first.isoformat())) if first is not None else None)
    return Errors(
        snapshot=snapshot,
        rows=rows,
        trend_since=since,
        trend_until=question.until or rfc3339(get_clock().wall_ns() // 1000),
    )


def stages(store: PinnedStore, question: Question, snapshot: int) -> Stages:
    """Return the stages of each pipeline; see `Stages`.

    Raises:
        QueryError: The predicate is invalid.
    """
    of_stages = Question(
        over="stages",
        where=question.where,
        since=question.since,
        until=question.until,
        columns=_SPARKLINE_STEPS,
    )
    stats = [stat for stat in store.stats("stages", question.filter, where=question.where) if stat.stage]

    def read(cursor: DuckDBPyConnection) -> tuple[Steps, int, _Courses, _Courses, list[StageGraph]]:
        steps = steps_of(cursor, of_stages)
        recent_us = _start_of_recent(cursor, of_stages, steps)
        is_recent = f"(epoch_us(started_at) >= {recent_us})::int"
        courses, parts = (
            _measured(cursor, of_stages, index, store.weighted) for index in (steps.index(), is_recent)
        )
        return steps, recent_us, courses, parts, _graphs(cursor)

    steps, recent_us, courses, parts, graphs = store.query(
        read, "stages", predicates=[question.where], over=["stages"]
    )
    rows = []
    for stat in stats:
        key = (stat.pipeline, str(stat.stage))
        rows.append(_row(stat, courses.get(key, {}), parts.get(key, {}), steps.count))
    rows.sort(key=lambda row: row.stat.pipeline)
    return Stages(
        snapshot=snapshot,
        since=rfc3339(steps.since_us),
        step_s=steps.step_s,
        incomplete_last=steps.incomplete_last,
        recent_since=rfc3339(recent_us),
        rows=tuple(rows),
        graphs=tuple(graphs),
    )


def _start_of_recent(cursor: DuckDBPyConnection, question: Question, steps: Steps) -> int:
    """Return the start of the last quarter of the time range, without the time before the first row."""
    ((first,),) = cursor.execute(
        f"select epoch_us(min(started_at)) from stages where {question.condition}"
    ).fetchall()
    since_us = epoch_us(question.since) if question.since else steps.since_us
    if first is not None:
        since_us = max(since_us, first)
    return since_us + (steps.until_us - since_us) * 3 // 4


_STATS = ("count", "failed", "failure_rate", "p50_ms", "p95_ms", "p99_ms")

_NO_ROWS = GroupTotal(count=0, failed=0, failure_rate=None, p50_ms=None, p95_ms=None, p99_ms=None)

_Courses: TypeAlias = dict[tuple[str, str], dict[int, GroupTotal]]
"""The statistics of each stage of a pipeline, by the index of a time."""


def _row(stat: Stat, course: dict[int, GroupTotal], parts: dict[int, GroupTotal], steps: int) -> StageRow:
    values = [course.get(step, _NO_ROWS) for step in range(steps)]
    return StageRow(
        stat=stat,
        where=f"topology = {text(stat.pipeline)} and stage_name = {text(stat.stage or '')}",
        runs_where=f"pipeline_name = {text(stat.pipeline)}",
        earlier=parts.get(0, _NO_ROWS),
        recent=parts.get(1, _NO_ROWS),
        p95_ms=tuple(each.p95_ms for each in values),
        p99_ms=tuple(each.p99_ms for each in values),
        count=tuple(each.count for each in values),
        failed=tuple(each.failed for each in values),
    )


def _measured(cursor: DuckDBPyConnection, question: Question, index: str, weighted: bool) -> _Courses:
    """Return the statistics of each stage at each index of a time."""
    rows = f"""select *, topology as pipeline, {index} as step from stages
        where {question.condition} and status <> 'RETRY'"""
    keys = ["pipeline", "stage_name", "step"]
    found = cursor.execute(f"""
        select pipeline, stage_name, step, {count_if()}, {count_if("failed")},
            {count_if("failed is not null")}, {percentiles((0.5, 0.95, 0.99), weighted=weighted)}
        from {ranked(rows, "case when attempts > 0 then duration_ms end", keys, weighted=weighted)}
        group by all""").fetchall()
    courses: _Courses = {}
    for pipeline, stage, step, count, failed, known, ranks in found:
        rate = failed / known if known else None
        values: tuple[Any, ...] = (float(count), float(failed), rate, *(ranks or (None,) * 3))
        courses.setdefault((pipeline or "", stage), {})[int(step)] = GroupTotal(
            **dict(zip(_STATS, values, strict=True))
        )
    return courses


def _graphs(cursor: DuckDBPyConnection) -> list[StageGraph]:
    """Return the graph of the newest run of each pipeline."""
    found = cursor.execute(f"""
        with newest as (
            select pipeline_name, arg_max(pipeline_run_id, started_at) as run_id from runs
            where pipeline_name is not null group by 1 order by max(started_at) desc, 1 limit 100
        )
        select pipeline_name, stage_name, any_value(s.dependencies)
        from newest join stages s on s.pipeline_run_id = run_id
        where status <> 'RETRY' group by pipeline_name, stage_name, s.started_at
        order by pipeline_name, s.started_at limit {_MAX_EDGES}""").fetchall()
    stages: dict[str, dict[str, list[str]]] = {}
    for pipeline, stage, dependencies in found:
        stages.setdefault(pipeline, {})[stage] = list(dependencies or ())
    return [
        StageGraph(
            pipeline=pipeline,
            stages=tuple(of_pipeline),
            edges=tuple((before, stage) for stage, depends in of_pipeline.items() for before in depends),
        )
        for pipeline, of_pipeline in stages.items()
    ]
