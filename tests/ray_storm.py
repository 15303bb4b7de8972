"""Kills Ray workers at random while stages and a map run: `python -m tests.ray_storm`.

Every run must satisfy the record guarantees; no attempt of a stage or an item may run twice; what is recorded
as OK must have run. The executions are counted in a file. Ray runs on this machine, with 2 CPUs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ray
import ray_storm  # the workers import the functions from this module
from oracle import check_record, recorded, stage_wide

from stageflow import Pipeline, PipelineContext, Retry, StageContext
from stageflow.errors import WorkerLostError
from stageflow.events import MemoryEventSink
from stageflow.executors import RayExecutor
from stageflow.stages import ItemFailure

PER_RUN = 50


def note(log: str, name: str) -> None:
    """Count an execution: one line, with one write."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{name} {os.getpid()}\n".encode())
    os.close(file)


def run_stage(ctx: StageContext) -> dict[str, Any]:
    """Count this attempt."""
    note(ctx.run.data["log"], f"{ctx.run.data['run']}/{ctx.stage}/{ctx.attempt}")
    time.sleep(0.001)
    return {"ok": True}


def run_item(ctx: StageContext, item: int) -> int:
    """Count this attempt of an item."""
    note(ctx.run.data["log"], f"item/{item}/{ctx.attempt}")
    time.sleep(0.0005)
    return item


class Killer:
    """Kills the worker that has last executed something, at random times."""

    def __init__(self, log: Path, seconds: float, seed: int) -> None:
        self.kills = 0
        self._log = log
        self._seconds = seconds
        self._random = random.Random(seed)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._random.expovariate(1 / self._seconds))
            if not self._log.exists():
                continue
            with self._log.open("rb") as file:
                file.seek(max(0, self._log.stat().st_size - 4096))
                lines = file.read().decode().splitlines()[1:]
            workers = sorted({int(line.split()[1]) for line in lines[-20:]})
            if workers:
                try:
                    os.kill(self._random.choice(workers), signal.SIGKILL)
                    self.kills += 1
                except ProcessLookupError:
                    pass


def executions(log: Path) -> Counter[str]:
    """Return how often each attempt has run."""
    return Counter(line.split()[0] for line in log.read_text().splitlines())


async def stages(count: int, executor: RayExecutor, log: Path) -> None:
    """Run this number of stages, in runs of `PER_RUN`, and check their records."""
    retried = failed = 0
    for number in range(count // PER_RUN):
        sink = MemoryEventSink()
        pipeline = Pipeline("storm")
        names = [f"s{index}" for index in range(PER_RUN)]
        for name in names:
            pipeline = pipeline.with_stage(
                name,
                ray_storm.run_stage,
                executor=executor,
                optional=True,
                retry=Retry(attempts=3, on=(WorkerLostError,), wait=0.01),
            )
        data = {"log": str(log), "run": number}
        results = await recorded(pipeline, sink).run(PipelineContext(data=data))
        check_record(sink.events, names)
        found = executions(log)
        for name in names:
            event = stage_wide(sink.events, name)
            retried += event["attempts"] - 1
            failed += event["status"] == "FAIL"
            assert event["status"] in ("OK", "FAIL")
            if event["status"] == "OK":
                assert found[f"{number}/{name}/{event['attempts']}"] == 1
        assert len(results) == PER_RUN
    most = max(executions(log).values())
    assert most == 1, f"an attempt ran {most} times"
    print(f"{count:,} stages: {retried} attempts retried, {failed} stages failed; no attempt ran twice")


async def items(count: int, executor: RayExecutor, log: Path) -> None:
    """Run a map of this number of items, and check its record."""

    async def source(ctx: StageContext) -> dict[str, Any]:
        return {"items": list(range(count))}

    sink = MemoryEventSink()
    pipeline = (
        Pipeline("storm")
        .with_stage("source", source)
        .with_map(
            "map",
            ray_storm.run_item,
            over=("source", "items"),
            executor=executor,
            retry=Retry(attempts=2, on=(WorkerLostError,), wait=0.01),
            on_item_failure="collect",
        )
    )
    results = await recorded(pipeline, sink).run(PipelineContext(data={"log": str(log)}))
    check_record(sink.events, ["source", "map"])
    event = stage_wide(sink.events, "map")
    values = results["map"].data["items"]
    found = executions(log)
    failed = [value for value in values if isinstance(value, ItemFailure)]
    assert len(values) == count == event["items"]["total"]
    assert event["items"]["failed"] == len(failed)
    for index, value in enumerate(values):
        ran = found[f"item/{index}/1"] + found[f"item/{index}/2"]
        assert isinstance(value, ItemFailure) or (value == index and ran >= 1)
    most = max(found.values())
    assert most == 1, f"an attempt of an item ran {most} times"
    print(
        f"a map of {count:,} items: {event['items']['retried']} items retried, {len(failed)} failed;"
        " no attempt ran twice"
    )


async def storm(arguments: argparse.Namespace, folder: Path) -> None:
    """Run the stages, and then the map, as tasks or on actors."""
    for actors in (None, 2):
        kind = "tasks" if actors is None else f"{actors} actors"
        for run, count in ((stages, arguments.stages), (items, arguments.items)):
            log = folder / f"{run.__name__}-{actors}"
            began = time.monotonic()
            killer = Killer(log, arguments.kill_every, arguments.seed)
            killing = asyncio.create_task(killer.run())
            async with RayExecutor(actors=actors) as executor:
                print(f"{kind}: ", end="")
                await run(count, executor, log)
            killing.cancel()
            print(f"  {killer.kills} workers killed, {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.ray_storm", description=__doc__)
    parser.add_argument("--stages", type=int, default=5000, help="number of stages (default 5000)")
    parser.add_argument("--items", type=int, default=20_000, help="number of items (default 20000)")
    parser.add_argument(
        "--kill-every", type=float, default=1.0, help="mean seconds between kills (default 1)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the kills (default 1)")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(storm(arguments, Path(folder)))


if __name__ == "__main__":
    main()
