"""Exporters with `settle_seconds`: amendments are part of their events, once, also after a restart."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from export_receiver import Answer, ExportReceiver, Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from otlp_collector import LOGS, TRACES, protobuf_messages
from test_sampling import lines_of
from typer.testing import CliRunner

from stageflow import JournalSink, Pipeline
from stageflow.cli._app import app
from stageflow.errors import InvalidArgumentError
from stageflow.export import (
    Batch,
    DeadLetters,
    Exporter,
    ExportRunner,
    ExportSettings,
    ExportState,
    ExportStatus,
    OtlpExporter,
    Sent,
    export_status,
    resend,
)
from stageflow.journal._segments import new_writer, segment_name
from stageflow.observability import WideEventEmitter
from stageflow.store import TailSampler

FAST = ExportSettings(batch_seconds=0.01, retry_first=0.02, retry_max=0.05, circuit_seconds=0.05)
NEVER = 1e6


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.mkdir()
    return path


def otlp(receiver: ExportReceiver, settle_seconds: float = 2.0) -> OtlpExporter:
    exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}", name="tempo")
    exporter.settle_seconds = settle_seconds
    return exporter


def exported(
    journal: Path, exporter: Exporter, settings: ExportSettings = FAST, **options: Any
) -> ExportState:
    """Export what the journal contains now."""
    runner = ExportRunner(journal, exporter, settings=settings, **options)
    runner.request_stop(30, drain=True)
    runner.run()
    return runner.state


def status(journal: Path) -> ExportStatus:
    (found,) = export_status(journal)
    return found


def spans(receiver: ExportReceiver) -> list[tuple[str, Any]]:
    """Return the name of each span, and its attribute `late`."""
    found = protobuf_messages(receiver.requests)[TRACES]
    return [(span["name"], span["attributes"].get("late")) for span in found]


def amendments(receiver: ExportReceiver) -> list[Any]:
    """Return the attribute `late` of each log record of an amendment."""
    found = protobuf_messages(receiver.requests)[LOGS]
    return [log["attributes"]["late"] for log in found if log["eventName"] == "stageflow.amendment"]


def at(seconds: float) -> str:
    """Return the time that lies some seconds after an hour ago."""
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    return (moment + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now(seconds: float = 0.0) -> str:
    return at(3600 + seconds)


def stage(name: str, ended_at: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "stage.wide",
        "data": {
            "event_id": f"r/{name}/1",
            "stage_name": name,
            "status": "OK",
            "attempt": 1,
            "started_at": ended_at,
            "ended_at": ended_at,
            "correlation_ids": {"pipeline_run_id": "r"},
            **fields,
        },
    }


def amendment(name: str, amended_at: str, late: Any) -> dict[str, Any]:
    return {
        "type": "stage.wide.amend",
        "data": {
            "event_id": f"r/{name}/1",
            "amended_at": amended_at,
            "attributes": {"late": late},
            "redacted": 1,
            "truncated": [f"attributes.late.{late}"],
            "stage_name": name,
            "correlation_ids": {"pipeline_run_id": "r"},
        },
    }


def opened(journal: Path, **options: Any) -> closing[JournalSink]:
    return closing(JournalSink(journal, **options))


def emit(sink: JournalSink, *events: dict[str, Any]) -> None:
    for event in events:
        assert sink.try_emit(**event)


# ------------------------------------------------------------ what is merged


def test_amendment_within_the_time_is_part_of_the_span_and_a_later_one_is_a_log_record(
    journal: Path,
) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        attributes = {"kept": 1 << 60, "late": "before"}
        emit(sink, stage("a", at(0), attributes=attributes, redacted=2, truncated=["x"]))
        emit(sink, amendment("a", at(1), "first"), stage("b", at(1)))
        emit(sink, amendment("a", at(2), "second"), amendment("a", at(2.001), "third"))
        state = exported(journal, otlp(receiver))
        assert spans(receiver) == [("a", "second"), ("b", None)]
        assert amendments(receiver) == ["third"]
        (first, _) = protobuf_messages(receiver.requests)[TRACES]
        assert first["attributes"]["kept"] == 1 << 60
        assert first["attributes"]["stageflow.redacted"] == 4
        assert first["attributes"]["stageflow.truncated"] == [
            "x",
            "attributes.late.first",
            "attributes.late.second",
        ]
    assert (state.counters.read, state.counters.sent, state.counters.rejected) == (5, 5, 0)
    assert state.merged == {}


def test_amendment_in_a_later_segment_is_merged(journal: Path) -> None:
    with ExportReceiver() as receiver:
        # A segment is larger than what is read at once.
        with opened(journal, segment_bytes=6 << 20) as sink:
            emit(sink, stage("a", at(0)))
            for number in range(14):
                emit(sink, {"type": "large", "data": {"number": number, "text": "x" * 1_000_000}})
            emit(sink, amendment("a", at(1), "first"), stage("b", at(9)), amendment("a", at(9), "second"))
        assert len([*journal.glob("*.ndjson")]) > 2
        state = exported(journal, otlp(receiver))
        assert spans(receiver) == [("a", "first"), ("b", None)]
        assert amendments(receiver) == ["second"]
    assert (state.counters.read, state.counters.sent) == (18, 18)
    assert state.counters.batches > 10


def test_amendment_of_an_event_that_was_sent_before_is_a_log_record(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("a", at(0)))
        exported(journal, otlp(receiver))
        emit(sink, amendment("a", at(1), "written late"))
        state = exported(journal, otlp(receiver))
        assert spans(receiver) == [("a", None)]
        assert amendments(receiver) == ["written late"]
    assert (state.counters.read, state.counters.sent) == (2, 2)


def test_exporter_without_a_delay_sends_amendments_separately(journal: Path) -> None:
    class Collected(Exporter):
        name = "collected"

        def __init__(self) -> None:
            self.types: list[str] = []

        async def send(self, batch: Batch) -> Sent:
            self.types += [event.type for event in batch.events]
            return Sent()

    with opened(journal) as sink:
        emit(sink, stage("a", now()), amendment("a", now(), 1))
        exporter = Collected()
        exported(journal, exporter)
    assert exporter.types == ["stage.wide", "stage.wide.amend"]


def test_amendments_of_runs_that_are_not_kept_are_counted_as_sampled_out(journal: Path) -> None:
    with opened(journal) as sink:
        for number in range(40):
            (line,) = lines_of(number, {})
            event = json.loads(line)
            ids = {name: event["data"][name] for name in ("event_id", "correlation_ids")}
            late = {**ids, "amended_at": event["data"]["ended_at"], "attributes": {"late": 1}}
            emit(sink, event, {"type": "pipeline.wide.amend", "data": late})
    with ExportReceiver() as receiver:
        sampler = TailSampler(first_of_a_kind=False, one_in=4)
        state = exported(journal, otlp(receiver), sampler=sampler)
        found = spans(receiver)
        assert {late for _, late in found} == {1}
        assert amendments(receiver) == []
    counters = state.counters
    assert 0 < len(found) < 40
    assert (counters.read, counters.sent) == (80, 2 * len(found))
    assert counters.sampled_out == 80 - counters.sent


def test_undecided_run_waits_after_its_events_have_settled(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("a", now(-10)))
        state = exported(journal, otlp(receiver, 0.05), sampler=TailSampler(one_in=1))
        assert spans(receiver) == []
    assert state.counters.read == 0


# ------------------------------------------------------------ how long an event waits


def test_event_waits_until_its_writer_is_closed_while_those_of_another_writer_are_sent(
    journal: Path,
) -> None:
    with ExportReceiver() as receiver, opened(journal) as first:
        emit(first, stage("a", now()))
        with opened(journal) as second:
            emit(second, stage("b", now()))
        with ExportRunner(journal, otlp(receiver, NEVER), settings=FAST):
            receiver.wait(lambda: len(spans(receiver)) == 1)
        found = status(journal)
        assert (found.lag_events, found.lag_seconds) == (1, 0)
        with ExportRunner(journal, otlp(receiver, NEVER), settings=FAST):
            emit(first, amendment("a", now(), 1))
            first.close()
            receiver.wait(lambda: len(spans(receiver)) == 2)
        assert spans(receiver) == [("b", None), ("a", 1)]
        assert amendments(receiver) == []


def test_event_is_sent_after_the_time_while_its_writer_is_open(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("old", at(0)))
        began = time.time()
        emit(sink, stage("new", now(0.999)))
        with ExportRunner(journal, otlp(receiver, 0.2), settings=FAST):
            receiver.wait(lambda: len(spans(receiver)) == 2)
        assert time.time() - began >= 0.2
        assert spans(receiver) == [("old", None), ("new", None)]


def test_event_with_a_time_in_the_future_does_not_wait_longer(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("future", now(86_400)), amendment("future", now(86_400), 1), stage("b", now()))
        with ExportRunner(journal, otlp(receiver, 0.2), settings=FAST):
            receiver.wait(lambda: len(spans(receiver)) == 2)
        assert spans(receiver) == [("future", 1), ("b", None)]


def write_segments(journal: Path, *segments: list[dict[str, Any]]) -> list[Path]:
    """Write the segments of a writer that did not close."""
    writer = new_writer()
    paths = [journal / segment_name(writer, number) for number, _ in enumerate(segments, 1)]
    for path, events in zip(paths, segments, strict=True):
        path.write_text("".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events))
    return paths


def test_events_before_an_unreadable_segment_are_sent(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, damaged = write_segments(journal, [stage("a", at(0)), amendment("a", at(1), 1)], [stage("b", at(0))])
    real = os.pread

    def pread(fd: int, *arguments: int) -> bytes:
        if os.path.samestat(os.fstat(fd), os.stat(damaged)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, *arguments)

    with ExportReceiver() as receiver, ExportRunner(journal, otlp(receiver), settings=FAST):
        with monkeypatch.context() as patch:
            patch.setattr("stageflow.journal._segments.os.pread", pread)
            receiver.wait(lambda: spans(receiver) == [("a", 1)])
        receiver.wait(lambda: spans(receiver) == [("a", 1), ("b", None)])


def test_event_is_sent_before_all_custom_events_after_it_are_searched(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    custom = {"type": "custom", "data": {"text": "x" * (1 << 20)}}
    write_segments(journal, [stage("a", now()), *[custom] * 48], [custom] * 48)
    real, read = os.pread, [0]
    read_at_first_batch = []

    def pread(*arguments: int) -> bytes:
        content = real(*arguments)
        read[0] += len(content)
        return content

    class Target(Exporter):
        name = "target"
        settle_seconds = 60.0

        async def send(self, batch: Batch) -> Sent:
            read_at_first_batch.append(read[0])
            return Sent()

    monkeypatch.setattr("stageflow.journal._segments.os.pread", pread)
    runner = ExportRunner(journal, Target(), settings=FAST)
    runner.request_stop(30, drain=True)
    runner.run()
    assert runner.state.counters.sent >= 97
    assert read_at_first_batch[0] < 64 << 20


def test_stop_waits_for_amendments(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("a", now()), amendment("a", now(), 1))
        runner = ExportRunner(journal, otlp(receiver, 0.2), settings=FAST).start()
        assert runner.stop(30, drain=True)
        assert spans(receiver) == [("a", 1)]
    assert (runner.state.counters.read, status(journal).lag_events) == (2, 0)


def test_stop_ends_at_its_limit_and_the_next_start_sends_the_rest(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("a", at(0)), amendment("a", at(1), 1), stage("b", now()), amendment("b", now(), 2))
        began = time.monotonic()
        runner = ExportRunner(journal, otlp(receiver, 1800), settings=FAST).start()
        assert runner.stop(0.5, drain=True)
        assert time.monotonic() - began < 5
        assert spans(receiver) == [("a", 1)]
        assert (runner.state.counters.read, status(journal).lag_events) == (2, 2)
        sink.close()
        state = exported(journal, otlp(receiver, 1800))
        assert spans(receiver) == [("a", 1), ("b", 2)]
        assert amendments(receiver) == []
    assert (state.counters.read, state.counters.sent, status(journal).lag_events) == (4, 4, 0)


def test_stop_without_drain_does_not_wait(journal: Path) -> None:
    with ExportReceiver() as receiver, opened(journal) as sink:
        emit(sink, stage("a", at(0)), stage("b", now()))
        runner = ExportRunner(journal, otlp(receiver, 1800), settings=FAST).start()
        receiver.wait(lambda: len(spans(receiver)) == 1)
        began = time.monotonic()
        assert runner.stop(30)
        assert time.monotonic() - began < 5
        assert spans(receiver) == [("a", None)]
    assert status(journal).lag_events == 1


# ------------------------------------------------------------ runs and crashes


def test_late_fields_of_stages_and_runs_are_in_their_spans(journal: Path) -> None:
    contexts: list[Any] = []

    async def a(ctx: Any) -> None:
        contexts.append(ctx)
        ctx.annotate(late="too early")

    with ExportReceiver() as receiver, opened(journal) as sink:
        graph = (
            Pipeline("p")
            .with_stage("a", a)
            .build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(sink),
            )
        )
        with ExportRunner(journal, otlp(receiver, NEVER), settings=FAST):
            asyncio.run(graph.run())
            contexts[0].annotate(late="stage")
            contexts[0].annotate_run(late="run")
            sink.close()
            receiver.wait(lambda: len(spans(receiver)) == 2)
        assert spans(receiver) == [("a", "stage"), ("p", "run")]
        assert amendments(receiver) == []


KILLED = """
import asyncio, os, signal, sys, stageflow
from stageflow import Pipeline

