"""Kills writers, compactors and readers of one journal at random; every reader checks its results.

For a longer test than in the suite, run `python -m tests.store_storm 60`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from stageflow.store import Compactor, EventStore

WRITERS = 2
COMPACTORS = 2
READERS = 2

Started = tuple[str, "subprocess.Popen[bytes]", Path]
"""A process: its kind, and the file that it writes to."""

START_SECONDS = 30.0
"""Maximum time in seconds for a process to make progress on a loaded machine."""


class Storm(NamedTuple):
    """What a storm left.

    Attributes:
        kills: Number of killed processes, by kind.
        acknowledged: Number of acknowledged events.
        views: How often readers read all events.
        commits: Number of commits to the archive.
        problems: Descriptions of problems, one sentence each.
    """

    kills: Counter[str]
    acknowledged: int
    views: int
    commits: int
    problems: list[str]


# ---------------------------------------------------------------- the processes


def write(directory: str) -> None:
    """Run pipelines without end; each event that is safe is named on standard output."""
    from journal_storm import write as write_for_ever

    write_for_ever(directory)


def compact(directory: str) -> None:
    """Compact without end, in small bites, and leave as little in the journal as can be."""
    compactor = Compactor(directory, keep_seconds=0.2, batch_bytes=300_000, target_bytes=200_000)
    while True:
        with contextlib.suppress(FileNotFoundError):
            compactor.compact()
            if random.random() < 0.2:
                compactor.archive.remove_unused(hours=0)
        print("compacted", flush=True)


def read(directory: str) -> None:
    """Look at everything without end, and say what is missing or there twice."""
    with EventStore(directory, compact_beyond=None) as store:
        while True:
            known = acknowledged(directory)
            problems = look(store, known)
            print("\n".join([*problems, "looked"]), flush=True)


def acknowledged(directory: str) -> set[str]:
    """Return the ids of all events that are safe."""
    return {
        line
        for path in Path(directory, os.pardir, "acknowledged").iterdir()
        for line in path.read_text().split("\n")[:-1]
    }


def look(store: EventStore, known: set[str]) -> list[str]:
    """Return what is wrong with what the store has, where at least `known` must be there."""
    rows = store.sql("select event_id, type, segment from events", limit=None).rows
    seen = Counter(event_id for event_id, _, _ in rows)
    twice = [event_id for event_id, count in seen.items() if count > 1]
    missing = known - seen.keys()
    problems = [f"missing: {len(missing)}, the first {min(missing)}"] if missing else []
    if twice:
        problems.append(f"twice: {len(twice)}, {[row for row in rows if row[0] == min(twice)]}")
    return problems


# ---------------------------------------------------------------- the storm


def storm(folder: Path, seconds: float, seed: int = 1) -> Storm:
    """Kill processes for a number of seconds, and run a final check.

    A process is killed only after it has made progress: starting one takes seconds on a loaded machine.
    """
    started: list[Started] = []
    try:
        return _storm(folder, seconds, random.Random(seed), started)
    finally:
        for _, process, _ in started:
            if process.returncode is None:
                process.kill()
                process.communicate()


def _storm(folder: Path, seconds: float, dice: random.Random, started: list[Started]) -> Storm:
    journal = folder / "journal"
    journal.mkdir()
    (folder / "acknowledged").mkdir()
    # Start writers last: events written before the other processes run would only delay these.
    kinds = ["read"] * READERS + ["compact"] * COMPACTORS + ["write"] * WRITERS
    kills: Counter[str] = Counter()
    problems: list[str] = []

    def start(kind: str, number: int) -> Started:
        out = folder / ("acknowledged" if kind == "write" else ".") / f"{kind}-{number}"
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, __file__, kind, str(journal)], stdout=file, stderr=subprocess.PIPE
            )
        return kind, process, out

    def wait_until_at_work(kind: str, process: subprocess.Popen[bytes], out: Path) -> None:
        """Wait until a process has written its first line."""
        until = time.monotonic() + START_SECONDS
        while not out.stat().st_size and process.poll() is None:
            if time.monotonic() > until:
                problems.append(f"a process to {kind} did nothing for {START_SECONDS:g} s")
                return
            time.sleep(0.01)

    number = 0
    for kind in kinds:
        number += 1
        started.append(start(kind, number))
        if kind == "write" or number == READERS + COMPACTORS:
            for one in started:
                wait_until_at_work(*one)
    outs = [out for kind, _, out in started if kind == "read"]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.2, 1.3))
        at = dice.randrange(len(started))
        kind, process, _ = started[at]
        wait_until_at_work(*started[at])
        if process.poll() is not None:
            problems.append(f"a process to {kind} ended: {process.communicate()[1].decode()[-2000:]}")
        else:
            process.kill()
            process.communicate()
            kills[kind] += 1
        number += 1
        started[at] = start(kind, number)
        outs += [started[at][2]] if kind == "read" else []
    for kind, process, _ in started:
        if process.poll() is not None:
            problems.append(f"a process to {kind} ended: {process.communicate()[1].decode()[-2000:]}")
        process.send_signal(signal.SIGKILL)
        process.communicate()
    views = 0
    for out in outs:
        lines = out.read_text().split("\n")[:-1]
        views += lines.count("looked")
        problems += [line for line in lines if line != "looked"]
    known = acknowledged(str(journal))
    with EventStore(journal, compact_beyond=None) as store:
        problems += look(store, known)
        Compactor(journal, keep_seconds=0).compact()
        problems += look(store, known)
        commits = store.archive.version
    return Storm(kills, len(known), views, commits, problems)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        {"write": write, "compact": compact, "read": read}[sys.argv[1]](sys.argv[2])
    else:
        parser = argparse.ArgumentParser(
            prog="python -m tests.store_storm",
            description=__doc__,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        parser.add_argument(
            "seconds", type=float, nargs="?", default=10.0, help="duration in seconds (default: 10)"
        )
        duration = parser.parse_args().seconds
        with tempfile.TemporaryDirectory() as temporary:
            print(storm(Path(temporary), duration, seed=int(time.time())))
