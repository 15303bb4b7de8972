"""When a selection becomes more frequent: the time that separates two rates best, and its uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from ._sample import Cohorts, Floats, Mask

__all__ = ["Onset", "find_onset"]


_RANGE = float(stats.chi2.ppf(0.95, 1))
"""The deviance by which a time may be worse than the best one to belong to the range."""


@dataclass(frozen=True)
class Onset:
    """The change of a rate. All times are in seconds since 1970.

    Attributes:
        at: The start of the first row after the change.
        earliest: The start of the last row before the earliest time that is about as likely (95%).
        latest: The latest time that is about as likely.
        p: The p-value of the change, corrected for all times that were compared.
    """

    at: float
    earliest: float
    latest: float
    p: float


def find_onset(starts: Floats, cohorts: Cohorts, rows: Mask | None = None) -> Onset | None:
    """Return when the selection becomes more frequent, by the likelihood ratio of all times.

    Args:
        starts: The start of each row; nan if it is unknown.
        cohorts: The selection and the rest.
        rows: The rows to compare; default all.

    Returns:
        The onset; None if the selection is not more frequent after any time than before it.
    """
    known = ~np.isnan(starts) if rows is None else rows & ~np.isnan(starts)
    order = np.argsort(starts[known], kind="stable")
    starts = starts[known][order]
    weights = cohorts.weights[known][order]
    selected = weights * cohorts.selected[known][order]
    begins = np.flatnonzero(np.diff(starts) > 0) + 1  # the first row of each later time
    if not len(begins):
        return None
    all_before, selected_before = np.cumsum(weights)[begins - 1], np.cumsum(selected)[begins - 1]
    # Not as a difference from the total: a small weight after a large one would be rounded to zero.
    all_after, selected_after = (np.cumsum(each[::-1])[::-1][begins] for each in (weights, selected))
    rises = selected_after / all_after > selected_before / all_before
    if not rises.any():
        return None

    def likelihood(part: Floats, whole: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = part * np.log(part / whole) + (whole - part) * np.log(1 - part / whole)
        return np.nan_to_num(terms)

    none = likelihood(np.array([selected.sum()]), np.array([weights.sum()]))
    gain = 2 * (likelihood(selected_before, all_before) + likelihood(selected_after, all_after) - none)
    # Weights and clusters reduce the number of independent rows.
    gain = np.where(rises, gain / (cohorts.design_effect * (weights**2).sum() / weights.sum()), -np.inf)
    best = int(np.argmax(gain))
    likely = begins[gain >= gain[best] - _RANGE]
    return Onset(
        at=float(starts[begins[best]]),
        earliest=float(starts[likely[0] - 1]),
        latest=float(starts[likely[-1]]),
        p=min(1.0, float(stats.chi2.sf(gain[best], 1)) * len(begins)),
    )
