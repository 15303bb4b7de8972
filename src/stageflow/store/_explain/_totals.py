"""The counts of all rows that are compared, and not only of a sample."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._sample import Sample, design_effect
from ._values import Counts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Totals", "count_totals"]


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
