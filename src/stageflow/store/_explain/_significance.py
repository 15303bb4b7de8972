"""The statistical tests of `explain`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ._sample import Cohorts, Counts, Floats, Mask

__all__ = ["MISSING", "Split", "Values", "best_split", "compare_values", "p_of_mask"]


MISSING = 0
"""The code of a missing value."""

_MIN_ROWS = 3
"""Minimum number of rows with a value for a finding: two occurrences are too few for a conclusion."""

_EXACT_BELOW = 0.05
"""Below this p-value, the exact test replaces the approximate one. No higher p-value can be significant."""


@dataclass(frozen=True)
class Values:
    """The comparison of the values of one field, with one item per value.

    Attributes:
        codes: The values, in ascending order; `MISSING` is first if values are missing.
        of_rows: The index of the value of each row.
        first: The index of a row that has the value.
        p: The p-value of the value's table; 1 if too few rows have it.
        surplus: The share in the selection minus the share in the rest.
        comparisons: Number of tables that were tested.
        repeats: The share of rows whose value occurs more than twice, among those with a value; the
            higher one of the two cohorts.
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
        """Number of values, not counting a missing one."""
        return len(self.codes) - int(MISSING in self.codes[:1])

    def rows_with(self, at: int) -> Mask:
        """Return the mask of the rows that have the value at an index."""
        return np.asarray(self.of_rows == at)


def compare_values(codes: NDArray[np.uint64], cohorts: Cohorts) -> Values:
    """Compare the share of every value, and of a missing value.

    Args:
        codes: The value of each row, as a number; `MISSING` if it has none.
        cohorts: The selection and the rest.
    """
    values, first, of_rows = np.unique(codes, return_index=True, return_inverse=True)
    selection, rest = cohorts.counts(of_rows, len(values))
    frequent = selection.rows + rest.rows >= _MIN_ROWS
    p = np.ones(len(values))
    if len(values) > 1:
        p[frequent] = _p(cohorts, _subset(selection, frequent), _subset(rest, frequent))
    present = values != MISSING
    repeats = max(
        float(counts.rows[present & frequent].sum() / max(1.0, counts.rows[present].sum()))
        for counts in (selection, rest)
    )
    tests = int(frequent.sum())
    return Values(
        codes=values,
        of_rows=of_rows,
        first=first,
        p=p,
        surplus=selection.weight / cohorts.totals[0] - rest.weight / cohorts.totals[1],
        # If there are two values, their tables are the same with the columns swapped.
        comparisons=max(1, tests - 1 if len(values) == 2 else tests) if len(values) > 1 else 0,
        repeats=repeats,
    )


def p_of_mask(mask: Mask, cohorts: Cohorts) -> float:
    """Return the p-value of a single table: rows that match a mask and rows that do not."""
    if mask.all() or not mask.any() or cohorts.selected.all() or not cohorts.selected.any():
        return 1.0
    selection, rest = cohorts.counts(mask.astype(np.intp), 2)
    return float(_p(cohorts, selection, rest)[1])


def _subset(counts: Counts, mask: Mask) -> Counts:
    return Counts(counts.rows[mask], counts.weight[mask], counts.squares[mask])


def _p(cohorts: Cohorts, selection: Counts, rest: Counts) -> Floats:
    """Return two-sided p-values: chi-squared, or Fisher's exact test if those are low."""
    share, size = cohorts.effective_sizes(selection, 0)
    rest_share, rest_size = cohorts.effective_sizes(rest, 1)
    with_value, rest_with_value = share * size, rest_share * rest_size
    table = np.stack([with_value, size - with_value, rest_with_value, rest_size - rest_with_value])
    total, all_with_value = size + rest_size, with_value + rest_with_value
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.stack(
            [
                all_with_value * size / total,
                (total - all_with_value) * size / total,
                all_with_value * rest_size / total,
                (total - all_with_value) * rest_size / total,
            ]
        )
        p = np.asarray(stats.power_divergence(table, expected, ddof=2, axis=0).pvalue)
    p[~np.isfinite(p)] = 1.0
    exact = p < _EXACT_BELOW
    # The minimum applies to rows, not to weights: a single row is never enough, whatever its weight.
    exact &= ~((share > rest_share) & (np.minimum(selection.rows, np.round(with_value)) < _MIN_ROWS))
    p[~exact] = 1.0
    if exact.any():
        a, b, n, m = (np.round(part[exact]) for part in (with_value, rest_with_value, size, rest_size))
        drawn = (n + m, a + b, n)
        tail = np.where(a / n > b / m, stats.hypergeom.sf(a - 1, *drawn), stats.hypergeom.cdf(a, *drawn))
        p[exact] = np.minimum(1.0, 2 * tail)  # Fisher's exact test: twice the smaller tail
    return p


