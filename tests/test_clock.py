"""The wall clock is read once per run, so a step of the clock does not affect the record."""

from __future__ import annotations

import asyncio
import contextlib
import time
from datetime import datetime
from typing import Any

import pytest

from stageflow import Pipeline
from stageflow.testing import CapturedEvents, VirtualClock


@pytest.mark.parametrize("step", [-3600, 3600], ids=["an hour back", "an hour on"])
def test_step_of_the_wall_clock_during_a_run_does_not_affect_durations(
    step: float, stageflow_events: CapturedEvents, virtual_clock: VirtualClock
) -> None:
    async def steps(ctx: Any) -> None:
        await asyncio.sleep(1)
        virtual_clock.step_wall(step)
        await asyncio.sleep(1)

    pipeline = Pipeline("p").with_stage("a", steps).with_stage("b", steps, dependencies=("a",))
    virtual_clock.run(pipeline.run())
    times = [
        (datetime.fromisoformat(event["started_at"]), datetime.fromisoformat(event["ended_at"]))
        for event in [*stageflow_events.stages, stageflow_events.run()]
    ]
    assert [(ended - began).total_seconds() for began, ended in times] == [2, 2, 4]
    assert times[0][1] == times[1][0]


@pytest.mark.parametrize("ends", ["returns", "raises"])
def test_virtual_clock_waits_for_threads_when_its_loop_ends(ends: str) -> None:
    """Shutting down the executor has a separate timeout, which the clock must not skip."""
    finished: list[str] = []

    def works() -> None:
        time.sleep(0.1)
        finished.append("thread")

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, works)
        await asyncio.to_thread(time.sleep, 0.01)
        await asyncio.sleep(3600)
        asyncio.get_running_loop().run_in_executor(None, works)
        if ends == "raises":
            raise ValueError("the end")

    with pytest.raises(ValueError, match="the end") if ends == "raises" else contextlib.nullcontext():
        VirtualClock().run(main())
    assert finished == ["thread", "thread"]
