"""`Pipeline`, the immutable definition of stages, and `StageGraph`, which runs it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
from typing import Any, Literal, TypedDict, Unpack

from msgspec.structs import replace

from .._log import log_safely
from ..budget import Budget
from ..context import PipelineContext, StageContext, StageRunner
from ..errors import InvalidArgumentError, PipelineValidationError, invalid_argument
from ..observability import WideEventEmitter, defaults
from ..render import graph_as_dot, graph_as_mermaid, graph_as_text
from ..results import PipelineResults
from ..stages import Chunk, StageKind, StageRef
from ._decorator import carried_description, without_description
from ._interceptors import Interceptor
from ._limits import Limits
from ._many import Contexts, ManyRuns
from ._nested import NestedPipeline
from ._plan import GraphOptions, Plan
from ._scheduler import Scheduler
from ._spec import (
    ChildSpec,
    ItemOptions,
    StageOptions,
    StageSpec,
    as_tuple,
    map_options,
    options_of,
    streams_of,
    takes_context,
)
from ._streamed_run import OnAbandon, StreamedRun, SyncStreamedRun
from ._validation import problems_of

__all__ = ["Pipeline", "StageGraph"]

log = logging.getLogger("stageflow.pipeline")


class StageGraph:
    """A validated pipeline, returned by `Pipeline.build()`. It is stateless, so runs can share it."""

    def __init__(self, plan: Plan) -> None:
        self.name = plan.name
        self._plan = plan

    async def run(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Run the pipeline once, and record the run.

        Args:
            ctx: Ids, labels and input of the run; default an empty context. It is not modified.
            deadline: Maximum duration of the run in seconds; default no limit.

        Returns:
            One result for every stage, even if stages failed; see `raise_on_failure()`.

        Raises:
            asyncio.CancelledError: The run was cancelled externally; its record is written.
            InvalidArgumentError: `ctx` is not a `PipelineContext`, or `deadline` is not a positive number.

        Example:
            results = await graph.run(PipelineContext(user_id="u1", data={"question": "why?"}))
            print(results.data("answer")["text"])
        """
        ctx = self._checked("run", ctx)
        self._check_deadline("run", deadline)
        return await Scheduler(self._plan, ctx, deadline).complete()

    def stream(
        self,
        ctx: PipelineContext | None = None,
        *,
        stages: str | StageRef[Any] | Iterable[str | StageRef[Any]] | None = None,
        buffer: int = 64,
        on_abandon: OnAbandon = "cancel",
        deadline: float | None = None,
        encode: Callable[[Chunk], Any] | None = None,
    ) -> StreamedRun:
        """Run the pipeline once, and read the chunks that its streaming stages send while it is running.

        Args:
            ctx: Ids, labels and input of the run, as for `run()`.
            stages: Names of the stages whose chunks to read, or references; default all stages that are
                generator functions. To read a stage that calls `ctx.send`, name it.
            buffer: Maximum number of chunks that wait for this reader. While that many do, the stages that
                send further ones wait.
            on_abandon: What happens if the block is left before the streams have ended: "cancel" (the
                default) cancels the run; "finish" lets it continue without this reader.
            deadline: Maximum duration of the run in seconds; default no limit.
            encode: Called with each chunk when it is sent; what it returns replaces the `value` of the chunk
                for this reader. If it raises an exception, the stage that sent the chunk fails with it.

        Raises:
            InvalidArgumentError: A stage does not exist, or an argument is invalid.

        Example:
            async with graph.stream(PipelineContext(data={"question": "why?"}), stages="write") as run:
                async for chunk in run:
                    print(chunk.value, end="")
            results = await run.results()
        """
        context = self._checked("stream", ctx)
        self._check_deadline("stream", deadline)
        if not isinstance(buffer, int) or isinstance(buffer, bool) or buffer < 1:
            raise invalid_argument("stream()", "buffer", buffer, "a positive integer", pipeline=self.name)
        if on_abandon not in ("cancel", "finish"):
            raise invalid_argument(
                "stream()", "on_abandon", on_abandon, '"cancel" or "finish"', pipeline=self.name
            )
        if encode is not None and not callable(encode):
            raise invalid_argument("stream()", "encode", encode, "a function", pipeline=self.name)
        return StreamedRun(
            self.name,
            lambda: Scheduler(self._plan, context, deadline),
            self._streaming(stages),
            buffer,
            on_abandon,
            encode,
        )

    def stream_sync(
        self,
        ctx: PipelineContext | None = None,
        *,
        stages: str | StageRef[Any] | Iterable[str | StageRef[Any]] | None = None,
        buffer: int = 64,
        deadline: float | None = None,
    ) -> SyncStreamedRun:
        """Run the pipeline as `stream()` does, from code without an event loop, such as a script.

        Raises:
            RuntimeError: An event loop is running in this thread; use `stream()` instead.
            InvalidArgumentError: A stage does not exist, or an argument is invalid.

        Example:
            with graph.stream_sync(PipelineContext(data={"question": "why?"})) as run:
                for chunk in run:
                    print(chunk.value, end="")
            results = run.results()
        """
        self._check_no_loop("stream_sync", "async with graph.stream(ctx) as run: ...")
        return SyncStreamedRun(self.stream(ctx, stages=stages, buffer=buffer, deadline=deadline))

    def _streaming(self, stages: Any) -> tuple[int, ...]:
        """Return the numbers of the stages whose chunks to read."""
        if stages is None:
            generators = tuple(node.index for node in self._plan.nodes if node.generator is not None)
            if not generators:
                raise InvalidArgumentError(
                    f"stream(): no stage of pipeline {self.name!r} is a generator function",
                    pipeline=self.name,
                    hint="to read the stages that call ctx.send(), pass their names as stages=(...)",
                )
            return generators
        selected = []
        for name in as_tuple(stages):
            name = name.name if isinstance(name, StageRef) else name
            if name not in self._plan.index:
                raise invalid_argument(
                    "stream()",
                    "stages",
                    name,
                    "names of stages",
                    known=self._plan.index,
                    pipeline=self.name,
                    hint=f"the stages are {', '.join(map(repr, self._plan.index))}",
                )
            selected.append(self._plan.index[name])
        return tuple(selected)

    def _checked(self, method: str, ctx: Any) -> PipelineContext:
        if ctx is None:
            return PipelineContext()
        if isinstance(ctx, StageContext):
            return ctx.run
        if not isinstance(ctx, PipelineContext):
            raise invalid_argument(
                f"{method}()",
                "ctx",
                ctx,
                "a PipelineContext",
                pipeline=self.name,
                hint=f"write graph.{method}(PipelineContext(data={{...}}))",
            )
        return ctx

    def _check_deadline(self, method: str, deadline: float | None) -> None:
        if deadline is not None and not (isinstance(deadline, (int, float)) and 0 < deadline < math.inf):
            raise invalid_argument(
                f"{method}()", "deadline", deadline, "more than 0 seconds", pipeline=self.name
            )

    def _check_no_loop(self, method: str, instead: str) -> None:
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"pipeline {self.name!r}: {method}() would block the event loop of this thread"
                f"\n  hint: use `{instead}`"
            )

    def run_sync(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Run the pipeline once from code without an event loop: a Celery task, a Django view, a script.

        The run uses a new event loop. When it ends, the events that wait for sinks on this loop are
        delivered. A `BackgroundEventSink` continues in its thread until `flush()` or process exit.

        Raises:
            RuntimeError: An event loop is running in this thread; use `await graph.run()` instead.
        """
        self._check_no_loop("run_sync", "await graph.run(ctx)")
        return asyncio.run(self.run(ctx, deadline=deadline))

    def run_many(
        self, contexts: Contexts, *, concurrency: int = 64, deadline: float | None = None
    ) -> ManyRuns:
        """Run the pipeline once for each context, and iterate over the results in order of completion.

        Args:
            contexts: An iterable or asynchronous iterable; each context is requested when its run can start.
            concurrency: Maximum number of runs that are started and whose results are not yet read.
            deadline: Maximum duration of each run in seconds; default no limit.

        Raises:
            InvalidArgumentError: `contexts` is not iterable, `concurrency` is less than 1, or `deadline` is
                not a positive number.

        Example:
            async with graph.run_many(contexts, concurrency=100) as runs:
                async for results in runs:
                    print(results.outcome)
        """
        if not isinstance(concurrency, int) or concurrency < 1:
            raise invalid_argument(
                "run_many()", "concurrency", concurrency, "a positive integer", pipeline=self.name
            )
        self._check_deadline("run_many", deadline)
        if not isinstance(contexts, (Iterable, AsyncIterable)):
            raise invalid_argument(
                "run_many()", "contexts", contexts, "an iterable of PipelineContext", pipeline=self.name
            )
        return ManyRuns(lambda ctx: self.run(ctx, deadline=deadline), contexts, concurrency)

    def describe(self) -> str:
        """Return a plain-text table of the stages: level, kind, dependencies and policies; and the budget.

        Example:
            >>> async def load(ctx): ...
            >>> print(Pipeline("p").with_stage("load", load, timeout=5).build().describe())
            level  stage  kind       after  policies
            1      load   transform  -      timeout=5s
        """
        table = graph_as_text([spec.record() for spec in self._plan.specs])
        return table if self._plan.budget is None else f"{table}\n\nbudget: {self._plan.budget}"

    def __repr__(self) -> str:
        return f"<StageGraph {self.name!r}: {', '.join(self._plan.index)}>"


class MapOptions(StageOptions, ItemOptions, total=False):
    """The options of `Pipeline.with_map`."""


class BuildOptions(TypedDict, total=False):
    """The options of `Pipeline.build`."""

    emit_stage_wide_events: bool | None
    emit_pipeline_wide_event: bool | None
    wide_event_emitter: WideEventEmitter | None
    on_failure: Literal["cancel", "continue"]
    max_concurrency: int | None
    grace: float
    limits: Limits | None
    budget: Budget | None
    interceptors: Iterable[Interceptor]


class Pipeline:
    """An immutable, named DAG of stages. Methods that change it return a new pipeline.

    Args:
        name: Name of the pipeline, and the default `topology` of its runs.

    Example:
        >>> pipeline = (
        ...     Pipeline("greet")
        ...     .with_stage("name", lambda ctx: {"name": "you"})
        ...     .with_stage(
        ...         "greet",
        ...         lambda ctx: {"text": "hello " + ctx.inputs.get_from("name", "name")},
        ...         dependencies=("name",),
        ...     )
        ... )
        >>> pipeline
        <Pipeline 'greet': name, greet>
    """

    __slots__ = ("_graph", "name", "stages")

    def __init__(self, name: str = "pipeline", *, stages: Iterable[StageSpec] = ()) -> None:
        self.name = name
        self.stages = tuple(stages)
        self._graph: StageGraph | None = None

    def with_stage(
        self,
        name: str,
        runner: StageRunner | Pipeline | StageGraph,
        kind: StageKind | None = None,
        dependencies: Iterable[str] | None = None,
        **options: Unpack[StageOptions],
    ) -> Pipeline:
        """Return this pipeline with another stage. `build()` validates it, and reports all problems at once.

        The default of an argument (None) is the value that `@stage` has attached to the runner.

        Args:
            name: Name of the stage, unique in the pipeline and without "/".
            runner: A class with a method `execute(ctx)` (instantiated per run), an instance of such a class
                (shared by all runs), or a function that takes `ctx`. A synchronous function or method runs in
                a thread. Other parameters are passed by name, from the outputs of the dependencies. A
                pipeline or a graph runs as a child run, whose `ctx.run.data` is that of this run, overlaid
                with the outputs of the dependencies; the value of the stage is the output of its last stages.
            kind: Purpose of the stage; default TRANSFORM.
            dependencies: Names of the stages that must end before this one starts.
            conditional: Skip this stage if all of its dependencies were skipped.
            optional: If this stage fails, the run continues; dependents run as after a skip.
            when: A function that takes `ctx`, called just before the stage starts; a false value skips the
                stage.
            route: Run this stage only if a dependency of kind ROUTE returned `StageOutput.route` with this
                label.
            timeout: Maximum duration of one attempt in seconds; default no limit.
            retry: Retry policy; by default, `StageOutput.retry` allows three attempts, and exceptions are not
                retried.
            limit: Name of a limit in `build(limits=Limits(...))`; each attempt acquires a permit of it.
            interceptors: Interceptors for each attempt, outermost first, inside those of `build()`.
            streams: Names of the stages whose streams this stage reads with `ctx.inputs.stream(name)`; it
                starts when each of them has sent its first chunk or has ended.
                `StreamRef(name).chunks(buffer=...)` sets the size of the buffer, by default 64 chunks.
            idle_timeout: Maximum time without a chunk, in seconds: before the first one, between two, and
                after the last one. Time spent waiting for readers does not count; default no limit.
            restart: Whether an attempt is retried even if its chunks have been read: the stages that have
                read them restart, and a reader outside the run receives a `Chunk` with `restart=True`.
            executor: Where the function runs, such as a `ProcessExecutor`; default the event loop or a
                thread.

        Raises:
            InvalidArgumentError: An option does not exist, or `streams` contains something other than
                stage names and references.
        """
        given = options_of(
            {"kind": kind, "dependencies": dependencies, **options}, f"stage {name!r}: with_stage()"
        )
        merged = {**carried_description(runner), **given, "name": name}
        for option in ("dependencies", "interceptors"):
            merged[option] = as_tuple(merged.get(option))
        merged["streams"] = streams_of(merged.get("streams"))
        merged["dependencies"] += tuple(ref.name for ref in merged["streams"])
        runner = without_description(runner)
        if isinstance(runner, (Pipeline, StageGraph)):
            merged["child"] = ChildSpec(runner.name)
        spec = StageSpec(runner=runner, **merged)
        return Pipeline(self.name, stages=(*self.stages, spec))

    def with_loop(
        self,
        name: str,
        pipeline: Pipeline | StageGraph,
        kind: StageKind | None = None,
        dependencies: Iterable[str] | None = None,
        *,
        until: Callable[[PipelineResults], bool | Awaitable[bool]],
        max_iterations: int,
        **options: Unpack[StageOptions],
    ) -> Pipeline:
        """Return this pipeline with a stage that repeats another pipeline.

        Each iteration is a child run. The `ctx.run.data` of the first iteration is that of the parent run,
        overlaid with the outputs of the dependencies; that of each subsequent iteration is the data of the
        previous iteration, overlaid with the output of that iteration. The value of the stage is the output
        of the last iteration: the data of its last stages. The stage fails if an iteration fails.
        `StageOutput.stop` in an iteration ends the loop, and the stage is OK.

        Args:
            name: Name of the stage, unique in the pipeline and without "/".
            pipeline: The pipeline to repeat. `build()` builds a `Pipeline` with the limits, emitter and grace
                period of the parent; a `StageGraph` keeps the options that it was built with.
            kind: Purpose of the stage; default TRANSFORM.
            dependencies: Names of the stages that must end before this one starts.
            until: A function, synchronous or asynchronous, that takes the results of an iteration; a true
                value ends the loop.
            max_iterations: Maximum number of iterations. If `until` is still false after the last one, the
                stage fails with `LoopLimitError`, and is not retried.
            options: The other options of `with_stage`. `timeout` and `retry` apply to the loop as a whole; a
                retry starts with the first iteration.

        Raises:
            InvalidArgumentError: `pipeline` is not a pipeline or a graph, or an option does not exist.

        Example:
            >>> async def main():
            ...     double = Pipeline("double").with_stage("n", lambda ctx: {"n": ctx.run.data["n"] * 2})
            ...     pipeline = Pipeline("p").with_loop(
            ...         "grow", double, until=lambda results: results.data("n")["n"] > 100, max_iterations=10
            ...     )
            ...     results = await pipeline.run(PipelineContext(data={"n": 3}))
            ...     return results.data("grow"), len(results["grow"].children)
            >>> import asyncio
            >>> asyncio.run(main())
            ({'n': 192}, 6)
        """
        if not isinstance(pipeline, (Pipeline, StageGraph)):
            raise invalid_argument(
                f"stage {name!r}: with_loop()",
                "pipeline",
                pipeline,
                "a Pipeline or a StageGraph",
                hint='put a function into a pipeline: Pipeline("step").with_stage("step", function)',
            )
        added = self.with_stage(name, pipeline, kind, dependencies, **options)
        (*others, spec) = added.stages
        child = ChildSpec(pipeline.name, until, max_iterations)
        return Pipeline(self.name, stages=(*others, replace(spec, child=child)))

    def with_map(
        self,
        name: str,
        runner: Callable[..., Any],
        kind: StageKind | None = None,
        dependencies: Iterable[str] | None = None,
        *,
        over: str | tuple[str, str],
        **options: Unpack[MapOptions],
    ) -> Pipeline:
        """Return this pipeline with a stage that calls a function for each item of another stage's output.

        The value of the stage is the list of the values for the items, in the order of the items; other
        stages read it as `ctx.inputs.get_from(name, "items")`. The stage has one event, whose field `items`
        counts the items. The stage is skipped if the stage that provides the items was skipped, or is
        optional and failed.

        Args:
            name: Name of the stage, unique in the pipeline and without "/".
            runner: A function that takes the item, or the context and the item, or a class whose method
                `execute` does. It receives the context if its first parameter is annotated as `StageContext`
                or named `ctx`, or if it has two required parameters.
            kind: Purpose of the stage; default TRANSFORM.
            dependencies: Names of further stages that must end before this one starts.
            over: The name of a stage and the key of its output that contains the items, or the name of a
                stage whose value contains them. The items are an iterable or an asynchronous iterable; the
                map reads them lazily, as it processes them.
            max_concurrency: Maximum number of items in progress at once; default 16.
            on_item_failure: "fail" (the default) fails the stage as soon as an item fails, and cancels the
                other items; "skip" omits failed items; "collect" puts an `ItemFailure` in their place.
            timeout: Maximum duration of one attempt of an item in seconds; default no limit.
            total_timeout: Maximum duration of the stage in seconds; default no limit.
            retry: Retry policy of each item; the default is that of `with_stage`.
            limit: Name of a limit in `build(limits=Limits(...))`; each attempt of an item acquires a permit.
            item_key: A function that returns a short string for an item, such as its path. The event
                identifies failed and slow items by it; default the position of the item, starting at 0.
            item_events: Which attempts of items emit a `stage.item` event: with "problems" (the default),
                those that fail, and those of items that take longer than `slow_after`; with "all", all of
                them; with "none", none.
            slow_after: Seconds after which an item is slow; default 1.
            options: The other options of `with_stage`.

        Raises:
            InvalidArgumentError: An option does not exist, or `over` is neither the name of a stage nor the
                name of a stage and a key.

        Example:
            >>> async def main():
            ...     pipeline = (
            ...         Pipeline("words")
            ...         .with_stage("read", lambda ctx: {"words": ["a", "bcd"]})
            ...         .with_map("measure", lambda word: len(word), over=("read", "words"))
            ...     )
            ...     return (await pipeline.run()).value("measure")
            >>> import asyncio
            >>> asyncio.run(main())
            [1, 3]
        """
        where = f"stage {name!r}: with_map()"
        stage, key = over if isinstance(over, tuple) and len(over) == 2 else (over, None)
        if not isinstance(stage, str) or not isinstance(key, (str, type(None))):
            raise invalid_argument(
                where,
                "over",
                over,
                "the name of a stage, or a stage and a key",
                hint='write over=("search", "documents")',
            )
        given = options_of({"kind": kind, "dependencies": dependencies, **options}, where, items=True)
        merged = map_options({**carried_description(runner), **given, "name": name}, key)
        merged["interceptors"] = as_tuple(merged.get("interceptors"))
        merged["streams"] = streams_of(merged.get("streams"))
        merged["dependencies"] = tuple(dict.fromkeys((stage, *as_tuple(merged.get("dependencies")))))
        runner = without_description(runner)
        spec = StageSpec(
            runner=runner, inputs=(StageRef(stage),), takes_context=takes_context(runner, 1), **merged
        )
        return Pipeline(self.name, stages=(*self.stages, spec))

    def with_stages(self, *runners: StageRunner) -> Pipeline:
        """Return this pipeline with additional stages that are described by `@stage`.

        Raises:
            InvalidArgumentError: A runner is not described by `@stage`.
        """
        pipeline = self
        for runner in runners:
            description = carried_description(runner)
            if "name" not in description:
                raise InvalidArgumentError(
                    f"{runner!r} has no name",
                    hint="decorate it with @stage, or use with_stage(name, runner)",
                )
            pipeline = pipeline.with_stage(description["name"], runner)
        return pipeline

    def compose(self, other: Pipeline) -> Pipeline:
        """Return a pipeline with the name and stages of this one, followed by the stages of `other`.

        Stages of one pipeline can depend on stages of the other. A stage that both inherit from a common
        pipeline is included once. `build()` reports different stages with the same name.

        Raises:
            InvalidArgumentError: `other` is not a pipeline.
        """
        if not isinstance(other, Pipeline):
            raise invalid_argument("compose()", "other", other, "a Pipeline", pipeline=self.name)
        ours = {id(spec) for spec in self.stages}
        theirs = (spec for spec in other.stages if id(spec) not in ours)
        return Pipeline(self.name, stages=(*self.stages, *theirs))

    def build(
        self,
        *,
        emit_stage_wide_events: bool | None = None,
        emit_pipeline_wide_event: bool | None = None,
        wide_event_emitter: WideEventEmitter | None = None,
        on_failure: Literal["cancel", "continue"] = "cancel",
        max_concurrency: int | None = None,
        grace: float = 2.0,
        limits: Limits | None = None,
        budget: Budget | None = None,
        interceptors: Iterable[Interceptor] = (),
    ) -> StageGraph:
        """Validate the definition, and return a graph that can run any number of times.

        Pipelines that are stages of this one are built with the same limits, emitter, `emit_*` options and
        grace period, and with defaults for the other options.

        Args:
            emit_stage_wide_events: Whether to emit `stage.wide` for every stage; default None, which emits
                them once `stageflow.configure` was called.
            emit_pipeline_wide_event: Whether to emit `pipeline.wide` for every run; default None, as above.
            wide_event_emitter: The emitter; default one that uses the global sink.
            on_failure: "cancel" ends the run when a stage fails; "continue" still runs every stage that does
                not depend on the failed one.
            max_concurrency: Maximum number of stages of one run that are running at the same time; default no
                limit.
            grace: Seconds that a cancelled stage has to end before it is abandoned.
            limits: The limits that stages refer to with `limit=`. Several graphs can share them.
            budget: The maximum that each run may spend, including its child runs; default no budget. A run
                that exceeds it fails, regardless of the policies of its stages.
            interceptors: Interceptors for each attempt of every stage, outermost first.

        Raises:
            PipelineValidationError: The definition is invalid; the error lists all problems.
        """
        is_grace = isinstance(grace, (int, float)) and 0 <= grace < math.inf
        options = GraphOptions(
            as_tuple(interceptors),
            limits if isinstance(limits, Limits) else {},
            float(grace) if is_grace else 0.0,
        )
        valid_emitter = wide_event_emitter if isinstance(wide_event_emitter, WideEventEmitter) else None
        specs, child_problems = _with_children(
            self.stages,
            {
                "emit_stage_wide_events": emit_stage_wide_events,
                "emit_pipeline_wide_event": emit_pipeline_wide_event,
                "wide_event_emitter": valid_emitter,
                "limits": limits if isinstance(limits, Limits) else None,
                "grace": options.grace,
            },
        )
        problems = problems_of(self.name, specs, options) + child_problems
        if limits is not None and not isinstance(limits, Limits):
            problems.append(f"limits must be Limits(name=permits), got {limits!r}")
        if wide_event_emitter is not None:
            if (
                emit_stage_wide_events is None
                and emit_pipeline_wide_event is None
                and not defaults().emit_wide_events
            ):
                log_safely(
                    log,
                    "pipeline %r was built with an emitter but emits no wide events: call configure(),"
                    " or pass emit_stage_wide_events=True and emit_pipeline_wide_event=True to build()",
                    self.name,
                )
            problems += _emitter_problems(wide_event_emitter)
        if on_failure not in ("cancel", "continue"):
            problems.append(f'on_failure must be "cancel" or "continue", got {on_failure!r}')
        if max_concurrency is not None and (not isinstance(max_concurrency, int) or max_concurrency < 1):
            problems.append(f"max_concurrency must be a positive integer, got {max_concurrency!r}")
        if budget is not None and not isinstance(budget, Budget):
            problems.append(f"budget must be Budget(usd=..., tokens=..., attempts=...), got {budget!r}")
        if not is_grace:
            problems.append(f"grace must be 0 or more seconds, got {grace!r}")
        if problems:
            raise PipelineValidationError(str(self.name), problems)
        return StageGraph(
            Plan(
                self.name,
                specs,
                emitter=wide_event_emitter or WideEventEmitter(),
                emits_stages=emit_stage_wide_events,
                emits_pipeline=emit_pipeline_wide_event,
                fail_fast=on_failure == "cancel",
                max_concurrency=max_concurrency,
                budget=budget,
                options=options,
            )
        )

    async def run(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Run the pipeline with default options: a shorthand for `pipeline.build().run(ctx)`.

        Raises:
            PipelineValidationError: The definition is invalid; the error lists all problems.
        """
        if self._graph is None:
            self._graph = self.build()
        return await self._graph.run(ctx, deadline=deadline)

    def to_mermaid(self) -> str:
        """Return this pipeline as a Mermaid flowchart, for Markdown documents.

        Example:
            >>> print(Pipeline("p").with_stage("load", print).to_mermaid())
            flowchart LR
                s0["load"]
        """
        return graph_as_mermaid([spec.record() for spec in self.stages])

    def to_dot(self) -> str:
        """Return this pipeline in the DOT language, for Graphviz."""
        return graph_as_dot([spec.record() for spec in self.stages], self.name)

    def __repr__(self) -> str:
        names = ", ".join(str(spec.name) for spec in self.stages)
        return f"<Pipeline {self.name!r}: {names or 'no stages'}>"


def _with_children(
    specs: Iterable[StageSpec], options: BuildOptions
) -> tuple[tuple[StageSpec, ...], list[str]]:
    """Return the specs with a runner for each pipeline, built with `options`, and the problems of these."""
    compiled, problems = [], []
    for spec in specs:
        graph = spec.runner
        if isinstance(graph, Pipeline):
            try:
                graph = graph.build(**options)
            except PipelineValidationError as error:
                where = f"stage {spec.name!r}: pipeline {graph.name!r}"
                problems += [f"{where}: {problem}" for problem in error.problems]
        if isinstance(graph, StageGraph) and spec.child is not None:
            runner = NestedPipeline(graph._plan, spec.child, spec.dependencies)
            compiled.append(replace(spec, runner=runner))
        else:
            compiled.append(spec)
    return tuple(compiled), problems


def _emitter_problems(emitter: Any) -> list[str]:
    if not isinstance(emitter, WideEventEmitter):
        return [f"wide_event_emitter must be an instance of WideEventEmitter, got {emitter!r}"]
    return [
        f"{type(emitter).__name__}.{name} is a coroutine function, but the engine does not await it; "
        "define it with `def`"
        for name in ("emit_stage_wide", "emit_pipeline_wide")
        if inspect.iscoroutinefunction(getattr(emitter, name))
    ]
