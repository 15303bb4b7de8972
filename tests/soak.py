"""Runs a pipeline many times in one process, and checks whether its memory grows.

`python -m tests.soak 1000000` fails if memory grows by more than 10 MB between the first tenth of the runs
and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import tempfile
import time
from typing import Any

import stageflow
from stageflow import Pipeline, PipelineContext

MOST_GROWTH_MB = 10
WORKERS = 8


def resident_mb() -> float:
    """Return the resident memory of this process; available only on Linux."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


async def first(ctx: Any) -> dict[str, int]:
    return {"x": 1}


async def second(ctx: Any) -> None: ...


async def soak(runs: int) -> float:
    """Run a number of times, and return the memory growth in MB after the first tenth."""
    graph = (
        Pipeline("soak")
        .with_stage("first", first)
        .with_stage("second", second, dependencies=("first",))
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True)
    )
    began, done, at_a_tenth = time.monotonic(), 0, 0.0

    async def work() -> None:
        nonlocal done, at_a_tenth
        while done < runs:
            done += 1
            number = done
            assert (await graph.run(PipelineContext(user_id=f"u{number % 50}"))).ok
            if number % (runs // 10) == 0:
                gc.collect()
                resident = resident_mb()
                at_a_tenth = at_a_tenth or resident
                print(f"{number:10,} runs {resident:8.1f} MB {time.monotonic() - began:8.0f} s", flush=True)

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    gc.collect()
    return resident_mb() - at_a_tenth


async def soak_in(folder: str, runs: int) -> float:
    options = {"max_bytes": 256 << 20}
    async with stageflow.session(journal=folder, journal_options=options, health_seconds=None):
        return await soak(runs)


def _runs(text: str) -> int:
    runs = int(text)
    if runs < 10:  # a tenth of them is compared with the end
        raise argparse.ArgumentTypeError("give 10 runs or more")
    return runs


def main() -> None:
    """Soak for as many runs as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", type=_runs, help="number of runs, at least 10")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="stageflow-soak-") as folder:
        growth = asyncio.run(soak_in(folder, runs))
    print(f"memory grew by {growth:.1f} MB after a tenth of the runs")
    sys.exit(growth > MOST_GROWTH_MB)


if __name__ == "__main__":
    main()
