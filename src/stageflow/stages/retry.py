"""When an attempt is tried again: a policy as a value."""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct

from .._value import ValueType
from ..errors import leaves_of
from ..interrupts import is_a
from .wait import Exponential, Wait, check_seconds

__all__ = ["Retry"]

Covered = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]


class Retry(Struct, metaclass=ValueType, frozen=True):
    """Try a stage again when it raises what `on` covers, or returns `StageOutput.retry`.

    Args:
        attempts: How many attempts in all, the first included; 1 or more.
        wait: Seconds between attempts, or a function of the number of the attempt that failed:
            `Fixed`, `Linear`, `Exponential`, or one of your own.
        on: The exceptions worth another attempt: a class, a tuple of classes, or a function
            from the exception to a bool. `()` retries only what returns `StageOutput.retry`. An exception
            group is retried if every leaf is.
        deadline: Seconds from the start of the first attempt, after which no further one starts;
            default no limit. A wait that would go beyond it is not begun.

    Raises:
        ValueError: For attempts under 1, a negative wait or deadline, or an `on` of another kind.

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
            raise ValueError(f"Retry(attempts={self.attempts!r}): give a whole number, 1 or more")
        if not callable(self.wait):
            check_seconds("Retry", wait=self.wait)
        if self.deadline is not None:
            check_seconds("Retry", deadline=self.deadline)
        classes = self.on if isinstance(self.on, tuple) else (self.on,)
        for covered in classes:
            is_class = isinstance(covered, type) and issubclass(covered, BaseException)
            if not is_class and (isinstance(self.on, (tuple, type)) or not callable(covered)):
                raise ValueError(
                    f"Retry(on={self.on!r}): give an exception class, a tuple of them, "
                    "or a function of the exception"
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
        """Return how long to wait after attempt number `attempt`, in seconds, never less than 0.

        Raises:
            ValueError: The wait function returned no finite number.
        """
        wait = float(self.wait(attempt) if callable(self.wait) else self.wait)
        if not math.isfinite(wait):
            raise ValueError(f"the wait after attempt {attempt} is {wait} s")
        return max(0.0, wait)
