"""The statistical tests of `explain`."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ._sample import Cohorts, Floats, Mask
from ._values import Counts

__all__ = [
    "MIN_ROWS",
    "conditional_deviance",
    "counts_of_masks",
    "deviance",
    "heterogeneity_p",
    "interval_p",
    "mantel_haenszel",
    "p_values",
    "rank_p",
    "sizes",
    "threshold_p",
    "whole_field_p",
]


MIN_ROWS = 3
"""Minimum number of rows with a value for a finding: two occurrences are too few for a conclusion."""

_EXACT_BELOW = 0.05
"""Below this p-value, the exact test replaces the approximate one. No higher p-value can be significant."""


def counts_of_masks(masks: list[Mask], cohorts: Cohorts) -> Counts:
    """Return the counts of conditions, given as masks of rows."""
    counts = Counts.zeros(len(masks))
    for n, mask in enumerate(masks):
        for cohort, members in enumerate(cohorts.masks):
            weights = cohorts.weights[mask & members]
            counts.rows[cohort, n] = len(weights)
            counts.weight[cohort, n] = weights.sum()
            counts.squares[cohort, n] = (weights**2).sum()
    return counts


def sizes(counts: Counts, totals: Counts, design_effect: float) -> tuple[Floats, Floats]:
    """Return the share of each condition in each cohort, and the effective size of the sample of that share.

    Kish's effective sample size is the squared sum of the weights divided by the sum of their squares. It is
    limited by that of the rows that meet the condition, and by that of the rows that do not. The design
    effect of clusters reduces it.

    Args:
        counts: The counts of the conditions.
        totals: The counts of all rows.
        design_effect: The design effect of the clusters.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.nan_to_num(counts.weight / totals.weight)
        size = np.broadcast_to(totals.weight**2 / totals.squares, share.shape).copy()
        with_condition = counts.weight**2 / counts.squares / share
        others = totals.weight - counts.weight
        without = others**2 / (totals.squares - counts.squares) / (1 - share)
        size = np.fmin(size, np.where(counts.rows > 0, with_condition, np.inf))
        size = np.fmin(size, np.where(counts.rows < totals.rows, without, np.inf))
    return share, np.nan_to_num(size, posinf=0.0) / design_effect


def p_values(counts: Counts, totals: Counts, design_effect: float) -> Floats:
    """Return the two-sided p-value of each condition: chi-squared, or Fisher's exact test if it is low.

    A condition that fewer than three selected rows meet has the p-value 1, if it is more frequent there.
    """
    share, size = sizes(counts, totals, design_effect)
    if not size.all():
        return np.ones(share.shape[1])
    selected, rest = share * size
    total, met = size.sum(axis=0), selected + rest
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = selected * (size[1] - rest) - rest * (size[0] - selected)
        statistic = total * difference**2 / (met * (total - met) * size[0] * size[1])
    p = np.asarray(stats.chi2.sf(np.nan_to_num(statistic), 1))
    exact = p < _EXACT_BELOW
    # The minimum applies to rows, not to weights: a single row is never enough, whatever its weight.
    exact &= ~((share[0] > share[1]) & (np.minimum(counts.rows[0], np.round(selected)) < MIN_ROWS))
    p[~exact] = 1.0
    if exact.any():
        a, b, n, m = (np.round(part[exact]) for part in (selected, rest, size[0], size[1]))
        drawn = (n + m, a + b, n)
        tail = np.where(a * m > b * n, stats.hypergeom.sf(a - 1, *drawn), stats.hypergeom.cdf(a, *drawn))
        p[exact] = np.minimum(1.0, 2 * tail)  # twice the smaller tail
    return p


def whole_field_p(counts: Counts, design_effect: float) -> float:
    """Return the p-value of the chi-squared test of all values of a field; rare values are merged."""
    totals = counts.total()
    share, size = sizes(counts, totals, design_effect)
    n, m = (float(row.min(initial=np.inf)) for row in size)
    if not (0 < n < np.inf and 0 < m < np.inf):
        return 1.0
    observed = share * np.array([[n], [m]])
    smallest_share = min(n, m) / (n + m)
    is_common = observed.sum(axis=0) * smallest_share >= _MIN_EXPECTED
    table = np.column_stack([observed[:, is_common], observed[:, ~is_common].sum(axis=1)])
    table = table[:, table.sum(axis=0) * smallest_share >= _MIN_EXPECTED]
    if table.shape[1] < 2:
        return 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    if not expected.all():
        return 1.0
    return float(stats.chi2.sf(((table - expected) ** 2 / expected).sum(), table.shape[1] - 1))


_MIN_EXPECTED = 5.0
"""Minimum expected frequency for the chi-squared test (Cochran 1954)."""


def deviance(counts: Counts, totals: Counts, design_effect: float = 1.0) -> Floats:
    """Return the deviance (G²) that each condition explains of the selection, by a single split."""
    with_s, with_r = counts.weight
    all_s, all_r = totals.weight
    return np.asarray(
        (
            _entropy(all_s, all_r)
            - _entropy(with_s, with_r)
            - _entropy(np.maximum(0, all_s - with_s), np.maximum(0, all_r - with_r))
        )
        / design_effect
    )


def _entropy(selected: Floats, rest: Floats) -> Floats:
    """Return twice the negative maximum log-likelihood of a group of rows."""
    total = selected + rest
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(part > 0, part * np.log(part / total), 0.0) for part in (selected, rest)]
    return np.asarray(-2 * (terms[0] + terms[1]))


