"""Features that a stage does not use have no cost: measured in calls and allocations, not in time."""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from stageflow import Limits, Pipeline, Retry
from stageflow.pipeline import CircuitBreaker


async def stage(ctx: Any) -> dict[str, Any]:
    return {}


STAGES = 50


def chain(**options: Any) -> Pipeline:
    """Return a chain in which only the last stage has `options`."""
    pipeline = Pipeline("p")
    for number in range(STAGES):
        needs = (f"s{number - 1}",) if number else ()
        pipeline = pipeline.with_stage(f"s{number}", stage, dependencies=needs)
    return pipeline.with_stage("special", stage, dependencies=(f"s{STAGES - 1}",), **options)


def calls_before_the_last_stage(graph: Any) -> Counter[str]:
    """Return the calls of Python and C functions before the last stage."""
    calls: Counter[str] = Counter()
    counting = False

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        nonlocal counting
        if event == "call" and frame.f_code is stage.__code__:
            counting = frame.f_locals["ctx"].stage not in (f"s{STAGES - 1}", "special")
        if counting and event == "call":
            calls[frame.f_code.co_qualname] += 1
        elif counting and event == "c_call":
            calls[arg.__qualname__] += 1

    async def main() -> None:
        gc.collect()
        gc.disable()  # garbage collection would add calls at arbitrary times
        sys.setprofile(profile)
        try:
            await graph.run()
        finally:
            sys.setprofile(None)
            gc.enable()

    asyncio.run(main())
    return calls


def blocks_of(graph: Any) -> float:
    """Return the number of memory blocks that the previous stages have allocated when the last stage runs."""
    counts = []

    async def main() -> None:
        for _ in range(9):
            gc.collect()
            gc.disable()
            before = sys.getallocatedblocks()
            results = await graph.run()
            counts.append(sys.getallocatedblocks() - before)
            gc.enable()
            del results

    asyncio.run(main())
    return statistics.median(counts)  # another thread may allocate or free blocks meanwhile


@pytest.fixture(autouse=True)
def _the_collector_has_little_to_walk() -> Iterator[None]:
    gc.collect()
    gc.freeze()  # ignore what other tests have imported
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    "options",
    [
        {"retry": Retry(attempts=3)},
        {"timeout": 5},
        {"when": lambda ctx: True},
        {"optional": True},
        {"conditional": True},
        {"interceptors": (CircuitBreaker(),)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_unused_feature_adds_no_call_and_no_allocation(
    options: dict[str, Any],
) -> None:
    plain, special = chain().build(), chain(**options).build()
    for graph in (plain, special):
        calls_before_the_last_stage(graph)  # caches warm up
    assert calls_before_the_last_stage(special) == calls_before_the_last_stage(plain)
    # The stage with the feature may allocate a few blocks; the fifty without it must allocate none.
    assert blocks_of(special) - blocks_of(plain) < STAGES // 2


def test_shared_limit_adds_no_call_to_other_stages() -> None:
    plain = calls_before_the_last_stage(chain().build())
    limited = calls_before_the_last_stage(chain(limit="api").build(limits=Limits(api=1)))
    added = limited - plain
    assert not added
