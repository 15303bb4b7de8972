"""Selects slow runs, or stages, among those of the same kind."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from msgspec import structs

from ..._quantities import percent
from .._merge import percentiles, ranked
from .._selection import Over, parenthesized, resolve_field
from ._fields import literal, quoted
from ._request import Request

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["describe_slow", "select_slow"]


_MAX_GROUPS = 100
"""Maximum number of values of the field; those of most rows are compared."""

_KINDS: dict[Over, str] = {"runs": "pipeline_name", "stages": "stage_name"}
"""The default field of each view, if it has several values."""


def select_slow(
    connection: DuckDBPyConnection, request: Request, *, slowest: float, weighted: bool
) -> Request:
    """Return the request that selects the slowest rows, within each value of its field `per`.

    Args:
        connection: The connection with the views of a store.
        request: The rows to compare. The default of `per` is `pipeline_name` for runs and `stage_name` for
            stages, if the rows have several values.
        slowest: The share that is slow.
        weighted: Whether any row has a weight other than 1.

    Raises:
        QueryError: `per` is not a field.
    """
    view = request.over
    rows = f"SELECT * FROM {view} WHERE {parenthesized(request.within or 'TRUE')}"
    if request.per is not None:
        per = resolve_field(connection, view, request.per)
    else:
        per = _KINDS[view]
        distinct = connection.execute(f"SELECT count(DISTINCT {per}) FROM ({rows})").fetchall()
        if distinct[0][0] < 2:
            found = connection.execute(
                f"SELECT {percentiles((1 - slowest,), weighted=weighted)}[1] "
                f"FROM {ranked(rows, 'duration_ms', (), weighted=weighted)}"
            ).fetchall()
            threshold_ms = float(found[0][0] or 0.0)  # no rows
            return structs.replace(request, where=f"duration_ms > {threshold_ms!r}", against=None)
    ((_, type_, *_),) = connection.execute(f"DESCRIBE SELECT {quoted(per)} FROM {view}").fetchall()
    value = quoted(per) if type_ == "VARCHAR" else f"CAST({quoted(per)} AS VARCHAR)"
    groups = connection.execute(
        f"SELECT {value} AS kind, count(*), {percentiles((1 - slowest,), weighted=weighted)}[1] "
        f"FROM {ranked(f'{rows} AND duration_ms IS NOT NULL', 'duration_ms', (value,), weighted=weighted)} "
        f"GROUP BY 1 ORDER BY 2 DESC, 1"
    ).fetchall()
    required = math.ceil(1 / slowest - 1e-9)
    known = [(kind, count, ms) for kind, count, ms in groups if kind is not None]
    large = [one for one in known if one[1] >= required]
    left_out = [
        _left_out(f"fewer than {required} {view}", [one[1] for one in known if one[1] < required], view),
        _left_out(f"the fewest {view}", [one[1] for one in large[_MAX_GROUPS:]], view),
        *(f"{_counted(count, view)} without a value" for kind, count, _ in groups if kind is None),
    ]
    note = f"Each {view[:-1]} is compared with those that have the same {per}."
    if any(left_out):
        note += f" Left out: {', '.join(filter(None, left_out))}."
    request = structs.replace(request, per=per, against=None, limitations=(*request.limitations, note))
    large = large[:_MAX_GROUPS]
    within = [parenthesized(request.within)] if request.within is not None else []
    if not large:
        return structs.replace(request, where="duration_ms > 0", within="FALSE")
    if any(left_out):
        within.append(f"{value} IN ({', '.join(literal(kind) for kind, *_ in large)})")
    limits = " ".join(f"WHEN {literal(kind)} THEN {float(ms)!r}" for kind, _, ms in large)
    return structs.replace(
        request, where=f"duration_ms > CASE {value} {limits} END", within=" AND ".join(within) or None
    )


_LIMITS = re.compile(r'duration_ms > CASE (?:CAST\()?"?([^"]+?)"?(?: AS VARCHAR\))? WHEN .* END', re.DOTALL)
"""The predicate that `select_slow` returns for several values of a field."""


def describe_slow(where: str, share: float) -> str | None:
    """Return a predicate of `select_slow` in words; None for any other predicate.

    Args:
        where: The predicate.
        share: The share of the rows that it selects, 0 to 1.
    """
    if (found := _LIMITS.fullmatch(where.strip())) is None:
        return None
    kind = found[1].removesuffix("_name") if found[1] in _KINDS.values() else found[1]
    # Not 4.9%: the rows cannot be divided exactly at the requested share, or several have the same duration.
    return f"the slowest {percent(round(share, 2) or share)} of each {kind}"


def _left_out(which: str, counts: list[int], view: Over) -> str:
    if not counts:
        return ""
    values = "1 value" if len(counts) == 1 else f"{len(counts):,} values"
    return f"{values} with {which} ({_counted(sum(counts), view)})"


def _counted(count: int, view: Over) -> str:
    return f"{count:,} {view if count != 1 else view[:-1]}"
