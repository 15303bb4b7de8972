"""Retry policies: which failures are retried, how often, and with which wait."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from msgspec import Struct

from ._interrupts import is_a
from ._value import ValueType
from .errors import invalid_argument, leaves_of

__all__ = ["Exponential", "Fixed", "Linear", "Retry", "Wait", "check_seconds"]


Wait = Callable[[int], float]
"""Returns the seconds until the next attempt for the number of the failed attempt (1 or more)."""

Covered = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""The exceptions that a policy covers: a class, a tuple of classes, or a predicate."""


def check_seconds(policy: str, **seconds: float | None) -> None:
    """Raise an InvalidArgumentError for a number of seconds that is negative, infinite or not a number."""
    for name, value in seconds.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
            raise invalid_argument(policy, name, value, "0 or more seconds")


def _with_jitter(seconds: float, jitter: float) -> float:
    # Jitter only spreads load, so it does not need a secure random generator.
    return seconds * (1 - jitter * random.random()) if jitter else seconds


class Fixed(Struct, metaclass=ValueType, frozen=True):
    """Wait the same time before each attempt.

    Args:
        seconds: Seconds between two attempts; 0 or more.
        jitter: Random share of each wait, from 0 (none) to 1 (the wait is between 0 and its full length).

    Example:
        >>> Fixed(0.5)(3)
        0.5
    """

    seconds: float
    jitter: float = 0.0

    def __post_init__(self) -> None:
        check_seconds("Fixed", seconds=self.seconds)
        _check_jitter("Fixed", self.jitter)

    def __call__(self, attempt: int) -> float:
        return _with_jitter(self.seconds, self.jitter)


class Linear(Struct, metaclass=ValueType, frozen=True):
    """Increase the wait by a constant step after each attempt, up to a maximum.

    Args:
        initial: Seconds before the second attempt.
        step: Seconds by which each wait exceeds the previous one; default `initial`.
        maximum: Longest wait in seconds.
        jitter: Random share of each wait, from 0 (none) to 1 (the wait is between 0 and its full length).

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
        _check_jitter("Linear", self.jitter)

    def __call__(self, attempt: int) -> float:
        step = self.initial if self.step is None else self.step
        return _with_jitter(min(self.initial + step * (attempt - 1), self.maximum), self.jitter)


class Exponential(Struct, metaclass=ValueType, frozen=True):
    """Multiply the wait by a factor after each attempt, up to a maximum, with jitter to spread the load.

    Args:
        initial: Seconds before the second attempt.
        factor: Ratio of each wait to the previous one.
        maximum: Longest wait in seconds.
        jitter: Random share of each wait, from 0 (none) to 1 (the wait is between 0 and its full length).

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
        _check_jitter("Exponential", self.jitter)

    def __call__(self, attempt: int) -> float:
        try:
            wait = min(self.initial * self.factor ** (attempt - 1), self.maximum)
        except OverflowError:
            wait = self.maximum
        return _with_jitter(wait, self.jitter)


def _check_jitter(policy: str, jitter: float) -> None:
    if not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1:
        raise invalid_argument(policy, "jitter", jitter, "a number from 0 to 1")


class Retry(Struct, metaclass=ValueType, frozen=True):
    """Retry a stage that raises an exception covered by `on`, or returns `StageOutput.retry`.

    Args:
        attempts: Maximum number of attempts, including the first; 1 or more.
        wait: Seconds between attempts, or a function that takes the number of the failed attempt and returns
            seconds: `Fixed`, `Linear`, `Exponential`, or a custom one.
        on: The exceptions to retry: a class, a tuple of classes, or a function that takes the exception and
            returns a bool. With `()`, only `StageOutput.retry` is retried. An exception group is retried if
            every leaf is.
        deadline: Seconds from the start of the first attempt after which no attempt starts; default no
            limit. The stage fails immediately if the wait would exceed it.

    Raises:
        InvalidArgumentError: `attempts` is less than 1, `wait` or `deadline` is negative, or `on` has another
            type.

    Example:
        >>> Retry(attempts=3, on=ConnectionError).covers(ConnectionResetError())
        True
    """

    attempts: int = 3
    wait: float | Wait = Exponential()
    on: Covered = Exception
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.attempts, int) or self.attempts < 1:
            raise invalid_argument("Retry", "attempts", self.attempts, "a positive integer")
        if not callable(self.wait):
            check_seconds("Retry", wait=self.wait)
        if self.deadline is not None:
            check_seconds("Retry", deadline=self.deadline)
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        for covered in classes:
            is_class = isinstance(covered, type) and issubclass(covered, BaseException)
            if not is_class and (isinstance(self.on, (tuple, type)) or not callable(covered)):
                raise invalid_argument(
                    "Retry",
                    "on",
                    self.on,
                    "an exception class, a tuple of classes, or a function that takes the exception",
                )

    def covers(self, error: BaseException) -> bool:
        """Return whether the policy allows another attempt after `error`.

        It covers an exception group if it covers every leaf, or if `on` names a class of groups. It never
        covers `SystemExit`, `KeyboardInterrupt` and `GeneratorExit`.

        Example:
            >>> Retry(on=OSError).covers(ExceptionGroup("two", [TimeoutError(), ConnectionError()]))
            True
            >>> Retry(on=OSError).covers(ExceptionGroup("two", [TimeoutError(), ValueError()]))
            False
        """
        leaves = leaves_of(error)
        if any(is_a(leaf, (SystemExit, KeyboardInterrupt, GeneratorExit)) for leaf in leaves):
            return False
        if isinstance(self.on, (type, tuple)):
            classes = self.on if isinstance(self.on, tuple) else (self.on,)
            groups = tuple(each for each in classes if issubclass(each, BaseExceptionGroup))
            return is_a(error, groups) or all(is_a(leaf, classes) for leaf in leaves)
        # Not a generator expression, which would replace a StopIteration that `on` raises.
        verdicts = [bool(self.on(leaf)) for leaf in leaves]
        return all(verdicts)

    def seconds_after(self, attempt: int) -> float:
        """Return the wait after attempt number `attempt` in seconds, at least 0.

        Raises:
            InvalidArgumentError: The wait function did not return a finite number.
        """
        wait = float(self.wait(attempt) if callable(self.wait) else self.wait)
        if not math.isfinite(wait):
            raise invalid_argument(
                "Retry", "wait", wait, f"a finite number of seconds after attempt {attempt}"
            )
        return max(0.0, wait)
