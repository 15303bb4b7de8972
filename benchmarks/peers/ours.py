"""This library: events off, or each event in the journal."""

from __future__ import annotations

import tempfile
from typing import Any

from stageflow import JournalSink
from stageflow.observability import WideEventEmitter

from ..graphs import build
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare"]


async def prepare(shape: Shape, gate: Gate | None, *, journal: bool = False) -> Run:
    """Return what runs the shape once."""

    async def stage(ctx: Any) -> dict[str, int]:
        if gate is not None:
            await gate()
        return {}

    options: dict[str, Any] = {}
    if journal:
        # Left behind: the process that started this one removes all that is in its TMPDIR.
        options["wide_event_emitter"] = WideEventEmitter(JournalSink(tempfile.mkdtemp()))
    graph = build(shape, stage, emit_stage_wide_events=journal, emit_pipeline_wide_event=journal, **options)
    return graph.run
