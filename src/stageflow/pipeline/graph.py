"""A checked pipeline that can run: any number of runs at once, from any loop."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, Iterable

from ..context import PipelineContext, PipelineResults, StageContext
from ..errors import InvalidArgumentError
from ..render.graph import graph_as_text
from ._scheduler import Scheduler
from .many import Contexts, ManyRuns
from .plan import Plan

__all__ = ["StageGraph"]


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
