"""Drives a coroutine manually; no other module does.

    drive() --> step(steps.send, None) --> suspended at an awaitable, which drive() yields to the task
                     ^                                        |
                     |                 the task resumes drive() with a value or an exception
                     +----------- step(steps.send, value) or step(steps.throw, error)

A task has exactly one context. Driving coroutines manually lets several stages run in one task, each in its
own context: this costs 10% less than one task per stage, and no stage sees context variables of another.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, Protocol

from ._fork import FORKED

__all__ = ["UNSTARTED", "Step", "drive"]

UNSTARTED: Any = object()
"""Sentinel: the coroutine has not been started, so it does not wait for anything yet."""


class Step(Protocol):
    """Runs one step of a coroutine: calls one of its methods with one argument, or `close` without any."""

    def __call__(self, method: Callable[..., Any], /, *args: Any) -> Any: ...


@coroutine
def drive(
    steps: Coroutine[Any, Any, Any],
    step: Step,
    waits_for: Any = UNSTARTED,
    gives_up: Callable[[BaseException], bool] | None = None,
) -> Generator[Any, Any, Any]:
    """Drive a coroutine to completion and return its result.

    Args:
        steps: The coroutine.
        step: Runs each step, for example in a separate context.
        waits_for: The awaitable that the coroutine waits for, if its first step has already run.
        gives_up: Called with an exception that is thrown into the task; if it returns True, `drive` closes
            the coroutine and raises the exception.
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
                    with contextlib.suppress(RuntimeError):  # it ignores `close` too: abandon it
                        step(steps.close)
                    raise
                method, argument = steps.throw, error
        started = True
        # Outside the handler: otherwise the next exception of the coroutine would get this one as
        # `__context__`.
        try:
            waits_for = step(method, argument)
        except StopIteration as stop:
            return stop.value
        except GeneratorExit as error:
            # It would end this generator, and the task with it, as if the generator had been closed.
            raise RuntimeError(f"the stage raised {type(error).__name__}") from error
        finally:
            argument = None  # the exception refers to this frame; avoid a reference cycle
            if FORKED.loop is not None:
                FORKED.return_to_loop()
