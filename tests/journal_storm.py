"""Kills writers of one journal at random, while other processes read it and compete to complete open runs.

For a longer test than in the suite, run `python -m tests.journal_storm 60`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import select
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from stageflow import EventSink, JournalSink, Pipeline, Retry
from stageflow.events import FanoutEventSink
from stageflow.journal import Journal, JournalReader
from stageflow.observability import WideEventEmitter

sys.path.insert(0, str(Path(__file__).parent))
from oracle import check_record

WRITERS = 4
READERS = ("first", "second")


class Storm(NamedTuple):
    """What a storm left.

    Attributes:
        kills: How many writers were killed.
        acknowledged: How many events were acknowledged.
        crashed: How many runs were cut off.
        runs: How many runs there were.
        problems: What is wrong, a sentence each.
    """

    kills: int
    acknowledged: int
    crashed: int
    runs: int
    problems: list[str]


# ---------------------------------------------------------------- the processes


class Acknowledge(EventSink):
    """Says on standard output which events are safe."""

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        assert data is not None
        os.write(1, f"{data['event_id']}\n".encode())


def write(directory: str) -> None:
    """Run pipelines without end, in several runs at once."""
    dice = random.Random()

    async def step(ctx: Any) -> dict[str, Any]:
        await asyncio.sleep(dice.random() / 200)
        if dice.random() < 0.1:
            raise ConnectionError("now and then")
        ctx.emit_event("step.note", {"text": "x" * dice.randrange(3000)})
        return {}

    pipeline = Pipeline("storm").with_stage("a", step, retry=Retry(attempts=3, wait=0.001))
    for name, after in (("b", "a"), ("c", "a"), ("d", "b"), ("e", "c")):
        pipeline = pipeline.with_stage(name, step, dependencies=(after,))
    journal = JournalSink(directory, segment_bytes=128 << 10)
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(FanoutEventSink(journal, Acknowledge())),
    )

    async def one_after_the_other() -> None:
        while True:
            await graph.run()

    async def main() -> None:
        await asyncio.gather(*(one_after_the_other() for _ in range(4)))

    asyncio.run(main())


def asked_to_end() -> bool:
    """Return whether the storm has closed this process's standard input.

    Unlike a signal, which kills a process that has not installed its handler yet, a closed pipe can be
    noticed at any time afterwards.
    """
    return bool(select.select([0], [], [], 0)[0])


def read(directory: str, name: str) -> None:
    """Print and commit every event until asked to end; then read the rest."""
    with JournalReader(directory, name) as reader:
        while True:
            last = asked_to_end()
            entries = reader.read(500, timeout=0.05)
            for entry in entries:
                print(json.dumps([entry.type, entry.data()]))
            reader.commit()
            if last and not entries:
                break
        print(json.dumps(["counts", {"broken": reader.broken, "missed": reader.missed}]), flush=True)


def complete(directory: str) -> None:
    """Search for dead writers in a tight loop, and print the runs that this process completed."""
    journal = Journal(directory)
    while True:
        last = asked_to_end()
        for run in journal.recover():
            print(run, flush=True)
        if last:
            break


# ---------------------------------------------------------------- the storm


START_SECONDS = 60.0
"""Maximum time in seconds for a process to start or exit on a loaded machine."""


def start(*arguments: str, out: Any = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.journal_storm", *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1]
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process if it is still running, and release its pipes."""
    process.kill()
    process.communicate()


