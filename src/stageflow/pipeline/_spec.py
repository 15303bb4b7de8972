"""The description of a stage, and the inspection of its runner."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict

from msgspec import Struct

from ..context import StageContext
from ..errors import InvalidArgumentError, MissingInputError, did_you_mean, invalid_argument
from ..executors import Executor
from ..retry import Retry
from ..stages import ChunksRef, StageKind, StageRef
from ._interceptors import Interceptor

__all__ = [
    "ChildSpec",
    "CollectOptions",
    "Condition",
    "Entry",
    "ItemOptions",
    "MapSpec",
    "Parameter",
    "StageDescription",
    "StageOptions",
    "StageSpec",
    "arguments",
    "as_tuple",
    "class_of",
    "entry_of",
    "generator_kind",
    "has_attribute",
    "limit_of",
    "map_options",
    "options_of",
    "parameters_of",
    "returns_coroutine",
    "streams_of",
    "takes_context",
]


Parameter = tuple[str, bool, Any]
"""Name, whether it has a default, and the default."""

Condition = Callable[[StageContext], bool | Awaitable[bool]]
"""The type of `when=`."""


class Entry(Struct, frozen=True):
    """The callable of a runner.

    Attributes:
        make: The class to instantiate per run, or None.
        called: The callable to call with the context; for a class, the method `execute` of the class itself.
        context_at: Position of the parameter for the context: 1 for a method that is not bound, otherwise 0.
    """

    make: Any
    called: Any
    context_at: int = 0


def class_of(runner: Any) -> type | None:
    """Return the class that a runner is, including a generic alias such as `Load[int]`; otherwise None."""
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
    """Return whether a value declares an attribute. Not with `hasattr`: a mock has every attribute."""
    return hasattr(value, name) if inspect.isroutine(value) else name in dir(value)


def returns_coroutine(called: Any) -> bool:
    """Return whether a callable returns a coroutine."""
    while isinstance(called, functools.partial):
        called = called.func
    return inspect.iscoroutinefunction(called) or (
        not inspect.isroutine(called) and inspect.iscoroutinefunction(getattr(called, "__call__", None))  # noqa: B004
    )


def generator_kind(called: Any) -> Literal["async", "sync"] | None:
    """Return whether a callable is a generator function, asynchronous or synchronous, or neither."""
    while isinstance(called, functools.partial):
        called = called.func
    if not inspect.isroutine(called):
        called = getattr(type(called), "__call__", called)  # noqa: B004 - the function itself
    if inspect.isasyncgenfunction(called):
        return "async"
    return "sync" if inspect.isgeneratorfunction(called) else None


def parameters_of(called: Any, context_at: int = 0) -> tuple[Parameter, ...]:
    """Return the parameters after the context, which are passed by name.

    Parameters that a `functools.partial` binds keep their values, and so do those with a default whose name
    begins with an underscore: `lambda ctx, _n=n: ...`.
    """
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return ()
    bound: set[str] = set()
    while isinstance(called, functools.partial):
        bound.update(called.keywords)
        called = called.func
    return tuple(
        (parameter.name, has_default, parameter.default)
        for parameter in parameters[context_at + 1 :]
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in bound
        and not ((has_default := parameter.default is not parameter.empty) and parameter.name[0] == "_")
    )


def arguments(
    ctx: StageContext, parameters: tuple[Parameter, ...], stages: tuple[str, ...]
) -> dict[str, Any]:
    """Return a value for each parameter: the value of the key of that name in the output of one of `stages`.

    Raises:
        MissingInputError: No output has the key and the parameter has no default, or several have the key.
    """
    values: dict[str, Any] = {}
    outputs = {stage: ctx.inputs.result_from(stage).data for stage in stages}
    for name, has_default, default in parameters:
        sources = [stage for stage, data in outputs.items() if name in data]
        if len(sources) == 1:
            values[name] = outputs[sources[0]][name]
        elif not sources and has_default:
            values[name] = default
            ctx.inputs.note_missing(name, stages)
        else:
            ctx.inputs.note_missing(name, stages)
            raise _missing(ctx, name, sources, outputs)
    return values


def _missing(ctx: StageContext, name: str, sources: list[str], outputs: dict[str, Any]) -> MissingInputError:
    where = {"stage": ctx.stage, "run_id": str(ctx.run.pipeline_run_id)}
    if sources:
        stages = " and ".join(repr(stage) for stage in sources)
        return MissingInputError(
            f"several dependencies returned a value for parameter {name!r}: {stages}",
            hint=f"read one of them with ctx.inputs.get_from(stage, {name!r})",
            **where,
        )
    keys = [str(key) for data in outputs.values() for key in data]
    listed = ", ".join(
        f"{stage!r} returned {sorted(map(str, data)) or 'nothing'}" for stage, data in outputs.items()
    )
    return MissingInputError(
        f"no dependency returned a value for parameter {name!r}{did_you_mean(name, keys)}",
        hint=listed or "the stage has no dependencies; pass them to with_stage",
        **where,
    )


def takes_context(runner: Any, inputs: int) -> bool:
    """Return whether the first parameter of a runner is for the context."""
    entry = entry_of(runner)
    if entry is None:
        return True  # `build()` reports it
    try:
        parameters = list(inspect.signature(entry.called).parameters.values())[entry.context_at :]
    except (TypeError, ValueError):  # Python cannot determine the signature
        return True
    positional = [
        each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    if not positional:
        return False
    first = positional[0]
    try:
        annotation = typing.get_type_hints(entry.called).get(first.name)
    except Exception:  # a name in an annotation is not defined at run time
        annotation = first.annotation
    if isinstance(annotation, str):
        return annotation.rpartition(".")[2] == StageContext.__name__
    if annotation not in (first.empty, None, Any, object):
        return annotation is StageContext
    if first.name == "ctx":
        return True
    return sum(each.default is each.empty for each in positional) == inputs + 1


class StageOptions(TypedDict, total=False):
    """The options of a stage, as accepted by `with_stage` and `@stage`; None means the default.

    Add a new option here and to `StageSpec`; everything else is derived from these two classes.
    """

    conditional: bool | None
    optional: bool | None
    when: Condition | None
    route: str | None
    timeout: float | None
    retry: Retry | None
    limit: str | None
    interceptors: Iterable[Interceptor] | None
    streams: StageRef[Any] | Iterable[str | StageRef[Any]] | None
    idle_timeout: float | None
    restart: bool | None
    executor: Executor | None


class CollectOptions(TypedDict, total=False):
    """The options of a mapped stage, except `on_item_failure`; None means the default."""

    max_concurrency: int | None
    total_timeout: float | None
    item_key: Callable[[Any], object] | None
    item_events: Literal["problems", "all", "none"] | None
    slow_after: float | None


class ItemOptions(CollectOptions, total=False):
    """The options of a mapped stage, in addition to those of a stage; None means the default."""

    on_item_failure: Literal["fail", "skip", "collect"] | None


class MapSpec(Struct, frozen=True):
    """How a stage calls its function for each item of its first input; see `Pipeline.with_map`.

    Attributes:
        key: The key of the items in the data of the first input; None if its value is the items.
        retry: The policy for each item.
        timeout: Maximum duration of one attempt of an item in seconds, or None.
        limit: Name of the limit of which each attempt of an item acquires a permit, or None.
    """

    key: str | None = None
    retry: Retry | None = None
    timeout: float | None = None
    limit: str | None = None
    max_concurrency: int = 16
    on_item_failure: Literal["fail", "skip", "collect"] = "fail"
    item_key: Callable[[Any], object] | None = None
    item_events: Literal["problems", "all", "none"] = "problems"
    slow_after: float = 1.0


_DEFAULT = MapSpec()
_BUFFER = ChunksRef[Any]("").buffer


class ChildSpec(Struct, frozen=True):
    """How a stage runs a pipeline; see `Pipeline.with_stage` and `Pipeline.with_loop`.

    Attributes:
        pipeline: Name of the pipeline.
        until: For a loop, whether an iteration is the last one, given its results.
        max_iterations: Maximum number of iterations; None for a stage that is not a loop.
    """

    pipeline: str
    until: Any = None
    max_iterations: int | None = None


class StageDescription(StageOptions, total=False):
    """The arguments of `@stage`, including those that `with_stage` accepts by position."""

    name: str | None
    kind: StageKind | None
    dependencies: Iterable[str] | None


class StageSpec(Struct, frozen=True, eq=False):
    """The arguments of `with_stage`, with defaults filled in. `build()` validates them."""

    name: str
    runner: Any
    kind: StageKind = StageKind.TRANSFORM
    dependencies: tuple[str, ...] = ()
    conditional: bool = False
    optional: bool = False
    when: Condition | None = None
    route: str | None = None
    timeout: float | None = None
    retry: Retry | None = None
    limit: str | None = None
    interceptors: tuple[Interceptor, ...] = ()
    inputs: tuple[StageRef[Any], ...] | None = None
    """The values to pass by position, for a stage of a `Flow`; None for a stage of a `Pipeline`."""
    takes_context: bool = True
    """False for a function of a `Flow` or a map that is called without the context."""
    map: MapSpec | None = None
    """How to map over the first input; `timeout`, `retry` and `limit` of the spec are those of the stage."""
    child: ChildSpec | None = None
    """How to run the pipeline or graph that is the runner."""
    streams: tuple[ChunksRef[Any], ...] = ()
    """The streams that the stage reads; `dependencies` includes these stages."""
    idle_timeout: float | None = None
    restart: bool = False
    executor: Executor | None = None
    """Where the function runs; None for the event loop or a thread."""

    @property
    def ended(self) -> tuple[str, ...]:
        """The dependencies that have ended when the stage starts: all but those whose streams it reads."""
        if not self.streams:
            return self.dependencies
        read = {ref.name for ref in self.streams}
        return tuple(name for name in self.dependencies if name not in read)

    def record(self) -> dict[str, Any]:
        """Return the description as plain values, for rendering."""
        policies = {
            **self._child_as_text(),
            "route": self.route,
            "when": None if self.when is None else getattr(self.when, "__name__", "when"),
            "conditional": "" if self.conditional else None,
            "optional": "" if self.optional else None,
            **self._limits_as_text(),
            "streams": ",".join(
                ref.name if ref.buffer == _BUFFER else f"{ref.name}(buffer={ref.buffer})"
                for ref in self.streams
            )
            or None,
            "idle_timeout": None if self.idle_timeout is None else f"{self.idle_timeout:g}s",
            "restart": "" if self.restart else None,
            "executor": None if self.executor is None else self.executor.kind,
            "interceptors": ",".join(
                getattr(interceptor, "__name__", None) or type(interceptor).__name__
                for interceptor in self.interceptors
            )
            or None,
        }
        return {
            "name": self.name,
            "kind": str(self.kind),
            "dependencies": self.dependencies,
            "streams": tuple(ref.name for ref in self.streams),
            "policies": {name: text for name, text in policies.items() if text is not None},
        }

    def _child_as_text(self) -> dict[str, str | None]:
        """Return the pipeline that the stage runs."""
        if self.child is None:
            return {}
        if self.child.max_iterations is None:
            return {"pipeline": self.child.pipeline}
        return {"loop": self.child.pipeline, "max_iterations": str(self.child.max_iterations)}

    def _limits_as_text(self) -> dict[str, str | None]:
        """Return the timeout, the retry policy and the limits; for a map, those of each item."""
        spec = self.map
        if spec is None:
            return _policies_as_text(self.timeout, self.retry, self.limit)
        (ref, *_) = self.inputs or (StageRef[Any]("?"),)
        return {
            "map": ref.name if spec.key is None else f"{ref.name}.{spec.key}",
            "max_concurrency": None
            if spec.max_concurrency == _DEFAULT.max_concurrency
            else str(spec.max_concurrency),
            "on_item_failure": None
            if spec.on_item_failure == _DEFAULT.on_item_failure
            else spec.on_item_failure,
            **_policies_as_text(spec.timeout, spec.retry, spec.limit),
            "total_timeout": None if self.timeout is None else f"{self.timeout:g}s",
        }


def limit_of(spec: StageSpec) -> str | None:
    """Return the name of the limit of each attempt of a stage, or of each item of a map, or None."""
    return spec.limit if spec.map is None else spec.map.limit


def _policies_as_text(timeout: float | None, retry: Retry | None, limit: str | None) -> dict[str, str | None]:
    return {
        "timeout": None if timeout is None else f"{timeout:g}s",
        "retry": None if retry is None else str(retry.attempts),
        "limit": limit,
    }


def map_options(options: Mapping[str, Any], key: str | None) -> dict[str, Any]:
    """Return the fields of a `StageSpec` for the options of a mapped stage."""
    merged = dict(options)
    fields = {name: merged.pop(name) for name in MapSpec.__struct_fields__ if name in merged}
    total_timeout = merged.pop("total_timeout", None)
    return {**merged, "timeout": total_timeout, "map": MapSpec(key, **fields)}


def as_tuple(given: Any) -> tuple[Any, ...]:
    """Return an iterable as a tuple, and a single value as a tuple of one item."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


