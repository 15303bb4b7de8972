"""What `with_stage` accepts as a runner, and how a stage calls it."""

from __future__ import annotations

import functools
import inspect
import typing
from typing import Any

from msgspec import Struct

__all__ = ["Entry", "class_of", "entry_of", "gives_coroutine", "has_attribute"]


class Entry(Struct, frozen=True):
    """The callable of a runner.

    Attributes:
        make: The class to instantiate per run, or None.
        called: What to call with the context; for a class, the method `execute` of the class itself.
        context_at: Position of the parameter for the context: 1 for a method that is not bound, otherwise 0.
    """

    make: Any
    called: Any
    context_at: int = 0


def class_of(runner: Any) -> type | None:
    """Return the class that a runner is, also for a generic alias such as `Load[int]`; otherwise None."""
    if inspect.isclass(runner):
        return runner
    origin = typing.get_origin(runner)
    return origin if inspect.isclass(origin) else None


def entry_of(runner: Any) -> Entry | None:
    """Return the entry of a runner, or None if it has nothing to call."""
    cls = class_of(runner)
    if cls is not None:
        execute = getattr(cls, "execute", None)
        if not callable(execute):
            return None
        bound = isinstance(inspect.getattr_static(cls, "execute"), (staticmethod, classmethod))
        return Entry(runner, execute, 0 if bound else 1)
    if not callable(runner) or has_attribute(runner, "execute"):
        execute = getattr(runner, "execute", None)
        if callable(execute):
            return Entry(None, execute)
    return Entry(None, runner) if callable(runner) else None


def has_attribute(value: Any, name: str) -> bool:
    """Return whether a value declares an attribute; a mock returns one for every name."""
    return hasattr(value, name) if inspect.isroutine(value) else name in dir(value)


def gives_coroutine(called: Any) -> bool:
    """Return whether a call returns a coroutine."""
    while isinstance(called, functools.partial):
        called = called.func
    return inspect.iscoroutinefunction(called) or (
        not inspect.isroutine(called) and inspect.iscoroutinefunction(getattr(called, "__call__", None))  # noqa: B004
    )
