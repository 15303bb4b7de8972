"""Counts, failure rates and durations over time, with marks for first occurrences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from msgspec import Struct

from .._time import epoch_us, rfc3339
from ..store import (
    FirstSighting,
    Over,
    PinnedStore,
    count_if,
    field_sql,
    first_sightings,
    parenthesized,
    percentiles,
    quoted,
    ranked,
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

    Attributes:
        step_s: Length of a step in seconds.
        step_us: The same in microseconds.
        since_us: Start of the first step, in microseconds since the epoch.
        count: Number of steps.
        incomplete_first: Whether the time range starts within the first step.
        incomplete_last: Whether it ends within the last step.
        until_us: End of the time range, in microseconds since the epoch.
    """

    def __init__(self, since_us: int, until_us: int, maximum: int) -> None:
        span_s = max(until_us - since_us, 1) / 1e6
        most = max(maximum - 1, 1)
        weeks = math.ceil(span_s / most / _STEPS_S[-1])
        self.step_s = float(next((step for step in _STEPS_S if span_s / step <= most), weeks * _STEPS_S[-1]))
        self.step_us = int(self.step_s * 1e6)
        self.since_us = since_us // self.step_us * self.step_us
        self.count = min((max(until_us - 1, since_us) - self.since_us) // self.step_us + 1, maximum)
        self.incomplete_first = since_us > self.since_us
        self.incomplete_last = until_us < self.since_us + self.count * self.step_us
        self.until_us = until_us

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
    field, others = None, 0
    if question.by is None and question.select is not None:
        measured = _selection_and_rest(cursor, question, steps, weighted, question.select)
    elif question.by is None:
        measured = [_all_rows(cursor, question, steps, weighted)]
    else:
        field, expression = field_sql(cursor, question.over, question.by)
        groups, others = _groups(cursor, question, field, expression)
        measured = _grouped(cursor, question, steps, weighted, expression, groups)
    previous = None
    if question.previous:
        found = _all_rows(cursor, question, steps, weighted, shift_us=_WEEK_US)
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
        incomplete_first=steps.incomplete_first,
        incomplete_last=steps.incomplete_last,
        sql=f"select time_bucket(to_seconds({steps.step_s:g}), started_at) as step, {count_if()} as count,"
        f" {count_if('failed')} as failed, quantile_disc(duration_ms, [0.5, 0.95, 0.99]) as durations"
        f" from {question.over} where {question.condition} group by 1 order by 1",
    )


class _Group(Struct, frozen=True):
    """The rows of one line: the value, the predicate, and the position of the value; see `SeriesGroup`."""

    name: str | None
    where: str
    rank: int | None


def _groups(
    cursor: DuckDBPyConnection, question: Question, field: str, expression: str
) -> tuple[list[_Group], int]:
    """Return the groups with the most rows, and the number of other groups."""
    found = cursor.execute(f"""
        with valued as (
            select {expression} as value, started_at, sample_rate, {question.condition} as matches
            from {question.over}
        )
        select value::varchar as name, {count_if("matches")} as count,
            rank() over (order by name is null, min(started_at), name) - 1, any_value(typeof(value))
        from valued group by name order by 2 desc, 1""").fetchall()
    present = [row for row in found if row[1] > 0]
    groups = [
        _Group(name, _equals(field, name, kind), rank if name is not None else None)
        for name, _, rank, kind in present[:_MAX_GROUPS]
    ]
    return groups, max(len(present) - _MAX_GROUPS, 0)


def _equals(field: str, name: str | None, kind: str) -> str:
    """Return the predicate of a group, as short as the filter bar shows it."""
    column = quoted(field)
    if name is None:
        return f"{column} is null"
    if kind == "VARCHAR":
        return f"{column} = {text(name)}"
    if kind == "BOOLEAN":
        return f"{column} = {name}"
    return f"{column}::varchar = {text(name)}"


_STATS = ("count", "failed", "failure_rate", "p50_ms", "p95_ms", "p99_ms")

_Values: TypeAlias = Sequence[Any]
"""The values of `_STATS`."""

_NO_ROWS: _Values = (0.0, 0.0, None, None, None, None)