_COMPARISONS = 2
"""The test of the split, and the test of the mean rank."""

_MAX_EXACT = 10_000
"""Maximum product of the two sample sizes for which the p-value is calculated exactly."""

_MAX_TIED_SHARE = 0.5
"""If a single number has a larger share, mean ranks are not compared: the test assumes few ties."""


@dataclass(frozen=True)
class Split:
    """The best split of the numbers of one field, and its significance.

    Attributes:
        low: The largest number below the split.
        high: The smallest number above the split.
        above: Whether the numbers above the split are more frequent in the selection.
        mask: The rows whose numbers are on that side of the split.
        p: The lower p-value of the comparisons.
        comparisons: Number of comparisons.
    """

    low: float
    high: float
    above: bool
    mask: Mask
    p: float
    comparisons: int


def best_split(numbers: Floats, cohorts: Cohorts) -> Split | None:
    """Return the best split of a field, or None if all numbers are the same.

    The split is at the largest distance between the two distribution functions. Its p-value is that of
    the Kolmogorov-Smirnov test, which accounts for every possible split. The second test compares the
    mean ranks.

    Args:
        numbers: The number of each row; nan if it has none.
        cohorts: The selection and the rest.
    """
    present = ~np.isnan(numbers)
    if present.all():
        here, values = cohorts, numbers
    else:
        here, values = cohorts.subset(present), numbers[present]
    if not len(values) or 0.0 in here.totals:
        return None
    order = np.argsort(values)
    ordered = values[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    if len(ends) < 2:
        return None
    weights, selected = here.weights[order], here.selected[order]
    cumulative = [np.cumsum(np.where(mask, weights, 0.0))[ends] for mask in (selected, ~selected)]
    selection, rest = (sums / sums[-1] for sums in cumulative)
    distance = rest - selection
    at = int(np.argmax(np.abs(distance[:-1])))
    size, rest_size = here.effective_size()
    p = _distance_p(float(abs(distance[at])), max(1, round(size)), max(1, round(rest_size)))
    pooled = cumulative[0] + cumulative[1]
    tied_shares = np.diff(pooled, prepend=0.0) / pooled[-1]
    comparisons = 1
    if tied_shares.max() <= _MAX_TIED_SHARE:
        comparisons = _COMPARISONS
        ranks = np.cumsum(tied_shares) - tied_shares / 2
        # With few ranks, a t-test can return less than the probability of their most extreme order.
        p = min(p, max(_rank_p(ranks, selection, rest, size, rest_size), _min_p(size, rest_size)))
    low, high, above = float(ordered[ends[at]]), float(ordered[ends[at + 1]]), bool(distance[at] > 0)
    mask = present & ((numbers > low) if above else (numbers <= low))
    return Split(low, high, above, np.asarray(mask), p, comparisons)


def _distance_p(distance: float, n: int, m: int) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test.

    Args:
        distance: The largest distance between the two distribution functions.
        n: Size of the first sample.
        m: Size of the second sample.
    """
    if n * m > _MAX_EXACT:
        # Approximate by the one-sample distribution; the correction accounts for the steps of the other
        # sample.
        corrected = max(0.0, distance - 1 / max(n, m))
        p = float(stats.kstwo.sf(corrected, max(1, round(n * m / (n + m)))))
        return max(p, _min_p(n, m))
    # Each order of the two samples is a path from (0, 0) to (n, m). Count the paths with a smaller distance.
    limit = distance * n * m * (1 - 1e-12)
    paths = [1 if j * n < limit else 0 for j in range(m + 1)]
    paths = list(accumulate(paths, lambda count, is_closer: count * is_closer))
    for i in range(1, n + 1):
        count = 0
        for j in range(m + 1):
            count = count + paths[j] if abs(i * m - j * n) < limit else 0
            paths[j] = count
    orders = math.comb(n + m, n)
    return (orders - paths[m]) / orders


def _min_p(n: float, m: float) -> float:
    """Return the p-value of two samples that do not overlap: the minimum of any test of their order."""
    return math.exp(min(0.0, math.log(2) + math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1)))


def _rank_p(ranks: Floats, selection: Floats, rest: Floats, size: float, rest_size: float) -> float:
    """Return the p-value of a difference between mean ranks, from two cumulative distributions."""
    if size + rest_size <= 2:
        return 1.0
    shares = [np.diff(cumulative, prepend=0.0) for cumulative in (selection, rest)]
    means = [float((share * ranks).sum()) for share in shares]
    deviations = [
        float(np.sqrt((share * (ranks - mean) ** 2).sum())) for share, mean in zip(shares, means, strict=True)
    ]
    result = stats.ttest_ind_from_stats(means[0], deviations[0], size, means[1], deviations[1], rest_size)
    return float(result.pvalue) if np.isfinite(result.pvalue) else 1.0
