"""Kills an evaluator at random lines of its code, and counts what its receiver was told.

A command too, for a longer trial than the suite has time for: `python -m tests.kill_alerts 300`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

# Under `python -m tests.kill_alerts` the folder is not where modules are looked for.
sys.path.insert(0, str(Path(__file__).parent))

from incident import Past
from webhook_receiver import AS_TEXT, Receiver

# Each trial is a process of its own that dies where it is told. They are forked off one that has
# imported everything and opened nothing: an interpreter for each would take most of the time.
EVALUATOR = r"""
import json, os, random, signal, sys
import duckdb, pytz, scipy.stats  # so that no child has to
import stageflow.store._explain._investigation
import stageflow.alerts
from stageflow.alerts import AlertRules, FailureRate, Webhook, run_alerts
from stageflow.alerts._state import read_state
from stageflow.store import EventStore
from incident import after

journal, url, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
ours = (os.path.dirname(stageflow.alerts.__file__), "/_files.py")
MINUTES = (0, 5, 10, 30)


def evaluate(trial, state, line):
    passed = 0

    def trace(frame, event, arg):
        nonlocal passed
        name = frame.f_code.co_filename
        if not (name.startswith(ours[0]) or name.endswith(ours[1])):
            return None
        passed += 1
        if passed == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    rule = FailureRate(name="checkout fails", above=0.05)
    ops = Webhook(name="ops", url=f"{url}?trial={trial}", secret_env="KILL_SECRET")
    # Time does not go back when a process dies: the next one begins with the minute that was cut off.
    reached = int(open(f"{state}.reached").read()) if os.path.exists(f"{state}.reached") else 0
    with EventStore(journal) as store:
        sys.settrace(trace)
        for minute in MINUTES[reached:]:
            with open(f"{state}.reached", "w") as file:
                file.write(str(MINUTES.index(minute)))
            run_alerts(store, AlertRules(rules=(rule,), receivers=(ops,)), state=state, now=after(minute))
        sys.settrace(None)
    return passed


def fork(trial, state, line):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if evaluate(trial, state, line) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines_of_one():
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(evaluate("whole", f"{journal}/whole.json", -1)).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return int(os.read(reader, 100))


whole = lines_of_one()
for trial in range(first, last):
    dice = random.Random(trial)
    state, died, in_doubt = f"{journal}/state-{trial}.json", 0, set()
    for _ in range(2):  # it may die again at its second time
        # The first line of an evaluation is as likely to be the last as any other.
        if fork(trial, state, dice.randint(1, whole)) != 0:
            died += 1
            # One that dies before it has tried again leaves the same attempt in doubt.
            outbox = read_state(state).outbox
            in_doubt |= {(one.notice.id, one.attempts) for one in outbox if one.sending}
    ended = fork(trial, state, -1)
    left = read_state(state)
    counted = left.receivers["ops"].in_doubt
    history = [[one.status, one.notices, one.receivers["ops"].sent] for one in left.history]
    print(json.dumps([trial, died, len(in_doubt), ended, len(left.outbox), counted, history]), flush=True)
"""


class Trial(NamedTuple):
    """What came of one evaluator.

    Attributes:
        number: Which.
        died: How often it was killed.
        in_doubt: How often while a notice was on its way.
        told: How often each notice arrived, by its id.
        kinds: What the notices were.
        problems: What is wrong, a sentence each.
    """

    number: int
    died: int
    in_doubt: int
    told: Counter[str]
    kinds: list[str]
    problems: list[str]


def trials(folder: Path, first: int, last: int) -> list[Trial]:
    """Run so many trials; what is wrong with each stands in it."""
    journal = folder / "journal"
    past = Past(journal)
    past.minutes(-20, 0)
    past.minutes(0, 10, failed=0.5)
    past.minutes(10, 40)
    past.close()
    with Receiver() as receiver:
        done = subprocess.run(
            [sys.executable, "-c", EVALUATOR, str(journal), receiver.url, str(first), str(last)],
            env={**os.environ, "KILL_SECRET": AS_TEXT},
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return [_judged(receiver, *json.loads(line)) for line in done.stdout.splitlines()]


def _judged(
    receiver: Receiver,
    number: int,
    died: int,
    in_doubt: int,
    ended: int,
    waiting: int,
    counted: int,
    history: list[list[object]],
) -> Trial:
    mine = [one for one in receiver.deliveries if one.path.endswith(f"?trial={number}")]
    told = Counter(one.id for one in mine)
    kinds = list({one.id: one.body["data"]["kind"] for one in mine}.values())
    problems = []
    if ended != 0 or waiting:
        problems.append(f"the last evaluation ended with {ended}, and {waiting} notices wait")
    if sorted(kinds) != ["firing", "resolved"]:
        problems.append(f"it was told of {kinds}")
    if not all(one.signed for one in mine):
        problems.append("a signature is wrong")
    if len(mine) - len(told) > in_doubt:
        problems.append(f"{len(mine)} deliveries of {len(told)} notices, with {in_doubt} in doubt")
    if counted != in_doubt:
        problems.append(f"{counted} in doubt by its own count, {in_doubt} by ours")
    if history != [["resolved", 2, 2]]:
        problems.append(f"the history is {history}")
    return Trial(number, died, in_doubt, told, kinds, problems)


def main(many: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = trials(Path(folder), 0, many)
    print(f"{sum(trial.died for trial in found)} kills in {len(found)} evaluators")
    print(f"{sum(trial.in_doubt for trial in found)} of them while a notice was on its way")
    for what, these in (("all", found), ("none in doubt", [one for one in found if not one.in_doubt])):
        notices = sum(len(trial.told) for trial in these)
        deliveries = sum(trial.told.total() for trial in these)
        print(f"{what}: {notices} notices, {deliveries} deliveries")
    problems = [f"trial {trial.number}: {problem}" for trial in found for problem in trial.problems]
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.kill_alerts", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("trials", type=int, nargs="?", default=100, help="number of trials (default: 100)")
    main(parser.parse_args().trials)
