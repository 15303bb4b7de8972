"""What a stage in a worker process costs beside a call in the process pool of the standard library."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from stageflow import Pipeline, PipelineContext, StageContext
from stageflow.executors import ProcessExecutor
from stageflow.pipeline import Flow

from .rounds import Contestant, at_once, measure

__all__ = ["bench_processes"]

_CALLS = 200
_ITEMS = 20_000
_MEGABYTES = 10


async def bench_processes(rounds: int) -> None:
    """Print the ratios to the standard library's pool: of a call, of a large value and of a mapped item."""
    rounds = max(5, rounds // 3)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=context) as pool,
        ProcessPoolExecutor(2, mp_context=context) as pools,
        ProcessExecutor(1) as one,
        ProcessExecutor(2) as two,
    ):
        calls = {
            "one by one": (_repeated(_pooled(pool, _nothing)), _chain(one)),
            "one by one, each in a run": (
                _repeated(_pooled(pool, _nothing)),
                _repeated(_stage(one, _nothing_stage)),
            ),
            "all at once, 2 workers": (at_once(_pooled(pools, _nothing), _CALLS), _fan(two)),
            "all at once, 2 workers, each in a run": (
                at_once(_pooled(pools, _nothing), _CALLS),
                at_once(_stage(two, _nothing_stage), _CALLS),
            ),
            f"returns {_MEGABYTES} MB": (_pooled(pool, _large), _stage(one, _large_stage)),
        }
        print(f"{'a call in a worker process, ratio to ProcessPoolExecutor':<58}{'us':>10}{'ratio':>8}")
        for title, (theirs, ours) in calls.items():
            found = await measure({"pool": theirs, "stage": ours}, rounds)
            seconds, ratio = found["stage"]
            per_call = seconds if title.startswith("returns") else seconds / _CALLS
            print(f"  {title:<56}{per_call * 1e6:>10.0f}{ratio:>8.2f}")
        items = {
            "chunks of 500": _chunked(pools),
            "map": _mapped(two),
        }
        found = await measure(items, max(3, rounds // 3))
        seconds, ratio = found["map"]
        print(
            f"  {f'an item of {_ITEMS:,}, to chunks of 500':<56}{seconds / _ITEMS * 1e6:>10.1f}{ratio:>8.2f}"
        )
        cores = {name: _crunched(executor) for name, executor in (("1", one), ("2", two))}
        found = await measure(cores, max(3, rounds // 3))
        print(f"  {'16 CPU-bound items on 2 workers, ratio to 1':<66}{found['2'][1]:>8.2f}")
    print()


def _nothing() -> None: ...


def _nothing_stage(ctx: StageContext) -> None: ...


def _large() -> bytes:
    return os.urandom(1) * (_MEGABYTES * 1_000_000)


def _large_stage(ctx: StageContext) -> dict[str, Any]:
    return {"value": _large()}


def _square(number: int) -> int:
    return number * number


def _crunch(number: int) -> int:
    return sum(range(2_000_000 + number))


def _pooled(pool: ProcessPoolExecutor, function: Callable[[], Any]) -> Contestant:
    async def run() -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    return run


def _stage(executor: ProcessExecutor, function: Callable[[StageContext], Any]) -> Contestant:
    return _run_of(Pipeline("call").with_stage("call", function, executor=executor))


def _chain(executor: ProcessExecutor) -> Contestant:
    pipeline = Pipeline("chain").with_stage("s0", _nothing_stage, executor=executor)
    for number in range(1, _CALLS):
        pipeline = pipeline.with_stage(
            f"s{number}", _nothing_stage, dependencies=(f"s{number - 1}",), executor=executor
        )
    return _run_of(pipeline)


def _fan(executor: ProcessExecutor) -> Contestant:
    pipeline = Pipeline("fan")
    for number in range(_CALLS):
        pipeline = pipeline.with_stage(f"s{number}", _nothing_stage, executor=executor)
    return _run_of(pipeline)


def _run_of(pipeline: Pipeline) -> Contestant:
    graph = pipeline.build()

    async def run() -> None:
        results = await graph.run()
        assert results.outcome == "ok", results.error

    return run


def _repeated(run: Contestant) -> Contestant:
    async def repeat() -> None:
        for _ in range(_CALLS):
            await run()

    return repeat


def _chunked(pool: ProcessPoolExecutor) -> Contestant:
    def run_all() -> list[int]:
        return list(pool.map(_square, range(_ITEMS), chunksize=500))

    async def run() -> list[int]:
        return await asyncio.to_thread(run_all)

    return run


def _numbers(count: int) -> list[int]:
    return list(range(count))


def _mapped(executor: ProcessExecutor) -> Contestant:
    return _map_of(executor, _square, _ITEMS)


def _crunched(executor: ProcessExecutor) -> Contestant:
    return _map_of(executor, _crunch, 16)


def _map_of(executor: ProcessExecutor, function: Callable[[int], int], count: int) -> Contestant:
    flow = Flow("map")
    numbers = flow.add(functools.partial(_numbers, count), name="numbers")
    values = flow.map(function, numbers, executor=executor)
    graph = flow.build()

    async def run() -> None:
        results = await graph.run(PipelineContext())
        assert len(results.value(values)) == count

    return run
