"""Causes that are two at once: neither field alone, but both of them together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import sqrt

from .contingency import p_of_mask
from .findings import Finding
from .sides import Mask, Sides

__all__ = ["both_needed"]

_OF = 8
"""Of so many differences each two are tried: those that explain most."""

_BETTER = 0.03
"""By how much the two have to say more of the selection than the better of them does."""


def both_needed(findings: Sequence[Finding], sides: Sides, alpha: float) -> tuple[Finding, Finding] | None:
    """Return two findings that tell the selection better together than either does alone.

    Each must still show among the rows that have the other, corrected for all pairs that are tried
    (Bonferroni). How well something tells two sides apart is the phi coefficient of its table.
    """
    tried = list(combinations(findings[:_OF], 2))
    best: tuple[float, tuple[Finding, Finding]] | None = None
    for one, other in tried:
        both = one.mask & other.mask
        gain = _phi(both, sides) - max(_phi(one.mask, sides), _phi(other.mask, sides))
        if gain < _BETTER or (best is not None and gain <= best[0]):
            continue
        within = (
            p_of_mask(one.mask[other.mask], sides.among(other.mask)),
            p_of_mask(other.mask[one.mask], sides.among(one.mask)),
        )
        if max(within) * 2 * len(tried) <= alpha:
            best = gain, (one, other)
    return best[1] if best is not None else None


def _phi(mask: Mask, sides: Sides) -> float:
    hit, wrong = (float(sides.weights[mask & side].sum()) for side in sides.of_both)
    selected, rest = sides.weights_of
    missed, right = selected - hit, rest - wrong
    whole = (hit + wrong) * (hit + missed) * (right + wrong) * (right + missed)
    return (hit * right - wrong * missed) / sqrt(whole) if whole > 0 else 0.0
