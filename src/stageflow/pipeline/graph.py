"""A checked pipeline that can run: any number of runs at once, from any loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from ..context import PipelineContext, StageContext
from ..observability import WideEventEmitter
from ..stages import PipelineResults
from .node import compile_nodes
from .run import Run
from .spec import StageSpec

__all__ = ["StageGraph"]


class StageGraph:
    """What `Pipeline.build()` returns. It has no state of its own: one graph serves all runs."""

    def __init__(
        self,
        name: str,
        specs: Sequence[StageSpec],
        *,
        emit_stage_wide_events: bool,
        emit_pipeline_wide_event: bool,
        wide_event_emitter: WideEventEmitter,
        fail_fast: bool,
        max_concurrency: int | None,
        grace: float,
    ) -> None:
        self.name = name
        self.nodes = compile_nodes(specs, name)
        self.index = {node.name: node.index for node in self.nodes}
        self.waiting = [len(node.dependencies) for node in self.nodes]
        self.roots = tuple(node.index for node in self.nodes if not node.dependencies)
        self.emits_stages = emit_stage_wide_events
        self.emits_pipeline = emit_pipeline_wide_event
        self.emitter = wide_event_emitter
        self.fail_fast = fail_fast
        self.max_concurrency = max_concurrency
        self.grace = grace

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
        return await Run(self, ctx, deadline).complete()

    @cached_property
    def _ancestors(self) -> dict[int, frozenset[str]]:
        return {}

    def ancestors(self, index: int) -> frozenset[str]:
        """Return the names of all stages that must have ended before stage number `index` starts."""
        known = self._ancestors.get(index)
        if known is None:
            found: set[str] = set()
            following = [index]
            while following:
                for name in self.nodes[following.pop()].dependencies:
                    if name not in found:
                        found.add(name)
                        following.append(self.index[name])
            known = self._ancestors[index] = frozenset(found)
        return known

    def __repr__(self) -> str:
        return f"<StageGraph {self.name!r}: {', '.join(self.index)}>"
