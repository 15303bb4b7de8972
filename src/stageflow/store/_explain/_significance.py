"""The statistical tests of `explain`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ._sample import Counts, Floats, Mask, Sides

__all__ = ["MISSING", "Split", "Values", "best_split", "compare_values", "p_of_mask"]


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


_COMPARISONS = 2
"""The split and the shift."""

_MOST_EXACT = 10_000
"""Largest product of the sizes of two samples for which their p-value is calculated exactly."""

_MOST_TIED = 0.5
"""A shift is looked for where no single number is more frequent: the test knows of ranks, not of heaps."""


@dataclass(frozen=True)
class Split:
    """Where the numbers of one field are best split, and whether that shows anything.

    Attributes:
        low: The largest number below the split.
        high: The smallest number above it.
        above: Whether it is the larger numbers that are more frequent in the selection.
        mask: The rows on that side of it.
        p: The lower p-value of the two comparisons.
        comparisons: How many there were.
    """

    low: float
    high: float
    above: bool
    mask: Mask
    p: float
    comparisons: int


def best_split(numbers: Floats, sides: Sides) -> Split | None:
    """Return the best split of a field, or None where its numbers are all the same.

    The split is where the two distribution functions are furthest apart, so its p-value is that of
    Kolmogorov and Smirnov, in which every possible split is accounted for. The shift is that of the
    mean rank.

    Args:
        numbers: A number for each row; nan where it has none.
        sides: The rows.
    """
    present = ~np.isnan(numbers)
    if present.all():
        here, values = sides, numbers
    else:
        here, values = sides.among(present), numbers[present]
    if not len(values) or 0.0 in here.weights_of:
        return None
    order = np.argsort(values)
    ordered = values[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    if len(ends) < 2:
        return None
    weights, selected = here.weights[order], here.selected[order]
    up_to = [np.cumsum(np.where(side, weights, 0.0))[ends] for side in (selected, ~selected)]
    selection, rest = (reached / reached[-1] for reached in up_to)
    apart = rest - selection
    at = int(np.argmax(np.abs(apart[:-1])))
    worth, others = here.worth_of(np.ones(len(values), dtype=bool))
    p = _distance_p(float(abs(apart[at])), max(1, round(worth)), max(1, round(others)))
    pooled = up_to[0] + up_to[1]
    heaps = np.diff(pooled, prepend=0.0) / pooled[-1]
    comparisons = 1
    if heaps.max() <= _MOST_TIED:
        comparisons = _COMPARISONS
        ranks = np.cumsum(heaps) - heaps / 2
        # A t-test of few ranks may report less than the probability of the most extreme order of them.
        p = min(p, max(_shift(ranks, selection, rest, worth, others), _least_p(worth, others)))
    low, high, above = float(ordered[ends[at]]), float(ordered[ends[at + 1]]), bool(apart[at] > 0)
    mask = present & ((numbers > low) if above else (numbers <= low))
    return Split(low, high, above, np.asarray(mask), p, comparisons)


def _distance_p(distance: float, n: int, m: int) -> float:
    """Return the p-value of the two-sample test of Kolmogorov and Smirnov.

    Args:
        distance: The largest distance between the two distribution functions.
        n: Size of one sample.
        m: Size of the other.
    """
    if n * m > _MOST_EXACT:
        # The distribution of one sample and a continuous function; the correction covers the steps of the
        # other sample.
        corrected = max(0.0, distance - 1 / max(n, m))
        p = float(stats.kstwo.sf(corrected, max(1, round(n * m / (n + m)))))
        return max(p, _least_p(n, m))
    # Each order of the two samples is a path from (0, 0) to (n, m); count those that stay closer than that.
    least = distance * n * m * (1 - 1e-12)
    closer = [1 if j * n < least else 0 for j in range(m + 1)]
    closer = list(accumulate(closer, lambda reached, is_closer: reached * is_closer))
    for i in range(1, n + 1):
        reached = 0
        for j in range(m + 1):
            reached = reached + closer[j] if abs(i * m - j * n) < least else 0
            closer[j] = reached
    orders = math.comb(n + m, n)
    return (orders - closer[m]) / orders


def _least_p(n: float, m: float) -> float:
    """Return the p-value of two samples that are completely apart: no test of their order can report less."""
    return math.exp(min(0.0, math.log(2) + math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1)))


def _shift(ranks: Floats, selection: Floats, rest: Floats, worth: float, others: float) -> float:
    """The p-value of a shift of the mean rank, from the distribution of the ranks on each side."""
    if worth + others <= 2:
        return 1.0
    shares = [np.diff(side, prepend=0.0) for side in (selection, rest)]
    means = [float((share * ranks).sum()) for share in shares]
    spreads = [
        float(np.sqrt((share * (ranks - mean) ** 2).sum())) for share, mean in zip(shares, means, strict=True)
    ]
    found = stats.ttest_ind_from_stats(means[0], spreads[0], worth, means[1], spreads[1], others)
    return float(found.pvalue) if np.isfinite(found.pvalue) else 1.0
