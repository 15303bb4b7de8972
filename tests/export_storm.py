"""Kills exporters, writers and the server of a target at random, and counts what arrived.

A command too, for a longer trial than the suite has time for: `python -m tests.export_storm nats 60`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# Under `python -m tests.export_storm` the folder is not where modules are looked for.
sys.path.insert(0, str(Path(__file__).parent))

from export_receiver import ExportReceiver

from stageflow.export import ExportRunner, ExportSettings, export_status, exporter_for
from stageflow.journal import Journal, JournalReader

WRITER = """
import asyncio, sys, stageflow
from stageflow import Pipeline

async def work(ctx):
    await asyncio.sleep(0)
    return {}

stageflow.configure(journal=sys.argv[1], health_seconds=None)
graph = Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).build()

async def main(target: str, seconds: float, runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = storm(Path(folder), seconds, runs, target)
    print(f"{found.written:,} events written; {found.accepted:,} accepted, {found.distinct:,} distinct")
    print(f"killed: {dict(found.killed)}; largest memory of an exporter: {found.memory_mb:.0f} MB")
    sys.exit("\n".join(found.problems) or None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.export_storm",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("target", choices=TARGETS, help="the target")
    parser.add_argument(
        "seconds", type=float, nargs="?", default=60, help="duration of the kills (default: 60)"
    )
    parser.add_argument("--runs", type=int, default=3400, help="runs of each of 3 writers (default: 3400)")
    arguments = parser.parse_args()
    main(arguments.target, arguments.seconds, arguments.runs)
