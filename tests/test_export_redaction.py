"""Tests that no secret reaches a target of an export, its dead letters, its status or a log."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from export_receiver import Answer, ExportReceiver
from export_storm import TARGETS
from test_redaction_formats import ANY, WORDS

from stageflow import JournalSink, Pipeline, PipelineContext
from stageflow.export import ExportRunner, ExportSettings, ExportState, export_status, exporter_for
from stageflow.observability import WideEventEmitter

FAST = ExportSettings(batch_seconds=0.01, retry_first=0.05, retry_max=0.1, circuit_seconds=0.1)
SECRET = "Zq7Xk2Lm9Pw4"
BEARER = "hunter2hunter2hunter2hunter2"
TEXTS = {f"text {name}": form(SECRET) for name, form in (ANY | WORDS).items()}


async def record(journal: Path) -> None:
    """Record runs whose fields, errors and custom events contain a secret in every known format."""
    sink = JournalSink(journal)

    async def annotates(ctx: Any) -> None:
        ctx.annotate({**TEXTS, "password": SECRET, "url": f"https://me:{SECRET}@host/?api_key={SECRET}"})
        ctx.annotate_run(headers={"Authorization": f"Bearer {BEARER}"}, nested={"db": {"password": SECRET}})
        ctx.emit_event("config.loaded", {"token": SECRET, "lines": list(TEXTS.values())})

    def fails(text: str) -> Callable[[Any], Any]:
        async def stage(ctx: Any) -> None:
            try:
                raise ConnectionError(f"Authorization: Bearer {BEARER}")
            except ConnectionError as error:
                raise ValueError(text) from error

        return stage

    pipeline = Pipeline("p").with_stage("annotates", annotates)
    for number, text in enumerate(TEXTS.values()):
        pipeline = pipeline.with_stage(f"fails{number}", fails(text), optional=True)
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )
    results = await graph.run(PipelineContext(user_id="u1"))
    assert results.status.name == "OK"
    sink.close()


def exported(journal: Path, url: str) -> int:
    runner = ExportRunner(journal, exporter_for(url, name="shop"), settings=FAST)
    runner.request_stop(60, drain=True)
    runner.run()
    assert runner.state.consecutive_failures == 0, runner.state.last_error
    return runner.state.counters.read


def check(journal: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Check what a target received, the files and the status of the exporter, and the log."""
    files = [path.read_bytes() for path in (journal / "export").rglob("*") if path.is_file()]
    status = msgspec.json.encode(export_status(journal))
    for part in (content, *files, status, caplog.text.encode()):
        assert SECRET.encode() not in part
        assert BEARER.encode() not in part


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.mark.parametrize("target", ["http", "otlp", "otlp json", "kafka", "nats", "postgres"])
def test_no_secret_reaches_a_target(
    journal: Path, tmp_path: Path, target: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.run(record(journal))
    if target.startswith("otlp"):
        monkeypatch.setenv(
            "OTEL_EXPORTER_OTLP_PROTOCOL", "http/json" if target == "otlp json" else "http/protobuf"
        )
        with ExportReceiver(lambda request: Answer(200)) as receiver:
            assert exported(journal, f"otlp+http://127.0.0.1:{receiver.port}") > len(TEXTS)
            content = b"".join(request.content for request in receiver.requests)
    else:
        server = TARGETS[target](tmp_path)
        try:
            assert exported(journal, server.url) > len(TEXTS)
            content = server.content()
        finally:
            server.close()
    assert b"fails1" in content
    assert b"[REDACTED" in content.upper()
    check(journal, content, caplog)


def test_no_secret_reaches_a_dead_letter_the_status_or_a_log(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.run(record(journal))
    answers = iter([Answer(500), Answer(401)])
    rejected = threading.Event()

    def notify(state: ExportState) -> None:
        if state.counters.rejected > len(TEXTS):
            rejected.set()

    with ExportReceiver(lambda request: next(answers, Answer(400))) as receiver:
        url = f"{receiver.url}?api_key={SECRET}"
        exporter = exporter_for(url, name="shop")
        with ExportRunner(journal, exporter, settings=FAST, on_change=notify):
            assert rejected.wait(30)
    assert list((journal / "export" / "shop" / "rejected").iterdir())
    assert export_status(journal)[0].last_error is not None
    check(journal, b"", caplog)
