"""Exact counts of the findings over all rows that are compared, and not only over a sample."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._explained import Difference, Part
from ._fields import Condition
from ._finding import Finding
from ._sample import Floats, Sample
from ._totals import Totals

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["measure"]


_BATCH = 16
"""Number of findings that one query measures. Their conditions, at most four each, are bits of 64."""

_Z = 1.959964
"""The 97.5th percentile of the normal distribution."""


def measure(
    connection: DuckDBPyConnection,
    sample: Sample,
    columns: Collection[str],
    totals: Totals,
    findings: Sequence[Finding],
    *,
    durations: bool,
) -> list[Difference]:
    """Return the differences that findings are, with exact counts of all rows.

    Args:
        connection: The connection.
        sample: The sample, whose population is counted.
        columns: The columns of the view.
        totals: The counts of all rows.
        findings: The findings.
        durations: Whether to calculate median durations.
    """
    differences = []
    for start in range(0, len(findings), _BATCH):
        batch = findings[start : start + _BATCH]
        counted = _count(connection, sample, columns, batch, durations=durations)
        differences += [_difference(totals, one, counted, np.uint64(1 << n)) for n, one in enumerate(batch)]
    return differences


@dataclass(frozen=True)
class _Counted:
    """The rows, grouped by the findings that they match: bit n of `matches` stands for finding n.

    Attributes:
        matches: The findings that the rows of each group match.
        selected: Whether the rows of each group belong to the selection.
        ms: The duration of the rows of each group, to three significant digits; nan if it is unknown.
        rows: Number of rows of each group.
        weight: Their weight.
        clusters: The findings that any selected row of a cluster matches, and the number of such clusters.
        users: The same for users.
    """

    matches: NDArray[np.uint64]
    selected: NDArray[np.bool_]
    ms: Floats
    rows: Floats
    weight: Floats
    clusters: tuple[NDArray[np.uint64], Floats]
    users: tuple[NDArray[np.uint64], Floats]


def _count(
    connection: DuckDBPyConnection,
    sample: Sample,
    columns: Collection[str],
    findings: Sequence[Finding],
    *,
    durations: bool,
) -> _Counted:
    """Count the rows that match each finding, in one pass over the rows and one over their stages."""
    leaves = list(dict.fromkeys(part.condition for one in findings for part in one.parts or (one,)))
    marks = {
        one: one.predicate if one.view is None else _is_marked(one, f'"#{one.view}"', n)
        for n, one in enumerate(leaves)
    }
    matches = [" AND ".join(f"({marks[part.condition]})" for part in one.parts or (one,)) for one in findings]
    joined = "".join(
        f" LEFT JOIN ({_marked(view, of_view)}) USING (pipeline_run_id)"
        for view in ("stages", "runs")
        if (of_view := {n: one for n, one in enumerate(leaves) if one.view == view})
    )
    # A rounded duration has few values, and rounding does not change the order.
    ms = "TRY_CAST(duration_ms AS DOUBLE)"
    digits = f"2 - CAST(floor(log10(greatest({ms}, 1e-6))) AS INTEGER)"
    rounded = f"CASE WHEN isfinite({ms}) THEN round({ms}, {digits}) END"
    rows = sample.population.rows(
        f"{_bits(dict(enumerate(matches)))} AS matches, "
        f"{'user_id' if 'user_id' in columns else 'NULL'} AS user_id, "
        f"{rounded if durations and 'duration_ms' in columns else 'NULL::DOUBLE'} AS ms",
        joined,
    )
    fetched: dict[str, Any] = connection.execute(
        f'WITH grouped AS MATERIALIZED (SELECT "#selected" AS selected, matches, ms, '
        f'CASE WHEN "#selected" THEN hash("#cluster") END AS cluster, '
        f'CASE WHEN "#selected" AND user_id IS NOT NULL THEN hash(user_id) END AS user_hash, '
        f'count(*) AS rows, sum("#weight") AS weight FROM ({rows}) GROUP BY ALL) '
        f"SELECT 'rows' AS counted, selected, matches, ms, sum(rows)::DOUBLE AS rows, sum(weight) AS weight "
        f"FROM grouped GROUP BY ALL "
        + " ".join(
            f"UNION ALL SELECT '{name}', TRUE, matches, NULL, count(*)::DOUBLE, 0 "
            f"FROM (SELECT bit_or(matches) AS matches FROM grouped WHERE {hashed} IS NOT NULL "
            f"GROUP BY {hashed}) GROUP BY matches"
            for name, hashed in (("clusters", "cluster"), ("users", "user_hash"))
        )
    ).fetchnumpy()
    what, matched = fetched["counted"], fetched["matches"].astype(np.uint64)
    amounts = np.asarray(fetched["rows"], np.float64)
    of_rows, of_clusters, of_users = (what == name for name in ("rows", "clusters", "users"))
    return _Counted(
        matches=matched[of_rows],
        selected=np.asarray(fetched["selected"], bool)[of_rows],
        ms=np.ma.filled(np.ma.asarray(fetched["ms"], np.float64), np.nan)[of_rows],
        rows=amounts[of_rows],
        weight=np.asarray(fetched["weight"], np.float64)[of_rows],
        clusters=(matched[of_clusters], amounts[of_clusters]),
        users=(matched[of_users], amounts[of_users]),
    )


def _bits(predicates: dict[int, str]) -> str:
    """Return an expression whose bit n is set if predicate n is true."""
    return " | ".join(
        f"(coalesce({predicate}, FALSE)::UBIGINT << {n})" for n, predicate in predicates.items()
    )


def _marked(view: str, conditions: dict[int, Condition]) -> str:
    """Return a query for the runs with a row in a view that matches any of these conditions.

    One pass for all conditions is faster than a subquery for each.
    """
    predicates = {n: f"({one.predicate})" for n, one in conditions.items()}
    return (
        f'SELECT pipeline_run_id, bit_or({_bits(predicates)}) AS "#{view}" FROM {view} '
        f"WHERE {' OR '.join(predicates.values())} GROUP BY pipeline_run_id"
    )


def _is_marked(condition: Condition, marks: str, bit: int) -> str:
    is_set = f"coalesce({marks}, 0) & {1 << bit} <> 0"
    return f"pipeline_run_id IS NOT NULL AND NOT ({is_set})" if condition.negated else is_set


def _median(values: Floats, weights: Floats) -> float | None:
    """Return the value below which half of the weight is, or the mean of the two in the middle."""
    known = ~np.isnan(values)
    order = np.argsort(values[known])
    values, cumulative = values[known][order], np.cumsum(weights[known][order])
    if not len(values):
        return None
    half = cumulative[-1] / 2
    low, high = (int(np.searchsorted(cumulative, half, side)) for side in ("left", "right"))
    return float(values[low] + values[min(high, len(values) - 1)]) / 2


def _difference(totals: Totals, finding: Finding, counted: _Counted, bit: np.uint64) -> Difference:
    met = counted.matches & bit != 0
    here, there = met & counted.selected, met & ~counted.selected
    rows, rest_rows = int(counted.rows[here].sum()), int(counted.rows[there].sum())
    weight, rest_weight = float(counted.weight[here].sum()), float(counted.weight[there].sum())
    clusters, users = (
        int(amounts[matches & bit != 0].sum()) for matches, amounts in (counted.clusters, counted.users)
    )
    whole, whole_rest = (float(part[0]) for part in totals.counts.weight)
    selection = Part(rows, weight, weight / whole)
    rest = Part(rest_rows, rest_weight, rest_weight / whole_rest)
    matching, others = weight + rest_weight, whole + whole_rest - weight - rest_weight
    rate = weight / matching if matching else 0.0
    other_rate = (whole - weight) / others if others else 0.0
    low, high = _difference_interval(
        rate, matching / totals.design_effect, other_rate, others / totals.design_effect
    )
    return Difference(
        fields=tuple(field.name for field in finding.fields),
        shape=finding.shape,
        description=finding.text,
        value=finding.value,
        condition=finding.condition.sql,
        selection=selection,
        rest=rest,
        rate=rate,
        other_rate=other_rate,
        excess=matching * (rate - other_rate),
        excess_low=matching * low,
        excess_high=min(weight, matching * high),
        p50_ms=_median(counted.ms[met], counted.weight[met]),
        other_p50_ms=_median(counted.ms[~met], counted.weight[~met]),
        lift=selection.share / rest.share if rest.share else None,
        deviance=0.0,
        q_value=1.0,
        clusters=clusters,
        users=users if totals.users is not None else None,
        run_ids=(),
        sql="",
    )


def _difference_interval(rate: float, size: float, other: float, other_size: float) -> tuple[float, float]:
    """Return the 95% confidence interval of the difference between two rates (Newcombe 1998, method 10)."""
    low, high = _wilson(rate, size)
    other_low, other_high = _wilson(other, other_size)
    difference = rate - other
    return (
        difference - math.hypot(rate - low, other_high - other),
        difference + math.hypot(high - rate, other - other_low),
    )


def _wilson(rate: float, size: float) -> tuple[float, float]:
    """Return the 95% confidence interval of a rate (Wilson 1927)."""
    if size <= 0:
        return 0.0, 1.0
    centre = (rate + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z * math.sqrt(rate * (1 - rate) / size + _Z**2 / (4 * size**2)) / (1 + _Z**2 / size)
    return max(0.0, centre - half), min(1.0, centre + half)
