"""The least that concurrency costs: one bare asyncio task per stage, and nothing recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from graphlib import TopologicalSorter

__all__ = ["run_floor"]


async def _no_work() -> dict[str, int]:
    return {}


async def run_floor(
    dependencies: Mapping[str, tuple[str, ...]], work: Callable[[], Awaitable[dict[str, int]]] = _no_work
) -> dict[str, dict[str, int]]:
    """Run a no-op per node in the order of the graph, each in a task of its own."""
    order: TopologicalSorter[str] = TopologicalSorter(dependencies)
    order.prepare()
    results: dict[str, dict[str, int]] = {}
    loop = asyncio.get_running_loop()
    all_done: asyncio.Future[None] = loop.create_future()

    async with asyncio.TaskGroup() as group:

        async def stage(name: str) -> None:
            results[name] = await work()
            order.done(name)
            start_ready()

        def start_ready() -> None:
            for name in order.get_ready():
                group.create_task(stage(name))
            if not order.is_active() and not all_done.done():
                all_done.set_result(None)

        start_ready()
        await all_done
    return results
