"""The one place in which the library drives a coroutine by hand.

    drive() --> step(steps.send, None) --> suspended at an awaitable, which drive() yields to the task
                     ^                                        |
                     |                 the task resumes drive() with a value or an exception
                     +----------- step(steps.send, value) or step(steps.throw, error)

A task can have one context only. Driven by hand, stage after stage can share a task, which saves a tenth of
the cost of a task each, and none sees what another one set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Protocol

from ._fork import FORKED

__all__ = ["UNSTARTED", "Step", "drive"]

UNSTARTED: Any = object()
"""What a coroutine waits for that has not been started."""


class Step(Protocol):
    """Makes one step of a coroutine: it calls one of its methods with one argument, or `close` with none."""

    def __call__(self, method: Callable[..., Any], /, *args: Any) -> Any: ...


@coroutine
def drive(
    steps: Coroutine[Any, Any, Any],
    step: Step,
    waits_for: Any = UNSTARTED,
    gives_up: Callable[[BaseException], bool] | None = None,
) -> Generator[Any, Any, Any]:
    """Drive a coroutine to its end, and return what it returns.

    Args:
        steps: The coroutine.
        step: Makes each step, for example in a context of its own.
        waits_for: What the coroutine waits for, if its first step has been made.
        gives_up: Called with an exception that the task is resumed with; if true, the coroutine is closed and
            the exception raised.
    """
    started = waits_for is not UNSTARTED
    method: Callable[..., Any] = steps.send
    argument: Any = None
    while True:
        if started:
            try:
                method, argument = steps.send, (yield waits_for)
            except GeneratorExit:
                step(steps.close)
                raise
            except BaseException as error:
                if gives_up is not None and gives_up(error):
                    with contextlib.suppress(RuntimeError):  # it ignores even this: it is left alone
                        step(steps.close)
                    raise
                method, argument = steps.throw, error
        started = True
        # Outside of the handler, or what the coroutine raises next would have that exception as its context.
        try:
            waits_for = step(method, argument)
        except StopIteration as stop:
            return stop.value
        except GeneratorExit as error:
            # It would end this generator, and with it the task, as if someone had closed it.
            raise RuntimeError(f"the stage raised {type(error).__name__}") from error
        finally:
            argument = None  # an exception refers to this frame: the frame must not refer to it in turn
            if FORKED.loop is not None:
                FORKED.return_to_loop()
