"""The description of a pipeline: immutable, named, checked by `build()`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from typing import Any, Literal

from ..errors import PipelineValidationError
from ..observability import WideEventEmitter
from ..stages import Retry, StageKind
from .graph import StageGraph
from .plan import Plan
from .spec import Condition, StageSpec
from .validation import problems_of

__all__ = ["Pipeline"]


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

    __slots__ = ("name", "stages")

    def __init__(self, name: str = "pipeline", *, stages: Iterable[StageSpec] = ()) -> None:
        self.name = name
        self.stages = tuple(stages)

    def with_stage(
        self,
        name: str,
        runner: Any,
        kind: StageKind = StageKind.TRANSFORM,
        dependencies: Iterable[str] = (),
        *,
        conditional: bool = False,
        optional: bool = False,
        when: Condition | None = None,
        route: str | None = None,
        timeout: float | None = None,
        retry: Retry | None = None,
    ) -> Pipeline:
        """Return this pipeline with one more stage. Mistakes are found by `build()`, all at once.

        Args:
            name: Name of the stage, unlike all others; without "/".
            runner: A class with `execute(ctx)` (made anew for each run), an instance with one
                (shared by all runs), or a function of `ctx`. What is no coroutine function runs
                in a thread.
            kind: What the stage is for.
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
        """
        needs = (dependencies,) if isinstance(dependencies, str) else tuple(dependencies or ())
        spec = StageSpec(name, runner, kind, needs, conditional, optional, when, route, timeout, retry)
        return Pipeline(self.name, stages=(*self.stages, spec))

    def build(
        self,
        *,
        emit_stage_wide_events: bool | None = None,
        emit_pipeline_wide_event: bool | None = None,
        wide_event_emitter: WideEventEmitter | None = None,
        on_failure: Literal["cancel", "continue"] = "cancel",
        max_concurrency: int | None = None,
        grace: float = 2.0,
    ) -> StageGraph:
        """Check the description and return a graph that can run any number of times.

        Args:
            emit_stage_wide_events: Emit `stage.wide` for every stage; default off.
            emit_pipeline_wide_event: Emit `pipeline.wide` for every run; default off.
            wide_event_emitter: What emits; default one that uses the global sink.
            on_failure: "cancel" ends the run when a stage fails; "continue" still runs every
                stage that is not downstream of the failed one.
            max_concurrency: How many stages of one run may be under way at once; default no limit.
            grace: Seconds that a cancelled stage has to end before it is abandoned.

        Raises:
            PipelineValidationError: With every problem of the description.
        """
        problems = problems_of(self.name, self.stages)
        if wide_event_emitter is not None:
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
                emits_stages=bool(emit_stage_wide_events),
                emits_pipeline=bool(emit_pipeline_wide_event),
                fail_fast=on_failure == "cancel",
                max_concurrency=max_concurrency,
                grace=float(grace),
            )
        )

    def __repr__(self) -> str:
        names = ", ".join(str(spec.name) for spec in self.stages)
        return f"<Pipeline {self.name!r}: {names or 'no stages'}>"


def _emitter_problems(emitter: Any) -> list[str]:
    if not isinstance(emitter, WideEventEmitter):
        return [f"wide_event_emitter={emitter!r}; give a WideEventEmitter or a subclass of it"]
    return [
        f"{type(emitter).__name__}.{name} is a coroutine function; "
        "the engine calls it plainly: make it a plain `def`"
        for name in ("emit_stage_wide", "emit_pipeline_wide")
        if inspect.iscoroutinefunction(getattr(emitter, name))
    ]
