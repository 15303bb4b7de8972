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

__all__ = ["Counts", "Floats", "LookedAt", "Mask", "Sides", "looked_at"]


Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """How often each of some values occurs on one side: rows, their weights, and the squares of these."""

    rows: Floats
    weight: Floats
    squares: Floats


@dataclass(frozen=True)
class Sides:
    """Rows that were looked at: which of them are selected, and what each stands for.

    Attributes:
        selected: Whether a row is of the selection; it is of the rest otherwise.
        weights: The `sample_rate` of each row.
        runs: Of which run a row is, as a number; None where each row is a run of its own.
    """

    selected: Mask
    weights: Floats
    runs: NDArray[np.int64] | None = None

    @cached_property
    def of_both(self) -> tuple[Mask, Mask]:
        """The mask of the selection, and that of the rest."""
        return self.selected, ~self.selected

    @cached_property
    def weights_of(self) -> tuple[float, float]:
        """What each side stands for."""
        return float(self.weights[self.selected].sum()), float(self.weights[~self.selected].sum())

    @cached_property
    def _apart(self) -> tuple[float, float]:
        """How many runs the rows of each side come from, by the rows.

        Stages of one run are no independent witnesses of what the run was given.
        """
        if self.runs is None:
            return 1.0, 1.0
        first, second = (len(np.unique(self.runs[side])) / max(1, side.sum()) for side in self.of_both)
        return first, second

    def counts(self, codes: NDArray[np.intp], many: int) -> tuple[Counts, Counts]:
        """Return how often each of the codes 0 to `many` occurs on each side."""
        both = []
        for side in self.of_both:
            here, weights = codes[side], self.weights[side]
            rows = np.bincount(here, minlength=many).astype(float)
            if self._weighted:
                weight, squares = (np.bincount(here, by, many).astype(float) for by in (weights, weights**2))
                both.append(Counts(rows, weight, squares))
            else:
                both.append(Counts(rows, rows, rows))
        return both[0], both[1]

    @cached_property
    def _weighted(self) -> bool:
        return bool((self.weights != 1).any())

    def worth(self, counts: Counts, side: int) -> tuple[Floats, Floats]:
        """Return the share of each value on a side, and how many equal witnesses that share rests on.

        By Kish: the square of a sum of weights by the sum of their squares. A share is worth no more
        than the rows that have the value, or those that do not, allow for.
        """
        total = self.weights_of[side]
        squares = float((self.weights[self.of_both[side]] ** 2).sum())
        share = counts.weight / total
        if not self._weighted:
            return share, np.full(len(share), total * self._apart[side])
        least = np.full(len(share), total**2 / squares)
        some = counts.rows > 0
        least[some] = np.minimum(least[some], counts.weight[some] ** 2 / counts.squares[some] / share[some])
        some = counts.rows < self.of_both[side].sum()
        others, of_others = total - counts.weight[some], squares - counts.squares[some]
        least[some] = np.minimum(least[some], others**2 / of_others / (1 - share[some]))
        return share, least * self._apart[side]

    def worth_of(self, rows: Mask) -> tuple[float, float]:
        """Return how many equal witnesses some rows are, on each side."""
        both = []
        for side, apart in zip(self.of_both, self._apart, strict=True):
            weights = self.weights[rows & side]
            both.append(float(weights.sum() ** 2 / (weights**2).sum()) * apart if len(weights) else 0.0)
        return both[0], both[1]

    def parts(self, rows: Mask) -> tuple[Part, Part]:
        """Return how many of each side some rows are."""
        both = []
        for side, total in zip(self.of_both, self.weights_of, strict=True):
            here = rows & side
            count = float(self.weights[here].sum())
            both.append(Part(int(here.sum()), count, count / total if total else 0.0))
        return both[0], both[1]

    def among(self, rows: Mask) -> Sides:
        """Return the sides of some of the rows."""
        return Sides(self.selected[rows], self.weights[rows], None if self.runs is None else self.runs[rows])


