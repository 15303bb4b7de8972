"""`python -m tests.process_storm [STAGES] [WORKERS]`: stages in processes that are killed at random.

Checks that the record of every run is complete, that a stage whose worker was killed is FAIL or was retried,
that nothing runs twice without a retry, and that no process is left. 10,000 stages take about two minutes.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from oracle import check_record, of_type, recorded

from stageflow import Pipeline, PipelineContext, Retry, StageContext
from stageflow.errors import WorkerLostError
from stageflow.events import MemoryEventSink
from stageflow.executors import ProcessExecutor

_PER_RUN = 10


def work(ctx: StageContext) -> dict[str, Any]:
    """Note the execution in a file, and compute for a moment."""
    with open(ctx.run.data["file"], "ab", buffering=0) as file:
        file.write(f"{ctx.run.pipeline_run_id}/{ctx.stage}/{ctx.attempt}\n".encode())
    ctx.count("executions")
    return {"sum": sum(range(ctx.run.data["size"]))}


def children() -> list[int]:
    """Return the ids of the child processes of this one."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except FileNotFoundError:  # the thread has ended
            continue
    return found


class Killer(threading.Thread):
    """Kills a random worker again and again."""

    def __init__(self, every: float) -> None:
        super().__init__(daemon=True)
        self.killed = 0
        self._every = every
        self._stopped = threading.Event()
        self._random = random.Random(7)

    def run(self) -> None:
        while not self._stopped.wait(self._random.expovariate(1 / self._every)):
            if workers := children():
                try:
                    os.kill(self._random.choice(workers), signal.SIGKILL)
                    self.killed += 1
                except ProcessLookupError:
                    pass

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def pipeline(executor: ProcessExecutor) -> Pipeline:
    """Return a pipeline whose even stages are retried and whose odd ones are optional."""
    found = Pipeline("storm")
    for number in range(_PER_RUN):
        options: dict[str, Any] = (
            {"optional": True} if number % 2 else {"retry": Retry(attempts=10, on=WorkerLostError)}
        )
        dependencies = (f"s{number - 3}",) if number > 2 else ()
        found = found.with_stage(f"s{number}", work, dependencies=dependencies, executor=executor, **options)
    return found


async def storm(stages: int, workers: int) -> None:
    """Run the pipeline until so many stages have ended, and check every run."""
    before = set(children())
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "executions")
        executor = ProcessExecutor(workers, max_tasks_per_worker=200)
        killer = Killer(0.1)
        killer.start()
        random_size = random.Random(1)
        sink = MemoryEventSink()
        graph = recorded(pipeline(executor), sink)
        contexts = (
            PipelineContext(data={"file": str(file), "size": random_size.choice((10, 10_000, 300_000))})
            for _ in range(stages // _PER_RUN)
        )
        began = time.monotonic()
        async with graph.run_many(contexts, concurrency=2 * workers) as runs:
            async for results in runs:
                counts[results.outcome] += 1
                events = [event for event in sink.events if _run_of(event) == results.context.pipeline_run_id]
                check_record(events, list(graph._plan.index), str(results.context.pipeline_run_id))
                for data in of_type(events, "stage.wide"):
                    counts[f"stage {data['status']}"] += 1
                    if data["status"] in ("FAIL", "RETRY"):
                        assert data["error_type"] == "WorkerLostError", data["error"]
                for event in events:
                    sink.events.remove(event)
        took = time.monotonic() - began
        killer.stop()
        await executor.aclose()
        executions = Counter(file.read_text().split())
    assert not sink.events, sink.events[0]
    assert max(executions.values()) == 1, executions.most_common(1)
    left = set(children()) - before
    assert not left, left
    print(f"{stages:,} stages in {took:.0f} s, {killer.killed:,} workers killed: {dict(counts)}")
    print(f"{len(executions):,} executions, none twice; no process left")


def _run_of(event: tuple[str, Any]) -> Any:
    return event[1]["correlation_ids"]["pipeline_run_id"]


def main() -> None:
    """Read the command line and run."""
    stages = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    workers = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    asyncio.run(storm(stages, workers))


if __name__ == "__main__":
    main()