def storm(seconds: float, directory: Path, seed: int = 1) -> Storm:
    """Kill writers for a number of seconds, and compare the acknowledged events with the events read.

    The time starts when every writer has acknowledged an event: starting one takes seconds on a loaded
    machine.
    """
    dice = random.Random(seed)
    journal = directory / "journal"
    journal.mkdir()
    acknowledged: list[str] = []
    kills = 0
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((directory / name).open("w+b")) for name in (*READERS, "one", "two")]
        roles = [("read", str(journal), name) for name in READERS] + [("complete", str(journal))] * 2
        others = []
        for role, file in zip(roles, files, strict=True):
            others.append(start(*role, out=file))
            stack.callback(stop, others[-1])
        writers = selectors.DefaultSelector()
        stack.callback(writers.close)
        rest: dict[int, bytes] = {}
        silent: set[int] = set()

        def add_writer() -> None:
            process = start("write", str(journal))
            stack.callback(stop, process)
            assert process.stdout is not None
            fd = process.stdout.fileno()
            os.set_blocking(fd, False)
            rest[fd] = b""
            silent.add(fd)
            writers.register(process.stdout, selectors.EVENT_READ, process)

        def hear(timeout: float) -> None:
            for key, _ in writers.select(timeout):
                if text := os.read(key.fd, 1 << 16):
                    *lines, rest[key.fd] = (rest[key.fd] + text).split(b"\n")
                    acknowledged.extend(line.decode() for line in lines)
                else:  # the writer is dead, and all events that it acknowledged have arrived
                    writers.unregister(key.fileobj)
                    stop(key.data)
                silent.discard(key.fd)

        for _ in range(WRITERS):
            add_writer()
        until = time.monotonic() + START_SECONDS
        while silent:
            hear(1)
            assert time.monotonic() < until, (
                f"{len(silent)} writers acknowledged nothing in {START_SECONDS:g} s"
            )
        until = time.monotonic() + seconds
        next_kill = time.monotonic()
        while time.monotonic() < until:
            hear(0.02)
            if time.monotonic() >= next_kill:
                next_kill = time.monotonic() + dice.uniform(0.05, 0.7)
                dice.choice([key.data for key in writers.get_map().values()]).kill()
                kills += 1
            while len(writers.get_map()) < WRITERS:
                add_writer()
        for key in list(writers.get_map().values()):
            key.data.kill()
            kills += 1
        while writers.get_map():
            hear(1)
        # Readers last, after all runs have been completed: a reader exits at the first empty read.
        for process, role in reversed(list(zip(others, roles, strict=True))):
            if role[0] == "read":
                wait_until_completed(journal)
            _, errors = process.communicate(timeout=START_SECONDS)  # closes its standard input first
            assert process.returncode == 0, f"{role[0]} ended with {process.returncode}: {errors.decode()}"
        for file in files:
            file.seek(0)
        texts = [file.read().splitlines() for file in files]
    problems: list[str] = []
    outcomes: list[dict[str, str]] = []
    for name, lines in zip(READERS, texts, strict=False):
        found, more = judge(name, [json.loads(line) for line in lines], acknowledged)
        outcomes.append(found)
        problems += more
    if outcomes[0] != outcomes[1]:
        problems.append("the two readers saw different runs")
    completed = Counter(line for lines in texts[len(READERS) :] for line in lines)
    problems += [f"run {run!r} was completed {count} times" for run, count in completed.items() if count > 1]
    crashed = sum(outcome == "crashed" for outcome in outcomes[0].values())
    return Storm(kills, len(acknowledged), crashed, len(outcomes[0]), problems)


def wait_until_completed(journal: Path) -> None:
    """Wait until the runs of every writer are complete."""
    until = time.monotonic() + START_SECONDS
    while {writer.state for writer in Journal(journal).check().writers} - {"closed", "completed"}:
        assert time.monotonic() < until, f"runs are still incomplete after {START_SECONDS:g} s"
        time.sleep(0.05)


def judge(name: str, events: list[Any], acknowledged: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the outcome of each run that a reader saw, and what is wrong with what it saw."""
    _, counts = events.pop()
    problems = [f"{name}: {what} is {count}" for what, count in counts.items() if count]
    seen = Counter(data["event_id"] for _, data in events)
    problems += [f"{name}: {event} was read {count} times" for event, count in seen.items() if count > 1]
    problems += [
        f"{name}: {event} was acknowledged and not read" for event in set(acknowledged) - seen.keys()
    ]
    runs: dict[str, list[Any]] = {}
    for type, data in events:
        runs.setdefault(data["correlation_ids"]["pipeline_run_id"], []).append((type, data))
    outcomes = {}
    for run, of_run in runs.items():
        try:
            check_record(of_run, "abcde")
            (outcomes[run],) = [data["outcome"] for type, data in of_run if type == "pipeline.wide"]
        except (AssertionError, ValueError) as error:
            problems.append(f"{name}: the law does not hold for run {run}: {error!r}")
    return outcomes, problems


def main(seconds: float) -> int:
    seed = random.randrange(1 << 30)
    with tempfile.TemporaryDirectory() as directory:
        found = storm(seconds, Path(directory), seed)
    print(*found.problems[:20], sep="\n", end="\n" if found.problems else "")
    print(
        f"{seconds:g} s, {found.kills} writers killed: {found.acknowledged:,} events acknowledged,"
        f" {found.runs:,} runs, {found.crashed:,} of them crashed; {len(found.problems)} problems"
    )
    return 1 if found.problems else 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write", directory]:
            write(directory)
        case ["read", directory, name]:
            read(directory, name)
        case ["complete", directory]:
            complete(directory)
        case _:
            parser = argparse.ArgumentParser(
                prog="python -m tests.journal_storm",
                description=__doc__,
                formatter_class=argparse.RawTextHelpFormatter,
            )
            parser.add_argument(
                "seconds", type=float, nargs="?", default=10.0, help="duration in seconds (default: 10)"
            )
            sys.exit(main(parser.parse_args().seconds))
