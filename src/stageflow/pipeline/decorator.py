"""`@stage`: a stage that carries its own name, kind and policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, Unpack, overload

from .spec import StageDescription, options_of

__all__ = ["carried", "stage"]

Runner = TypeVar("Runner", bound=Callable[..., Any])

_ATTRIBUTE = "__stageflow_stage__"


@overload
def stage(runner: Runner, /) -> Runner: ...


@overload
def stage(**description: Unpack[StageDescription]) -> Callable[[Runner], Runner]: ...


def stage(runner: Any = None, /, **description: Any) -> Any:
    """Describe a function or a class as a stage, where it is defined.

    The decorator accepts the same arguments as `with_stage`: `name` (default: the name of the function) and
    the options of a stage. It returns the function unchanged. Options passed to `with_stage` take precedence.

    Raises:
        TypeError: `with_stage` has no such option.

    Example:
        >>> @stage(timeout=5)
        ... async def search(ctx):
        ...     return {"hits": 3}
        >>> Pipeline("ask").with_stages(search)
        <Pipeline 'ask': search>
    """
    if runner is not None and not callable(runner):
        raise TypeError(f"@stage({runner!r}): give the name as @stage(name={runner!r})")
    given = options_of(description, "@stage")

    def describe(runner: Runner) -> Runner:
        setattr(runner, _ATTRIBUTE, {"name": getattr(runner, "__name__", ""), **given})
        return runner

    return describe if runner is None else describe(runner)


def carried(runner: Any) -> dict[str, Any]:
    """Return what a stage carries: what `@stage` said, or a `kind` on its class."""
    described = getattr(runner, _ATTRIBUTE, None)
    if isinstance(described, dict):
        return described
    kind = getattr(runner, "kind", None)
    return {} if kind is None else {"kind": kind}
