"""The floor: one bare task per stage or item, and one bare bounded queue per stream."""

from __future__ import annotations

import asyncio

from ..chunks import Source, through_queue
from ..floor import run_floor
from ..shapes import Shape
from .adapter import Gate, Run

__all__ = ["prepare", "prepare_map", "prepare_stream"]


async def prepare(shape: Shape, gate: Gate | None) -> Run:
    """Return what runs the shape once."""
    if gate is None:
        return lambda: run_floor(shape)

    async def stage() -> dict[str, int]:
        await gate()
        return {}

    return lambda: run_floor(shape, stage)


async def prepare_map(items: int, gate: Gate | None) -> Run:
    """Return what calls a no-op for each item, in a task of its own."""

    async def item(number: int) -> int:
        if gate is not None:
            await gate()
        return number

    async def run() -> list[int]:
        return await asyncio.gather(*[asyncio.create_task(item(number)) for number in range(items)])

    return run


async def prepare_stream(source: Source) -> Run:
    """Return what sends the chunks through a queue."""
    return through_queue(source)