def _strata_counts(
    mask: Mask, strata: NDArray[np.intp], cohorts: Cohorts
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return the weights by stratum: selected with the condition, selected, all with the condition, all."""
    size = int(strata.max(initial=0)) + 1
    weights = cohorts.weights
    selected = np.where(cohorts.selected, weights, 0.0)

    def summed(amounts: Floats) -> Floats:
        return np.bincount(strata, amounts, size).astype(np.float64)

    met = np.where(mask, weights, 0.0)
    return summed(np.where(mask, selected, 0.0)), summed(selected), summed(met), summed(weights)


def mantel_haenszel(mask: Mask, strata: NDArray[np.intp], cohorts: Cohorts) -> tuple[float, float]:
    """Return the p-value of a condition after controlling for strata, and its adjusted excess.

    The test is that of Cochran, Mantel and Haenszel, one-sided: the condition is more frequent in the
    selection. The excess is the number of selected rows with the condition beyond those expected in their
    stratum.
    """
    both, selected, met, total = _strata_counts(mask, strata, cohorts)
    informative = (total > 1) & (met > 0) & (met < total) & (selected > 0) & (selected < total)
    both, selected, met, total = (part[informative] for part in (both, selected, met, total))
    if not len(total):
        return 1.0, 0.0
    expected = selected * met / total
    variance = float((selected * (total - selected) * met * (total - met) / (total**2 * (total - 1))).sum())
    excess = float((both - expected).sum())
    if variance <= 0:
        return 1.0, excess
    scale = float((cohorts.weights**2).sum() / cohorts.weights.sum()) * cohorts.design_effect
    corrected = max(0.0, excess - 0.5)
    return float(stats.norm.sf(corrected / math.sqrt(variance * scale))), excess


def conditional_deviance(mask: Mask, strata: NDArray[np.intp], cohorts: Cohorts) -> float:
    """Return the deviance (G²) that a condition explains in addition to strata."""
    both, selected, met, total = _strata_counts(mask, strata, cohorts)
    return float(
        (
            _entropy(selected, total - selected)
            - _entropy(both, met - both)
            - _entropy(selected - both, np.maximum(0, total - met - (selected - both)))
        ).sum()
        / cohorts.design_effect
    )


def heterogeneity_p(mask: Mask, other: Mask, cohorts: Cohorts) -> float:
    """Return the p-value of Woolf's test: whether the odds ratio differs with another condition."""
    both, selected, met, total = (part + 0.0 for part in _strata_counts(mask, other.astype(np.intp), cohorts))
    if len(total) < 2:
        return 1.0
    cells = (
        np.stack([both, met - both, selected - both, total - met - selected + both]) / cohorts.design_effect
    )
    cells = np.maximum(cells, 0) + 0.5
    log_odds = np.log(cells[0] * cells[3] / (cells[1] * cells[2]))
    variance = (1 / cells).sum(axis=0)
    z = (log_odds[1] - log_odds[0]) / math.sqrt(float(variance.sum()))
    return float(2 * stats.norm.sf(abs(z)))


_MAX_EXACT = 10_000
"""Maximum product of the two sample sizes for which the p-value is calculated exactly."""


def threshold_p(distance: float, n: int, m: int) -> float:
    """Return the p-value of the two-sample Kolmogorov-Smirnov test, which accounts for every threshold.

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


def interval_p(distance: float, n: float, m: float) -> float:
    """Return the p-value of Kuiper's two-sample test, which accounts for every interval.

    The asymptotic distribution with the correction of Stephens (1970). Tied values make it conservative.

    Args:
        distance: The sum of the largest distances between the distribution functions in both directions.
        n: Size of the first sample.
        m: Size of the second sample.
    """
    size = math.sqrt(n * m / (n + m))
    scaled = (size + 0.155 + 0.24 / size) * distance
    if scaled < 0.4:
        return 1.0
    terms = np.arange(1, 101)
    squares = (terms * scaled) ** 2
    p = float(2 * ((4 * squares - 1) * np.exp(-2 * squares)).sum())
    # Of all orders of the two samples on a circle, n + m separate them.
    least = math.exp(
        min(0.0, math.log(n + m) + math.lgamma(n + 1) + math.lgamma(m + 1) - math.lgamma(n + m + 1))
    )
    return min(1.0, max(p, least))


def rank_p(ranks: Floats, selection: Floats, rest: Floats, n: float, m: float) -> float:
    """Return the p-value of a difference between mean ranks (Mann-Whitney U test as a t-test of the ranks).

    Args:
        ranks: The rank of each distinct value, 0 to 1.
        selection: The cumulative shares of the values in the selection.
        rest: The same for the rest.
        n: Effective number of selected rows.
        m: Effective number of other rows.
    """
    # Weights and clusters can leave less than one effective row.
    if n <= 1 or m <= 1:
        return 1.0
    shares = [np.diff(cumulative, prepend=0.0) for cumulative in (selection, rest)]
    means = [float((share * ranks).sum()) for share in shares]
    deviations = [
        float(np.sqrt((share * (ranks - mean) ** 2).sum())) for share, mean in zip(shares, means, strict=True)
    ]
    result = stats.ttest_ind_from_stats(means[0], deviations[0], n, means[1], deviations[1], m)
    p = float(result.pvalue) if np.isfinite(result.pvalue) else 1.0
    # With few ranks, a t-test can return less than the probability of their most extreme order.
    return max(p, _min_p(n, m))
