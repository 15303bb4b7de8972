"""The rows that `explain` compares: their cohorts, weights and clusters."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..._explained import Part
from ._fields import Column, Field, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Cohorts", "Floats", "Mask", "Population", "Sample", "sample_rows"]


Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Values = tuple[NDArray[np.uint64] | None, Floats | None]
"""The hashes of the values of a field, and the values as numbers; None if the field has none."""

_MAX_ROWS = 25_000
"""Per cohort. A share of 1% is then known to a tenth of it."""

_MAX_STAGES = 50
"""Stages whose fields are compared: those that occur in most runs of either cohort."""

_ROW_IDS = ("event_id", "pipeline_run_id")


@dataclass(frozen=True)
class Cohorts:
    """The two cohorts that are compared: the selection and the rest.

    Attributes:
        selected: Whether each row belongs to the selection.
        weights: The `sample_rate` of each row.
        clusters: The number of the cluster of each row.
        design_effect: The factor by which dependence within clusters reduces the effective number of rows.
    """

    selected: Mask
    weights: Floats
    clusters: NDArray[np.intp]
    design_effect: float

    @cached_property
    def masks(self) -> tuple[Mask, Mask]:
        """The mask of the selection and that of the rest."""
        return self.selected, ~self.selected

    @cached_property
    def totals(self) -> tuple[float, float]:
        """The sum of the weights of each cohort."""
        return float(self.weights[self.selected].sum()), float(self.weights[~self.selected].sum())

    @cached_property
    def is_weighted(self) -> bool:
        """Whether any row represents another number of rows than one."""
        return bool((self.weights != 1).any())

    def subset(self, rows: Mask) -> Cohorts:
        """Return the cohorts of a subset of the rows."""
        return Cohorts(self.selected[rows], self.weights[rows], self.clusters[rows], self.design_effect)


def design_effect(
    selection: Floats,
    rest: Floats,
    rows: tuple[Floats, Floats],
    squares: tuple[float, float],
    totals: tuple[float, float],
) -> float:
    """Return the design effect of clusters for the difference between two shares.

    It is the variance of the difference if every field had a single value within each cluster, divided by
    its variance with independent rows (Kish 1965; Moulton 1986, with an intra-cluster correlation of 1 for
    the field, and the observed one for the selection). It is 1 if the selected rows are spread over the
    clusters at random, and the size of the clusters if whole clusters are selected.

    Args:
        selection: The weight of the selected rows of each cluster.
        rest: The weight of the other rows of each cluster.
        rows: Number of selected rows of each cluster, and of all its rows.
        squares: The sum of the squared weights of each cohort.
        totals: The sum of the weights of each cohort.
    """
    if _coincidence_p(*rows) > _INDEPENDENT_ABOVE:
        return 1.0
    variance = float(((selection / totals[0] - rest / totals[1]) ** 2).sum())
    independent = squares[0] / totals[0] ** 2 + squares[1] / totals[1] ** 2
    return max(1.0, variance / independent)


_INDEPENDENT_ABOVE = 0.05
"""Above this p-value, selected rows that share a cluster do so by chance."""


def _coincidence_p(selected: Floats, rows: Floats) -> float:
    """Return the p-value of the number of pairs of selected rows in the same cluster (Poisson)."""
    chosen, total = float(selected.sum()), float(rows.sum())
    if chosen < 2 or total < 2:
        return 1.0
    pairs = float((selected * (selected - 1)).sum()) / 2
    share = float((rows * (rows - 1)).sum()) / (total * (total - 1))
    return float(stats.poisson.sf(pairs - 1, chosen * (chosen - 1) / 2 * share))


@dataclass(frozen=True)
class Population:
    """The rows to compare, as SQL expressions over a view.

    Attributes:
        view: The view.
        selected: Whether a row is selected; never null.
        eligible: Whether a row is part of the comparison; never null.
        weight: The number of rows that a row represents.
        cluster: The cluster of a row.
    """

    view: str
    selected: str
    eligible: str
    weight: str
    cluster: str

    def rows(self, columns: str, joined: str = "") -> str:
        """Return a query for the rows to compare, with `selected`, `weight` and `cluster`.

        Args:
            columns: Expressions of further columns.
            joined: A join with the view, for these expressions.
        """
        return (
            f'SELECT * FROM (SELECT {self.selected} AS "#selected", {self.eligible} AS "#eligible", '
            f'{self.weight} AS "#weight", {self.cluster} AS "#cluster", {columns} FROM {self.view}{joined}) '
            f'WHERE "#selected" OR "#eligible"'
        )


class Sample:
    """A temporary copy of the rows to compare.

    Attributes:
        cohorts: The sampled rows of the selection and of the rest.
        totals: The selection and the rest before sampling.
        is_complete: Whether the sample contains all rows.
        run_effect: The design effect if the clusters are the runs; 1 if every row is a different run.
        table: Name of the temporary table.
        skipped_stages: Names of the stages beyond the maximum, whose fields are not compared.
    """

    def __init__(
        self,
        connection: DuckDBPyConnection,
        population: Population,
        table: str,
        columns: Sequence[Column],
        totals: tuple[Part, Part],
    ) -> None:
        self._connection = connection
        self.population = population
        self.table = table
        self.totals = totals
        names = {column.name for column in columns}
        self._has_run_id = "pipeline_run_id" in names
        started = next((column for column in columns if column.name == "started_at" and column.is_time), None)
        start = Field.of_column(started).number if started is not None else "NULL::DOUBLE"
        fetched = self._fetch(
            f'SELECT "#selected" AS selected, "#weight" AS weight, hash("#cluster") AS cluster, '
            f"{'hash(pipeline_run_id)' if self._has_run_id else '0'} AS run, "
            f'{start} AS start FROM {table} ORDER BY "#"'
        )
        selected, weights = fetched["selected"].astype(bool), fetched["weight"].astype(float)
        clusters, effect = _clusters(fetched["cluster"], selected, weights)
        _, self.run_effect = (
            _clusters(fetched["run"], selected, weights) if self._has_run_id else (clusters, 1.0)
        )
        self.cohorts = Cohorts(selected, weights, clusters, effect)
        self.is_complete = len(selected) == totals[0].rows + totals[1].rows
        self.starts = _numbers(fetched["start"])
        self._newest_first = np.argsort(-self.starts, kind="stable")
        self.skipped_stages: tuple[str, ...] = ()

    def values(self, fields: Sequence[Field], table: str | None = None) -> list[Values]:
        """Return for each field the hashes of its values (0 if missing), and its values as numbers.

        Args:
            fields: The fields.
            table: The table, or a query in parentheses, with the fields and `#`; default the sample.
        """
        return self._values(fields, f'{table or self.table} ORDER BY "#"')[0]

    def _values(
        self, fields: Sequence[Field], source: str, *others: str
    ) -> tuple[list[Values], list[NDArray[Any]]]:
        """Return the values of fields, and of other expressions, all from one query.

        DuckDB returns the rows of two queries in different orders.
        """
        expressions = [f"{other} AS o{n}" for n, other in enumerate(others)]
        for n, field in enumerate(fields):
            if field.text is not None:
                # The hash of some values (false, 0) is 0, which represents a missing value.
                value = field.text
                hashed = f"CASE WHEN {value} IS NULL THEN 0 ELSE greatest(hash({value}), 1) END"
                expressions.append(f"{hashed} AS t{n}")
            if field.number is not None:
                expressions.append(f"{field.number} AS n{n}")
        if not expressions:
            return [], []
        fetched = self._fetch(f"SELECT {', '.join(expressions)} FROM {source}")
        return [
            (
                fetched[f"t{n}"].astype(np.uint64, copy=False) if field.text is not None else None,
                _numbers(fetched[f"n{n}"]) if field.number is not None else None,
            )
            for n, field in enumerate(fields)
        ], [fetched[f"o{n}"] for n in range(len(others))]

    def join_stages(self, columns: Sequence[Column]) -> list[str]:
        """Copy the stages of the sampled runs, and return the names of the stages to compare."""
        copied = ", ".join(f"s.{quoted(column.name)}" for column in columns if column.name != "stage_name")
        self._connection.execute(
            f"CREATE TEMP TABLE {self.table}_stages AS "
            f'SELECT r."#", r."#selected", r."#weight", CAST(s.stage_name AS VARCHAR) AS "#stage", {copied} '
            f"FROM stages s JOIN {self.table} r USING (pipeline_run_id) WHERE s.status <> 'RETRY'"
        )
        selected, rest = (max(1, int(mask.sum())) for mask in self.cohorts.masks)
        stages = [
            name
            for (name,) in self._connection.execute(
                f'SELECT "#stage" FROM {self.table}_stages WHERE "#stage" IS NOT NULL '
                f'GROUP BY 1 ORDER BY greatest(count(*) FILTER ("#selected") / {selected}, '
                f'count(*) FILTER (NOT "#selected") / {rest}) DESC, 1'
            ).fetchall()
        ]
        self.skipped_stages = tuple(stages[_MAX_STAGES:])
        return stages[:_MAX_STAGES]

    def stage_values(
        self, stages: Sequence[str], fields: Sequence[Field]
    ) -> Iterator[tuple[str, list[Values]]]:
        """Yield each stage with the values of these fields in each run, as `values` does."""
        table = f"{self.table}_stages"
        by_stage, (rows, names) = self._values(fields, table, '"#"', 'hash("#stage")')
        hashes_of = dict(
            self._connection.execute(f'SELECT DISTINCT "#stage", hash("#stage") FROM {table}').fetchall()
        )
        size = len(self.cohorts.selected)
        for stage in stages:
            here = np.flatnonzero(names == np.uint64(hashes_of[stage]))
            of_stage: list[Values] = []
            for hashes, numbers in by_stage:
                spread_hashes, spread_numbers = None, None
                if hashes is not None:
                    spread_hashes = np.zeros(size, np.uint64)
                    spread_hashes[rows[here]] = hashes[here]
                if numbers is not None:
                    spread_numbers = np.full(size, np.nan)
                    spread_numbers[rows[here]] = numbers[here]
                of_stage.append((spread_hashes, spread_numbers))
            yield stage, of_stage

    def run_ids(self, mask: Mask, limit: int = 5) -> tuple[str, ...]:
        """Return the ids of the newest selected runs that a mask contains."""
        if not self._has_run_id:
            return ()
        newest = self._newest_first[(mask & self.cohorts.selected)[self._newest_first]]
        # Adjacent rows can be stages of the same run, so fetch more rows than ids.
        rows = [int(row) for row in newest[: limit * 20]]
        if not rows:
            return ()
        known = dict(
            self._connection.execute(
                f'SELECT "#", pipeline_run_id FROM {self.table} WHERE "#" IN ({", ".join(map(str, rows))})'
            ).fetchall()
        )
        return tuple(dict.fromkeys(str(known[row]) for row in rows if known[row] is not None))[:limit]

    def _fetch(self, query: str) -> dict[str, NDArray[Any]]:
        result: Any = self._connection.execute(query).fetchnumpy()
        columns: dict[str, NDArray[Any]] = result
        return columns


@contextmanager
def sample_rows(
    connection: DuckDBPyConnection,
    population: Population,
    columns: Sequence[Column],
    totals: tuple[Part, Part],
) -> Generator[Sample]:
    """Copy the rows to compare, and drop the copy when the block ends.

    A hash of the row ids selects and orders the sample, so that the same call returns the same result.

    Args:
        connection: The connection.
        population: The rows.
        columns: The columns to copy.
        totals: The selection and the rest.
    """
    names = {column.name for column in columns}
    key = next((name for name in _ROW_IDS if name in names), None)
    hashed = f"hash({key})" if key else f"hash({population.view})"
    upper, rest_upper = (min(2**64 - 1, int(2**64 * _MAX_ROWS / max(1, part.rows))) for part in totals)
    copied = ", ".join(quoted(column.name) for column in columns)
    table = f"stageflow_explain_{uuid4().hex}"
    try:
        connection.execute(
            f"CREATE TEMP TABLE {table} AS "
            f'SELECT row_number() OVER (ORDER BY {_HASH}) - 1 AS "#", '
            f'"#selected", "#weight", "#cluster", {copied} '
            f"FROM ({population.rows(hashed + ' AS ' + _HASH + ', ' + copied)}) "
            f'WHERE {_HASH} <= CASE WHEN "#selected" THEN {upper}::UBIGINT ELSE {rest_upper}::UBIGINT END'
        )
        yield Sample(connection, population, table, columns, totals)
    finally:
        for name in (table, f"{table}_stages"):
            # Do not hide an exception that is propagating. A closed connection has no temporary tables.
            with suppress(Exception):
                connection.execute(f"DROP TABLE IF EXISTS {name}")


_HASH = '"#hash"'


def _clusters(hashes: NDArray[np.uint64], selected: Mask, weights: Floats) -> tuple[NDArray[np.intp], float]:
    """Return the number of the cluster of each row, and the design effect of the clusters."""
    _, clusters = np.unique(hashes, return_inverse=True)
    sides, squares, totals = [], [], []
    for mask in (selected, ~selected):
        sides.append(np.bincount(clusters[mask], weights[mask], clusters.max(initial=0) + 1).astype(float))
        squares.append(float((weights[mask] ** 2).sum()))
        totals.append(float(weights[mask].sum()))
    if not all(totals):
        return clusters.astype(np.intp), 1.0
    size = int(clusters.max(initial=0)) + 1
    rows = np.bincount(clusters[selected], minlength=size), np.bincount(clusters, minlength=size)
    effect = design_effect(
        sides[0],
        sides[1],
        (rows[0].astype(float), rows[1].astype(float)),
        (squares[0], squares[1]),
        (totals[0], totals[1]),
    )
    return clusters.astype(np.intp), effect


def _numbers(fetched: NDArray[Any]) -> Floats:
    """Return numbers, with nan for NULL. A stored nan counts as missing too, because it has no order."""
    if isinstance(fetched, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(fetched), np.nan, fetched.data.astype(np.float64))
    return np.asarray(fetched, dtype=np.float64)
