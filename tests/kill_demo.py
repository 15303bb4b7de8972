"""Kills the demo at random times, and checks that its journal contains every acknowledged event.

`python -m tests.kill_demo 50` runs more kills than the test suite.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

RUNS = 60
EVENTS = 700
"""A lower bound of the number of events of these runs; no kill is later."""


class Death(NamedTuple):
    """The journal of one demo that was killed.

    Attributes:
        acknowledged: Ids of the events whose emission had returned.
        found: Number of complete lines in its journal.
        problems: Descriptions of missing, duplicate and damaged events.
    """

    acknowledged: list[str]
    found: int
    problems: list[str]


def moments(number: int, seed: int = 1) -> list[int]:
    """Return numbers of acknowledgements after which to kill; the same ones for a seed."""
    rng = random.Random(seed)
    return [rng.randint(1, EVENTS) for _ in range(number)]


def kill_after(acknowledgements: int, journal: Path) -> Death:
    """Run the demo, send it a SIGKILL after a number of acknowledgements, and check its journal.

    The demo continues until the signal arrives, so the exact position of the kill varies.
    """
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "stageflow", "demo"]
    command += ["--runs", str(RUNS), "--journal", str(journal), "--ack-fd", str(writer)]
    process = subprocess.Popen(command, pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    os.close(writer)
    acknowledged = []
    with os.fdopen(reader) as pipe:
        for line in pipe:
            acknowledged.append(line.removesuffix("\n"))
            if len(acknowledged) == acknowledgements:
                process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    problems = []
    if process.returncode != -signal.SIGKILL:
        problems.append(f"the demo exited with {process.returncode}, not by the signal: {errors.decode()}")
    ids, broken = complete_lines(journal)
    problems += broken
    problems += [
        f"{event_id} was acknowledged, but is missing" for event_id in set(acknowledged) - ids.keys()
    ]
    problems += [f"{event_id} occurs {count} times" for event_id, count in ids.items() if count > 1]
    return Death(acknowledged, sum(ids.values()), problems)


def complete_lines(journal: Path) -> tuple[dict[str, int], list[str]]:
    """Return the number of occurrences of each event in a journal, and descriptions of invalid lines.

    A torn last line is not complete, and is ignored.
    """
    ids: dict[str, int] = {}
    broken = []
    for file in journal.rglob("*.ndjson"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            try:
                parsed = json.loads(line)
                event_id = None if "journal" in parsed else parsed["data"]["event_id"]
            except (ValueError, KeyError) as error:
                broken.append(f"{file.name}: {error!r} in {line[:200]!r}")
            else:
                if event_id is not None:  # marks of the journal are not events
                    ids[event_id] = ids.get(event_id, 0) + 1
    return ids, broken


def main(number: int) -> int:
    lost = acknowledged = 0
    for count, moment in enumerate(moments(number, seed=random.randrange(1 << 30)), 1):
        with tempfile.TemporaryDirectory() as directory:
            death = kill_after(moment, Path(directory))
        acknowledged += len(death.acknowledged)
        lost += len(death.problems)
        print(
            f"{count:>4}  {len(death.acknowledged):>5} acknowledged, {death.found:>5} found", *death.problems
        )
    print(f"{number} kills: {acknowledged:,} events acknowledged, {lost} problems")
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill_demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "kills", type=int, nargs="?", default=10, help="number of demos to kill (default: 10)"
    )
    sys.exit(main(parser.parse_args().kills))