contexts = []

async def a(ctx):
    contexts.append(ctx)

async def b(ctx):
    contexts[0].annotate(late="stage")
    os.kill(os.getpid(), signal.SIGKILL)

stageflow.configure(journal=sys.argv[1], health_seconds=None)
asyncio.run(Pipeline("p").with_stage("a", a).with_stage("b", b, dependencies=("a",)).run())
"""


def test_spans_of_a_process_that_was_killed_are_sent_at_once_with_their_amendments(
    program: Callable[[str], Program], journal: Path
) -> None:
    program(KILLED).process.wait()
    with ExportReceiver() as receiver:
        with ExportRunner(journal, otlp(receiver, NEVER), settings=FAST):
            receiver.wait(lambda: len(spans(receiver)) == 3)
        assert spans(receiver) == [("a", "stage"), ("b", None), ("p", None)]
        assert amendments(receiver) == []


# ------------------------------------------------------------ failures


def test_rejected_event_is_kept_and_resent_with_its_amendments(journal: Path) -> None:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = 1
    body = [response.SerializeToString()]

    def answer(request: Request) -> Answer:
        return Answer(200, body[0] if request.path == TRACES else b"")

    with ExportReceiver(answer) as receiver:
        with opened(journal) as sink:
            emit(sink, stage("a", at(0)), amendment("a", at(1), 1))
        state = exported(journal, otlp(receiver))
        assert (state.counters.read, state.counters.sent, state.counters.rejected) == (2, 1, 1)
        (letter,) = DeadLetters(str(journal / "export" / "tempo" / "rejected"))
        assert json.loads(bytes(letter.data))["attributes"] == {"late": 1}
        body[0] = b""
        again = resend(journal, otlp(receiver))
        assert (again.sent, again.rejected, again.left) == (1, 0, 0)
        assert spans(receiver) == [("a", 1), ("a", 1)]
        assert amendments(receiver) == []


def test_amendments_of_a_batch_that_is_not_accepted_are_merged_when_it_is_sent_again(journal: Path) -> None:
    answers = iter([Answer(503), Answer(503), Answer(200)])
    sent = threading.Event()

    def answer(request: Request) -> Answer:
        sent.set()
        return next(answers)

    with ExportReceiver(answer) as receiver:
        with opened(journal) as sink:
            emit(sink, stage("a", at(0)), amendment("a", at(1), 1))
        with ExportRunner(journal, otlp(receiver), settings=FAST):
            assert sent.wait(30)
        state = exported(journal, otlp(receiver))
        while state.consecutive_failures:
            state = exported(journal, otlp(receiver))
        assert spans(receiver) == [("a", 1)] * 3
        assert amendments(receiver) == []
    assert (state.counters.read, state.counters.sent) == (2, 2)


def test_settle_seconds_of_a_target_in_pyproject(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(journal.parent)
    command = ["export", "run", "--once"]
    with ExportReceiver() as receiver, opened(journal) as sink:
        target = f'url = "otlp+http://127.0.0.1:{receiver.port}", settle_seconds'
        Path("pyproject.toml").write_text(f"[tool.stageflow]\nexport = [{{ {target} = 0 }}]\n")
        emit(sink, stage("a", now()), amendment("a", now(), 1))
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert (spans(receiver), amendments(receiver)) == ([("a", None)], [1])
    Path("pyproject.toml").write_text(f"[tool.stageflow]\nexport = [{{ {target} = -1 }}]\n")
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 2
    assert "settle_seconds must be a finite number, 0 or more, got -1" in done.stderr


@pytest.mark.parametrize("seconds", [-1, float("inf"), float("nan"), "2"])
def test_invalid_settle_seconds_are_refused(journal: Path, seconds: Any) -> None:
    with ExportReceiver() as receiver:
        exporter = otlp(receiver)
        exporter.settle_seconds = seconds
        with pytest.raises(InvalidArgumentError, match="settle_seconds"):
            ExportRunner(journal, exporter)