_MOST_ROWS = 25_000
"""Of each side: a share of 1 % is then known to a tenth of it, and a million stages take under 2 s."""

_MOST_STAGES = 50
"""Stages whose fields are compared: those that the larger share of either side has."""

_NAMES_ROWS = ("event_id", "pipeline_run_id")


class LookedAt:
    """A copy of the rows that are looked at, for as long as the question lasts.

    Attributes:
        sides: Which rows are selected, and what each stands for.
        all: Both sides whole, before any sampling.
        stages_left_out: Stages that were too many, each by its name.
    """

    def __init__(
        self, connection: DuckDBPyConnection, table: str, columns: Sequence[Column], both: tuple[Part, Part]
    ) -> None:
        self._connection = connection
        self._table = table
        self._columns = columns
        self.all = both
        names = {column.name for column in columns}
        self._has_run_id = "pipeline_run_id" in names
        began = next((column.fetched for column in columns if column.name == "started_at"), "NULL::DOUBLE")
        of_run = "hash(pipeline_run_id)" if self._has_run_id else "0"
        got = self._fetch(
            f'SELECT "#selected" AS selected, "#weight" AS weight, {of_run} AS run, {began} AS began '
            f'FROM {table} ORDER BY "#"'
        )
        selected, weights, began_at, runs = (got[name] for name in ("selected", "weight", "began", "run"))
        _, of_runs = np.unique(runs, return_inverse=True)
        repeated = self._has_run_id and int(of_runs.max(initial=-1)) + 1 < len(runs)
        self.sides = Sides(selected.astype(bool), weights.astype(float), of_runs if repeated else None)
        self._newest_first = np.argsort(-_numbers(began_at), kind="stable")
        self.stages_left_out: tuple[str, ...] = ()

    def fields(self, left_out: frozenset[str]) -> Iterator[tuple[Field, NDArray[Any]]]:
        """Yield each field of the rows but those left out, with its values by row."""
        wanted = [column for column in self._columns if column.name not in left_out]
        if not wanted:
            return
        expressions = ", ".join(f"{column.fetched} AS c{n}" for n, column in enumerate(wanted))
        got = self._fetch(f'SELECT {expressions} FROM {self._table} ORDER BY "#"')
        for n, column in enumerate(wanted):
            yield Field(column), _values(column, got[f"c{n}"])

    def fields_of_stages(self, columns: Sequence[Column]) -> Iterator[tuple[Field, NDArray[Any]]]:
        """Yield each of these fields for each stage, with its values by row of a run."""
        if not (self._has_run_id and columns):
            return
        copied = ", ".join(f"s.{quoted(column.name)}" for column in columns)
        self._connection.execute(
            f"CREATE TEMP TABLE {self._table}_stages AS "
            f'SELECT r."#", r."#selected", s.stage_name AS "#stage", {copied} '
            f"FROM stages s JOIN {self._table} r USING (pipeline_run_id) WHERE s.status <> 'RETRY'"
        )
        selected, rest = (max(1, int(side.sum())) for side in self.sides.of_both)
        stages = self._connection.execute(
            f'SELECT "#stage", hash("#stage") FROM {self._table}_stages WHERE "#stage" IS NOT NULL '
            f'GROUP BY 1 ORDER BY greatest(count(*) FILTER ("#selected") / {selected}, '
            f'count(*) FILTER (NOT "#selected") / {rest}) DESC, 1'
        ).fetchall()
        self.stages_left_out = tuple(name for name, _ in stages[_MOST_STAGES:])
        expressions = ", ".join(f"{column.fetched} AS c{n}" for n, column in enumerate(columns))
        got = self._fetch(
            f'SELECT "#" AS row, hash("#stage") AS stage, {expressions} FROM {self._table}_stages'
        )
        values = [_values(column, got[f"c{n}"]) for n, column in enumerate(columns)]
        rows = got["row"]
        for name, code in stages[:_MOST_STAGES]:
            here = np.flatnonzero(got["stage"] == np.uint64(code))
            for column, of_all in zip(columns, values, strict=True):
                missing = 0 if of_all.dtype == np.uint64 else np.nan
                of_runs = np.full(len(self.sides.selected), missing, dtype=of_all.dtype)
                of_runs[rows[here]] = of_all[here]
                yield Field(column, name), of_runs

    def value(self, field: Field, row: int) -> Any:
        """Return the value that a row has in a field."""
        table, condition = self._table, f'"#" = {row}'
        if field.stage is not None:
            table, condition = f"{table}_stages", f'{condition} AND "#stage" = {literal(field.stage)}'
        query = f"SELECT {field.column.compared} FROM {table} WHERE {condition} LIMIT 1"
        ((value,),) = self._connection.execute(query).fetchall()
        return value

    def run_ids(self, mask: NDArray[np.bool_], most: int = 5) -> tuple[str, ...]:
        """Return the newest runs of the selection among some rows."""
        if not self._has_run_id:
            return ()
        newest = self._newest_first[(mask & self.sides.selected)[self._newest_first]]
        # The stages of one run stand beside each other: a few more rows than ids are needed.
        rows = [int(row) for row in newest[: most * 20]]
        if not rows:
            return ()
        known = dict(
            self._connection.execute(
                f'SELECT "#", pipeline_run_id FROM {self._table} WHERE "#" IN ({", ".join(map(str, rows))})'
            ).fetchall()
        )
        return tuple(dict.fromkeys(str(known[row]) for row in rows if known[row] is not None))[:most]

    def _fetch(self, query: str) -> dict[str, NDArray[Any]]:
        got: Any = self._connection.execute(query).fetchnumpy()
        fetched: dict[str, NDArray[Any]] = got
        return fetched


