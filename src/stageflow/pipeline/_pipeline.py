"""`Pipeline` builds a `StageGraph`, which runs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncIterable, Iterable
from typing import Any, Literal, Unpack

from .._log import log_safely
from ..context import PipelineContext, StageContext, StageRunner
from ..errors import InvalidArgumentError, PipelineValidationError
from ..observability import WideEventEmitter, defaults
from ..render import graph_as_dot, graph_as_mermaid, graph_as_text
from ..results import PipelineResults
from ..stages import StageKind
from ._decorator import carried, undescribed
from ._interceptors import Interceptor
from ._limits import Limits
from ._many import Contexts, ManyRuns
from ._plan import Around, Plan
from ._scheduler import Scheduler
from ._spec import StageOptions, StageSpec, options_of
from ._validation import problems_of

__all__ = ["Pipeline", "StageGraph"]


class StageGraph:
    """What `Pipeline.build()` returns. It has no state of its own: one graph serves all runs."""

    def __init__(self, plan: Plan) -> None:
        self.name = plan.name
        self._plan = plan

    async def run(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Run the pipeline once, and leave its record.

        Args:
            ctx: Ids, labels and input of the run; default an empty context. It is not changed.
            deadline: Seconds that the whole run may take; default no limit.

        Returns:
            One result for every stage, also when stages failed; see `raise_on_failure()`.

        Raises:
            asyncio.CancelledError: The run was cancelled externally; its record is written.
            TypeError: `ctx` is no `PipelineContext`.
            ValueError: `deadline` is no positive number.

        Example:
            results = await graph.run(PipelineContext(user_id="u1", data={"question": "why?"}))
            print(results.data("answer")["text"])
        """
        if ctx is None:
            ctx = PipelineContext()
        elif isinstance(ctx, StageContext):
            ctx = ctx.run
        elif not isinstance(ctx, PipelineContext):
            raise InvalidArgumentError(
                f"pipeline {self.name!r}: run() takes a PipelineContext, not {type(ctx).__name__}",
                hint="graph.run(PipelineContext(data={...}))",
            )
        self._check(deadline)
        return await Scheduler(self._plan, ctx, deadline).complete()

    def _check(self, deadline: float | None) -> None:
        if deadline is not None and not (isinstance(deadline, (int, float)) and 0 < deadline < math.inf):
            raise ValueError(f"pipeline {self.name!r}: run(deadline={deadline!r}); give seconds, more than 0")

    def run_sync(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Run the pipeline once from code without an event loop: Celery, Django, a script.

        A loop is made for this run, and what sinks have waiting on that loop is drained when it ends. A
        `BackgroundEventSink` goes on in its own thread: until `flush()`, or the exit of the process.

        Raises:
            RuntimeError: There is a running loop in this thread: await `run()` there.
        """
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                f"pipeline {self.name!r}: run_sync() would block the event loop that runs in this thread"
                "\n  hint: await graph.run(ctx)"
            )
        return asyncio.run(self.run(ctx, deadline=deadline))

    def run_many(
        self, contexts: Contexts, *, concurrency: int = 64, deadline: float | None = None
    ) -> ManyRuns:
        """Run the pipeline once for each context, and hand out results in order of completion.

        Args:
            contexts: Any iterable, also an asynchronous one; it is read as runs are started.
            concurrency: How many runs may be started and not yet handed out.
            deadline: Seconds that each run may take.

        Raises:
            ValueError: `concurrency` is no whole number of 1 or more, or `deadline` no positive number.
            TypeError: `contexts` is no iterable.

        Example:
            async with graph.run_many(contexts, concurrency=100) as runs:
                async for results in runs:
                    print(results.outcome)
        """
        if not isinstance(concurrency, int) or concurrency < 1:
            raise ValueError(
                f"pipeline {self.name!r}: run_many(concurrency={concurrency!r}); "
                "give a whole number, 1 or more"
            )
        self._check(deadline)
        if not isinstance(contexts, (Iterable, AsyncIterable)):
            raise InvalidArgumentError(
                f"pipeline {self.name!r}: run_many({contexts!r}); give an iterable of PipelineContext"
            )
        return ManyRuns(lambda ctx: self.run(ctx, deadline=deadline), contexts, concurrency)

    def describe(self) -> str:
        """Return a table of the stages, for a terminal: level, kind, dependencies, policies.

        Example:
            >>> async def load(ctx): ...
            >>> print(Pipeline("p").with_stage("load", load, timeout=5).build().describe())
            level  stage  kind       after  policies
            1      load   transform  -      timeout=5s
        """
        return graph_as_text([spec.record() for spec in self._plan.specs])

    def __repr__(self) -> str:
        return f"<StageGraph {self.name!r}: {', '.join(self._plan.index)}>"


log = logging.getLogger("stageflow.pipeline")


class Pipeline:
    """A named DAG of stages. Every method returns a new pipeline; none changes this one.

    Args:
        name: Name of the pipeline; the `topology` of its runs unless their context says otherwise.

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
        runner: StageRunner,
        kind: StageKind | None = None,
        dependencies: Iterable[str] | None = None,
        **options: Unpack[StageOptions],
    ) -> Pipeline:
        """Return this pipeline with one more stage. Mistakes are found by `build()`, all at once.

        What is left out (None) is what the runner carries by `@stage`, else the default.

        Args:
            name: Name of the stage, unlike all others; without "/".
            runner: A class with `execute(ctx)` (made anew for each run), an instance with one
                (shared by all runs), or a function of `ctx`. What is no coroutine function runs
                in a thread. Further parameters of a function are taken, by name, from what its
                dependencies gave.
            kind: What the stage is for; default TRANSFORM.
            dependencies: Names of the stages that must have ended before this one starts.
            conditional: Skip this stage when every one of its dependencies was skipped.
            optional: A failure of this stage stops nothing; dependants run as after a skip.
            when: A function of `ctx`, asked right before the stage would start; a false answer
                skips it.
            route: Run only when a dependency of kind ROUTE returned `StageOutput.route` with
                this label.
            timeout: Seconds that one attempt may take; default no limit.
            retry: When to try again; default three attempts for `StageOutput.retry`, none for
                exceptions.
            limit: Take a place of `build(limits=Limits(...))` with this name for each attempt.
            interceptors: What is around each attempt, inside those of `build()`, outermost first.

        Raises:
            TypeError: An option does not exist.
        """
        given = options_of(
            {"kind": kind, "dependencies": dependencies, **options}, f"stage {name!r}: with_stage()"
        )
        merged = {**carried(runner), **given, "name": name}
        for several in ("dependencies", "interceptors"):
            merged[several] = _several(merged.get(several))
        return Pipeline(self.name, stages=(*self.stages, StageSpec(runner=undescribed(runner), **merged)))

    def with_stages(self, *runners: StageRunner) -> Pipeline:
        """Return this pipeline with stages that carry their descriptions by `@stage`.

        Raises:
            TypeError: One of them is not described by `@stage`.
        """
        pipeline = self
        for runner in runners:
            described = carried(runner)
            if "name" not in described:
                raise InvalidArgumentError(
                    f"{runner!r} carries no name",
                    hint="describe it with @stage, or use with_stage(name, runner)",
                )
            pipeline = pipeline.with_stage(described["name"], runner)
        return pipeline

    def compose(self, other: Pipeline) -> Pipeline:
        """Return this pipeline with the stages of `other` after its own, under this one's name.

        Stages of one may depend on stages of the other. A stage that both have from a common
        pipeline stands once; another stage of the same name is a mistake that `build()` finds.

        Raises:
            TypeError: `other` is no pipeline.
        """
        if not isinstance(other, Pipeline):
            raise InvalidArgumentError(f"compose() takes a Pipeline, not {type(other).__name__}")
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
        interceptors: Iterable[Interceptor] = (),
    ) -> StageGraph:
        """Check the description and return a graph that can run any number of times.

        Args:
            emit_stage_wide_events: Emit `stage.wide` for every stage; default None: on once
                `stageflow.configure` was called, off before.
            emit_pipeline_wide_event: Emit `pipeline.wide` for every run; default None likewise.
            wide_event_emitter: What emits; default one that uses the global sink.
            on_failure: "cancel" ends the run when a stage fails; "continue" still runs every
                stage that is not downstream of the failed one.
            max_concurrency: How many stages of one run may be under way at once; default no limit.
            grace: Seconds that a cancelled stage has to end before it is abandoned.
            limits: The limits that stages name with `limit=`; share them among graphs.
            interceptors: What is around each attempt of every stage, outermost first.

        Raises:
            PipelineValidationError: With every problem of the description.
        """
        around = Around(_several(interceptors), limits if isinstance(limits, Limits) else {})
        problems = problems_of(self.name, self.stages, around)
        if limits is not None and not isinstance(limits, Limits):
            problems.append(f"limits={limits!r}; give Limits(name=places)")
        if wide_event_emitter is not None:
            if emit_stage_wide_events is None and emit_pipeline_wide_event is None and not defaults().emits:
                log_safely(
                    log,
                    "pipeline %r is built with an emitter, but emits no wide events: call configure(),"
                    " or give emit_stage_wide_events=True, emit_pipeline_wide_event=True",
                    self.name,
                )
            problems += _emitter_problems(wide_event_emitter)
        if on_failure not in ("cancel", "continue"):
            problems.append(f'on_failure={on_failure!r}; give "cancel" or "continue"')
        if max_concurrency is not None and (not isinstance(max_concurrency, int) or max_concurrency < 1):
            problems.append(f"max_concurrency={max_concurrency!r}; give a whole number, 1 or more")
        if not isinstance(grace, (int, float)) or not 0 <= grace < math.inf:
            problems.append(f"grace={grace!r}; give seconds, 0 or more")
        if problems:
            raise PipelineValidationError(str(self.name), problems)
        return StageGraph(
            Plan(
                self.name,
                self.stages,
                emitter=wide_event_emitter or WideEventEmitter(),
                emits_stages=emit_stage_wide_events,
                emits_pipeline=emit_pipeline_wide_event,
                fail_fast=on_failure == "cancel",
                max_concurrency=max_concurrency,
                grace=float(grace),
                around=around,
            )
        )

    async def run(
        self, ctx: PipelineContext | None = None, *, deadline: float | None = None
    ) -> PipelineResults:
        """Build with the defaults, once, and run: short for `pipeline.build().run(ctx)`.

        Raises:
            PipelineValidationError: With every problem of the description.
        """
        if self._graph is None:
            self._graph = self.build()
        return await self._graph.run(ctx, deadline=deadline)

    def to_mermaid(self) -> str:
        """Return a Mermaid flowchart of this pipeline, for a README or a wiki.

        Example:
            >>> print(Pipeline("p").with_stage("load", print).to_mermaid())
            flowchart LR
                s0["load"]
        """
        return graph_as_mermaid([spec.record() for spec in self.stages])

    def to_dot(self) -> str:
        """Return this pipeline in DOT, for `dot -Tsvg`."""
        return graph_as_dot([spec.record() for spec in self.stages], self.name)

    def __repr__(self) -> str:
        names = ", ".join(str(spec.name) for spec in self.stages)
        return f"<Pipeline {self.name!r}: {names or 'no stages'}>"


def _several(given: Any) -> tuple[Any, ...]:
    """Return what was given as a tuple; one thing instead of several is taken for that one."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)


def _emitter_problems(emitter: Any) -> list[str]:
    if not isinstance(emitter, WideEventEmitter):
        return [f"wide_event_emitter={emitter!r}; give a WideEventEmitter or a subclass of it"]
    return [
        f"{type(emitter).__name__}.{name} is a coroutine function; "
        "the engine calls it plainly: make it a plain `def`"
        for name in ("emit_stage_wide", "emit_pipeline_wide")
        if inspect.iscoroutinefunction(getattr(emitter, name))
    ]
