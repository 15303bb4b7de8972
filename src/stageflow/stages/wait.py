"""How long to wait before the next attempt: functions as values."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from msgspec import Struct

from .._value import ValueType

__all__ = ["Exponential", "Fixed", "Linear", "Wait", "check_seconds"]

Wait = Callable[[int], float]
"""From the number of the attempt that failed (1 or more) to the seconds until the next."""


def check_seconds(policy: str, **seconds: float | None) -> None:
    """Raise a ValueError for a number of seconds that is negative, infinite or no number."""
    for name, value in seconds.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{policy}({name}={value!r}): give a number, 0 or more")


def _spread(seconds: float, jitter: float) -> float:
    # Jitter spreads load; it guards nothing, so the cheap generator will do.
    return seconds * (1 - jitter * random.random()) if jitter else seconds


class Fixed(Struct, metaclass=ValueType, frozen=True):
    """Wait the same time before each attempt.

    Args:
        seconds: 0 or more.
        jitter: The share of a wait that is random: 0 none, 1 anything between nothing and all.

    Example:
        >>> Fixed(0.5)(3)
        0.5
    """

    seconds: float
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_seconds("Fixed", seconds=self.seconds)
        _check_share("Fixed", self.jitter)

    def __call__(self, attempt: int) -> float:
        return _spread(self.seconds, self.jitter)


class Linear(Struct, metaclass=ValueType, frozen=True):
    """Wait longer by the same step each time, up to a bound.

    Args:
        initial: Seconds before the second attempt.
        step: By how many seconds each wait exceeds the one before it; default `initial`.
        maximum: No wait is longer than this many seconds.
        jitter: The share of a wait that is random: 0 none, 1 anything between nothing and all.

    Example:
        >>> [Linear(1, maximum=2.5)(attempt) for attempt in (1, 2, 3)]
        [1, 2, 2.5]
    """

    initial: float
    step: float | None = None
    maximum: float = 30.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_seconds("Linear", initial=self.initial, step=self.step or 0, maximum=self.maximum)
        _check_share("Linear", self.jitter)

    def __call__(self, attempt: int) -> float:
        step = self.initial if self.step is None else self.step
        return _spread(min(self.initial + step * (attempt - 1), self.maximum), self.jitter)


class Exponential(Struct, metaclass=ValueType, frozen=True):
    """Wait longer by a factor each time, up to a bound, with jitter so that clients spread out.

    Args:
        initial: Seconds before the second attempt.
        factor: By how much each wait exceeds the one before it.
        maximum: No wait is longer than this many seconds.
        jitter: The share of a wait that is random: 0 none, 1 anything between nothing and all.

    Example:
        >>> [Exponential(0.1, jitter=0)(attempt) for attempt in (1, 2, 3)]
        [0.1, 0.2, 0.4]
    """

    initial: float = 0.1
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        check_seconds("Exponential", initial=self.initial, factor=self.factor, maximum=self.maximum)
        _check_share("Exponential", self.jitter)

    def __call__(self, attempt: int) -> float:
        try:
            wait = min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            wait = self.maximum
        return _spread(wait, self.jitter)


def _check_share(policy: str, jitter: float) -> None:
    if not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1:
        raise ValueError(f"{policy}(jitter={jitter!r}): give a share from 0 to 1")
