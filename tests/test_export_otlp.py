"""`OtlpExporter`: spans and log records in both encodings, a collector, and partial successes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_receiver import Answer, ExportReceiver, Request
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.trace import TracerProvider
from otlp_collector import LOGS, TRACES, Collector, flat, protobuf_messages

from stageflow import JournalSink, Pipeline, PipelineContext, Retry, StageKind
from stageflow.errors import InvalidArgumentError
from stageflow.export import (
    DeadLetters,
    ExportRunner,
    ExportSettings,
    ExportState,
    OtlpExporter,
    export_status,
    exporter_for,
    resend,
)
from stageflow.integrations.opentelemetry import StageflowSpanProcessor
from stageflow.observability import WideEventEmitter

FAST = ExportSettings(batch_seconds=0.02, retry_first=0.02, retry_max=0.05, circuit_seconds=0.05)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    asyncio.run(record(tmp_path / "journal"))
    return tmp_path / "journal"


async def record(journal: Path) -> None:
    """Record a run that succeeds after a retry, and one that fails; with a custom event and an amendment."""
    sink = JournalSink(journal)
    contexts: list[Any] = []

    async def load(ctx: Any) -> dict[str, int]:
        contexts.append(ctx)
        ctx.annotate(hits=3, ratio=0.5, big=1 << 70, cached=True, nested={"a": [1]}, tags=["x", "y"])
        ctx.emit_event("cache.miss", {"key": "k"})
        if ctx.attempt == 1:
            raise ConnectionError("again")
        return {"n": 1}

    async def answer(ctx: Any) -> None:
        ctx.record_llm("gpt-5", provider="azure.ai.openai", output_tokens=5)
        if ctx.run.data["fail"]:
            raise ValueError("no answer")

    graph = (
        Pipeline("shop")
        .with_stage("load", load, retry=Retry(attempts=2, wait=0))
        .with_stage("answer", answer, StageKind.AGENT, dependencies=("load",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    for fail in (False, True):
        await graph.run(PipelineContext(user_id="u1", session_id="s1", service="web", data={"fail": fail}))
    for ctx in contexts[:2]:
        ctx.annotate(late=ctx.attempt)
    contexts[0].annotate_run(late=0)
    sink.try_emit(type="plain", data=None)
    sink.close()


def events_of(journal: Path) -> list[tuple[str, dict[str, Any]]]:
    return [
        (line["type"], line["data"] or {})
        for path in journal.glob("*.ndjson")
        for line in map(json.loads, path.read_bytes().splitlines())
        if "data" in line
    ]


def exported(journal: Path, exporter: OtlpExporter, settings: ExportSettings = FAST) -> ExportState:
    """Export everything that the journal contains now, also after failures."""
    runner = ExportRunner(journal, exporter, settings=settings)
    for _ in range(10):
        runner = ExportRunner(journal, exporter, settings=settings)
        runner.request_stop(60, drain=True)
        runner.run()
        if not runner.state.consecutive_failures:
            break
    return runner.state


@pytest.fixture
def messages(journal: Path) -> dict[str, list[dict[str, Any]]]:
    with ExportReceiver() as receiver:
        exported(journal, OtlpExporter(f"http://127.0.0.1:{receiver.port}"))
        return protobuf_messages(receiver.requests)


def test_runs_and_attempts_are_spans_with_the_ids_of_their_events(
    journal: Path, messages: dict[str, list[dict[str, Any]]]
) -> None:
    wide = [data for type, data in events_of(journal) if type.endswith(".wide")]
    spans = {span["spanId"]: span for span in messages[TRACES]}
    assert len(spans) == len(wide) == 2 * 4
    for data in wide:
        span = spans[data["trace"]["span_id"]]
        assert span["traceId"] == data["trace"]["trace_id"]
        assert span.get("parentSpanId") == data["trace"]["parent_span_id"]
        assert span["name"] == (data.get("stage_name") or data["pipeline_name"])
        ms = (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) / 1e6
        assert ms == pytest.approx(data["duration_ms"])
        assert span["resource"]["service.name"] == "web"
        assert span["resource"]["process.pid"] == data["resource"]["pid"]
        attributes = span["attributes"]
        assert attributes["stageflow.event_id"] == data["event_id"]
        assert (attributes["user.id"], attributes["session.id"]) == ("u1", "s1")
        code = {"OK": "STATUS_CODE_OK", "FAIL": "STATUS_CODE_ERROR", "RETRY": "STATUS_CODE_ERROR"}
        assert span["status"]["code"] == code[data["status"]]


def test_attributes_errors_and_dependencies_of_spans(messages: dict[str, list[dict[str, Any]]]) -> None:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for span in messages[TRACES]:
        by_name.setdefault(span["name"], []).append(span)
    retried, loaded = by_name["load"][:2]
    found = {key: loaded["attributes"][key] for key in ("hits", "ratio", "big", "cached", "nested", "tags")}
    assert found == {
        "hits": 3,
        "ratio": 0.5,
        "big": loaded["attributes"]["big"],
        "cached": True,
        "nested": '{"a":[1]}',
        "tags": ["x", "y"],
    }
    assert isinstance(found["big"], str)
    assert retried["attributes"]["exception.type"] == "ConnectionError"
    answered, failed = by_name["answer"]
    assert answered["links"] == [{"traceId": loaded["traceId"], "spanId": loaded["spanId"]}]
    assert answered["attributes"]["gen_ai.request.model"] == "gpt-5"
    assert failed["status"] == {"code": "STATUS_CODE_ERROR", "message": "ValueError: no answer"}
    assert failed["attributes"]["error.type"] == failed["attributes"]["exception.type"] == "ValueError"
    assert failed["attributes"]["exception.message"] == "no answer"
    assert "answer" in failed["attributes"]["exception.stacktrace"]


def test_amendments_are_part_of_the_spans(messages: dict[str, list[dict[str, Any]]]) -> None:
    assert [span["attributes"].get("late") for span in messages[TRACES]] == [1, 2, None, 0, *[None] * 4]
    assert {log["eventName"] for log in messages[LOGS]} == {"cache.miss", "plain"}


@pytest.fixture
def messages_without_delay(journal: Path) -> dict[str, list[dict[str, Any]]]:
    with ExportReceiver() as receiver:
        exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}")
        exporter.settle_seconds = 0
        exported(journal, exporter)
        return protobuf_messages(receiver.requests)


def test_custom_events_and_later_amendments_are_log_records(
    messages_without_delay: dict[str, list[dict[str, Any]]],
) -> None:
    messages = messages_without_delay
    logs = {}
    for log in messages[LOGS]:
        logs.setdefault(log["eventName"], []).append(log)
    assert {name: len(found) for name, found in logs.items()} == {
        "cache.miss": 4,
        "stageflow.amendment": 3,
        "plain": 1,
    }
    spans = {span["spanId"]: span for span in messages[TRACES]}
    for amendment, name, attempt in zip(
        logs["stageflow.amendment"], ("load", "load", "shop"), (1, 2, None), strict=True
    ):
        span = spans[amendment["spanId"]]
        assert (span["name"], span["attributes"].get("stageflow.attempt")) == (name, attempt)
        assert amendment["traceId"] == span["traceId"]
        assert amendment["attributes"]["late"] == (attempt or 0)
        assert amendment["attributes"]["stageflow.event_id"] == span["attributes"]["stageflow.event_id"]
    for log, attempt in zip(logs["cache.miss"], (1, 2, 1, 2), strict=True):
        span = spans[log["spanId"]]
        assert (span["name"], span["attributes"]["stageflow.attempt"]) == ("load", attempt)
        assert log["traceId"] == span["traceId"]
        assert log["attributes"]["key"] == "k"


def test_json_contains_the_same_as_protobuf(journal: Path, messages: dict[str, list[dict[str, Any]]]) -> None:
    with ExportReceiver() as receiver:
        exported(journal, OtlpExporter(f"http://127.0.0.1:{receiver.port}", encoding="json"))
        requests = receiver.requests
    assert {request.headers["content-type"] for request in requests} == {"application/json"}
    codes = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}
    for path in (TRACES, LOGS):
        found = [each for request in requests if request.path == path for each in flat(request.lines[0])]
        expected = messages[path]
        for each in expected:
            each.pop("kind", None)
            each.pop("severityNumber", None)
            if "status" in each:
                each["status"] = {"message": "", **each["status"], "code": codes[each["status"]["code"]]}
                each.setdefault("links", [])
        for each in found:
            assert (each.pop("kind", 1), each.pop("severityNumber", 9)) == (1, 9)
        timeless = [{**each, "timeUnixNano": 0, "observedTimeUnixNano": 0} for each in found]
        if path == LOGS:  # an event without a time has that of its export
            found, expected = (
                timeless,
                [{**each, "timeUnixNano": 0, "observedTimeUnixNano": 0} for each in expected],
            )
        assert found == expected


def test_openinference_kinds_are_added_on_request(journal: Path) -> None:
    with ExportReceiver() as receiver:
        exported(journal, OtlpExporter(f"http://127.0.0.1:{receiver.port}", openinference=True))
        found = protobuf_messages(receiver.requests)[TRACES]
    kinds = {span["name"]: span["attributes"]["openinference.span.kind"] for span in found}
    assert kinds == {"load": "CHAIN", "answer": "LLM", "shop": "CHAIN"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("1.37", {"gen_ai.provider.name": "azure.ai.openai"}),
        ("1.36", {"gen_ai.system": "az.ai.openai"}),
    ],
)
def test_version_of_the_genai_conventions(journal: Path, version: str, expected: dict[str, str]) -> None:
    with ExportReceiver() as receiver:
        exporter = exporter_for(f"otlp+http://127.0.0.1:{receiver.port}", genai=version)
        assert isinstance(exporter, OtlpExporter)
        exported(journal, exporter)
        found = [span for span in protobuf_messages(receiver.requests)[TRACES] if span["name"] == "answer"]
    for span in found:
        names = ("gen_ai.provider.name", "gen_ai.system")
        assert {name: span["attributes"][name] for name in names if name in span["attributes"]} == expected


def test_usage_of_models_is_in_the_spans_of_stages_and_with_a_prefix_in_those_of_runs(
    messages: dict[str, list[dict[str, Any]]],
) -> None:
    for span in messages[TRACES]:
        prefix = {"answer": "", "shop": "stageflow."}.get(span["name"])
        found = {name: value for name, value in span["attributes"].items() if "gen_ai.usage" in name}
        assert found == ({} if prefix is None else {f"{prefix}gen_ai.usage.output_tokens": 5})


async def test_usage_that_is_also_in_spans_of_calls_has_a_prefix(tmp_path: Path) -> None:
    provider = TracerProvider()
    provider.add_span_processor(StageflowSpanProcessor())

    async def answer(ctx: Any) -> None:
        usage = {"gen_ai.operation.name": "chat", "gen_ai.usage.output_tokens": 5}
        with provider.get_tracer("test").start_as_current_span("chat", attributes=usage):
            pass

    sink = JournalSink(tmp_path / "journal")
    graph = (
        Pipeline("p")
        .with_stage("answer", answer)
        .build(emit_stage_wide_events=True, wide_event_emitter=WideEventEmitter(sink))
    )
    await graph.run(PipelineContext())
    sink.close()
    provider.shutdown()
    with ExportReceiver() as receiver:
        exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}", openinference=True)
        await asyncio.to_thread(exported, tmp_path / "journal", exporter)
        (span,) = [each for each in protobuf_messages(receiver.requests)[TRACES] if each["name"] == "answer"]
    assert span["attributes"]["stageflow.gen_ai.usage.output_tokens"] == 5
    assert span["attributes"]["openinference.span.kind"] == "CHAIN"
    assert "gen_ai.usage.output_tokens" not in span["attributes"]


@pytest.mark.parametrize("fixture", ["messages", "messages_without_delay"])
def test_exporter_that_restarts_after_each_event_sends_the_same_spans_and_amendments(
    journal: Path, fixture: str, request: pytest.FixtureRequest
) -> None:
    messages = request.getfixturevalue(fixture)
    settings = ExportSettings(batch_events=1, batch_seconds=0.01)
    with ExportReceiver() as receiver:

        def export_one() -> None:
            exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}", name="one")
            if fixture == "messages_without_delay":
                exporter.settle_seconds = 0
            reads: list[int] = []

            def stop_after_one(state: ExportState) -> None:
                reads.append(state.counters.read)
                if reads[-1] > reads[0]:
                    runner.request_stop(10)

            runner = ExportRunner(journal, exporter, settings=settings, on_change=stop_after_one)
            runner.run()

        def state(*patterns: str) -> dict[Path, bytes]:
            paths = [path for pattern in patterns for path in journal.glob(pattern)]
            return {path: path.read_bytes() for path in paths if path.is_file()}

        export_one()
        for number, _ in enumerate(events_of(journal)[1:]):
            # As if the process was killed before it stored the position, or also before it stored the state.
            cursor = "cursors/export.one*"
            before = state(cursor, "export/one/*") if number % 2 else state(cursor)
            export_one()
            for path, content in before.items():
                path.write_bytes(content)
            export_one()
        found = protobuf_messages(receiver.requests)
    sent = {span["spanId"]: span for span in messages[TRACES]}
    assert len(found[TRACES]) > len(sent) == len({span["spanId"] for span in found[TRACES]})
    assert all(span == sent[span["spanId"]] for span in found[TRACES])
    amendments = [log for log in messages[LOGS] if log["eventName"] == "stageflow.amendment"]
    again = [log for log in found[LOGS] if log["eventName"] == "stageflow.amendment"]
    assert len(amendments) == (3 if fixture == "messages_without_delay" else 0)
    assert len(again) == 2 * len(amendments)
    assert all(log in amendments for log in again)
    (status,) = [each for each in export_status(journal) if each.name == "one"]
    assert (status.sent, status.lag_events) == (len(events_of(journal)), 0)


@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_spans_and_logs_pass_through_a_collector(
    journal: Path,
    messages: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    encoding: str,
) -> None:
    with ExportReceiver(lambda request: Answer(200)) as receiver, Collector(tmp_path, receiver) as url:
        runner = ExportRunner(journal, OtlpExporter(url, encoding=encoding), settings=FAST)

        def spans() -> list[dict[str, Any]]:
            return protobuf_messages(receiver.requests)[TRACES]

        def logs() -> list[dict[str, Any]]:
            return protobuf_messages(receiver.requests)[LOGS]

        with runner:  # retries until the collector has started
            receiver.wait(lambda: len(spans()) >= 8 and len(logs()) >= 5)
        key = lambda span: span["spanId"]  # noqa: E731
        found = sorted(spans(), key=key)
        for mine, expected in zip(found, sorted(messages[TRACES], key=key), strict=True):
            for name in ("traceId", "parentSpanId", "name", "attributes", "status", "startTimeUnixNano"):
                assert mine.get(name) == expected.get(name), name


# ------------------------------------------------------------ failures


def test_log_records_alone_are_sent_again(journal: Path) -> None:
    logs = iter([Answer(503), Answer(503), Answer(200)])
    with ExportReceiver(lambda request: next(logs) if request.path == LOGS else Answer()) as receiver:
        exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}")
        state = exported(journal, exporter)
        paths = [request.path for request in receiver.requests]
    assert paths == [TRACES, LOGS, LOGS, LOGS]
    assert (state.counters.rejected, state.failures) == (0, 2)


def rejects(count: int) -> Callable[[Request], Answer]:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = count
    response.partial_success.error_message = "span too old"
    body = response.SerializeToString()
    return lambda request: Answer(200, body if request.path == TRACES else b"")


def test_events_rejected_by_a_partial_success_are_counted_and_not_sent_again(journal: Path) -> None:
    with ExportReceiver(rejects(3)) as receiver:
        state = exported(journal, OtlpExporter(f"http://127.0.0.1:{receiver.port}", name="tempo"))
        assert len(receiver.requests) == 2
    total = len(events_of(journal))
    assert (state.counters.read, state.counters.sent, state.counters.rejected) == (total, total - 3, 3)
    assert state.last_error == "the target rejected 3 unnamed events: span too old"
    (status,) = export_status(journal)
    assert (status.rejected, status.waiting, status.failures) == (3, 0, 0)


def test_event_rejected_alone_is_written_to_the_dead_letter_file(journal: Path) -> None:
    settings = ExportSettings(batch_events=1)
    with ExportReceiver(rejects(1)) as receiver:
        exporter = OtlpExporter(f"http://127.0.0.1:{receiver.port}", name="tempo")
        state = exported(journal, exporter, settings)
        letters = [*DeadLetters(str(journal / "export" / "tempo" / "rejected"))]
        assert {letter.reason for letter in letters} == {"span too old"}
        assert {letter.type for letter in letters} == {"stage.wide", "pipeline.wide"}
        assert state.counters.rejected == len(letters) == 8
        settings = ExportSettings(batch_bytes=1)  # one event per batch
        again = resend(
            journal, OtlpExporter(f"http://127.0.0.1:{receiver.port}", name="tempo"), settings=settings
        )
    assert (again.sent, again.rejected, again.left) == (0, 8, 0)
    assert len([*DeadLetters(str(journal / "export" / "tempo" / "rejected"))]) == 8


def test_resend_finds_the_events_that_a_partial_success_does_not_identify(journal: Path) -> None:
    def rejects_answers(request: Request) -> Answer:
        names = [span["name"] for span in protobuf_messages([request])[TRACES]]
        return rejects(names.count("answer"))(request)

    with ExportReceiver(lambda request: Answer(400 if request.path == TRACES else 200)) as receiver:
        url = f"http://127.0.0.1:{receiver.port}"
        state = exported(journal, OtlpExporter(url, name="tempo"))
        assert (state.counters.rejected, state.counters.batches) == (8, 1)
        receiver.answer = rejects_answers
        again = resend(journal, OtlpExporter(url, name="tempo"))
    assert (again.sent, again.rejected, again.left) == (6, 2, 0)
    letters = [*DeadLetters(str(journal / "export" / "tempo" / "rejected"))]
    assert [json.loads(bytes(letter.data))["stage_name"] for letter in letters] == ["answer", "answer"]
    assert {letter.reason for letter in letters} == {"span too old"}


@pytest.mark.parametrize("body", [b"\xff\xff", b"ok", b'{"partialSuccess":{"rejectedSpans":"x"}}'])
@pytest.mark.parametrize("encoding", ["protobuf", "json"])
def test_response_in_another_format_accepts_the_batch(journal: Path, body: bytes, encoding: str) -> None:
    with ExportReceiver(lambda request: Answer(200, body)) as receiver:
        url = f"http://127.0.0.1:{receiver.port}"
        state = exported(journal, OtlpExporter(url, encoding=encoding))
    assert (state.counters.rejected, state.failures) == (0, 0)


# ------------------------------------------------------------ configuration


def test_variables_of_opentelemetry_are_the_default(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExportReceiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}/base/")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")
        exporter = exporter_for("otlp:")
        assert isinstance(exporter, OtlpExporter)
        exported(journal, exporter)
        assert {request.path for request in receiver.requests} == {"/base/v1/traces", "/base/v1/logs"}
        assert {request.headers["x-key"] for request in receiver.requests} == {"a b"}
        assert {request.headers["content-type"] for request in receiver.requests} == {"application/json"}


def test_backend_without_log_records_receives_spans_only(journal: Path) -> None:
    with ExportReceiver() as receiver:
        exporter = exporter_for(f"otlp+http://127.0.0.1:{receiver.port}", logs=False)
        assert isinstance(exporter, OtlpExporter)
        exported(journal, exporter)
        assert {request.path for request in receiver.requests} == {TRACES}


def test_invalid_arguments_raise_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match="requires a URL, or the environment variable OTEL_EXP"):
        OtlpExporter()
    with pytest.raises(InvalidArgumentError, match='encoding must be "protobuf" or "json", got \'xml\''):
        OtlpExporter("http://host", encoding="xml")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(InvalidArgumentError, match='encoding must be "protobuf" or "json", got \'grpc\''):
        OtlpExporter("http://host")
