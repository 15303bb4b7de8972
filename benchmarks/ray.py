"""What a stage on Ray costs beside a plain call of Ray: `python -m benchmarks.ray`."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable
from typing import Any

import ray

from stageflow import Pipeline, PipelineContext, StageContext
from stageflow.executors import RayExecutor
from stageflow.pipeline import Flow, StageGraph

from .rounds import Contestant, measure

__all__ = ["bench_ray"]

_CALLS = 50
_ITEMS = 5_000
_BYTES = 10_000_000


def returns() -> dict[str, int]:
    """Return a small value."""
    return {"n": 1}


def returns_as_stage(ctx: StageContext) -> dict[str, int]:
    """Return the same."""
    return {"n": 1}


def increase(item: int) -> int:
    """Return the next number."""
    return item + 1


def reverse(data: bytes) -> bytes:
    """Return a value as large as the argument."""
    return data[::-1]


class Plain:
    """An actor of plain Ray."""

    def returns(self) -> dict[str, int]:
        """Return a small value."""
        return {"n": 1}


def _runs(graph: StageGraph, times: int) -> Contestant:
    async def run() -> None:
        for _ in range(times):
            assert (await graph.run(PipelineContext())).ok

    return run


def _awaits(call: Callable[[], Any], times: int) -> Contestant:
    async def run() -> None:
        for _ in range(times):
            await call()

    return run


async def bench_ray(rounds: int) -> None:
    """Print the ratios: a call of a task and of an actor, an item of a map, and a value of 10 MB."""
    tasks, actor = RayExecutor(), RayExecutor(actors=1, num_cpus=0)
    task = ray.remote(returns).options(max_retries=0)
    plain = ray.remote(Plain).options(num_cpus=0).remote()
    for title, call, executor in (("a task", task, tasks), ("a call of an actor", plain.returns, actor)):
        graph = Pipeline("bench").with_stage("work", returns_as_stage, executor=executor).build()
        live = Pipeline("bench").with_stage("work", returns_as_stage, executor=executor, timeout=60).build()
        found = await measure(
            {
                "plain": _awaits(call.remote, _CALLS),
                "stage": _runs(graph, _CALLS),
                "timeout": _runs(live, _CALLS),
            },
            rounds,
        )
        plain_ms = found["plain"][0] / _CALLS * 1000
        stage, live_ratio = found["stage"][1], found["timeout"][1]
        print(f"{title:<24}{plain_ms:>8.2f} ms{stage:>8.2f}, with a timeout{live_ratio:>8.2f}")

    single = ray.remote(increase).options(max_retries=0)

    async def one_by_one() -> None:
        await asyncio.gather(*[single.remote(number) for number in range(_ITEMS)])

    flow = Flow("bench")

    async def source() -> list[int]:
        return list(range(_ITEMS))

    flow.map(increase, flow.add(source), executor=tasks)
    found = await measure({"plain": one_by_one, "map": _runs(flow.build(), 1)}, max(3, rounds // 10))
    item_us = found["map"][0] / _ITEMS * 1e6
    print(f"{'an item of a map':<24}{item_us:>8.1f} us{found['map'][1]:>8.2f}, beside a task for each item")

    data = os.urandom(_BYTES)
    large = ray.remote(reverse).options(max_retries=0)
    flow = Flow("bench")

    async def provide() -> bytes:
        return data

    flow.add(reverse, flow.add(provide), executor=tasks)
    found = await measure(
        {"plain": _awaits(lambda: large.remote(data), 5), "stage": _runs(flow.build(), 5)},
        max(5, rounds // 2),
    )
    print(f"{'10 MB there and back':<24}{found['plain'][0] / 5 * 1000:>8.1f} ms{found['stage'][1]:>8.2f}")
    tasks.close()
    actor.close()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="rounds per comparison (default 30)")
    rounds = parser.parse_args().rounds
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    asyncio.run(bench_ray(rounds))


if __name__ == "__main__":
    from benchmarks.ray import main as imported  # not the module `__main__`: sent by import path

    imported()
