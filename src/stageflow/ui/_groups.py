"""Errors by fingerprint, and the stages of each pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._time import epoch_us, get_clock, rfc3339
from ..store import PinnedStore, Stat, count_if, failed_with, percentiles, ranked, text
from ._api import ErrorRow, Errors, StageGraph, StageRow, Stages
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

    def read(cursor: DuckDBPyConnection) -> tuple[Steps, dict[tuple[str, str], Any], list[StageGraph]]:
        steps = steps_of(cursor, of_stages)
        return steps, _courses(cursor, of_stages, steps, store.weighted), _graphs(cursor)

    steps, courses, graphs = store.query(read, "stages", predicates=[question.where], over=["stages"])
    rows = [_row(stat, courses.get((stat.pipeline, str(stat.stage)), {}), steps.count) for stat in stats]
    rows.sort(key=lambda row: row.stat.pipeline)
    return Stages(
        snapshot=snapshot,
        since=rfc3339(steps.since_us),
        step_s=steps.step_s,
        rows=tuple(rows),
        graphs=tuple(graphs),
    )


def _row(stat: Stat, course: dict[int, Any], steps: int) -> StageRow:
    values = [course.get(step, (0.0, 0.0, None)) for step in range(steps)]
    return StageRow(
        stat=stat,
        where=f"topology = {text(stat.pipeline)} and stage_name = {text(stat.stage or '')}",
        runs_where=f"pipeline_name = {text(stat.pipeline)}",
        p95_ms=tuple(found[2] for found in values),
        count=tuple(float(found[0]) for found in values),
        failed=tuple(float(found[1]) for found in values),
    )


def _courses(
    cursor: DuckDBPyConnection, question: Question, steps: Steps, weighted: bool
) -> dict[tuple[str, str], dict[int, Any]]:
    rows = f"""select *, topology as pipeline, {steps.index()} as step from stages
        where {question.condition} and status <> 'RETRY'"""
    keys = ["pipeline", "stage_name", "step"]
    found = cursor.execute(f"""
        select pipeline, stage_name, step, {count_if()}, {count_if("failed")},
            {percentiles((0.95,), weighted=weighted)}[1]
        from {ranked(rows, "case when attempts > 0 then duration_ms end", keys, weighted=weighted)}
        where step >= 0 and step < {steps.count} group by all""").fetchall()
    courses: dict[tuple[str, str], dict[int, Any]] = {}
    for pipeline, stage, step, *values in found:
        courses.setdefault((pipeline or "", stage), {})[int(step)] = values
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
