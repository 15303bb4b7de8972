"""The distribution of each field in the selection and in the rest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..schema import Role, fields_with
from ..store import COLUMNS, PinnedStore, count_if, parenthesized, quoted, text
from ._api import Bin, Facet, Facets, FacetValue
from ._heatmap import finite, interval_edges
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["facets", "shown_fields"]

_SAMPLE = 50_000
"""Number of rows from which the distributions are computed."""

_MAX_VALUES, _MAX_BINS, _FEW = 8, 20, 12
_UNIQUE = 0.8
"""A text field with more distinct values than this share of its rows is not shown."""

_NUMBERS = {"DOUBLE", "FLOAT", "BIGINT", "INTEGER", "HUGEINT", "SMALLINT", "UBIGINT", "TINYINT"}
_FLOATS = {"DOUBLE", "FLOAT"}
_HIDDEN = fields_with(Role.IDENTITY) | {"segment", "sample_reason", "sample_rate", "day", "rest", "pid"}
_DOCUMENTS = {name for name, column in COLUMNS.items() if column.json_type == "JSON"}


def shown_fields(cursor: DuckDBPyConnection, over: str) -> dict[str, str]:
    """Return the fields of a view that can have a distribution, and their DuckDB types."""
    described = cursor.execute(f"describe select * from {over}").fetchall()
    return {
        name: str(kind)
        for name, kind, *_ in described
        if name not in _HIDDEN
        and name not in _DOCUMENTS
        and not str(kind).startswith("TIMESTAMP")
        and not str(kind).endswith("[]")
    }


def facets(store: PinnedStore, question: Question, snapshot: int) -> Facets:
    """Return the distributions of all fields; see `Facets`.

    Raises:
        QueryError: A predicate is invalid.
    """
    return store.query(
        lambda cursor: _facets(cursor, question, snapshot),
        "facets",
        predicates=question.predicates,
        over=[question.over],
    )


def _facets(cursor: DuckDBPyConnection, question: Question, snapshot: int) -> Facets:
    selected = f"coalesce({parenthesized(question.select)}::boolean, false)" if question.select else "true"
    condition = question.condition
    if question.against is not None:
        condition += f" and ({selected} or {parenthesized(question.against)})"
    rows = f"select *, {selected} as selected from {question.over} where {condition}"
    counted = cursor.execute(
        f"select {count_if('selected')}, {count_if('not selected')}, count(*) filter (selected), count(*)"
        f" from (select sample_rate, {selected} as selected from {question.over} where {condition})"
    ).fetchone()
    assert counted is not None
    selection, rest, selected_rows, all_rows = counted
    fields = shown_fields(cursor, question.over)
    columns = ", ".join(
        # A number that is infinite or not a number has no place in a distribution: it counts as missing.
        f"{finite(quoted(name))} as {quoted(name)}" if kind in _FLOATS else quoted(name)
        for name, kind in [*fields.items(), ("sample_rate", ""), ("selected", "")]
    )
    # The sample of each side is deterministic, so repeated requests return the same result.
    shares = [
        f"(selected and hash(event_id) % 1000000 < {_share(selected_rows)})",
        f"(not selected and hash(event_id) % 1000000 < {_share(all_rows - selected_rows)})",
    ]
    is_sampled = max(selected_rows, all_rows - selected_rows) > _SAMPLE
    where = f" where {' or '.join(shares)}" if is_sampled else ""
    cursor.execute(f"create or replace temp table facet_rows as select {columns} from ({rows}){where}")
    sampled = cursor.execute(
        f"select {count_if('selected')}, {count_if('not selected')}, count(*) from facet_rows"
    ).fetchone()
    assert sampled is not None
    scale = (
        selection / sampled[0] if sampled[0] else 1.0,
        rest / sampled[1] if sampled[1] else 1.0,
    )
    found: list[Facet] = []
    left_out: list[str] = []
    for name, kind in fields.items():
        facet = _facet(cursor, name, kind, scale)
        if isinstance(facet, str):
            left_out.append(facet)
        elif facet is not None:
            found.append(facet)
    found.sort(key=lambda facet: (-round(facet.difference, 6), facet.field))
    cursor.execute("drop table facet_rows")
    return Facets(
        snapshot=snapshot,
        over=question.over,
        selection=float(selection),
        rest=float(rest),
        fields=tuple(found),
        left_out=tuple(left_out),
        sampled=int(sampled[2]) if is_sampled else None,
    )


_MIN_RATIO = 2.0
"""Two distributions differ if their distance is at least this multiple of the one expected by chance."""


def _share(rows: int) -> int:
    return 1_000_000 if rows <= _SAMPLE else max(int(1_000_000 * _SAMPLE / rows), 1)


def _facet(
    cursor: DuckDBPyConnection, name: str, kind: str, scale: tuple[float, float]
) -> Facet | str | None:
    """Return the distribution of a field; its name if it is omitted; None if it has no values."""
    column = quoted(name)
    summary = cursor.execute(f"""
        select count({column}), approx_count_distinct({column}),
            {count_if(f"selected and {column} is null")}, {count_if(f"not selected and {column} is null")},
            {f"min({column}), max({column})" if kind in _NUMBERS else "null, null"}
        from facet_rows""").fetchone()
    assert summary is not None
    rows, distinct, missing_selected, missing_rest, low, high = summary
    if not rows:
        return None
    missing = (missing_selected * scale[0], missing_rest * scale[1])
    if kind in _NUMBERS and distinct > _FEW and low is not None and high > low:
        return _numbers(cursor, name, (float(low), float(high)), missing, distinct, scale)
    if kind not in _NUMBERS and distinct > _UNIQUE * rows and rows > _FEW:
        return name
    return _values(cursor, name, kind, missing, distinct, scale)


def _values(
    cursor: DuckDBPyConnection,
    name: str,
    kind: str,
    missing: tuple[float, float],
    distinct: int,
    scale: tuple[float, float],
) -> Facet:
    column = quoted(name)
    found = cursor.execute(f"""
        select {column}::varchar, {count_if("selected")}, {count_if("not selected")}
        from facet_rows where {column} is not null group by 1 order by 2 desc, 3 desc, 1""").fetchall()
    counts = [(value, one * scale[0], other * scale[1]) for value, one, other in found]
    # The most frequent values of both sides.
    shown = sorted(counts, key=lambda count: -(count[1] + count[2]))[:_MAX_VALUES]
    kept = {value for value, *_ in shown}
    other = (
        sum(one for value, one, _ in counts if value not in kept),
        sum(two for value, _, two in counts if value not in kept),
    )
    values = tuple(
        FacetValue(value=_as_text(value, kind), where=_equals(column, kind, value), selection=one, rest=two)
        for value, one, two in shown
    )
    # Rare values, such as user ids, always differ between small and large sets of rows: combine them.
    difference = _difference([*((one, two) for _, one, two in shown), other, missing])
    return Facet(
        field=name,
        kind="values",
        values=values,
        bins=(),
        other=other,
        missing=missing,
        distinct=int(distinct),
        difference=difference,
    )


def _as_text(value: str, kind: str) -> str:
    return value.removesuffix(".0") if kind in _NUMBERS else value


def _equals(column: str, kind: str, value: str) -> str:
    if kind == "BOOLEAN":
        return column if value == "true" else f"not {column}"
    return f"{column} = {value if kind in _NUMBERS else text(value)}"


def _numbers(
    cursor: DuckDBPyConnection,
    name: str,
    limits: tuple[float, float],
    missing: tuple[float, float],
    distinct: int,
    scale: tuple[float, float],
) -> Facet:
    column = quoted(name)
    low, high = limits
    # Intervals of equal width, or of equal ratio if the values span orders of magnitude.
    edges = interval_edges(low, high, _MAX_BINS, log=low > 0 and high / 100 > low)
    cases = " ".join(f"when {column} < {edge!r} then {index}" for index, edge in enumerate(edges[1:-1]))
    counted = cursor.execute(f"""
        select case {cases} else {_MAX_BINS - 1} end, {count_if("selected")}, {count_if("not selected")}
        from facet_rows where {column} is not null group by 1""").fetchall()
    found: dict[int, Any] = {index: counts for index, *counts in counted}
    bins = []
    for index in range(_MAX_BINS):
        one, two = found.get(index, (0.0, 0.0))
        upper = "<=" if index == _MAX_BINS - 1 else "<"
        bins.append(
            Bin(
                low=edges[index],
                high=edges[index + 1],
                where=f"{column} >= {edges[index]!r} and {column} {upper} {edges[index + 1]!r}",
                selection=one * scale[0],
                rest=two * scale[1],
            )
        )
    difference = _difference([*((each.selection, each.rest) for each in bins), missing])
    return Facet(
        field=name,
        kind="numbers",
        values=(),
        bins=tuple(bins),
        other=(0.0, 0.0),
        missing=missing,
        distinct=int(distinct),
        difference=difference,
    )


def _difference(counts: list[tuple[float, float]]) -> float:
    """Return the total variation distance of the two distributions; 0 if it can be due to chance."""
    one, other = (math.fsum(count[side] for count in counts) for side in (0, 1))
    if not one or not other:
        return 0.0
    distance = math.fsum(abs(first / one - second / other) for first, second in counts) / 2
    # The expected distance of two samples of the same distribution.
    shares = [(first + second) / (one + other) for first, second in counts]
    spread = math.fsum(math.sqrt(share * (1 - share)) for share in shares)
    expected = spread * math.sqrt((1 / one + 1 / other) * 2 / math.pi) / 2
    return distance if distance >= _MIN_RATIO * expected else 0.0