@contextmanager
def looked_at(
    connection: DuckDBPyConnection, view: str, columns: Sequence[Column], where: str, against: str | None
) -> Generator[LookedAt]:
    """Hold a copy of the rows to look at, and drop it in the end.

    Which rows a sample has depends on nothing but the names of the rows: the same question gets the
    same answer.
    """
    names = {column.name for column in columns}
    weight = "greatest(coalesce(sample_rate, 1), 1)" if "sample_rate" in names else "1"
    key = next((name for name in _NAMES_ROWS if name in names), None)
    hashed = f"hash({key})" if key else f"hash({view})"
    selected = f"coalesce((\n{where}\n)::BOOLEAN, FALSE)"
    eligible = "TRUE" if against is None else f"coalesce((\n{against}\n)::BOOLEAN, FALSE)"
    ((rows, count, rest_rows, rest_count),) = connection.execute(
        f"SELECT count(*) FILTER (s), coalesce(sum(w) FILTER (s), 0), count(*) FILTER (e AND NOT s), "
        f"coalesce(sum(w) FILTER (e AND NOT s), 0) "
        f"FROM (SELECT {selected} AS s, {eligible} AS e, {weight}::DOUBLE AS w FROM {view})"
    ).fetchall()
    both = (Part(rows, count, 1.0 if rows else 0.0), Part(rest_rows, rest_count, 1.0 if rest_rows else 0.0))
    upper, rest_upper = (min(2**64 - 1, int(2**64 * _MOST_ROWS / max(1, part.rows))) for part in both)
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
        yield LookedAt(connection, table, columns, both)
    finally:
        for name in (table, f"{table}_stages"):
            with suppress(
                Exception
            ):  # an error under way is the one to tell; a closed connection keeps nothing
                connection.execute(f"DROP TABLE IF EXISTS {name}")


def _values(column: Column, got: NDArray[Any]) -> NDArray[Any]:
    return got.astype(np.uint64, copy=False) if column.kind == "category" else _numbers(got)


def _numbers(got: NDArray[Any]) -> NDArray[np.float64]:
    """Return numbers with nan for null, and for what is no number: it is neither more nor less."""
    if isinstance(got, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(got), np.nan, got.data.astype(np.float64))
    return np.asarray(got, dtype=np.float64)
