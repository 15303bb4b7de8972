"""Memory: a run is freed completely once its results are dropped.

A failed run is freed by the garbage collector: its exception refers to the frame of the stage, and the frame
to the context.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program

from stageflow import Pipeline, PipelineContext, PipelineResults


class Payload:
    """An object that supports weak references."""


async def holds(ctx: Any) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"payload": ctx.run.resources["payload"]}


def plain(ctx: Any) -> dict[str, Any]:
    return {"payload": ctx.run.resources["payload"]}


@pytest.mark.parametrize("stage", [holds, plain], ids=lambda stage: stage.__name__)
async def test_dropped_results_are_freed_without_the_garbage_collector(stage: Any) -> None:
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
        for _ in range(10):  # tasks and threads of the run end within a few loop iterations
            await asyncio.sleep(0.001)
            if watched() is None:
                break
        assert watched() is None
    finally:
        gc.enable()


SOAK = """
    import asyncio, gc, sys
    from stageflow import *
    from stageflow.observability import WideEventEmitter

    PER_RUN = 100

    async def note(ctx):
        for number in range(PER_RUN - 2):
            ctx.emit_event("note", {"n": number})

    sink = JournalSink(sys.argv[1], fsync="never", segment_bytes=4_000_000, max_bytes=32_000_000)
    graph = Pipeline("soak").with_stage("note", note).build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink))

    async def main():
        for number in range(3_000):
            if number == 300:
                gc.collect()
                before = sys.getallocatedblocks()
            await graph.run()
        return before

    before = asyncio.run(main())
    sink.close()  # ends the thread of retention, which holds blocks while it reads a segment
    gc.collect()
    print(sys.getallocatedblocks() - before)
"""


@pytest.mark.slow
def test_soak_of_300_000_events_does_not_leak_memory(program: Callable[[str], Program]) -> None:
    status, out, err = program(SOAK).ended()
    assert status == 0, err
    # msgspec leaked one block per line, 273,000 in total.
    assert int(out) < 5_000


def test_lines_are_encoded_from_lists() -> None:
    """msgspec 0.22.0 leaks the iterator of any other iterable; see pyproject.toml."""
    source = Path(__file__).parents[1] / "src" / "stageflow"
    calls = [
        (file, call)
        for file in source.rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("encode_lines")
    ]
    assert len(calls) >= 2
    assert [f"{file}:{call.lineno}" for file, call in calls if not isinstance(call.args[0], ast.List)] == []
