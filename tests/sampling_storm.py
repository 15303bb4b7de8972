"""Kills writers, exporters and a compactor that share a sampler at random, and compares what they kept.

A command too, for a longer trial than the suite has time for: `python -m tests.sampling_storm 60`.
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
from typing import Any, NamedTuple

# Under `python -m tests.sampling_storm` the folder is not where modules are looked for.
sys.path.insert(0, str(Path(__file__).parent))

from export_receiver import ExportReceiver

from stageflow.export import ExportRunner, ExportSettings, HttpExporter, export_status
from stageflow.journal import Journal, JournalReader
from stageflow.store import Compactor, EventStore, TailSampler

ONE_IN = 20

WRITER = """
import asyncio, random, sys, stageflow
from stageflow import Pipeline

async def inner(ctx):
    if random.random() < 0.01:
        raise ValueError("rare")
    return {}

child = Pipeline("child").with_stage("inner", inner)

async def work(ctx):
    await asyncio.sleep(0)
    if random.random() < 0.3:
        await child.run()
    return {}

stageflow.configure(
    journal=sys.argv[1], health_seconds=None, journal_options={"segment_bytes": 200_000}
)
graph = Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).build()

async def main():
    for _ in range(int(sys.argv[2])):
        await asyncio.gather(*(graph.run() for _ in range(5)))
        await asyncio.sleep(0.01)

asyncio.run(main())
"""

EXPORTER = """
import sys
from stageflow.export import ExportRunner, ExportSettings, HttpExporter
from stageflow.store import TailSampler

settings = ExportSettings(batch_events=100, batch_seconds=0.05, retry_first=0.05, retry_max=0.2)
exporter = HttpExporter(sys.argv[2], name=sys.argv[3])
ExportRunner(sys.argv[1], exporter, settings=settings, sampler=TailSampler(one_in=int(sys.argv[4]))).run()
"""

COMPACTOR = """
import sys, time
from stageflow.store import Compactor, TailSampler

compactor = Compactor(sys.argv[1], keep_seconds=0, sampler=TailSampler(one_in=int(sys.argv[2])))
while True:
    compactor.compact()
    time.sleep(0.2)
