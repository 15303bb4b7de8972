"""The shapes as graphs of this library."""

from __future__ import annotations

from typing import Any

from stageflow import Pipeline, StageGraph

from .shapes import Shape

__all__ = ["build"]


async def _no_op(ctx: Any) -> dict[str, int]:
    return {}


def build(shape: Shape, stage: Any = _no_op, **options: Any) -> StageGraph:
    """Return a graph in this shape, of no-op stages."""
    pipeline = Pipeline("bench")
    for name, dependencies in shape.items():
        pipeline = pipeline.with_stage(name, stage, dependencies=dependencies)
    return pipeline.build(**options)
