"""What an item of a map costs beside a task, a stage by reference beside one by name, and a child run."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

from stageflow import Pipeline, StageContext
from stageflow.pipeline import Flow, StageGraph

from .rounds import Contestant, measure

__all__ = ["bench_maps"]

_SIZES = 100, 100_000
_STAGES = 100

Item = Callable[[int], Awaitable[int]]


async def bench_maps(rounds: int) -> None:
    """Print the ratios: an item to a bare task at both sizes, and a stage by reference to one by name."""
    items: dict[str, Item] = {"returns at once": _returns, "awaits once": _awaits}
    print(f"{'an item, ratio to a bare task':<40}" + "".join(f"{f'of {size:,}':>14}" for size in _SIZES))
    for title, item in items.items():
        ratios = []
        for size in _SIZES:
            few = rounds if size == _SIZES[0] else max(3, rounds // 10)
            found = await measure({"tasks": _tasks(item, size), "map": _mapped(item, size).run}, few)
            ratios.append(found["map"][1])
        print(f"  {title:<38}" + "".join(f"{ratio:>14.2f}" for ratio in ratios))
    memory = [await _bytes(size) for size in _SIZES]
    print(f"  {'memory per item, bytes':<38}" + "".join(f"{size:>14.0f}" for size in memory))
    found = await measure({"by name": _by_name().run, "by reference": _by_reference().run}, rounds)
    print(f"{'a stage by reference, ratio to one by name':<54}{found['by reference'][1]:>14.2f}")
    found = await measure({"inlined": _inlined().run, "child run": _nested().run}, rounds)
    print(f"{'a child run of 10 stages, ratio to them inlined':<54}{found['child run'][1]:>14.2f}")
    print()


async def _returns(item: int) -> int:
    return item


async def _awaits(item: int) -> int:
    await asyncio.sleep(0)
    return item


def _tasks(item: Item, size: int) -> Contestant:
    """Return what runs a task for each item, and collects their values."""

    async def run() -> list[int]:
        async def call(number: int) -> int:
            return await item(number)

        return await asyncio.gather(*[asyncio.create_task(call(number)) for number in range(size)])

    return run


def _mapped(item: Item, size: int) -> StageGraph:
    async def source(ctx: StageContext) -> dict[str, Any]:
        return {"items": range(size)}

    return (
        Pipeline("map").with_stage("source", source).with_map("map", item, over=("source", "items")).build()
    )


async def _bytes(size: int) -> float:
    """Return the peak memory of a map in bytes per item, including the list of its values."""
    graph = _mapped(_awaits, size)
    await graph.run()
    gc.collect()
    tracemalloc.start()
    await graph.run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / size


async def _first() -> int:
    return 1


async def _next(number: int) -> int:
    return number


async def _next_by_name(ctx: StageContext, value: int) -> dict[str, int]:
    return {"value": value}


def _by_name() -> StageGraph:
    async def first(ctx: StageContext) -> dict[str, int]:
        return {"value": 1}

    pipeline = Pipeline("chain").with_stage("s0", first)
    for number in range(1, _STAGES):
        pipeline = pipeline.with_stage(f"s{number}", _next_by_name, dependencies=(f"s{number - 1}",))
    return pipeline.build()


def _steps(pipeline: Pipeline) -> Pipeline:
    for number in range(10):
        dependencies = (f"s{number - 1}",) if number else ()
        pipeline = pipeline.with_stage(f"s{number}", _no_op, dependencies=dependencies)
    return pipeline


async def _no_op(ctx: StageContext) -> None: ...


def _inlined() -> StageGraph:
    return _steps(Pipeline("inlined")).build()


def _nested() -> StageGraph:
    return Pipeline("parent").with_stage("child", _steps(Pipeline("child"))).build()


def _by_reference() -> StageGraph:
    flow = Flow("chain")
    ref = flow.add(_first, name="s0")
    for number in range(1, _STAGES):
        ref = flow.add(_next, ref, name=f"s{number}")
    return flow.build()
