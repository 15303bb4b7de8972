"""Checks the record of random runs: `python -m tests.run_storm 100000`.

The graphs contain streams, maps, nested pipelines and loops, with retries, timeouts, limits, budgets and
cancellation, in virtual time. Readers are slow, stop early or fail; the reader outside the run leaves. Stages
ignore that a budget is exceeded. Every run, including each child run, must satisfy the record guarantees, and
leave no task and no permit; no buffer may exceed its limit; a run ends with the first call or attempt that
exceeds its budget.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent))

from oracle import check_record

from stageflow import Limits, Pipeline, PipelineContext, Retry, StageContext, StageOutput
from stageflow.errors import PipelineValidationError
from stageflow.events import MemoryEventSink
from stageflow.observability import WideEventEmitter
from stageflow.pipeline import Budget, StageGraph
from stageflow.pipeline._buffer import Buffer
from stageflow.pipeline._streamed_run import _finishing
from stageflow.stages import StreamRef
from stageflow.testing import VirtualClock

OUTCOMES = ("ok", "ok", "ok", "wait", "late", "fail", "skip", "stop", "retry", "flaky")
MOST_ITEMS = 1000


class Spent:
    """What the stages of one graph have recorded, and the number of attempts that called `act`."""

    usd = 0
    attempts = 0


async def act(ctx: StageContext, outcome: str, value: Any) -> Any:
    """Record the cost of a call, and end with this outcome."""
    Spent.attempts += 1
    if outcome in ("ok", "late", "skip", "retry", "flaky"):
        Spent.usd += 1
        if len(ctx.stage) % 2 and ctx.attempt == 1:
            with contextlib.suppress(Exception):
                ctx.record_llm("m", output_tokens=1, cost_usd=1)
        else:
            ctx.record_llm("m").update(output_tokens=1, cost_usd=1)
    if outcome == "wait":
        await asyncio.sleep(1)
    elif outcome == "late":
        await asyncio.sleep(20)
    elif outcome == "fail":
        raise ValueError("failed")
    elif outcome == "flaky" and ctx.attempt == 1:
        await asyncio.sleep(0)
        raise ConnectionError("flaky")
    if outcome == "skip":
        return StageOutput.skip("nothing to do")
    if outcome == "stop":
        return StageOutput.stop("enough")
    if outcome == "retry" and ctx.attempt == 1:
        return StageOutput.retry("again", after=0.5)
    return value


def options_of(rng: random.Random) -> dict[str, Any]:
    """Return options for a stage."""
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        options["retry"] = Retry(attempts=2, wait=rng.choice([0, 1]), on=ConnectionError)
    if rng.random() < 0.3:
        options["timeout"] = rng.choice([0.5, 5])
    if rng.random() < 0.2:
        options["optional"] = True
    return options


def random_budget(rng: random.Random) -> Budget | None:
    form = rng.random()
    if form < 0.3:
        return Budget(usd=rng.choice([0, 1, 3, 10, 50]))
    return Budget(attempts=rng.choice([1, 3, 10, 30])) if form < 0.5 else None


def random_pipeline(rng: random.Random, depth: int, options_of_children: dict[str, Any]) -> Pipeline:
    """Return a pipeline of up to six stages; some are maps, pipelines and loops."""
    pipeline = Pipeline(f"level{depth}")
    names: list[str] = []
    streaming: list[str] = []
    for number in range(rng.randint(1, 6)):
        name = f"s{number}"
        dependencies = tuple(rng.sample(names, rng.randint(0, min(2, len(names)))))
        options = options_of(rng)
        form = rng.random()
        if form < 0.2 and depth:
            child: Any = random_pipeline(rng, depth - 1, options_of_children)
            if rng.random() < 0.3:
                child = child.build(budget=random_budget(rng), **options_of_children)
            if rng.random() < 0.5:
                ends = rng.random() < 0.7
                pipeline = pipeline.with_loop(
                    name,
                    child,
                    until=lambda results, _ends=ends: _ends and rng.random() < 0.5,
                    max_iterations=rng.randint(1, 3),
                    dependencies=dependencies,
                    **options,
                )
            else:
                pipeline = pipeline.with_stage(name, child, dependencies=dependencies, **options)
        elif form < 0.75:
            read = tuple(rng.sample(streaming, rng.randint(0, min(2, len(streaming)))))
            buffer = rng.choice(["collect", "collect", 1, 3])
            if rng.random() < 0.3:
                options["idle_timeout"] = rng.choice([0.5, 5])
            if rng.random() < 0.5 and "retry" in options:
                options["restart"] = True
            pipeline = pipeline.with_stage(
                name,
                streams_chunks(rng, read),
                dependencies=tuple(each for each in dependencies if each not in read),
                streams=tuple(StreamRef[Any](each).chunks(buffer=buffer) for each in read),
                **options,
            )
            streaming.append(name)
        elif form < 0.85:
            size = rng.choice([0, 1, 3, 10, 30, MOST_ITEMS if rng.random() < 0.1 else 5])
            share = rng.random() ** 3
            outcomes = [rng.choice(OUTCOMES) if rng.random() < share else "ok" for _ in range(size)]
            pipeline = pipeline.with_stage(f"{name}_items", source(outcomes), dependencies=dependencies)
            pipeline = pipeline.with_map(
                name,
                mapped,
                over=f"{name}_items",
                dependencies=dependencies,
                max_concurrency=rng.randint(1, 20),
                on_item_failure=rng.choice(["fail", "skip", "collect"]),
                total_timeout=rng.choice([None, 3]),
                limit=rng.choice([None, "shared"]),
                **options,
            )
            names.append(f"{name}_items")
        else:
            limit = rng.choice([None, None, "shared"])
            pipeline = pipeline.with_stage(
                name, stage(rng.choice(OUTCOMES), name), dependencies=dependencies, limit=limit, **options
            )
        names.append(name)
    return pipeline


def streams_chunks(rng: random.Random, read: tuple[str, ...]) -> Any:
    """Return a stage that reads streams, stops early or fails, and sends chunks."""
    outcome, chunks, pause = rng.choice(OUTCOMES), rng.choice([0, 1, 5, 40]), rng.choice([0, 0, 0.1, 1])
    most = [rng.choice([0, 2, 1000]) for _ in read]
    fails_at = rng.choice([None, None, 0, 3])
    attempts = rng.choice([1, 9])
    sends = rng.random() < 0.3

    async def values(ctx: StageContext) -> AsyncIterator[int]:
        number = 0
        # Concurrently: two stages that read two streams one after the other can wait for each other.
        received: asyncio.Queue[bool] = asyncio.Queue(1)
        async with asyncio.TaskGroup() as group:
            reading = [
                group.create_task(copy(ctx, name, limit, received))
                for name, limit in zip(read, most, strict=True)
                if limit
            ]
            group.create_task(wait_for(reading, received))
            while await received.get():
                yield number
                number += 1
        for _ in range(chunks):
            if fails_at is not None and number >= fails_at and ctx.attempt <= attempts:
                raise ConnectionError("lost")
            await asyncio.sleep(pause)
            yield number
            number += 1

    async def generates(ctx: StageContext) -> AsyncIterator[Any]:
        async with contextlib.aclosing(values(ctx)) as numbers:
            async for number in numbers:
                yield number
        output = await act(ctx, outcome, None)
        if output is not None:
            yield output

    async def calls_send(ctx: StageContext) -> Any:
        async with contextlib.aclosing(values(ctx)) as numbers:
            async for number in numbers:
                await ctx.send(str(number))
        return await act(ctx, outcome, None)

    return calls_send if sends else generates


async def copy(ctx: StageContext, name: str, limit: int, received: asyncio.Queue[bool]) -> None:
    """Read up to `limit` chunks of a stream."""
    count = 0
    stream = ctx.inputs.stream(name)
    while count < limit and await anext(stream, None) is not None:
        count += 1
        await received.put(True)


async def wait_for(reading: list[asyncio.Task[None]], received: asyncio.Queue[bool]) -> None:
    """Wait for the readers, and then report the end."""
    for each in reading:
        await each
    await received.put(False)


def watch_buffers() -> None:
    """Check after every chunk that no buffer exceeds its limit."""
    add = Buffer.add

    def checked(self: Buffer, *arguments: Any) -> None:
        add(self, *arguments)
        assert self._limit is None or len(self) <= self._limit, (len(self), self._limit)

    patch.object(Buffer, "add", checked).start()


def source(items: list[str]) -> Any:
    async def run(ctx: StageContext) -> list[str]:
        return items

    return run


async def mapped(ctx: StageContext, item: str) -> Any:
    return await act(ctx, item, item)


def stage(outcome: str, name: str) -> Any:
    async def run(ctx: StageContext) -> Any:
        return await act(ctx, outcome, {f"{name}_value": 1})

    return run


def check_deadlocks(problems: Iterable[str]) -> None:
    """Check that a random graph is rejected only because of its streams."""
    assert all("deadlocks" in problem or "use two limits" in problem for problem in problems), problems


def check_budget(by_run: dict[str, list[tuple[str, dict[str, Any]]]], budget: Budget | None) -> None:
    """Check that all usage is recorded, and that the run ended with the first excess of its budget."""
    runs = [data for events in by_run.values() for type, data in events if type == "pipeline.wide"]
    assert sum(run["attributes"].get("llm.cost_usd", 0) for run in runs) == Spent.usd
    if budget is None:
        return
    (root,) = [run for run in runs if run["parent_run_id"] is None]
    failed = [
        data
        for type, data in by_run[root["event_id"]]
        if type == "stage.wide" and data["error_type"] == "BudgetExceededError" and data["status"] == "FAIL"
    ]
    assert len(failed) <= 1
    if budget.usd is not None:
        assert Spent.usd <= budget.usd + 1
        if root["reason"] == "the budget of the run was exceeded":
            assert failed[0]["error"].startswith(f"BudgetExceededError: the run spent {Spent.usd} USD")
        if Spent.usd <= budget.usd:
            assert not failed
        else:
            assert root["outcome"] not in ("ok", "degraded")
    if budget.attempts is not None:
        assert Spent.attempts <= budget.attempts
    # The first cause that ends a run determines its outcome: it may have been cancelled before.
    assert not failed or root["outcome"] not in ("ok", "degraded")


def check(seed: int) -> int:
    """Run one random graph, and return the number of its runs."""
    rng = random.Random(seed)
    sink = MemoryEventSink()
    limits = Limits(shared=rng.randint(1, 3))
    options: dict[str, Any] = {
        "emit_stage_wide_events": True,
        "emit_pipeline_wide_event": True,
        "wide_event_emitter": WideEventEmitter(sink),
        "limits": limits,
        "grace": 1,
    }
    budget = random_budget(rng)
    try:
        pipeline = random_pipeline(rng, rng.randint(0, 2), options)
        graph: StageGraph = pipeline.build(
            on_failure=rng.choice(["cancel", "continue"]),
            max_concurrency=rng.choice([None, None, 1, 3]),
            budget=budget,
            **options,
        )
    except PipelineValidationError as error:
        check_deadlocks(error.problems)
        return 0  # a deadlock that `build()` has found
    reads = rng.random() < 0.5
    leaves_after, slow = rng.choice([0, 1, 10, 10_000]), rng.choice([0, 0, 0.1, 2])
    on_abandon = rng.choice(["cancel", "finish"])
    cancel_after = rng.choice([None, None, rng.random() * 5])
    deadline = rng.choice([None, None, 0.5 + rng.random() * 10])

    Spent.usd = Spent.attempts = 0

    async def read_outside() -> None:
        run = graph.stream(
            PipelineContext(),
            stages=[spec.name for spec in pipeline.stages],
            deadline=deadline,
            buffer=leaves_after % 7 + 1,
            on_abandon=on_abandon,
        )
        async with run:
            count = 0
            async for _ in run:
                count += 1
                if count > leaves_after:
                    break
                await asyncio.sleep(slow)
        results = await run.results()
        assert len(results) == len(pipeline.stages)

    async def main() -> None:
        try:
            async with asyncio.timeout(cancel_after):
                if not reads:
                    await graph.run(PipelineContext(), deadline=deadline)
                else:
                    await read_outside()
        except TimeoutError:
            pass
        if _finishing:
            await asyncio.wait(list(_finishing))
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    VirtualClock().run(main())
    by_run: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for type, data in sink.events:
        by_run[data["correlation_ids"]["pipeline_run_id"]].append((type, data))
    check_budget(by_run, budget)
    children: set[str] = set()
    for events in by_run.values():
        summaries = [data["stage_summaries"] for type, data in events if type == "pipeline.wide"]
        run = check_record(events, [each["stage_name"] for each in summaries[0]])
        for type, data in events:
            if type != "stage.wide":
                continue
            children.update(data["child_runs"])
            if (stream := data["stream"]) is not None:
                assert (stream["first_chunk_ms"] is None) == (stream["chunks"] == 0), data
                assert stream["blocked_ms"] <= data["duration_ms"] + 1, data
            if (items := data["items"]) is not None:
                ended = items["ok"] + items["failed"] + items["skipped"]
                assert ended <= items["total"], data
                assert data["status"] != "OK" or ended == items["total"], data
        if run["parent_run_id"] is not None:
            assert run["parent_run_id"] in by_run
    assert children == {run_id for run_id, events in by_run.items() if events[-1][1].get("parent_run_id")}
    assert (limits["shared"].taken, limits["shared"].waiting) == (0, 0)
    return len(by_run)


def main() -> None:
    """Read the command line, and check so many runs."""
    parser = argparse.ArgumentParser(prog="python -m tests.run_storm", description=__doc__)
    parser.add_argument("runs", type=int, help="number of runs, including child runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first graph (default 0)")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    watch_buffers()
    began, runs, seed = time.monotonic(), 0, arguments.seed
    while runs < arguments.runs:
        try:
            runs += check(seed)
        except BaseException:
            print(f"seed {seed} violates the guarantees")
            raise
        seed += 1
    print(
        f"{runs:,} runs of {seed - arguments.seed:,} graphs in {time.monotonic() - began:.0f} s: 0 violations"
    )


if __name__ == "__main__":
    main()
