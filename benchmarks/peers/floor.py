"""The floor: one bare task per stage."""

from __future__ import annotations

from ..floor import run_floor
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare"]


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once."""
    if gate is None:
        return lambda: run_floor(shape)

    async def stage() -> dict[str, int]:
        await gate()
        return {}

    return lambda: run_floor(shape, stage)
