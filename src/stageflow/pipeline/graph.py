"""A checked pipeline that can run: any number of runs at once, from any loop."""

from __future__ import annotations

import math

from ..context import PipelineContext, PipelineResults, StageContext
from .plan import Plan
from .run import Run

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
            asyncio.CancelledError: The run was cancelled from outside; its record is written.
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
            raise TypeError(
                f"pipeline {self.name!r}: run() takes a PipelineContext, not {type(ctx).__name__}"
                "\n  hint: graph.run(PipelineContext(data={...}))"
            )
        if deadline is not None and not (isinstance(deadline, (int, float)) and 0 < deadline < math.inf):
            raise ValueError(f"pipeline {self.name!r}: run(deadline={deadline!r}); give seconds, more than 0")
        return await Run(self._plan, ctx, deadline).complete()

    def __repr__(self) -> str:
        return f"<StageGraph {self.name!r}: {', '.join(self._plan.index)}>"