"""


class Storm(NamedTuple):
    """What happened.

    Attributes:
        runs: Root runs and child runs that ended.
        kept: Runs that the archive keeps.
        killed: Kills of exporters, writers and compactors.
        problems: What is wrong, a sentence each.
    """

    runs: int
    kept: int
    killed: Counter[str]
    problems: list[str]


def storm(folder: Path, seconds: float, rounds: int, seed: int = 1) -> Storm:
    """Write runs in three processes, export them to two targets, archive them, and kill any of these."""
    journal, dice, killed = folder / "journal", random.Random(seed), Counter[str]()
    journal.mkdir(mode=0o700)
    receivers = [ExportReceiver(), ExportReceiver()]

    def start(script: str, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(journal), *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    commands: list[tuple[str, tuple[Any, ...]]] = [("writer", (WRITER, rounds))] * 3
    commands += [("exporter", (EXPORTER, each.url, f"e{n}", ONE_IN)) for n, each in enumerate(receivers)]
    commands += [("compactor", (COMPACTOR, ONE_IN))]
    for number in range(len(receivers)):
        # An exporter that starts slowly does not receive what was archived before its cursor exists.
        with JournalReader(journal, f"export.e{number}"):
            pass
    processes = [start(*command) for _, command in commands]
    watched = _Watched(journal)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        threading.Event().wait(dice.uniform(0.2, 0.8))
        watched.read()
        index = dice.choices(range(len(commands)), [1, 1, 1, 3, 3, 3])[0]
        kind, command = commands[index]
        killed[kind] += 1
        processes[index].kill()
        processes[index].wait()
        processes[index] = start(*command)
    for (kind, _), process in zip(commands, processes, strict=True):
        if kind != "writer":
            process.kill()
        process.wait()
    Journal(journal).recover()
    watched.read()
    sampler = TailSampler(one_in=ONE_IN)
    for number, receiver in enumerate(receivers):
        runner = ExportRunner(
            journal,
            HttpExporter(receiver.url, name=f"e{number}"),
            settings=ExportSettings(batch_seconds=0.01, retry_first=0.05),
            sampler=sampler,
        )
        runner.request_stop(300, drain=True)
        runner.run()
        receiver.close()
    for _ in range(2):  # the second pass archives what the decider of the first wrote
        Compactor(journal, keep_seconds=0, sampler=sampler).compact()
    return _judged(journal, receivers, watched, killed)


class _Watched:
    """Reads every event under a name, so that no segment is deleted before."""

    def __init__(self, journal: Path) -> None:
        self.journal = journal
        self.events: dict[str, str] = {}
        self.roots: dict[str, str] = {}
        self.order: dict[str, list[str]] = {}
        self.read()

    def read(self) -> None:
        with JournalReader(self.journal, "watched") as reader:
            for entry in reader:
                data = json.loads(entry.json)
                run_id = data["correlation_ids"]["pipeline_run_id"]
                if data["event_id"] not in self.events:
                    self.order.setdefault(run_id, []).append(data["event_id"])
                self.events[data["event_id"]] = run_id
                if entry.type == "pipeline.wide":
                    self.roots[run_id] = data["root_run_id"] or run_id
            reader.commit()


def _judged(journal: Path, receivers: list[ExportReceiver], watched: _Watched, killed: Counter[str]) -> Storm:
    problems = []
    kept: dict[str, dict[str, dict[str, Any]]] = {}
    with EventStore(journal, compact_beyond=None) as store:
        rows = store.sql("select event_id, pipeline_run_id, sample_rate, sample_reason from events").rows
        totals = sum(total.count for total in store.totals())
    kept["archive"] = {row[0]: {"run": row[1], "rate": row[2], "reason": row[3]} for row in rows}
    for number, receiver in enumerate(receivers):
        kept[f"e{number}"] = {
            line["event_id"]: {
                "run": line["data"]["correlation_ids"]["pipeline_run_id"],
                "rate": float(line["data"]["sample_rate"]),
                "reason": line["data"]["sample_reason"],
            }
            for line in receiver.accepted
        }
    archive = kept["archive"]
    for name, found in kept.items():
        if found != archive:
            different = [event for event in {*found, *archive} if found.get(event) != archive.get(event)]
            example = (found.get(different[0]), archive.get(different[0]))
            problems.append(f"{name} and the archive differ in {len(different)} events, such as {example}")
    runs = {each["run"] for each in archive.values()}
    if incomplete := {event for event, run in watched.events.items() if run in runs} ^ archive.keys():
        problems.append(f"{len(incomplete)} events of kept runs are missing, or belong to no kept run")
    trees = Counter(watched.roots.values())
    kept_trees = Counter(root for run, root in watched.roots.items() if run in runs)
    if divided := [root for root, count in kept_trees.items() if count != trees[root]]:
        problems.append(f"{len(divided)} runs were kept without their child runs")
    if not 0 < len(kept_trees) < len(trees) / 3:
        problems.append(f"{len(kept_trees)} of {len(trees)} root runs were kept")
    if totals != len(watched.events):
        problems.append(f"the exact counts are {totals}, not {len(watched.events)}")
    for number, receiver in enumerate(receivers):
        arrived: dict[str, list[str]] = {}
        for line in receiver.accepted:
            events = arrived.setdefault(line["data"]["correlation_ids"]["pipeline_run_id"], [])
            if line["event_id"] not in events:
                events.append(line["event_id"])
        if mixed := [run for run, events in arrived.items() if events != watched.order[run]]:
            problems.append(f"the events of {len(mixed)} runs are not in order at e{number}")
    for status in export_status(journal):
        counters = (status.sent, status.sampled_out, status.rejected, status.lag_events, status.missed)
        expected = (len(archive), len(watched.events) - len(archive), 0, 0, 0)
        if counters != expected:
            problems.append(f"the counters of {status.name} are {counters}, not {expected}")
    return Storm(len(watched.roots), len(runs), killed, problems)


def main(seconds: float, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = storm(Path(folder), seconds, rounds)
    print(f"{found.runs:,} runs, {found.kept:,} of them kept; killed: {dict(found.killed)}")
    sys.exit("\n".join(found.problems) or None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.sampling_storm",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "seconds", type=float, nargs="?", default=60, help="duration of the kills (default: 60)"
    )
    parser.add_argument(
        "--rounds", type=int, default=600, help="rounds of 5 runs of each of 3 writers (default: 600)"
    )
    arguments = parser.parse_args()
    main(arguments.seconds, arguments.rounds)
