"""Kills exporters, writers and the server of a target at random, and counts what arrived.

A command too, for a longer trial than the suite has time for: `python -m tests.export_storm nats 60`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# Under `python -m tests.export_storm` the folder is not where modules are looked for.
sys.path.insert(0, str(Path(__file__).parent))

from export_receiver import ExportReceiver
from postgres_server import postgres_server

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

async def main():
    for _ in range(int(sys.argv[2])):
        await graph.run()
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""

EXPORTER = """
import sys
from stageflow.export import ExportRunner, ExportSettings, exporter_for

settings = ExportSettings(
    batch_events=100, batch_seconds=0.05, retry_first=0.05, retry_max=0.2, circuit_seconds=0.2
)
ExportRunner(sys.argv[1], exporter_for(sys.argv[2], name="storm"), settings=settings).run()
"""

Accepted = list[tuple[str, int, str]]
"""The id, the revision and the run of each event that a target has, in its order."""


class Target(Protocol):
    """A server that a storm exports to.

    Attributes:
        url: The URL of the exporter.
        has_duplicates: Whether an event that is sent again is stored again.
    """

    url: str
    has_duplicates: bool

    def interrupt(self, seconds: float) -> None:
        """Kill the server or its connections, and start it again after some time."""
        ...

    def accepted(self) -> Accepted:
        """Return what the target has."""
        ...

    def content(self) -> bytes:
        """Return the content of everything that the target has."""
        ...

    def close(self) -> None:
        """Stop the server."""
        ...


class HttpTarget:
    """An HTTP receiver."""

    has_duplicates = True

    def __init__(self, folder: Path) -> None:
        self._receivers = [ExportReceiver()]
        self.url = self._receivers[0].url

    def interrupt(self, seconds: float) -> None:
        self._receivers[-1].close()
        threading.Event().wait(seconds)
        self._receivers.append(ExportReceiver(port=self._receivers[0].port))

    def accepted(self) -> Accepted:
        return [_key(line) for receiver in self._receivers for line in receiver.accepted]

    def content(self) -> bytes:
        return b"".join(request.content for each in self._receivers for request in each.requests)

    def close(self) -> None:
        self._receivers[-1].close()


class NatsTarget:
    """A NATS server, which is killed. It drops events that are sent again."""

    has_duplicates = False

    def __init__(self, folder: Path) -> None:
        from test_export_brokers import NatsServer

        self._server = NatsServer(folder / "jetstream")
        self.url = self._server.url

    def interrupt(self, seconds: float) -> None:
        self._server.kill()
        threading.Event().wait(seconds)
        self._server.start()

    def accepted(self) -> Accepted:
        return [_key(content) for _, content in self._server.messages()]

    def content(self) -> bytes:
        return json.dumps(self._server.messages()).encode()

    def close(self) -> None:
        self._server.kill()


class KafkaTarget:
    """A broker that keeps its data in memory, so only exporters and writers are killed."""

    has_duplicates = True

    def __init__(self, folder: Path) -> None:
        from test_export_brokers import new_topic, start_broker

        self._process, self._address = start_broker()
        self._topic = new_topic(self._address)
        self.url = f"kafka://{self._address}/{self._topic}"

    def interrupt(self, seconds: float) -> None:
        pass

    def accepted(self) -> Accepted:
        return [_key(json.loads(value)) for value in self._values()]

    def content(self) -> bytes:
        return b"\n".join(self._values())

    def _values(self) -> list[bytes]:
        from test_export_brokers import consumed

        found = consumed(self._address, self._topic, 1)
        # All events of a run are in one partition.
        found.sort(key=lambda message: (message.partition(), message.offset()))
        return [message.value() for message in found]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


_TERMINATE = """
select pg_terminate_backend(pid) from pg_stat_activity
where pid <> pg_backend_pid() and backend_type = 'client backend'
"""


class PostgresTarget:
    """A PostgreSQL server whose connections are terminated. It ignores events that are sent again."""

    has_duplicates = False

    def __init__(self, folder: Path) -> None:
        self._server = contextlib.ExitStack()
        self.url = self._server.enter_context(postgres_server())

    def interrupt(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._query(_TERMINATE)
            threading.Event().wait(0.05)

    def accepted(self) -> Accepted:
        return self._query("select event_id, revision, run_id from stageflow.events order by number")

    def content(self) -> bytes:
        rows = self._query("select events::text from stageflow.events")
        return "\n".join(row for (row,) in rows).encode()

    def _query(self, sql: Any) -> Any:
        import psycopg

        with psycopg.connect(self.url) as connection:
            return connection.execute(sql).fetchall()

    def close(self) -> None:
        self._server.close()


TARGETS: dict[str, Callable[[Path], Target]] = {
    "http": HttpTarget,
    "kafka": KafkaTarget,
    "nats": NatsTarget,
    "postgres": PostgresTarget,
}


def _key(line: dict[str, Any]) -> tuple[str, int, str]:
    return line["event_id"], line["revision"], line["data"]["correlation_ids"]["pipeline_run_id"]


class Storm(NamedTuple):
    """What happened.

    Attributes:
        written: Events in the journal.
        accepted: Events that the receiver accepted, with duplicates.
        distinct: Distinct events among them.
        killed: Kills of exporters, of writers, and of the server.
        memory_mb: The largest resident memory of an exporter, in MB.
        problems: What is wrong, a sentence each.
    """

    written: int
    accepted: int
    distinct: int
    killed: Counter[str]
    memory_mb: float
    problems: list[str]


def storm(folder: Path, seconds: float, runs: int, target: str = "http", seed: int = 1) -> Storm:
    """Write runs in three processes, export with two, and kill any of them, and the server, at random."""
    journal, dice, killed = folder / "journal", random.Random(seed), Counter[str]()
    journal.mkdir(mode=0o700)
    server = TARGETS[target](folder)
    try:
        memory = _kill(journal, server, dice, killed, seconds, runs)
        Journal(journal).recover()
        settings = ExportSettings(batch_seconds=0.01, retry_first=0.05)
        runner = ExportRunner(journal, exporter_for(server.url, name="storm"), settings=settings)
        runner.request_stop(300, drain=True)
        runner.run()
        accepted = server.accepted()
    finally:
        server.close()
    return _judged(journal, server, accepted, killed, memory)


def _kill(
    journal: Path, server: Target, dice: random.Random, killed: Counter[str], seconds: float, runs: int
) -> float:
    """Run and kill processes for some time; return the largest resident memory of an exporter, in MB."""

    def start(script: str, argument: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-c", script, str(journal), argument],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    writers = [start(WRITER, str(runs)) for _ in range(3)]
    exporters = [start(EXPORTER, server.url) for _ in range(2)]
    memory = 0.0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        threading.Event().wait(dice.uniform(0.05, 0.5) if seconds < 30 else dice.uniform(0.2, 2.0))
        memory = max(memory, *(memory_mb(process.pid) for process in exporters))
        which = dice.choices(["exporter", "writer", "server"], [6, 2, 1])[0]
        killed[which] += 1
        if which == "server":
            server.interrupt(dice.uniform(0, 0.5))
            continue
        processes = exporters if which == "exporter" else writers
        index = dice.randrange(len(processes))
        processes[index].kill()
        processes[index].wait()
        script, argument = (EXPORTER, server.url) if which == "exporter" else (WRITER, str(runs))
        processes[index] = start(script, argument)
    for process in writers:
        process.wait()
    for process in exporters:
        process.kill()
        process.wait()
    return memory


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB; 0 if it is unknown."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # not Linux, or the process has ended
        return 0.0
    return sum(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def _judged(
    journal: Path, server: Target, accepted: Accepted, killed: Counter[str], memory_mb: float
) -> Storm:
    written = [json.loads(entry.json) for entry in JournalReader(journal)]
    wanted = {data["event_id"] for data in written}
    first = list(dict.fromkeys(accepted))  # the first delivery of each event
    found = {event_id for event_id, _, _ in first}
    problems = []
    if lost := wanted - found:
        problems.append(f"{len(lost)} of {len(wanted)} events are missing, such as {sorted(lost)[0]}")
    if strange := found - wanted:
        problems.append(f"{len(strange)} events are not in the journal, such as {sorted(strange)[0]}")
    if len(accepted) != len(first) and not server.has_duplicates:
        problems.append(f"{len(accepted) - len(first)} events are stored twice")
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
    return Storm(len(written), len(accepted), len(found), killed, memory_mb, problems)


def main(target: str, seconds: float, runs: int) -> None:
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