def streams_of(given: Any) -> tuple[ChunksRef[Any], ...]:
    """Return the `streams` option as references.

    Raises:
        InvalidArgumentError: An item is neither a name nor a reference.
    """
    refs = []
    for each in as_tuple(given):
        if isinstance(each, ChunksRef):
            refs.append(each)
        elif isinstance(each, (str, StageRef)):
            refs.append(ChunksRef[Any](each if isinstance(each, str) else each.name))
        else:
            raise invalid_argument(
                "with_stage()", "streams", each, "names of stages", hint='write streams=("write",)'
            )
    return tuple(refs)


def options_of(given: Mapping[str, Any], where: str, *, items: bool = False) -> dict[str, Any]:
    """Return the options that are not None.

    Args:
        given: The options.
        where: The stage and the call, for the error.
        items: Whether the options of mapped stages are known, too.

    Raises:
        InvalidArgumentError: An option does not exist; the message suggests the closest match.
    """
    known = StageDescription.__annotations__ | (ItemOptions.__annotations__ if items else {})
    for name in given:
        if name not in known:
            raise InvalidArgumentError(
                f"{where}: unknown option {name!r}{did_you_mean(name, known)}",
                hint=f"the options are {', '.join(known)}",
            )
    return {name: value for name, value in given.items() if value is not None}
