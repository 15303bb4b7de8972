"""This library: events off, or each event in the journal."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from typing import Any

from stageflow import JournalSink, Pipeline
from stageflow.observability import WideEventEmitter

from ..chunks import BUFFER, Source
from ..graphs import build
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_map", "prepare_stream"]


async def prepare(shape: Shape, gate: Gate | None, *, journal: bool = False) -> Run:
    """Return what runs the shape once."""

    async def stage(ctx: Any) -> dict[str, int]:
        if gate is not None:
            await gate()
        return {}

    return build(shape, stage, **_options(journal)).run


async def prepare_map(items: int, gate: Gate | None, *, journal: bool = False) -> Run:
    """Return what maps a no-op over so many items."""

    async def source(ctx: Any) -> dict[str, Any]:
        return {"items": range(items)}

    async def item(number: int) -> int:
        if gate is not None:
            await gate()
        return number

    pipeline = Pipeline("map").with_stage("source", source).with_map("map", item, over=("source", "items"))
    return pipeline.build(**_options(journal)).run


async def prepare_stream(source: Source, *, journal: bool = False) -> Run:
    """Return what reads the chunks that a stage yields."""

    async def write(ctx: Any) -> AsyncIterator[str]:
        async for chunk in source():
            yield chunk

    graph = Pipeline("stream").with_stage("write", write).build(**_options(journal))

    async def run() -> int:
        count = 0
        async with graph.stream(buffer=BUFFER) as streamed:
            async for _ in streamed:
                count += 1
        return count

    return run


def _options(journal: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"emit_stage_wide_events": journal, "emit_pipeline_wide_event": journal}
    if journal:
        # Left behind: the process that started this one removes all that is in its TMPDIR.
        options["wide_event_emitter"] = WideEventEmitter(JournalSink(tempfile.mkdtemp()))
    return options
