"""`Flow`: describes a pipeline by functions and typed references to their values."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Literal, TypeVar, Unpack, overload

from ..context import PipelineContext, StageContext
from ..errors import InvalidArgumentError, invalid_argument
from ..results import PipelineResults
from ..stages import ChunksRef, ItemFailure, StageKind, StageOutput, StageRef, StreamRef
from ._decorator import carried_description, name_of, without_description
from ._pipeline import BuildOptions, Pipeline, StageGraph
from ._spec import (
    ChildSpec,
    CollectOptions,
    ItemOptions,
    StageOptions,
    StageSpec,
    as_tuple,
    entry_of,
    generator_kind,
    map_options,
    options_of,
    streams_of,
    takes_context,
)

__all__ = ["Flow", "FlowOptions"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")
R = TypeVar("R")

Chunks = AsyncIterator[R | StageOutput] | Iterator[R | StageOutput]
"""The return type of a generator function; mypy does not accept the union of the two types of functions."""


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


class FlowMapOptions(FlowOptions, ItemOptions, total=False):
    """The options of `Flow.map`; those of `Pipeline.with_map`, and the name."""


class FlowCollectOptions(FlowOptions, CollectOptions, total=False):
    """The options of `Flow.map` without `on_item_failure`."""


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

    # Generator functions, with up to three inputs.

    @overload
    def add(
        self,
        function: Callable[[StageContext], Chunks[R]],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[], Chunks[R]],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A], Chunks[R]],
        a: StageRef[A],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A], Chunks[R]],
        a: StageRef[A],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B], Chunks[R]],
        a: StageRef[A],
        b: StageRef[B],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B], Chunks[R]],
        a: StageRef[A],
        b: StageRef[B],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[StageContext, A, B, C], Chunks[R]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

    @overload
    def add(
        self,
        function: Callable[[A, B, C], Chunks[R]],
        a: StageRef[A],
        b: StageRef[B],
        c: StageRef[C],
        /,
        **options: Unpack[FlowOptions],
    ) -> StreamRef[R]: ...

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

    @overload
    def add(self, function: Pipeline | StageGraph, /, **options: Unpack[FlowOptions]) -> StageRef[Any]: ...

    def add(
        self,
        function: Callable[..., Any] | Pipeline | StageGraph,
        /,
        *inputs: StageRef[Any],
        **options: Unpack[FlowOptions],
    ) -> StageRef[Any]:
        """Add a stage that calls a function with the values of other stages, and return a reference to it.

        The first parameter of the function receives the context if it is annotated as `StageContext`, is
        named `ctx`, or if the function has more required parameters than there are inputs. A synchronous
        function runs in a thread. A stage is skipped if one of its inputs was skipped, or is optional and
        failed, unless that input is `ref.or_none()` or `ref.or_default(value)`.

        Args:
            function: The function; its name is the name of the stage unless `name=` is set. A pipeline or a
                graph runs as a child run, as in `Pipeline.with_stage`; it takes no inputs, but the outputs of
                its `dependencies` are part of its `ctx.run.data`.
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
        if isinstance(function, (Pipeline, StageGraph)):
            return self._add_child("add", function, inputs, options, ChildSpec(function.name))
        given = options_of(options, f"stage {name_of(function)!r}: add()")
        return self._add("add", function, inputs, {**carried_description(function), **given})

    def loop(
        self,
        pipeline: Pipeline | StageGraph,
        /,
        *,
        until: Callable[[PipelineResults], bool | Awaitable[bool]],
        max_iterations: int,
        **options: Unpack[FlowOptions],
    ) -> StageRef[Any]:
        """Add a stage that repeats a pipeline, and return a reference to the output of its last iteration.

        The name of the stage is that of the pipeline unless `name=` is set.

        Args:
            pipeline: The pipeline to repeat.
            until: A function that takes the results of an iteration; a true value ends the loop.
            max_iterations: Maximum number of iterations.
            options: The options of `Pipeline.with_loop`.

        Raises:
            InvalidArgumentError: `pipeline` is not a pipeline or a graph, or an option does not exist.

        Example:
            answer = flow.loop(turn, until=is_done, max_iterations=10, dependencies=(documents,))
        """
        if not isinstance(pipeline, (Pipeline, StageGraph)):
            raise invalid_argument("loop()", "pipeline", pipeline, "a Pipeline or a StageGraph")
        return self._add_child("loop", pipeline, (), options, ChildSpec(pipeline.name, until, max_iterations))

    def _add_child(
        self,
        method: str,
        pipeline: Pipeline | StageGraph,
        inputs: tuple[StageRef[Any], ...],
        options: FlowOptions,
        child: ChildSpec,
    ) -> StageRef[Any]:
        where = f"stage {pipeline.name!r}: {method}()"
        if inputs:
            raise InvalidArgumentError(
                f"{where}: a pipeline takes no inputs, got {len(inputs)}",
                hint="pass the references in dependencies=(...), and read the outputs in ctx.run.data",
            )
        merged = {"name": pipeline.name, **options_of(options, where), "child": child}
        return self._add(method, pipeline, (), merged)

    def _add(
        self,
        method: str,
        function: Any,
        inputs: tuple[StageRef[Any], ...],
        merged: dict[str, Any],
    ) -> StageRef[Any]:
        name = merged.setdefault("name", name_of(function))
        for position, ref in enumerate(inputs, 1):
            if not isinstance(ref, StageRef):
                raise invalid_argument(
                    f"stage {name_of(function)!r}: {method}()",
                    f"input {position}",
                    ref,
                    "a reference returned by add() or map()",
                    hint="pass constants with functools.partial, and ids and parameters in the context",
                )
        waits_for = [ref for ref in inputs if not isinstance(ref, ChunksRef)]
        dependencies = (*waits_for, *as_tuple(merged.get("dependencies")))
        names = [each.name if isinstance(each, StageRef) else each for each in dependencies]
        read = [ref for ref in inputs if isinstance(ref, ChunksRef)]
        merged["streams"] = streams_of([*read, *as_tuple(merged.get("streams"))])
        merged["dependencies"] = (*dict.fromkeys(names), *(ref.name for ref in merged["streams"]))
        merged["interceptors"] = as_tuple(merged.get("interceptors"))
        runner = without_description(function)
        spec = StageSpec(
            runner=runner, inputs=inputs, takes_context=takes_context(runner, len(inputs)), **merged
        )
        self._pipeline = Pipeline(self._pipeline.name, stages=(*self._pipeline.stages, spec))
        entry = entry_of(runner)
        if entry is not None and spec.map is None and generator_kind(entry.called) is not None:
            return StreamRef[Any](name)
        return StageRef(name)

    # The overloads for "collect" come first: "collect" also matches the option of the others.

    @overload
    def map(
        self,
        function: Callable[[StageContext, A], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[A], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A, B], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[A, B], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[A], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A, B], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[A, B], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        *,
        on_item_failure: Literal["collect"],
        **options: Unpack[FlowCollectOptions],
    ) -> StageRef[list[R | ItemFailure]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[A], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A, B], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[A, B], Coroutine[Any, Any, R | StageOutput]],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[A], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[StageContext, A, B], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    @overload
    def map(
        self,
        function: Callable[[A, B], R | StageOutput],
        items: StageRef[Iterable[A]] | StageRef[AsyncIterable[A]],
        b: StageRef[B],
        /,
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[list[R]]: ...

    def map(
        self,
        function: Callable[..., Any],
        items: StageRef[Any],
        /,
        *inputs: StageRef[Any],
        **options: Unpack[FlowMapOptions],
    ) -> StageRef[Any]:
        """Add a stage that calls a function for each item of another stage's value.

        The value of the stage is the list of the values for the items, in the order of the items. Each call
        passes the item and the values of further inputs; as with `add`, the context is the first argument if
        the function takes it.

        Args:
            function: The function; its name is the name of the stage unless `name=` is set.
            items: Reference to the stage whose value contains the items: an iterable or an asynchronous
                iterable.
            inputs: References to stages whose values are passed to each call, after the item.
            options: The options of `Pipeline.with_map`.

        Returns:
            A reference to the list of values. With `on_item_failure="collect"`, the list also contains an
            `ItemFailure` for each failed item.

        Raises:
            InvalidArgumentError: An input is not a reference, or an option does not exist.

        Example:
            vectors = flow.map(embed, documents, max_concurrency=8, retry=Retry(attempts=3))
        """
        given = options_of(options, f"stage {name_of(function)!r}: map()", items=True)
        return self._add(
            "map", function, (items, *inputs), map_options({**carried_description(function), **given}, None)
        )

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
