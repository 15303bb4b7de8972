"""The counts of all rows that are compared, and not only of a sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..._explained import Part
from ._sample import Population, Sample, design_effect
from ._values import Counts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["RowCounts", "Totals", "count_rows", "count_totals"]


@dataclass(frozen=True)
class RowCounts:
    """The size of both cohorts.

    Attributes:
        selection: The selection.
        rest: The rest.
        users: Number of users in the selection; None if no row names its user.
        present: Number of rows with a value, by column.
    """

    selection: Part
    rest: Part
    users: int | None
    present: Mapping[str, int]


def count_rows(
    connection: DuckDBPyConnection, population: Population, columns: Collection[str], present: Sequence[str]
) -> RowCounts:
    """Count all rows that are compared.

    Args:
        connection: The connection.
        population: The rows.
        columns: The columns of the view.
        present: The columns whose values to count.
    """
    has_users = "user_id" in columns
    needed = sorted({*present, "user_id"} if has_users else {*present})
    counted = [
        *(f"count(*) FILTER ({side})" for side in _SIDES),
        *(f'coalesce(sum("#weight") FILTER ({side}), 0)' for side in _SIDES),
        f"count(DISTINCT user_id) FILTER ({_SIDES[0]})" if has_users else "0",
        *(f"count({name})" for name in present),
    ]
    ((rows, rest_rows, weight, rest_weight, users, *counts),) = connection.execute(
        f"SELECT {', '.join(counted)} FROM ({population.rows(', '.join(needed) or '1')})"
    ).fetchall()
    return RowCounts(
        Part(rows, weight, 1.0 if rows else 0.0),
        Part(rest_rows, rest_weight, 1.0 if rest_rows else 0.0),
        users or None,
        dict(zip(present, counts, strict=True)),
    )


_SIDES = ('"#selected"', 'NOT "#selected"')


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


def count_totals(connection: DuckDBPyConnection, sample: Sample, users: int | None) -> Totals:
    """Count all rows that are compared, by their cluster.

    Args:
        connection: The connection.
        sample: The sample, whose population is counted.
        users: Number of users in the selection.
    """
    cohorts = sample.cohorts
    if sample.is_complete:
        of_cohorts = [cohorts.weights[mask] for mask in cohorts.masks]
        rows, weights, squares = (
            np.array([[float(amount)] for amount in amounts])
            for amounts in (
                map(len, of_cohorts),
                map(np.sum, of_cohorts),
                (np.square(weights).sum() for weights in of_cohorts),
            )
        )
        clusters = len(np.unique(cohorts.clusters[cohorts.selected]))
        return Totals(Counts(rows, weights, squares), cohorts.design_effect, clusters, users)
    amounts = [
        f"{amount} FILTER ({side})"
        for amount in ("count(*)", 'sum("#weight")', 'sum("#weight" * "#weight")')
        for side in _SIDES
    ]
    fetched = connection.execute(
        f"SELECT {', '.join(f'coalesce({one}, 0)::DOUBLE AS c{n}' for n, one in enumerate(amounts))} "
        f'FROM ({sample.population.rows("1")}) GROUP BY "#cluster"'
    ).fetchnumpy()
    by_cluster = [np.asarray(fetched[f"c{n}"], np.float64) for n in range(len(amounts))]
    selected, rest, weight, rest_weight, *_ = by_cluster
    counts = Counts(*(np.array([[float(part.sum())] for part in by_cluster[n : n + 2]]) for n in (0, 2, 4)))
    effect = cohorts.design_effect
    if counts.rows.all():
        effect = design_effect(
            weight,
            rest_weight,
            (selected, selected + rest),
            (float(counts.squares[0, 0]), float(counts.squares[1, 0])),
            (float(counts.weight[0, 0]), float(counts.weight[1, 0])),
        )
    return Totals(counts, effect, int((selected > 0).sum()), users)
