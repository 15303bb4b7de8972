"""This library: events off, or each event in the journal."""

from __future__ import annotations

import tempfile
from typing import Any

from stageflow import JournalSink, Pipeline
from stageflow.observability import WideEventEmitter

from ..graphs import build
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_map"]


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


def _options(journal: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"emit_stage_wide_events": journal, "emit_pipeline_wide_event": journal}
    if journal:
        # Left behind: the process that started this one removes all that is in its TMPDIR.
        options["wide_event_emitter"] = WideEventEmitter(JournalSink(tempfile.mkdtemp()))
    return options
