"""stageflow-core, with the interceptors that it has when none are named, and no wide events."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from stageflow import Pipeline, PipelineContext, StageKind

from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare"]


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once."""

    async def stage(ctx: Any) -> dict[str, int]:
        if gate is not None:
            await gate()
        return {}

    pipeline = Pipeline()
    for name, dependencies in shape.items():
        pipeline = pipeline.with_stage(name, stage, StageKind.TRANSFORM, dependencies)
    graph = pipeline.build()
    return lambda: graph.run(PipelineContext(pipeline_run_id=uuid4()))
