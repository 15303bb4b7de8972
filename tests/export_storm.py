"""Kills exporters, writers and the receiver at random, and counts what arrived.

A command too, for a longer trial than the suite has time for: `python -m tests.export_storm 60`.
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
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# Under `python -m tests.export_storm` the folder is not where modules are looked for.
sys.path.insert(0, str(Path(__file__).parent))

from export_receiver import ExportReceiver

from stageflow.export import ExportRunner, ExportSettings, HttpExporter, export_status
from stageflow.journal import Journal, JournalReader

WRITER = """
import asyncio, sys, stageflow
from stageflow import Pipeline

async def work(ctx):
    await asyncio.sleep(0)
    return {}

stageflow.configure(journal=sys.argv[1], health_seconds=None)
graph = Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).build()

async def main():
    for _ in range(int(sys.argv[2])):
        await graph.run()
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""

EXPORTER = """
import sys
from stageflow.export import ExportRunner, ExportSettings, HttpExporter

settings = ExportSettings(
    batch_events=100, batch_seconds=0.05, retry_first=0.05, retry_max=0.2, circuit_seconds=0.2
)
ExportRunner(sys.argv[1], HttpExporter(sys.argv[2], name="storm"), settings=settings).run()
"""


class Storm(NamedTuple):
    """What happened.

    Attributes:
        written: Events in the journal.
        accepted: Events that the receiver accepted, with duplicates.
        distinct: Distinct events among them.
        killed: Kills of exporters, of writers, and of the receiver.
        problems: What is wrong, a sentence each.
    """

    written: int
    accepted: int
    distinct: int
    killed: Counter[str]
    problems: list[str]


def storm(folder: Path, seconds: float, runs: int, seed: int = 1) -> Storm:
    """Write runs in three processes, export with two, and kill any of them, and the receiver, at random."""
    journal, dice, killed = folder / "journal", random.Random(seed), Counter[str]()
    journal.mkdir(mode=0o700)
    receiver = ExportReceiver()
    port, receivers = receiver.port, [receiver]

    def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(journal), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    writers = [start(WRITER, str(runs)) for _ in range(3)]
    exporters = [start(EXPORTER, receiver.url) for _ in range(2)]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        threading.Event().wait(dice.uniform(0.05, 0.5))
        which = dice.choices(["exporter", "writer", "receiver"], [6, 2, 1])[0]
        killed[which] += 1
        if which == "receiver":
            receiver.close()
            threading.Event().wait(dice.uniform(0, 0.5))
            receiver = ExportReceiver(port=port)
            receivers.append(receiver)
            continue
        processes = exporters if which == "exporter" else writers
        index = dice.randrange(len(processes))
        processes[index].kill()
        processes[index].wait()
        script, argument = (EXPORTER, receiver.url) if which == "exporter" else (WRITER, str(runs))
        processes[index] = start(script, argument)
    for process in writers:
        process.wait()
    for process in exporters:
        process.kill()
        process.wait()
    Journal(journal).recover()
    settings = ExportSettings(batch_seconds=0.01, retry_first=0.05)
    runner = ExportRunner(journal, HttpExporter(receiver.url, name="storm"), settings=settings)
    runner.request_stop(300, drain=True)
    runner.run()
    receiver.close()
    accepted = [
        (line["event_id"], line["revision"], line["data"]["correlation_ids"]["pipeline_run_id"])
        for each in receivers
        for line in each.accepted
    ]
    return _judged(journal, accepted, killed)


def _judged(journal: Path, accepted: list[tuple[str, int, str]], killed: Counter[str]) -> Storm:
    written = [json.loads(entry.json) for entry in JournalReader(journal)]
    wanted = {data["event_id"] for data in written}
    first = list(dict.fromkeys(accepted))  # the first delivery of each event
    found = {event_id for event_id, _, _ in first}
    problems = []
    if lost := wanted - found:
        problems.append(f"{len(lost)} of {len(wanted)} events are missing, such as {sorted(lost)[0]}")
    if strange := found - wanted:
        problems.append(f"{len(strange)} events are not in the journal, such as {sorted(strange)[0]}")
    order: dict[str, list[str]] = {}
    for data in written:
        order.setdefault(data["correlation_ids"]["pipeline_run_id"], []).append(data["event_id"])
    arrived: dict[str, list[str]] = {}
    for event_id, _, run_id in first:
        arrived.setdefault(run_id, []).append(event_id)
    if mixed := [run for run, events in order.items() if arrived.get(run) != events]:
        problems.append(f"the events of {len(mixed)} runs are not in order, such as {mixed[0]}")
    (status,) = export_status(journal)
    counters = (status.sent, status.rejected, status.lag_events, status.missed)
    if counters != (len(written), 0, 0, 0):
        problems.append(f"sent, rejected, lag and missed are {counters}, not {len(written)}, 0, 0 and 0")
    return Storm(len(written), len(accepted), len(found), killed, problems)


def main(seconds: float, runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = storm(Path(folder), seconds, runs)
    print(f"{found.written:,} events written; {found.accepted:,} accepted, {found.distinct:,} distinct")
    print(f"killed: {dict(found.killed)}")
    sys.exit("\n".join(found.problems) or None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.export_storm",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "seconds", type=float, nargs="?", default=60, help="duration of the kills (default: 60)"
    )
    parser.add_argument("--runs", type=int, default=3400, help="runs of each of 3 writers (default: 3400)")
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.runs)
