"""`@stage`: a stage that carries its own name, kind and policies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from ..stages import Retry, StageKind
from .interceptor import Interceptor
from .spec import Condition

__all__ = ["carried", "stage"]

Runner = TypeVar("Runner", bound=Callable[..., Any])

_ATTRIBUTE = "__stageflow_stage__"


@overload
def stage(runner: Runner, /) -> Runner: ...


@overload
def stage(
    *,
    name: str | None = None,
    kind: StageKind | None = None,
    dependencies: Iterable[str] | None = None,
    conditional: bool | None = None,
    optional: bool | None = None,
    when: Condition | None = None,
    route: str | None = None,
    timeout: float | None = None,
    retry: Retry | None = None,
    limit: str | None = None,
    interceptors: Iterable[Interceptor] | None = None,
) -> Callable[[Runner], Runner]: ...


def stage(runner: Any = None, /, **description: Any) -> Any:
    """Describe a function or a class as a stage, where it is defined.

    Takes what `with_stage` takes: `name` (default the name of the function), `kind`, `dependencies`,
    `conditional`, `optional`, `when`, `route`, `timeout`, `retry`, `limit`, `interceptors`. The
    function itself stays as it is. What `with_stage` is told goes before what is carried.

    Raises:
        TypeError: For a keyword that `with_stage` does not know.

    Example:
        >>> @stage(timeout=5)
        ... async def search(ctx):
        ...     return {"hits": 3}
        >>> Pipeline("ask").with_stages(search)
        <Pipeline 'ask': search>
    """
    if runner is not None and not callable(runner):
        raise TypeError(f"@stage({runner!r}): give the name as @stage(name={runner!r})")
    unknown = description.keys() - _KNOWN
    if unknown:
        raise TypeError(f"@stage takes {', '.join(sorted(_KNOWN))}; not {', '.join(sorted(unknown))}")

    def describe(runner: Runner) -> Runner:
        told = {key: value for key, value in description.items() if value is not None}
        setattr(runner, _ATTRIBUTE, {"name": getattr(runner, "__name__", ""), **told})
        return runner

    return describe if runner is None else describe(runner)


_KNOWN = {
    "name",
    "kind",
    "dependencies",
    "conditional",
    "optional",
    "when",
    "route",
    "timeout",
    "retry",
    "limit",
    "interceptors",
}


def carried(runner: Any) -> dict[str, Any]:
    """Return what a stage carries: what `@stage` said, or a `kind` on its class."""
    described = getattr(runner, _ATTRIBUTE, None)
    if isinstance(described, dict):
        return described
    kind = getattr(runner, "kind", None)
    return {} if kind is None else {"kind": kind}
