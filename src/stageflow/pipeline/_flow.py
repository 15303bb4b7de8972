"""`Flow`: describes a pipeline by functions and typed references to their values."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar, Unpack, overload

from ..context import PipelineContext, StageContext
from ..errors import invalid_argument
from ..results import PipelineResults
from ..stages import StageKind, StageOutput, StageRef
from ._decorator import carried_description, name_of, without_description
from ._pipeline import BuildOptions, Pipeline, StageGraph
from ._spec import StageOptions, StageSpec, as_tuple, entry_of, options_of

__all__ = ["Flow", "FlowOptions"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
R = TypeVar("R")


class FlowOptions(StageOptions, total=False):
    """The options of `Flow.add`; those of `Pipeline.with_stage`, and the name.

    Attributes:
        name: Name of the stage; default the name of the function.
        kind: Purpose of the stage; default TRANSFORM.
        dependencies: Stages that must end before this one starts, in addition to its inputs.
    """

    name: str | None
    kind: StageKind | None
    dependencies: Iterable[StageRef[Any] | str] | None


class Flow:
    """Describes a pipeline whose stages are connected by references instead of names.

    The inputs of a stage are passed to its function by position. Type checkers compare the type of each input
    with the parameter, and `results.value(ref)` has the return type of the function.

    Args:
        name: Name of the pipeline.

    Example:
        >>> async def search(ctx: StageContext) -> list[str]:
        ...     return ["a", "b"]
        >>> def count(documents: list[str]) -> int:
        ...     return len(documents)
        >>> flow = Flow("ask")
        >>> documents = flow.add(search)
        >>> number = flow.add(count, documents)
        >>> flow.pipeline
        <Pipeline 'ask': search, count>
    """

    def __init__(self, name: str = "pipeline") -> None:
        self._pipeline = Pipeline(name)

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline as described so far; `compose` combines it with stages of a `Pipeline`."""
        return self._pipeline

    # The most common form comes first, because mypy quotes the first overload in its errors. The coroutine
    # forms precede those of synchronous functions, which also match a function that returns a coroutine.

    @overload
    def add(
        self,
        function: Callable[[StageContext], Coroutine[Any, Any, R | StageOutput]],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self, function: Callable[[], Coroutine[Any, Any, R | StageOutput]], /, **options: Unpack[FlowOptions]
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C, D], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C, D], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C, D, E], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        e: StageRef[E],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C, D, E], Coroutine[Any, Any, R | StageOutput]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        e: StageRef[E],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self, function: Callable[[StageContext], R | StageOutput], /, **options: Unpack[FlowOptions]
    ) -> StageRef[R]: ...

    @overload
    def add(
        self, function: Callable[[], R | StageOutput], /, **options: Unpack[FlowOptions]
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A], R | StageOutput],
        a: StageRef[A],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self, function: Callable[[A], R | StageOutput], a: StageRef[A], /, **options: Unpack[FlowOptions]
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C, D], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C, D], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C, D, E], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        e: StageRef[E],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C, D, E], R | StageOutput],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        d: StageRef[D],
        e: StageRef[E],
        /,
        **options: Unpack[FlowOptions],
    ) -> StageRef[R]: ...

    def add(
        self, function: Callable[..., Any], /, *inputs: StageRef[Any], **options: Unpack[FlowOptions]
    ) -> StageRef[Any]:
        """Add a stage that calls a function with the values of other stages, and return a reference to it.

        The first parameter of the function receives the context if it is annotated as `StageContext`, is
        named `ctx`, or if the function has more required parameters than there are inputs. A synchronous
        function runs in a thread. A stage is skipped if one of its inputs was skipped, or is optional and
        failed, unless that input is `ref.or_none()` or `ref.or_default(value)`.

        Args:
            function: The function; its name is the name of the stage unless `name=` is set.
            inputs: References to the stages whose values are passed to the function, in this order.
            options: The options of `Pipeline.with_stage`.

        Returns:
            A reference to the value that the function returns.

        Raises:
            InvalidArgumentError: An input is not a reference, or an option does not exist.

        Example:
            documents = flow.add(search, timeout=5)
            answer = flow.add(write, documents.or_default([]), retry=Retry(attempts=3))
        """
        where = f"stage {name_of(function)!r}: add()"
        merged = {**carried_description(function), **options_of(options, where)}
        name = merged.setdefault("name", name_of(function))
        for position, ref in enumerate(inputs, 1):
            if not isinstance(ref, StageRef):
                raise invalid_argument(
                    where,
                    f"input {position}",
                    ref,
                    "a reference returned by add()",
                    hint="pass constants with functools.partial, and ids and parameters in the context",
                )
        dependencies = (*inputs, *as_tuple(merged.get("dependencies")))
        names = [each.name if isinstance(each, StageRef) else each for each in dependencies]
        merged["dependencies"] = tuple(dict.fromkeys(names))
        merged["interceptors"] = as_tuple(merged.get("interceptors"))
        runner = without_description(function)
        spec = StageSpec(
            runner=runner, inputs=inputs, takes_context=_takes_context(runner, len(inputs)), **merged
        )
        self._pipeline = Pipeline(self._pipeline.name, stages=(*self._pipeline.stages, spec))
        return StageRef(name)

    def build(self, **options: Unpack[BuildOptions]) -> StageGraph:
        """Validate the definition, and return a graph: a shorthand for `flow.pipeline.build(...)`.

        Raises:
            PipelineValidationError: The definition is invalid; the error lists all problems.
        """
        return self._pipeline.build(**options)

    async def run(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Run the pipeline with default options: a shorthand for `flow.build().run(ctx)`.

        Raises:
            PipelineValidationError: The definition is invalid; the error lists all problems.
        """
        return await self._pipeline.run(ctx, deadline=deadline)

    def __repr__(self) -> str:
        return f"<Flow {self._pipeline.name!r}: {', '.join(spec.name for spec in self._pipeline.stages)}>"


def _takes_context(runner: Any, inputs: int) -> bool:
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