def _all_rows(
    cursor: DuckDBPyConnection, question: Question, steps: Steps, weighted: bool, *, shift_us: int = 0
) -> SeriesGroup:
    condition = _shifted(question, steps, shift_us) if shift_us else question.condition
    found = _measured(cursor, question.over, condition, steps, steps.index(shift_us), weighted)
    by_step = {step: values for (_, step), values in found.items()}
    return SeriesGroup(name=None, where=None, rank=None, total=None, **_columns(by_step, steps))


def _grouped(
    cursor: DuckDBPyConnection,
    question: Question,
    steps: Steps,
    weighted: bool,
    expression: str,
    groups: list[_Group],
) -> list[SeriesGroup]:
    """Measure all groups at once: a field of a stage is joined to the runs only twice."""
    index = steps.index()
    inside = f"case when {index} between 0 and {steps.count - 1} then 0 end"
    found, totals = (
        _measured(cursor, question.over, question.condition, steps, each, weighted, expression, groups)
        for each in (index, inside)
    )
    return [
        SeriesGroup(
            name=group.name,
            where=group.where,
            rank=group.rank,
            total=GroupTotal(**dict(zip(_STATS, totals.get((group.name, 0), _NO_ROWS), strict=True))),
            **_columns({step: values for (name, step), values in found.items() if name == group.name}, steps),
        )
        for group in groups
    ]


def _selection_and_rest(
    cursor: DuckDBPyConnection, question: Question, steps: Steps, weighted: bool, select: str
) -> list[SeriesGroup]:
    is_selected = f"coalesce({parenthesized(select)}::boolean, false)"
    is_rest = f"coalesce({parenthesized(question.against)}::boolean, false)" if question.against else "true"
    name = f"case when {is_selected} then 'selection' when {is_rest} then 'rest' end"
    found = _measured(cursor, question.over, question.condition, steps, steps.index(), weighted, name)
    return [
        SeriesGroup(
            name=part,
            where=select if part == "selection" else None,
            rank=None,
            total=None,
            **_columns({step: values for (of, step), values in found.items() if of == part}, steps),
        )
        for part in ("selection", "rest")
    ]


def _columns(by_step: dict[int, _Values], steps: Steps) -> dict[str, Any]:
    values = [by_step.get(step, _NO_ROWS) for step in range(steps.count)]
    return {stat: tuple(found[n] for found in values) for n, stat in enumerate(_STATS)}


def _measured(
    cursor: DuckDBPyConnection,
    over: Over,
    condition: str,
    steps: Steps,
    index: str,
    weighted: bool,
    expression: str = "null",
    groups: Sequence[_Group] = (),
) -> dict[tuple[str | None, int], _Values]:
    """Return the values of `_STATS` of the rows of each group and step."""
    ended = "status <> 'RETRY'" if over == "stages" else "true"
    rows = (
        f"select status, duration_ms, failed, sample_rate, {'attempts' if over == 'stages' else '1'} as ran,"
        f" {index} as step, {expression}::varchar as of_group from {over} where {condition} and {ended}"
    )
    names = [text(group.name) for group in groups if group.name is not None]
    if groups:
        rows = f"select * from ({rows}) where of_group is null or of_group in ({', '.join(names) or 'null'})"
    found = cursor.execute(f"""
        select of_group, step, {count_if()}, {count_if("failed")}, {count_if("failed is not null")},
            {percentiles((0.5, 0.95, 0.99), weighted=weighted)}
        from {ranked(rows, "case when ran > 0 then duration_ms end", ["of_group", "step"], weighted=weighted)}
        where step >= 0 and step < {steps.count} group by of_group, step""").fetchall()
    return {
        (name, int(step)): (
            float(count),
            float(failed),
            failed / known if known else None,
            *(ranks or (None,) * 3),
        )
        for name, step, count, failed, known, ranks in found
    }


def _shifted(question: Question, steps: Steps, shift_us: int) -> str:
    since = rfc3339(steps.since_us - shift_us)
    until = rfc3339(steps.since_us + steps.count * steps.step_us - shift_us)
    return Question(over=question.over, where=question.where, since=since, until=until).condition


def as_mark(sighting: FirstSighting) -> Mark:
    """Return the mark of a first occurrence."""
    return Mark(at=sighting.at, kind=sighting.kind, label=sighting.label, where=sighting.where)
