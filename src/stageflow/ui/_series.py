"""Counts, failure rates and durations over time, with marks for first occurrences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._time import epoch_us, rfc3339
from ..store import (
    FirstSighting,
    Over,
    PinnedStore,
    count_if,
    first_sightings,
    percentiles,
    quoted,
    ranked,
    resolve_field,
    text,
    time_range,
)
from ._api import GroupTotal, Mark, Series, SeriesGroup
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Steps", "as_mark", "series", "steps_of"]

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 604800)
"""Allowed lengths of a time step in seconds, so that steps start at round times."""

_MAX_GROUPS = 10
_WEEK_US = 7 * 86_400_000_000


class Steps:
    """The time steps of a chart.

    Args:
        since_us: Earliest time, in microseconds since the epoch.
        until_us: Latest time.
        maximum: Maximum number of steps.
    """

    def __init__(self, since_us: int, until_us: int, maximum: int) -> None:
        span_s = max(until_us - since_us, 1) / 1e6
        most = max(maximum - 1, 1)
        weeks = math.ceil(span_s / most / _STEPS_S[-1])
        self.step_s = float(next((step for step in _STEPS_S if span_s / step <= most), weeks * _STEPS_S[-1]))
        self.step_us = int(self.step_s * 1e6)
        self.since_us = since_us // self.step_us * self.step_us
        self.count = min((max(until_us - 1, since_us) - self.since_us) // self.step_us + 1, maximum)

    def index(self, shift_us: int = 0) -> str:
        """Return SQL for the index of the step in which a row started.

        Args:
            shift_us: The steps start earlier by this number of microseconds.
        """
        return f"((epoch_us(started_at) - {self.since_us - shift_us}) // {self.step_us})"


def steps_of(cursor: DuckDBPyConnection, question: Question) -> Steps:
    """Return the time steps for the range of a question, or of its rows."""
    since_us = epoch_us(question.since) if question.since else None
    until_us = epoch_us(question.until) if question.until else None
    rows: tuple[int | None, int | None] = (None, None)
    if since_us is None:
        (rows,) = cursor.execute(
            f"select epoch_us(min(started_at)), epoch_us(max(started_at)) from {question.over}"
            f" where {question.condition}"
        ).fetchall()
    since_us, until_us = time_range(rows, since_us, until_us)
    return Steps(since_us, until_us, question.columns)


def series(
    store: PinnedStore,
    question: Question,
    snapshot: int,
    *,
    sightings: Sequence[FirstSighting] | None = None,
) -> Series:
    """Return the series of a question; see `Series`.

    Args:
        store: The store.
        question: The question.
        snapshot: Number of the snapshot.
        sightings: The first occurrences in the time range, if they are known; default None, to query them.

    Raises:
        QueryError: A predicate is invalid, or the field to group by is unknown.
    """
    return store.query(
        lambda cursor: _series(cursor, store.weighted, question, snapshot, sightings),
        "series",
        predicates=question.predicates,
        over=[question.over],
    )


def _series(
    cursor: DuckDBPyConnection,
    weighted: bool,
    question: Question,
    snapshot: int,
    sightings: Sequence[FirstSighting] | None,
) -> Series:
    steps = steps_of(cursor, question)
    field = resolve_field(cursor, question.over, question.by) if question.by is not None else None
    groups, others = _groups(cursor, question, field)
    measured = [_group(cursor, question, steps, weighted, name, where) for name, where in groups]
    previous = None
    if question.previous:
        found = _group(cursor, question, steps, weighted, None, None, shift_us=_WEEK_US)
        previous = found if any(found.count) else None
    if sightings is None:
        sightings = first_sightings(cursor, question.since, question.until)
    return Series(
        snapshot=snapshot,
        since=rfc3339(steps.since_us),
        step_s=steps.step_s,
        steps=steps.count,
        by=field,
        groups=tuple(measured),
        other_groups=others,
        previous=previous,
        marks=tuple(map(as_mark, sightings)),
        estimated=weighted,
        sql=f"select time_bucket(to_seconds({steps.step_s:g}), started_at) as step, {count_if()} as count,"
        f" {count_if('failed')} as failed, quantile_disc(duration_ms, [0.5, 0.95, 0.99]) as durations"
        f" from {question.over} where {question.condition} group by 1 order by 1",
    )


def _groups(
    cursor: DuckDBPyConnection, question: Question, field: str | None
) -> tuple[list[tuple[str | None, str | None]], int]:
    """Return the name and the predicate of each group, and the number of other groups."""
    if field is None:
        return [(None, None)], 0
    column = quoted(field)
    found = cursor.execute(
        f"select {column}::varchar as name, {count_if()} as count from {question.over}"
        f" where {question.condition} group by 1 order by 2 desc, 1"
    ).fetchall()
    groups: list[tuple[str | None, str | None]] = [
        (name, f"{column} is null" if name is None else f"{column}::varchar = {text(name)}")
        for name, _ in found[:_MAX_GROUPS]
    ]
    return groups, max(len(found) - _MAX_GROUPS, 0)


def _group(
    cursor: DuckDBPyConnection,
    question: Question,
    steps: Steps,
    weighted: bool,
    name: str | None,
    where: str | None,
    *,
    shift_us: int = 0,
) -> SeriesGroup:
    condition = _shifted(question, steps, shift_us) if shift_us else question.condition
    if where is not None:
        condition += f" and {where}"
    index = steps.index(shift_us)
    by_step = _measured(cursor, question.over, condition, steps, index, weighted)
    empty: Sequence[Any] = (0.0, 0.0, None, None, None, None)
    values = [by_step.get(step, empty) for step in range(steps.count)]
    total = None
    if where is not None:
        inside = f"case when {index} between 0 and {steps.count - 1} then 0 end"
        (found,) = _measured(cursor, question.over, condition, steps, inside, weighted).values() or (empty,)
        total = GroupTotal(**dict(zip(_STATS, found, strict=True)))
    return SeriesGroup(
        name=name,
        where=where,
        total=total,
        **{stat: tuple(found[n] for found in values) for n, stat in enumerate(_STATS)},
    )


_STATS = ("count", "failed", "failure_rate", "p50_ms", "p95_ms", "p99_ms")


def _measured(
    cursor: DuckDBPyConnection, over: Over, condition: str, steps: Steps, index: str, weighted: bool
) -> dict[int, Sequence[Any]]:
    """Return the values of `_STATS` of the rows of each step."""
    ended = "status <> 'RETRY'" if over == "stages" else "true"
    rows = f"select *, {index} as step from {over} where {condition} and {ended}"
    ran = f"case when {'attempts > 0' if over == 'stages' else 'true'} then duration_ms end"
    found = cursor.execute(f"""
        select step, {count_if()}, {count_if("failed")}, {count_if("failed is not null")},
            {percentiles((0.5, 0.95, 0.99), weighted=weighted)}
        from {ranked(rows, ran, ["step"], weighted=weighted)}
        where step >= 0 and step < {steps.count} group by step""").fetchall()
    return {
        int(step): (float(count), float(failed), failed / known if known else None, *(ranks or (None,) * 3))
        for step, count, failed, known, ranks in found
    }


def _shifted(question: Question, steps: Steps, shift_us: int) -> str:
    since = rfc3339(steps.since_us - shift_us)
    until = rfc3339(steps.since_us + steps.count * steps.step_us - shift_us)
    return Question(over=question.over, where=question.where, since=since, until=until).condition


def as_mark(sighting: FirstSighting) -> Mark:
    """Return the mark of a first occurrence."""
    return Mark(at=sighting.at, kind=sighting.kind, label=sighting.label, where=sighting.where)
