"""The heatmap: a numeric field over time."""

from __future__ import annotations

import math
import operator
import sys
from typing import TYPE_CHECKING

from msgspec import Struct

from .._time import epoch_us, rfc3339
from ..errors import QueryError
from ..store import PinnedStore, count_if, field_sql, parenthesized, quoted
from ._api import Cell, Heatmap
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["finite", "heatmap", "interval_edges"]

_MIN_RATIO_OF_LOG = 20.0
"""A field has a log scale if its largest value is at least this multiple of its smallest positive value."""

_LARGEST = sys.float_info.max

_LOWEST = 0.001
"""The share of the smallest values that the lowest interval of a log scale contains."""


def finite(number: str) -> str:
    """Return SQL for a number as a double; null if it is infinite or not a number."""
    return f"case when isfinite({number}::double) then {number}::double end"


def interval_edges(low: float, high: float, count: int, *, log: bool) -> tuple[float, ...]:
    """Return the edges of intervals of equal width, or of equal ratio: one more edge than intervals."""
    steps = range(1, count)
    if log:
        first, last = math.log(low), math.log(high)
        return (low, *(math.exp(first + (last - first) / count * step) for step in steps), high)
    width = high / count - low / count  # the difference of two doubles can be infinite
    return (low, *(low + width * step for step in steps), high)


class _Axis(Struct, frozen=True):
    low: float
    high: float
    rows: int
    log: bool

    @property
    def edges(self) -> tuple[float, ...]:
        return interval_edges(self.low, self.high, self.rows, log=self.log)

    def index_of(self, value: str) -> str:
        """Return SQL for the index of the interval of a value.

        The formula can be off by one because of rounding, so the index is corrected with the edges.
        """
        if self.log:
            low = math.log(self.low)
            position = f"(ln(greatest({value}, {self.low!r})) - {low!r}) / {math.log(self.high) - low!r}"
        else:
            # Halves, because the difference of two doubles can be infinite.
            position = f"({value} / 2 - {self.low / 2!r}) / {self.high / 2 - self.low / 2!r}"
        index = f"least(greatest(floor({position} * {self.rows})::bigint, 0), {self.rows - 1})"
        edges = f"([{', '.join(map(repr, self.edges))}]::double[])"
        below = f"({index} > 0 and {value} < {edges}[{index} + 1])::bigint"
        above = f"({index} < {self.rows - 1} and {value} >= {edges}[{index} + 2])::bigint"
        return f"{index} - {below} + {above}"


def heatmap(store: PinnedStore, question: Question, snapshot: int) -> Heatmap:
    """Return the heatmap of a field; see `Heatmap`.

    Raises:
        QueryError: A predicate is invalid, or the field is unknown or not numeric.
    """
    return store.query(
        lambda cursor: _heatmap(cursor, store, question, snapshot),
        f"heatmap of {question.measure}",
        predicates=question.predicates,
        over=[question.over],
    )


def _heatmap(cursor: DuckDBPyConnection, store: PinnedStore, question: Question, snapshot: int) -> Heatmap:
    field, expression = field_sql(cursor, question.over, question.measure)
    measure = quoted(field)
    _check_numeric(cursor, question, field, expression)
    selected = f"coalesce({parenthesized(question.select)}::boolean, false)" if question.select else "false"
    rows = f"""select started_at, {finite(expression)} as value, sample_rate, failed,
        {selected} as selected
        from {question.over} where {question.condition}"""
    summary = cursor.execute(f"""
        select min(started_at), max(started_at), min(value), max(value), min(value) filter (value > 0),
            quantile_disc(value, {_LOWEST}) filter (value > 0),
            {count_if("value is not null")},
            {count_if("value is null")}
        from ({rows})""").fetchone()
    assert summary is not None
    first, last, low, high, positive, lowest, count, missing = summary
    # Times may be None (no rows), and the range of the request takes precedence.
    since_us = epoch_us(question.since or (first.isoformat() if first else "1970-01-01T00:00:00Z"))
    until_us = (
        epoch_us(question.until)
        if question.until
        else (epoch_us(last.isoformat()) + 1 if last else since_us + 1)
    )
    until_us = max(until_us, since_us + question.columns)
    step_us = math.ceil((until_us - since_us) / question.columns)
    axis = _axis(question.rows, low, high, positive, lowest)
    cells: list[tuple[float, ...]] = []
    if axis is not None:
        cells = cursor.execute(f"""
            select
                least(greatest((epoch_us(started_at) - {since_us}) // {step_us}, 0), {question.columns - 1}),
                {axis.index_of("value")}, {count_if()}, {count_if("failed")}, {count_if("selected")}
            from ({rows}) where value is not null group by 1, 2 order by 1, 2""").fetchall()
    return Heatmap(
        snapshot=snapshot,
        over=question.over,
        measure=field,
        measure_sql=measure,
        since=rfc3339(since_us),
        step_s=step_us / 1e6,
        columns=question.columns,
        log=axis is not None and axis.log,
        edges=axis.edges if axis is not None else (),
        cells=tuple(Cell(int(x), int(y), *map(float, counts)) for x, y, *counts in cells),
        count=float(count),
        missing=float(missing),
        estimated=store.weighted,
        sql=f"select started_at, {expression} as value from {question.over} where {question.condition}",
    )


def _axis(
    rows: int, low: float | None, high: float | None, positive: float | None, lowest: float | None
) -> _Axis | None:
    if low is None or high is None:
        return None
    if low == high:
        # All values are equal: use an interval around the value.
        width = min(abs(low) / 2, _LARGEST - abs(low)) or 1.0
        return _Axis(low - width, high + width, 1, False)
    if low >= 0 and positive and high / _MIN_RATIO_OF_LOG >= positive:
        return _Axis(max(positive, (lowest or positive) / 2), high, rows, True)
    axis = _Axis(low, high, rows, False)
    # No intervals without a value between two neighbouring doubles.
    return axis if all(map(operator.lt, axis.edges, axis.edges[1:])) else _Axis(low, high, 1, False)


def _check_numeric(cursor: DuckDBPyConnection, question: Question, field: str, expression: str) -> None:
    described = cursor.execute(f"describe select {expression} from {question.over}").fetchall()
    kind = str(described[0][1])
    if kind not in ("DOUBLE", "FLOAT", "BIGINT", "INTEGER", "HUGEINT", "SMALLINT", "UBIGINT", "TINYINT"):
        raise QueryError(
            f"the field {field!r} is not numeric",
            sql=field,
            hint="select a numeric field, such as duration_ms",
        )
