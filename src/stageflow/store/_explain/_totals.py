"""Exact counts of conditions over all rows that are compared, and not only over a sample."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ._explanation import Difference, Part
from ._finding import Finding
from ._sample import Sample, design_effect
from ._values import Counts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Totals", "count_totals", "measure"]


_Z = 1.959964
"""The 97.5th percentile of the normal distribution."""


@dataclass(frozen=True)
class Totals:
    """The counts of all rows that are compared.

    Attributes:
        counts: The counts, as one condition.
        design_effect: The design effect of the clusters.
        clusters: Number of clusters in the selection.
        users: Number of users in the selection; None if no row names its user.
    """

    counts: Counts
    design_effect: float
    clusters: int
    users: int | None


def count_totals(connection: DuckDBPyConnection, sample: Sample, columns: Collection[str]) -> Totals:
    """Count all rows that are compared.

    Args:
        connection: The connection.
        sample: The sample, whose question defines the rows.
        columns: The columns of the view.
    """
    rows = f"({sample.question.rows('user_id' if 'user_id' in columns else 'NULL AS user_id')})"
    ((selected, others, weight, rest_weight, squares, rest_squares, clusters, users),) = connection.execute(
        f'SELECT count(*) FILTER ("#selected"), count(*) FILTER (NOT "#selected"), '
        f'sum("#weight") FILTER ("#selected"), sum("#weight") FILTER (NOT "#selected"), '
        f'sum("#weight" * "#weight") FILTER ("#selected"), '
        f'sum("#weight" * "#weight") FILTER (NOT "#selected"), '
        f'count(DISTINCT hash("#cluster")) FILTER ("#selected"), '
        f'count(DISTINCT user_id) FILTER ("#selected") '
        f"FROM {rows}"
    ).fetchall()
    counts = Counts(
        np.array([[float(selected)], [float(others)]]),
        np.array([[float(weight or 0)], [float(rest_weight or 0)]]),
        np.array([[float(squares or 0)], [float(rest_squares or 0)]]),
    )
    effect = sample.cohorts.design_effect
    if selected and others and not sample.is_complete:
        by_cluster = connection.execute(
            f'SELECT coalesce(sum("#weight") FILTER ("#selected"), 0) AS selected, '
            f'coalesce(sum("#weight") FILTER (NOT "#selected"), 0) AS rest, '
            f'count(*) FILTER ("#selected") AS selected_rows, count(*) AS all_rows '
            f'FROM {rows} GROUP BY "#cluster"'
        ).fetchnumpy()
        effect = design_effect(
            by_cluster["selected"].astype(float),
            by_cluster["rest"].astype(float),
            (by_cluster["selected_rows"].astype(float), by_cluster["all_rows"].astype(float)),
            (float(squares), float(rest_squares)),
            (float(weight), float(rest_weight)),
        )
    return Totals(counts, effect, clusters, users or None)


def measure(
    connection: DuckDBPyConnection,
    sample: Sample,
    columns: Collection[str],
    totals: Totals,
    findings: Sequence[Finding],
    *,
    durations: bool,
) -> list[Difference]:
    """Return the differences that findings are, with exact counts of all rows, in one pass.

    Args:
        connection: The connection.
        sample: The sample, whose question defines the rows.
        columns: The columns of the view.
        totals: The counts of all rows.
        findings: The findings.
        durations: Whether to calculate median durations.
    """
    if not findings:
        return []
    expressions = [f"coalesce({one.condition}, FALSE) AS c{n}" for n, one in enumerate(findings)]
    expressions += [
        name if name in columns else f"NULL::{type_} AS {name}"
        for name, type_ in (("user_id", "VARCHAR"), ("duration_ms", "DOUBLE"))
    ]
    amounts = []
    for n in range(len(findings)):
        met, rest = (f'FILTER ({side}"#selected" AND c{n})' for side in ("", "NOT "))
        amounts += [
            f"count(*) {met}",
            f"count(*) {rest}",
            f'coalesce(sum("#weight") {met}, 0)',
            f'coalesce(sum("#weight") {rest}, 0)',
            f'count(DISTINCT hash("#cluster")) {met}',
            f"count(DISTINCT user_id) {met}",
            f"median(duration_ms) FILTER (c{n})" if durations else "NULL",
            f"median(duration_ms) FILTER (NOT c{n})" if durations else "NULL",
        ]
    (found,) = connection.execute(
        f"SELECT {', '.join(amounts)} FROM ({sample.question.rows(', '.join(expressions))})"
    ).fetchall()
    return [_difference(totals, one, found[8 * n : 8 * n + 8]) for n, one in enumerate(findings)]


def _difference(totals: Totals, finding: Finding, found: Sequence[Any]) -> Difference:
    rows, rest_rows, weight, rest_weight, clusters, users, p50_ms, other_p50_ms = found
    whole, whole_rest = (float(part[0]) for part in totals.counts.weight)
    selection = Part(rows, weight, weight / whole)
    rest = Part(rest_rows, rest_weight, rest_weight / whole_rest)
    here, others = weight + rest_weight, whole + whole_rest - weight - rest_weight
    rate = weight / here if here else 0.0
    other_rate = (whole - weight) / others if others else 0.0
    low, high = _difference_interval(
        rate, here / totals.design_effect, other_rate, others / totals.design_effect
    )
    return Difference(
        fields=tuple(field.name for field in finding.fields),
        shape=finding.shape,
        description=finding.text,
        value=finding.value,
        condition=finding.condition,
        selection=selection,
        rest=rest,
        rate=rate,
        other_rate=other_rate,
        excess=here * (rate - other_rate),
        excess_low=here * low,
        excess_high=here * high,
        p50_ms=p50_ms,
        other_p50_ms=other_p50_ms,
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
