"""When an attempt is tried again, and after how long: policies as values."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Exponential", "Fixed", "Retry", "Wait"]

Wait = Callable[[int], float]
"""From the number of the attempt that failed (1 or more) to the seconds until the next."""


def _check(policy: str, **seconds: float) -> None:
    for name, value in seconds.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{policy}({name}={value!r}): give a number, 0 or more")


@dataclass(frozen=True, slots=True)
class Fixed:
    """Wait the same time before each attempt.

    Args:
        seconds: 0 or more.

    Example:
        >>> Fixed(0.5)(3)
        0.5
    """

    seconds: float

    def __post_init__(self) -> None:
        _check("Fixed", seconds=self.seconds)

    def __call__(self, attempt: int) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True)
class Exponential:
    """Wait longer each time, up to a bound, with full-range jitter so that clients spread out.

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
        _check("Exponential", initial=self.initial, factor=self.factor, maximum=self.maximum)
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"Exponential(jitter={self.jitter!r}): give a share from 0 to 1")

    def __call__(self, attempt: int) -> float:
        try:
            wait = min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            wait = self.maximum
        # Jitter spreads load; it guards nothing, so the cheap generator will do.
        return wait * (1 - self.jitter * random.random())


@dataclass(frozen=True, slots=True)
class Retry:
    """Try a stage again when it raises what `on` covers, or returns `StageOutput.retry`.

    Args:
        attempts: How many attempts in all, the first included; 1 or more.
        wait: Seconds between attempts, or a function of the number of the attempt that failed.
        on: The exceptions worth another attempt: a class, a tuple of classes, or a function
            from the exception to a bool. `()` retries only what returns `StageOutput.retry`.

    Raises:
        ValueError: For attempts under 1 or a negative wait.

    Example:
        >>> Retry(attempts=3, on=ConnectionError).covers(ConnectionResetError())
        True
    """

    attempts: int = 3
    wait: float | Wait = Exponential()
    on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool] = Exception

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"Retry(attempts={self.attempts!r}): give a whole number, 1 or more")
        if not callable(self.wait):
            _check("Retry", wait=self.wait)

    def covers(self, error: BaseException) -> bool:
        """Tell whether `error` is worth another attempt. Ends of the process never are."""
        if isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit)):
            return False
        if isinstance(self.on, (type, tuple)):
            return isinstance(error, self.on)
        return bool(self.on(error))

    def seconds_after(self, attempt: int) -> float:
        """Return how long to wait after attempt number `attempt`, in seconds, never less than 0."""
        wait = self.wait(attempt) if callable(self.wait) else self.wait
        return max(0.0, float(wait))
