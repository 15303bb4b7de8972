"""`Threshold`: a rule that fires above one figure, and resolves below a smaller one."""

from __future__ import annotations

from .rule import Rule, WrongField, check_number

__all__ = ["HYSTERESIS", "Threshold"]

HYSTERESIS = 0.8
"""Share of its threshold below which an alert resolves, unless `resolve_below` says otherwise."""


class Threshold(Rule, frozen=True, kw_only=True):
    """A rule with a figure and two thresholds. Between them an alert stays what it is.

    Attributes:
        above: It fires above this.
        resolve_below: It resolves below this; default 80 % of `above`.
    """

    above: float
    resolve_below: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.name, "above", self.above, least=0)
        if self.resolve_below is not None:
            check_number(self.name, "resolve_below", self.resolve_below, least=0)
            if self.resolve_below > self.above:
                problem = f"expected no more than above = {self.above:g}, got {self.resolve_below:g}"
                raise WrongField(self.name, "resolve_below", problem)

    @property
    def below(self) -> float:
        """Below which it resolves."""
        return self.above * HYSTERESIS if self.resolve_below is None else self.resolve_below

    def verdict(self, value: float | None, *, enough: bool, exact: bool = False) -> tuple[bool, bool]:
        """Return whether a figure is bad, and whether it is good; between the thresholds it is neither.

        Args:
            value: The figure; None where there is none.
            enough: Whether enough events were seen for one that is an estimate.
            exact: True for a count: none is none, however few events there were.
        """
        if value is None:
            return False, False
        return enough and value > self.above, (enough or exact) and (value < self.below or value == 0)
