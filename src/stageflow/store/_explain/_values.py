"""How often each value of a field occurs in the selection and in the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ._fields import Field, literal
from ._sample import Cohorts, Floats, Mask

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Counts", "ValueTable", "count_values", "element_condition"]


@dataclass(frozen=True)
class Counts:
    """The frequency of several conditions in both cohorts; each array has the shape (2, conditions).

    Attributes:
        rows: Number of rows.
        weight: The sum of their weights.
        squares: The sum of their squared weights.
    """

    rows: Floats
    weight: Floats
    squares: Floats

    @classmethod
    def zeros(cls, conditions: int) -> Counts:
        """Return the counts of conditions that no row meets."""
        return cls(*(np.zeros((2, conditions)) for _ in range(3)))

    def total(self) -> Counts:
        """Return the counts of the rows that meet any of the conditions, which exclude each other."""
        return Counts(*(part.sum(axis=1, keepdims=True) for part in (self.rows, self.weight, self.squares)))

    def at(self, index: Any) -> Counts:
        """Return the counts of some of the conditions."""
        return Counts(self.rows[:, index], self.weight[:, index], self.squares[:, index])

    def summed(self, groups: Sequence[NDArray[np.intp]]) -> Counts:
        """Return the counts of groups of conditions that exclude each other."""
        summed = Counts.zeros(len(groups))
        for target, source in (
            (summed.rows, self.rows),
            (summed.weight, self.weight),
            (summed.squares, self.squares),
        ):
            for n, group in enumerate(groups):
                target[:, n] = source[:, group].sum(axis=1)
        return summed

    def plus(self, other: Counts) -> Counts:
        """Return the sum of two counts with the same number of conditions."""
        return Counts(self.rows + other.rows, self.weight + other.weight, self.squares + other.squares)


@dataclass(frozen=True)
class ValueTable:
    """The values of one field, and how often each occurs.

    Attributes:
        hashes: The hashes of the values, in ascending order.
        texts: The values as text, in the same order; the value of a list is a JSON array.
        counts: The counts of the values.
        missing: The counts of the rows without a value.
        is_complete: Whether all rows were counted, and not only a sample.
    """

    hashes: NDArray[np.uint64]
    texts: list[str]
    counts: Counts
    missing: Counts
    is_complete: bool

    def codes(self, hashes: NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the index of each value; -1 if it is missing."""
        if not len(self.hashes):
            return np.full(len(hashes), -1, np.intp)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, at, -1)

    def with_missing(self, totals: Counts) -> ValueTable:
        """Return the table of a stage, with the runs without the stage among the missing values.

        Args:
            totals: The counts of all runs.
        """
        present = self.counts.total()
        parts = (
            np.maximum(0.0, whole - here)
            for whole, here in (
                (totals.rows, present.rows),
                (totals.weight, present.weight),
                (totals.squares, present.squares),
            )
        )
        return ValueTable(self.hashes, self.texts, self.counts, Counts(*parts), self.is_complete)

    def recounted(self, codes: NDArray[np.intp], cohorts: Cohorts, rows: Mask) -> ValueTable:
        """Return the table with the counts of some of the sampled rows.

        Args:
            codes: The index of the value of each sampled row; -1 if it has none.
            cohorts: The selection and the rest.
            rows: The rows to count.
        """
        counts, missing = Counts.zeros(len(self.texts)), Counts.zeros(1)
        present = codes >= 0
        for cohort, members in enumerate(cohorts.masks):
            here, without = members & present & rows, members & ~present & rows
            weights = cohorts.weights
            for amount, target, target_missing in (
                (np.ones(len(weights)), counts.rows, missing.rows),
                (weights, counts.weight, missing.weight),
                (weights**2, counts.squares, missing.squares),
            ):
                target[cohort] = np.bincount(codes[here], amount[here], len(self.texts))
                target_missing[cohort, 0] = amount[without].sum()
        return ValueTable(self.hashes, self.texts, counts, missing, is_complete=False)

    def elements(self) -> Mapping[str, NDArray[np.intp]]:
        """Return for each element of the lists the indices of the lists that contain it."""
        found: dict[str, list[int]] = {}
        for n, text in enumerate(self.texts):
            for element in {_element_text(one) for one in _decoded(text) if one is not None}:
                found.setdefault(element, []).append(n)
        return {element: np.array(where, np.intp) for element, where in found.items()}


_BATCH = 40
"""Number of fields that one query counts."""


def _decoded(text: str) -> list[Any]:
    value = msgspec.json.decode(text)
    return value if isinstance(value, list) else [value]


def _element_text(element: Any) -> str:
    """Return an element of a list as DuckDB casts it to text."""
    if isinstance(element, str):
        return element
    return msgspec.json.encode(element).decode()


