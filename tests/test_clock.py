"""One reading of the wall clock a run: no step of the clock shows in its record."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Any

import pytest

from stageflow import MemoryEventSink, Pipeline, WideEventEmitter
from stageflow.testing import VirtualClock


@pytest.mark.parametrize("step", [-3600, 3600], ids=["an hour back", "an hour on"])
def test_a_step_of_the_wall_clock_during_a_run_does_not_show(step: float) -> None:
    sink, clock = MemoryEventSink(), VirtualClock()

    async def steps(ctx: Any) -> None:
        await asyncio.sleep(1)
        clock.step_wall(step)
        await asyncio.sleep(1)

    graph = (
        Pipeline("p")
        .with_stage("a", steps)
        .with_stage("b", steps, dependencies=("a",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    clock.run(graph.run())
    times = [
        (datetime.fromisoformat(event["started_at"]), datetime.fromisoformat(event["ended_at"]))
        for _, event in sink.events
    ]
    assert [(ended - began).total_seconds() for began, ended in times] == [2, 2, 4]
    assert times[0][1] == times[1][0]
