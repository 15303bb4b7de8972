"""What a run leaves behind in memory, once its results are let go: nothing.

A failed one is left to the collector: its live exception holds the frame of the stage, and that its context.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from stageflow import Pipeline, PipelineContext, PipelineResults


class Payload:
    """Something that can be watched."""


async def holds(ctx: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"payload": ctx.run.resources["payload"]}


def plain(ctx: Any) -> dict[str, Any]:
    return {"payload": ctx.run.resources["payload"]}


@pytest.mark.parametrize("stage", [holds, plain], ids=lambda stage: stage.__name__)
async def test_results_that_are_let_go_are_freed_at_once_without_the_collector(stage: Any) -> None:
    graph = Pipeline("p").with_stage("s", stage).build()

    async def one() -> weakref.ref[Payload]:
        payload = Payload()
        results: PipelineResults = await graph.run(PipelineContext(resources={"payload": payload}))
        assert len(results) == 1
        return weakref.ref(payload)

    await one()
    gc.collect()
    gc.disable()
    try:
        watched = await one()
        for _ in range(10):  # tasks and threads of the run end within a few turns
            await asyncio.sleep(0.001)
            if watched() is None:
                break
        assert watched() is None
    finally:
        gc.enable()
