"""Kills writers, compactors and readers of one journal at random moments; every reader checks what it sees.

A command too, for a longer trial than the suite has time for: `python -m tests.store_storm 60`.
"""

from __future__ import annotations

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


class Storm(NamedTuple):
    """What a storm left.

    Attributes:
        kills: How many processes were killed, of each kind.
        acknowledged: How many events were acknowledged.
        views: How many times readers looked at everything.
        commits: How often the archive was changed.
        problems: What is wrong, a sentence each.
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
    """Let it rage for so many seconds, and look once more when it is over."""
    dice = random.Random(seed)
    journal = folder / "journal"
    journal.mkdir()
    (folder / "acknowledged").mkdir()
    kinds = ["write"] * WRITERS + ["compact"] * COMPACTORS + ["read"] * READERS
    started: list[tuple[str, subprocess.Popen[bytes], Path]] = []
    kills: Counter[str] = Counter()
    problems: list[str] = []

    def start(kind: str, number: int) -> tuple[str, subprocess.Popen[bytes], Path]:
        out = folder / ("acknowledged" if kind == "write" else ".") / f"{kind}-{number}"
        with out.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, __file__, kind, str(journal)], stdout=file, stderr=subprocess.PIPE
            )
        return kind, process, out

    number = 0
    for kind in kinds:
        number += 1
        started.append(start(kind, number))
    outs = [out for kind, _, out in started if kind == "read"]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.2, 1.3))
        at = dice.randrange(len(started))
        kind, process, _ = started[at]
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
        with tempfile.TemporaryDirectory() as temporary:
            print(storm(Path(temporary), float(sys.argv[1]), seed=int(time.time())))
