"""The outcomes of a run that count as failures in statistics, alerts, sampling and retention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from msgspec import Struct

from .errors import InvalidArgumentError, did_you_mean
from .schema import Outcome

__all__ = ["FailureOutcomes"]

_POSSIBLE = tuple(outcome for outcome in (*get_args(Outcome), "suspended") if outcome != "ok")
"""Every outcome except `ok`. A later schema version will add `suspended`: the run waits for an answer."""

_NOT_COUNTED = ("cancelled", "suspended")


class FailureOutcomes(Struct, frozen=True):
    """The outcomes that count as failures.

    A failure rate is the number of runs with such an outcome, divided by the number of all runs except
    those whose outcome is in `not_counted`.

    Attributes:
        outcomes: Default `failed`, `timeout` and `crashed`: a run that was cancelled externally is not a
            failure.

    Raises:
        TypeError: The outcomes are a string instead of a list.
        InvalidArgumentError: The list is empty, or an outcome is unknown or `ok`.

    Example:
        >>> FailureOutcomes().is_failure("cancelled"), FailureOutcomes().not_counted
        (False, ('cancelled', 'suspended'))
    """

    outcomes: tuple[str, ...] = ("failed", "timeout", "crashed")

    def __post_init__(self) -> None:
        if not self.outcomes:
            raise InvalidArgumentError(
                'failure_outcomes must not be empty; use, for example, ["failed", "timeout"]'
            )
        for outcome in self.outcomes:
            if outcome not in _POSSIBLE:
                raise InvalidArgumentError(
                    f"each value in failure_outcomes must be one of {', '.join(_POSSIBLE)}, got {outcome!r}"
                    + did_you_mean(str(outcome), _POSSIBLE)
                )

    @classmethod
    def of(cls, outcomes: Iterable[str]) -> FailureOutcomes:
        """Return a `FailureOutcomes` with these outcomes, in canonical order."""
        if isinstance(outcomes, str):
            raise InvalidArgumentError(
                f"failure_outcomes must be a list such as [{outcomes!r}], got {outcomes!r}"
            )
        given = list(outcomes)
        known = [outcome for outcome in _POSSIBLE if outcome in given]
        return cls((*known, *(outcome for outcome in given if outcome not in _POSSIBLE)))

    @property
    def not_counted(self) -> tuple[str, ...]:
        """The outcomes of the runs that a failure rate excludes."""
        return tuple(outcome for outcome in _NOT_COUNTED if outcome not in self.outcomes)

    def is_failure(self, outcome: object) -> bool:
        """Return whether a run with this outcome counts as a failure."""
        return outcome in self.outcomes
