"""The two sides of a comparison, each with its weights, and how much a weighted count is worth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .difference import Part

__all__ = ["Counts", "Floats", "Mask", "Sides"]

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
