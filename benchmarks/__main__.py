"""`python -m benchmarks`: every figure is a ratio between things run in turn in one process."""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile

from stageflow.events import set_drain_timeout

from .journal import bench_journal
from .logs import bench_logs
from .maps import bench_maps
from .processes import bench_processes
from .reading import bench_reading
from .scale import bench_scale
from .shaping import bench_shaping
from .sinks import bench_sinks
from .stages import bench_stages
from .store import bench_store
from .streams import bench_streams


async def bench(rounds: int) -> None:
    """Run every benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        await bench_stages(rounds, folder)
        await bench_scale(rounds, folder)
        await bench_maps(rounds)
        await bench_streams(rounds)
        await bench_processes(rounds)
        await bench_logs(rounds)
        await bench_journal(rounds, folder)
        bench_reading(folder)
        bench_store(folder)
    await bench_shaping(rounds)
    await bench_sinks(rounds)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="rounds per comparison (default 60)")
    rounds = parser.parse_args().rounds
    # The sinks that misbehave do so on purpose, and leave events that nobody waits for.
    logging.disable(logging.WARNING)
    set_drain_timeout(0.1)
    asyncio.run(bench(rounds))


if __name__ == "__main__":
    main()
