"""The rows that `explain` compares, and their weights."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from ._difference import Part
from ._fields import Column, Field, literal, quoted

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Cohorts", "Counts", "Floats", "Mask", "Sample", "sample_rows"]


Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """The frequency of each value in a cohort: rows, their weights, and their squared weights."""

    rows: Floats
    weight: Floats
    squares: Floats


@dataclass(frozen=True)
class Cohorts:
    """The two cohorts that are compared: the selection and the rest.

    Attributes:
        selected: Whether each row belongs to the selection.
        weights: The `sample_rate` of each row.
        runs: The index of the run of each row; None if every row is a different run.
    """

    selected: Mask
    weights: Floats
    runs: NDArray[np.int64] | None = None

    @cached_property
    def masks(self) -> tuple[Mask, Mask]:
        """The mask of the selection and that of the rest."""
        return self.selected, ~self.selected

    @cached_property
    def totals(self) -> tuple[float, float]:
        """The sum of the weights of each cohort."""
        return float(self.weights[self.selected].sum()), float(self.weights[~self.selected].sum())

    @cached_property
    def _runs_per_row(self) -> tuple[float, float]:
        """The number of runs divided by the number of rows, for each cohort.

        The stages of a run are not independent: rows are clustered by run.
        """
        if self.runs is None:
            return 1.0, 1.0
        first, second = (len(np.unique(self.runs[mask])) / max(1, mask.sum()) for mask in self.masks)
        return first, second

    def counts(self, codes: NDArray[np.intp], distinct: int) -> tuple[Counts, Counts]:
        """Return the frequency of each of the codes 0 to `distinct` - 1 in each cohort."""
        both = []
        for mask in self.masks:
            here, weights = codes[mask], self.weights[mask]
            rows = np.bincount(here, minlength=distinct).astype(float)
            if self._weighted:
                weight, squares = (
                    np.bincount(here, by, distinct).astype(float) for by in (weights, weights**2)
                )
                both.append(Counts(rows, weight, squares))
            else:
                both.append(Counts(rows, rows, rows))
        return both[0], both[1]

    @cached_property
    def _weighted(self) -> bool:
        return bool((self.weights != 1).any())

    def effective_sizes(self, counts: Counts, cohort: int) -> tuple[Floats, Floats]:
        """Return the share of each value in a cohort, and the effective sample size of that share.

        Kish's effective sample size is the squared sum of the weights divided by the sum of their squares.
        It is limited by that of the rows with the value, and by that of the rows without it.
        """
        total = self.totals[cohort]
        squares = float((self.weights[self.masks[cohort]] ** 2).sum())
        share = counts.weight / total
        if not self._weighted:
            return share, np.full(len(share), total * self._runs_per_row[cohort])
        size = np.full(len(share), total**2 / squares)
        some = counts.rows > 0
        size[some] = np.minimum(size[some], counts.weight[some] ** 2 / counts.squares[some] / share[some])
        some = counts.rows < self.masks[cohort].sum()
        others, others_squares = total - counts.weight[some], squares - counts.squares[some]
        size[some] = np.minimum(size[some], others**2 / others_squares / (1 - share[some]))
        return share, size * self._runs_per_row[cohort]

    def effective_size(self) -> tuple[float, float]:
        """Return the effective sample size of each cohort."""
        both = []
        for mask, runs_per_row in zip(self.masks, self._runs_per_row, strict=True):
            weights = self.weights[mask]
            size = float(weights.sum() ** 2 / (weights**2).sum()) if len(weights) else 0.0
            both.append(size * runs_per_row)
        return both[0], both[1]

    def parts(self, rows: Mask) -> tuple[Part, Part]:
        """Return the part of each cohort that some rows make up."""
        both = []
        for mask, total in zip(self.masks, self.totals, strict=True):
            here = rows & mask
            count = float(self.weights[here].sum())
            both.append(Part(int(here.sum()), count, count / total if total else 0.0))
        return both[0], both[1]

    def subset(self, rows: Mask) -> Cohorts:
        """Return the cohorts of a subset of the rows."""
        return Cohorts(
            self.selected[rows], self.weights[rows], None if self.runs is None else self.runs[rows]
        )


_MAX_ROWS = 25_000
"""Per cohort. A share of 1% is then known to a tenth of it, and a million stages take less than 2 s."""

_MAX_STAGES = 50
"""Stages whose fields are compared: those that occur in most runs of either cohort."""

_ROW_IDS = ("event_id", "pipeline_run_id")


class Sample:
    """A temporary copy of the rows to compare.

    Attributes:
        cohorts: The sampled rows of the selection and of the rest.
        totals: The selection and the rest before sampling.
        skipped_stages: Names of the stages beyond the maximum, whose fields are not compared.
    """

    def __init__(
        self, connection: DuckDBPyConnection, table: str, columns: Sequence[Column], totals: tuple[Part, Part]
    ) -> None:
        self._connection = connection
        self._table = table
        self._columns = columns
        self.totals = totals
        names = {column.name for column in columns}
        self._has_run_id = "pipeline_run_id" in names
        start = next((column.code_sql for column in columns if column.name == "started_at"), "NULL::DOUBLE")
        run = "hash(pipeline_run_id)" if self._has_run_id else "0"
        fetched = self._fetch(
            f'SELECT "#selected" AS selected, "#weight" AS weight, {run} AS run, {start} AS start '
            f'FROM {table} ORDER BY "#"'
        )
        selected, weights, starts, runs = (fetched[name] for name in ("selected", "weight", "start", "run"))
        _, run_of_row = np.unique(runs, return_inverse=True)
        clustered = self._has_run_id and int(run_of_row.max(initial=-1)) + 1 < len(runs)
        self.cohorts = Cohorts(
            selected.astype(bool), weights.astype(float), run_of_row if clustered else None
        )
        self._newest_first = np.argsort(-_numbers(starts), kind="stable")
        self.skipped_stages: tuple[str, ...] = ()

    def fields(self, excluded: frozenset[str]) -> Iterator[tuple[Field, NDArray[Any]]]:
        """Yield each field that is not left out, with its value in each row."""
        columns = [column for column in self._columns if column.name not in excluded]
        if not columns:
            return
        expressions = ", ".join(f"{column.code_sql} AS c{n}" for n, column in enumerate(columns))
        fetched = self._fetch(f'SELECT {expressions} FROM {self._table} ORDER BY "#"')
        for n, column in enumerate(columns):
            yield Field(column), _values(column, fetched[f"c{n}"])

    def stage_fields(self, columns: Sequence[Column]) -> Iterator[tuple[Field, NDArray[Any]]]:
        """Yield each of these fields for each stage, with its value in each run."""
        if not (self._has_run_id and columns):
            return
        copied = ", ".join(f"s.{quoted(column.name)}" for column in columns)
        self._connection.execute(
            f"CREATE TEMP TABLE {self._table}_stages AS "
            f'SELECT r."#", r."#selected", s.stage_name AS "#stage", {copied} '
            f"FROM stages s JOIN {self._table} r USING (pipeline_run_id) WHERE s.status <> 'RETRY'"
        )
        selected, rest = (max(1, int(mask.sum())) for mask in self.cohorts.masks)
        stages = self._connection.execute(
            f'SELECT "#stage", hash("#stage") FROM {self._table}_stages WHERE "#stage" IS NOT NULL '
            f'GROUP BY 1 ORDER BY greatest(count(*) FILTER ("#selected") / {selected}, '
            f'count(*) FILTER (NOT "#selected") / {rest}) DESC, 1'
        ).fetchall()
        self.skipped_stages = tuple(name for name, _ in stages[_MAX_STAGES:])
        expressions = ", ".join(f"{column.code_sql} AS c{n}" for n, column in enumerate(columns))
        fetched = self._fetch(
            f'SELECT "#" AS row, hash("#stage") AS stage, {expressions} FROM {self._table}_stages'
        )
        values = [_values(column, fetched[f"c{n}"]) for n, column in enumerate(columns)]
        rows = fetched["row"]
        for name, code in stages[:_MAX_STAGES]:
            here = np.flatnonzero(fetched["stage"] == np.uint64(code))
            for column, all_stages in zip(columns, values, strict=True):
                missing = 0 if all_stages.dtype == np.uint64 else np.nan
                by_run = np.full(len(self.cohorts.selected), missing, dtype=all_stages.dtype)
                by_run[rows[here]] = all_stages[here]
                yield Field(column, name), by_run

    def value(self, field: Field, row: int) -> Any:
        """Return the value of a field in a row."""
        table, condition = self._table, f'"#" = {row}'
        if field.stage is not None:
            table, condition = f"{table}_stages", f'{condition} AND "#stage" = {literal(field.stage)}'
        query = f"SELECT {field.column.sql} FROM {table} WHERE {condition} LIMIT 1"
        ((value,),) = self._connection.execute(query).fetchall()
        return value

    def run_ids(self, mask: NDArray[np.bool_], limit: int = 5) -> tuple[str, ...]:
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
                f'SELECT "#", pipeline_run_id FROM {self._table} WHERE "#" IN ({", ".join(map(str, rows))})'
            ).fetchall()
        )
        return tuple(dict.fromkeys(str(known[row]) for row in rows if known[row] is not None))[:limit]

    def _fetch(self, query: str) -> dict[str, NDArray[Any]]:
        result: Any = self._connection.execute(query).fetchnumpy()
        columns: dict[str, NDArray[Any]] = result
        return columns


@contextmanager
def sample_rows(
    connection: DuckDBPyConnection, view: str, columns: Sequence[Column], where: str, against: str | None
) -> Generator[Sample]:
    """Copy the rows to compare, and drop the copy when the block ends.

    A hash of the row ids selects the sample, so that the same call returns the same result.
    """
    names = {column.name for column in columns}
    weight = "greatest(coalesce(sample_rate, 1), 1)" if "sample_rate" in names else "1"
    key = next((name for name in _ROW_IDS if name in names), None)
    hashed = f"hash({key})" if key else f"hash({view})"
    selected = f"coalesce((\n{where}\n)::BOOLEAN, FALSE)"
    eligible = "TRUE" if against is None else f"coalesce((\n{against}\n)::BOOLEAN, FALSE)"
    ((rows, count, rest_rows, rest_count),) = connection.execute(
        f"SELECT count(*) FILTER (s), coalesce(sum(w) FILTER (s), 0), count(*) FILTER (e AND NOT s), "
        f"coalesce(sum(w) FILTER (e AND NOT s), 0) "
        f"FROM (SELECT {selected} AS s, {eligible} AS e, {weight}::DOUBLE AS w FROM {view})"
    ).fetchall()
    totals = (Part(rows, count, 1.0 if rows else 0.0), Part(rest_rows, rest_count, 1.0 if rest_rows else 0.0))
    upper, rest_upper = (min(2**64 - 1, int(2**64 * _MAX_ROWS / max(1, part.rows))) for part in totals)
    copied = ", ".join(quoted(column.name) for column in columns)
    table = f"stageflow_explain_{uuid4().hex}"
    try:
        connection.execute(
            f"CREATE TEMP TABLE {table} AS "
            f'SELECT row_number() OVER () - 1 AS "#", "#selected", "#weight", {copied} FROM ('
            f'SELECT {selected} AS "#selected", {eligible} AS "#eligible", {weight}::DOUBLE AS "#weight", '
            f'{hashed} AS "#hash", {copied} FROM {view}) '
            f'WHERE ("#selected" AND "#hash" <= {upper}::UBIGINT) '
            f'OR ("#eligible" AND NOT "#selected" AND "#hash" <= {rest_upper}::UBIGINT)'
        )
        yield Sample(connection, table, columns, totals)
    finally:
        for name in (table, f"{table}_stages"):
            # Do not hide an exception that is propagating. A closed connection has no temporary tables.
            with suppress(Exception):
                connection.execute(f"DROP TABLE IF EXISTS {name}")


def _values(column: Column, fetched: NDArray[Any]) -> NDArray[Any]:
    return fetched.astype(np.uint64, copy=False) if column.kind == "category" else _numbers(fetched)


def _numbers(fetched: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers, with nan for NULL. A stored nan counts as missing too, because it has no order."""
    if isinstance(fetched, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(fetched), np.nan, fetched.data.astype(np.float64))
    return np.asarray(fetched, dtype=np.float64)
