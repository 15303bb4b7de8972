"""The decorator `@stage`, which attaches the description of a stage to its function or class."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar, Unpack, overload

from ..errors import InvalidArgumentError
from ._spec import StageDescription, class_of, has_attribute, options_of

__all__ = ["carried_description", "name_of", "stage", "without_description"]

Runner = TypeVar("Runner", bound=Callable[..., Any])

_ATTRIBUTE = "__stageflow_stage__"


@overload
def stage(runner: Runner, /) -> Runner: ...


@overload
def stage(**description: Unpack[StageDescription]) -> Callable[[Runner], Runner]: ...


def stage(runner: Any = None, /, **description: Any) -> Any:
    """Describe a function or a class as a stage, where it is defined.

    The decorator accepts the same arguments as `with_stage`: `name` (default: the name of the function) and
    the options of a stage. Options passed to `with_stage` take precedence.

    For a function, it returns a copy, so that one function can be used for several stages with different
    descriptions. It returns a class itself; a subclass inherits the options, but not the name. It wraps any
    other callable.

    Raises:
        InvalidArgumentError: `with_stage` has no such option.

    Example:
        >>> @stage(timeout=5)
        ... async def search(ctx):
        ...     return {"hits": 3}
        >>> patient_search = stage(name="patient", timeout=60)(search)
        >>> Pipeline("ask").with_stages(search, patient_search)
        <Pipeline 'ask': search, patient>
    """
    if runner is not None and not callable(runner):
        raise InvalidArgumentError(
            f"@stage({runner!r}): name must be a keyword argument", hint=f"write @stage(name={runner!r})"
        )
    given = options_of(description, "@stage")

    def describe(runner: Any) -> Any:
        described = {"name": name_of(runner), **given}
        if isinstance(runner, FunctionType):
            return _copy_of(runner, described)
        if inspect.isclass(runner) and _ATTRIBUTE not in vars(runner):
            setattr(runner, _ATTRIBUTE, described)
            return runner
        return Described(runner, described)

    return describe if runner is None else describe(runner)


class Described:
    """A runner that cannot be copied, with a description; a call is forwarded to the runner."""

    __slots__ = ("description", "runner")

    def __init__(self, runner: Any, description: dict[str, Any]) -> None:
        self.runner: Any = runner.runner if isinstance(runner, Described) else runner
        self.description = description

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.runner(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<stage {self.description['name']!r}: {self.runner!r}>"


def name_of(runner: Any) -> str:
    """Return the name of a function or class, also inside `functools.partial`."""
    while isinstance(runner, (functools.partial, Described)):
        runner = runner.func if isinstance(runner, functools.partial) else runner.runner
    return getattr(runner, "__name__", None) or type(runner).__name__


def _copy_of(function: FunctionType, described: dict[str, Any]) -> FunctionType:
    copy = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    # Not `functools.update_wrapper`: the copy does not wrap the original.
    for name in functools.WRAPPER_ASSIGNMENTS:
        setattr(copy, name, getattr(function, name))
    vars(copy).update(vars(function))
    setattr(copy, _ATTRIBUTE, described)
    return copy


def without_description(runner: Any) -> Any:
    """Return the runner itself, without the wrapper that contains its description."""
    return runner.runner if isinstance(runner, Described) else runner


def carried_description(runner: Any) -> dict[str, Any]:
    """Return the description attached to a runner: that of `@stage`, and the `kind` of its class."""
    if isinstance(runner, Described):
        return {**_kind_of(runner.runner), **runner.description}
    cls = class_of(runner)
    if cls is None:
        own = _own(runner)
        if own is not None or inspect.isroutine(runner):
            return {**_kind_of(runner), **(own or {})}
        return {**carried_description(type(runner)), **_kind_of(runner)}
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "kind" in vars(base):
            found["kind"] = vars(base)["kind"]
        found.update(_own(base) or {})
    if "name" in found and _own(cls) is None:
        found["name"] = cls.__name__
    return found


def _kind_of(runner: Any) -> dict[str, Any]:
    kind = runner.kind if has_attribute(runner, "kind") else None
    return {} if kind is None else {"kind": kind}


def _own(runner: Any) -> dict[str, Any] | None:
    """Return what `@stage` stored in a runner itself, not in its class."""
    if inspect.ismethod(runner):
        runner = runner.__func__
    described = getattr(runner, "__dict__", {}).get(_ATTRIBUTE)
    return described if isinstance(described, dict) else None