def count_values(
    connection: DuckDBPyConnection,
    source: str,
    fields: Sequence[Field],
    *,
    by_stage: bool,
    is_weighted: bool,
    is_complete: bool,
) -> list[dict[str, ValueTable]]:
    """Count the values of several fields in one pass.

    Args:
        connection: The connection.
        source: The table, or a query in parentheses, with the columns of the fields, `#selected` and
            `#weight`, and `#stage` if `by_stage`.
        fields: The fields; each has an expression `text`.
        by_stage: Whether to count the values of each stage separately.
        is_weighted: Whether any weight differs from 1.
        is_complete: Whether the source contains all rows that are compared.

    Returns:
        For each field the table of its values by stage; without `by_stage`, the only key is "".
    """
    if len(fields) > _BATCH:
        # The memory of a query grows with the square of the number of its grouping sets.
        return [
            table
            for start in range(0, len(fields), _BATCH)
            for table in count_values(
                connection,
                source,
                fields[start : start + _BATCH],
                by_stage=by_stage,
                is_weighted=is_weighted,
                is_complete=is_complete,
            )
        ]
    if not fields:
        return []
    names = [f"v{n}" for n in range(len(fields))]
    columns = ", ".join(f"{field.text} AS {name}" for name, field in zip(names, fields, strict=True))
    stage = ', "#stage"' if by_stage else ""
    sets = ", ".join(f'("#selected", {name}{stage})' for name in names)
    index = " ".join(f"WHEN grouping({name}) = 0 THEN {n}" for n, name in enumerate(names))
    text = " ".join(f"WHEN grouping({name}) = 0 THEN CAST({name} AS VARCHAR)" for name in names)
    hashed = " ".join(f"WHEN grouping({name}) = 0 THEN greatest(hash({name}), 1)" for name in names)
    weights = (
        'sum("#weight") AS weight, sum("#weight" * "#weight") AS squares' if is_weighted else "1 AS weight"
    )
    fetched: Any = connection.execute(
        f"SELECT CASE {index} END AS field, CASE {hashed} END AS hash, CASE {text} END AS text, "
        f'"#selected" AS selected, count(*) AS rows, {weights}{stage or ", NULL"} AS stage '
        f'FROM (SELECT "#selected", "#weight"{stage}, {columns} FROM {source}) '
        f"GROUP BY GROUPING SETS ({sets})"
    ).fetchnumpy()
    field, stages = fetched["field"].astype(int), fetched["stage"]
    rows = fetched["rows"].astype(float)
    weight = fetched["weight"].astype(float) if is_weighted else rows
    squares = fetched["squares"].astype(float) if is_weighted else rows
    side = np.where(fetched["selected"].astype(bool), 0, 1)
    texts, hashes = fetched["text"], fetched["hash"]
    is_null = np.ma.getmaskarray(texts)
    tables: list[dict[str, ValueTable]] = []
    order = np.argsort(field, kind="stable")
    bounds = np.searchsorted(field[order], np.arange(len(fields) + 1))
    for n in range(len(fields)):
        here = order[bounds[n] : bounds[n + 1]]
        groups: dict[str, NDArray[np.intp]] = {"": here}
        if by_stage:
            named = np.ma.getmaskarray(stages)[here]
            of_row = stages.data[here] if isinstance(stages, np.ma.MaskedArray) else stages[here]
            of_rows: dict[str, list[int]] = {}
            for at, name, without in zip(here.tolist(), of_row.tolist(), named.tolist(), strict=True):
                if not without:
                    of_rows.setdefault(name, []).append(at)
            groups = {name: np.array(at, np.intp) for name, at in of_rows.items()}
        tables.append(
            {
                name: _table(at, side, hashes, texts, is_null, (rows, weight, squares), is_complete)
                for name, at in groups.items()
            }
        )
    return tables


def _table(
    at: NDArray[np.intp],
    side: NDArray[np.intp],
    hashes: Any,
    texts: Any,
    is_null: NDArray[np.bool_],
    amounts: tuple[Floats, Floats, Floats],
    is_complete: bool,
) -> ValueTable:
    present = at[~is_null[at]]
    distinct, first, code = np.unique(
        np.asarray(hashes)[present].astype(np.uint64), return_index=True, return_inverse=True
    )
    counts, missing = Counts.zeros(len(distinct)), Counts.zeros(1)
    without = at[is_null[at]]
    for amount, target, target_missing in zip(
        amounts,
        (counts.rows, counts.weight, counts.squares),
        (missing.rows, missing.weight, missing.squares),
        strict=True,
    ):
        for cohort in (0, 1):
            here = side[present] == cohort
            target[cohort] = np.bincount(code[here], amount[present[here]], len(distinct))
            target_missing[cohort, 0] = amount[without[side[without] == cohort]].sum()
    return ValueTable(
        distinct, [str(text) for text in np.asarray(texts)[present[first]]], counts, missing, is_complete
    )


def element_condition(field: Field, element: str) -> str:
    """Return a predicate for the rows whose list contains an element."""
    return f"list_contains(CAST(CAST({field.text} AS JSON) AS VARCHAR[]), {literal(element)})"
