"""Kills the demo at random moments, and checks that its journal has every event it had acknowledged.

A command too, for a longer trial than the suite has time for: `python -m tests.kill_demo 50`.
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
"""What so many runs leave at least, roughly: no moment of death is later."""


class Death(NamedTuple):
    """What was left of one demo that was killed.

    Attributes:
        acknowledged: Ids of the events whose emission had returned.
        found: How many whole lines its journal has.
        problems: What is wrong with them, a sentence each.
    """

    acknowledged: list[str]
    found: int
    problems: list[str]


def moments(many: int, seed: int = 1) -> list[int]:
    """Return after how many acknowledgements to kill: the same moments each time."""
    dice = random.Random(seed)
    return [dice.randint(1, EVENTS) for _ in range(many)]


def kill_after(acknowledgements: int, journal: Path) -> Death:
    """Run the demo, send it a SIGKILL after so many acknowledgements, and look at what it left.

    It goes on while the signal is on its way, so where it is hit is for the machine to say.
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
        problems.append(f"it ended with {process.returncode}, not by the signal: {errors.decode()}")
    ids, broken = whole_lines(journal)
    problems += broken
    problems += [
        f"{event_id} was acknowledged and is not there" for event_id in set(acknowledged) - ids.keys()
    ]
    problems += [f"{event_id} is there {count} times" for event_id, count in ids.items() if count > 1]
    return Death(acknowledged, sum(ids.values()), problems)


def whole_lines(journal: Path) -> tuple[dict[str, int], list[str]]:
    """Return how often each event is in a journal, and what does not parse. A torn end is no whole line."""
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
                if event_id is not None:  # a mark of the journal's own is no event
                    ids[event_id] = ids.get(event_id, 0) + 1
    return ids, broken


def main(many: int) -> int:
    lost = acknowledged = 0
    for number, moment in enumerate(moments(many, seed=random.randrange(1 << 30)), 1):
        with tempfile.TemporaryDirectory() as directory:
            death = kill_after(moment, Path(directory))
        acknowledged += len(death.acknowledged)
        lost += len(death.problems)
        print(
            f"{number:>4}  {len(death.acknowledged):>5} acknowledged, {death.found:>5} found", *death.problems
        )
    print(f"{many} times killed: {acknowledged:,} events acknowledged, {lost} problems")
    return 1 if lost else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill_demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "kills", type=int, nargs="?", default=10, help="number of demos to kill (default: 10)"
    )
    sys.exit(main(parser.parse_args().kills))
