"""Values compared by their share on each side: a two by two table for each of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from .sides import Counts, Floats, Mask, Sides

__all__ = ["MISSING", "Values", "compare_values", "p_of_mask"]

MISSING = 0
"""The code of a row that has no value."""

_FEWEST = 3
"""Rows that must have a value before it can be a finding: of two, nobody would say that it is the cause."""

_WORTH_A_CLOSER_LOOK = 0.05
"""Below this the approximate test is replaced by the exact one; no p-value above it can be significant."""


@dataclass(frozen=True)
class Values:
    """What comparing the values of one field gave, an item for each value.

    Attributes:
        codes: The values; `MISSING` among them where rows have none.
        first: A row that has the value.
        p: The p-value of its table, 1 where too few rows have it.
        surplus: By how much its share in the selection is above that in the rest.
        comparisons: How many tables were looked at.
        repeats: The share of rows with a value whose value occurs more than twice, on the side where
            there are more of them.
    """

    codes: NDArray[np.uint64]
    of_rows: NDArray[np.intp]
    first: NDArray[np.intp]
    p: Floats
    surplus: Floats
    comparisons: int
    repeats: float

    @property
    def distinct(self) -> int:
        """How many values there are, a missing one not counted."""
        return len(self.codes) - int(MISSING in self.codes[:1])

    def rows_with(self, at: int) -> Mask:
        """Return the mask of the rows that have a value."""
        return np.asarray(self.of_rows == at)


def compare_values(codes: NDArray[np.uint64], sides: Sides) -> Values:
    """Compare the share of every value, a missing one included.

    Args:
        codes: The value of each row, as a number; `MISSING` where it has none.
        sides: The rows.
    """
    values, first, of_rows = np.unique(codes, return_index=True, return_inverse=True)
    selection, rest = sides.counts(of_rows, len(values))
    frequent = selection.rows + rest.rows >= _FEWEST
    p = np.ones(len(values))
    if len(values) > 1:
        p[frequent] = _p(sides, _of(selection, frequent), _of(rest, frequent))
    present = values != MISSING
    repeats = max(
        float(side.rows[present & frequent].sum() / max(1.0, side.rows[present].sum()))
        for side in (selection, rest)
    )
    many = int(frequent.sum())
    return Values(
        codes=values,
        of_rows=of_rows,
        first=first,
        p=p,
        surplus=selection.weight / sides.weights_of[0] - rest.weight / sides.weights_of[1],
        # Of two values, each table is the other one with its columns swapped.
        comparisons=max(1, many - 1 if len(values) == 2 else many) if len(values) > 1 else 0,
        repeats=repeats,
    )


def p_of_mask(mask: Mask, sides: Sides) -> float:
    """Return the p-value of one table: rows that have something, against those that do not."""
    if mask.all() or not mask.any() or sides.selected.all() or not sides.selected.any():
        return 1.0
    selection, rest = sides.counts(mask.astype(np.intp), 2)
    return float(_p(sides, selection, rest)[1])


def _of(counts: Counts, some: Mask) -> Counts:
    return Counts(counts.rows[some], counts.weight[some], counts.squares[some])


def _p(sides: Sides, selection: Counts, rest: Counts) -> Floats:
    """Two-sided p-values: by chi-squared first, and exactly where that is low."""
    (share, worth), (other, others) = sides.worth(selection, 0), sides.worth(rest, 1)
    having, having_others = share * worth, other * others
    table = np.stack([having, worth - having, having_others, others - having_others])
    total, all_having = worth + others, having + having_others
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.stack(
            [
                all_having * worth / total,
                (total - all_having) * worth / total,
                all_having * others / total,
                (total - all_having) * others / total,
            ]
        )
        p = np.asarray(stats.power_divergence(table, expected, ddof=2, axis=0).pvalue)
    p[~np.isfinite(p)] = 1.0
    closer = p < _WORTH_A_CLOSER_LOOK
    # Witnesses, and not what they stand for: one of them never shows anything, whatever its weight.
    closer &= ~((share > other) & (np.minimum(selection.rows, np.round(having)) < _FEWEST))
    p[~closer] = 1.0
    if closer.any():
        a, b, n, m = (np.round(part[closer]) for part in (having, having_others, worth, others))
        drawn = (n + m, a + b, n)
        tail = np.where(a / n > b / m, stats.hypergeom.sf(a - 1, *drawn), stats.hypergeom.cdf(a, *drawn))
        p[closer] = np.minimum(1.0, 2 * tail)  # Fisher's exact test, the smaller tail doubled
    return p
