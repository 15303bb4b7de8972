"""A condition on a field that the selection meets more often than the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ..._explained import Shape
from ._fields import Condition, Field
from ._sample import Mask
from ._values import Counts

__all__ = ["Finding", "Tested"]


@dataclass(frozen=True)
class Finding:
    """A condition on one field, or on two or three fields.

    Attributes:
        fields: The fields.
        shape: The kind of condition.
        text: The condition as text, with the name of the field.
        value: The value, the values, or the limits.
        condition: The condition.
        mask: The sampled rows that meet the condition.
        counts: The counts of the rows that meet the condition, for one condition.
        totals: The counts of all rows.
        gain: The deviance that the condition explains.
        cost: The deviance that the best of all conditions of its shape is expected to explain by chance.
        p: The p-value, multiplied by the number of comparisons within the field.
        parts: The conditions of a combination; empty for a condition on one field.
    """

    fields: tuple[Field, ...]
    shape: Shape
    text: str
    value: Any
    condition: Condition
    mask: Mask
    counts: Counts
    totals: Counts
    gain: float
    p: float
    cost: float = 0.0
    parts: tuple[Finding, ...] = ()

    @property
    def score(self) -> float:
        """The deviance that the condition explains, minus the cost of the search for it."""
        return self.gain - self.cost

    @property
    def is_absence(self) -> bool:
        """Whether the condition is that a field has no value, or that it has one."""
        return self.shape == "absence"

    def scaled(self, comparisons: int) -> Finding:
        """Return the finding with its p-value corrected for the comparisons within its field."""
        return replace(self, p=min(1.0, self.p * comparisons))


@dataclass
class Tested:
    """The result of comparing one field.

    Attributes:
        comparisons: Number of comparisons.
        findings: Conditions that the selection meets more often, whether significant or not.
        lowest: The lowest p-value of all comparisons, multiplied by their number.
        left_out: Why the values of the field were not compared; None if they were.
    """

    comparisons: int = 0
    findings: list[Finding] = field(default_factory=list)
    lowest: float = 1.0
    left_out: str | None = None
