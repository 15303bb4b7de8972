"""Numbers compared by their ranks: whether they are shifted, and where they are best split in two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from scipy import stats

from .sides import Floats, Mask, Sides

__all__ = ["Split", "best_split"]

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
