"""Export: every event arrives, in order, if receivers fail and processes die; the counters are exact."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
from conftest import Program
from export_receiver import Answer, ExportReceiver, Request
from export_storm import storm
from msgspec.structs import replace
from typer.testing import CliRunner
from webhook_receiver import AS_TEXT

from stageflow import JournalSink, Pipeline, PipelineContext, Retry
from stageflow.cli._app import app
from stageflow.errors import InvalidArgumentError, JournalNotFoundError
from stageflow.export import (
    Batch,
    DeadLetters,
    Exporter,
    ExportEvent,
    ExportRunner,
    ExportSettings,
    ExportState,
    ExportStatus,
    HttpExporter,
    NotSent,
    Rejected,
    Sent,
    export_status,
    resend,
)
from stageflow.observability import WideEventEmitter

Start = Callable[[str], Program]

FAST = ExportSettings(
    batch_events=100, batch_seconds=0.02, retry_first=0.02, retry_max=0.05, circuit_seconds=0.05
)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    path.mkdir()
    return path


def emit(journal: Path, first: int, last: int, text: Callable[[int], str] = str) -> None:
    """Write the events `first` up to `last` to a journal."""
    sink = JournalSink(journal)
    for number in range(first, last):
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        data = {"event_id": f"e{number}", "emitted_at": now, "text": text(number)}
        sink.try_emit(type="order.placed", data=data)
    sink.close()


def numbers(receiver: ExportReceiver) -> list[int]:
    return [int(line["event_id"][1:]) for line in receiver.accepted]


def status(journal: Path) -> ExportStatus:
    (found,) = export_status(journal)
    return found


class Watched(ExportRunner):
    """A runner that can wait for a state."""

    def __init__(self, journal: Path, exporter: Exporter, settings: ExportSettings = FAST) -> None:
        super().__init__(journal, exporter, settings=settings, on_change=self._notify)
        self._changed = threading.Condition()

    def _notify(self, state: ExportState) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, until: Callable[[ExportState], bool], seconds: float = 30) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: until(self.state), seconds), self.state


def exported(count: int) -> Callable[[ExportState], bool]:
    return lambda state: state.counters.read == count


# ------------------------------------------------------------ events


def test_all_events_of_runs_arrive_in_order_with_ids_and_revisions(journal: Path) -> None:
    sink = JournalSink(journal)
    contexts: list[Any] = []

    async def a(ctx: Any) -> dict[str, int]:
        contexts.append(ctx)
        ctx.emit_event("cache.miss", {"key": "k"})
        if ctx.attempt == 1 and ctx.run.data.get("retry"):
            raise ConnectionError("again")
        return {"n": 1}

    pipeline = Pipeline("p").with_stage("a", a, retry=Retry(attempts=2, wait=0))
    graph = pipeline.with_stage("b", a, dependencies=("a",)).build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )

    async def run_all() -> None:
        for number in range(20):
            context = PipelineContext(pipeline_run_id=f"r{number}", data={"retry": number % 2})
            await graph.run(context)
        contexts[0].annotate(late=True)

    asyncio.run(run_all())
    sink.try_emit(type="plain", data={"text": "ü\u2028\n"})
    sink.try_emit(type="plain", data={"text": "ü\u2028\n"})
    sink.close()
    written = [
        (line["type"], line["data"])
        for path in sorted(journal.glob("*.ndjson"))
        for line in map(json.loads, path.read_bytes().splitlines())
        if "data" in line
    ]
    with ExportReceiver() as receiver:
        with Watched(journal, HttpExporter(receiver.url)) as runner:
            runner.wait(exported(len(written)))
        assert [(line["type"], line["data"]) for line in receiver.accepted] == written
        assert set(receiver.keys().values()) == {1}
        amendments = [line for line in receiver.accepted if line["type"] == "stage.wide.amend"]
        (amendment,) = amendments
        assert (amendment["event_id"], amendment["revision"] > 0) == ("r0/a/1", True)
        others = [line for line in receiver.accepted if line not in amendments]
        assert {line["revision"] for line in others} == {0}
        assert all(line["event_id"] == line["data"].get("event_id", line["event_id"]) for line in others)
    found = status(journal)
    assert (found.sent, found.rejected, found.lag_events, found.active) == (len(written), 0, 0, False)


def test_batches_are_limited_by_count_and_size(journal: Path) -> None:
    emit(journal, 0, 20, lambda number: "x" * (1000 if number >= 10 else 1))
    settings = ExportSettings(batch_events=4, batch_bytes=2500, batch_seconds=0.01)
    with ExportReceiver() as receiver:
        with Watched(journal, HttpExporter(receiver.url), settings) as runner:
            runner.wait(exported(20))
        sizes = [len(request.lines) for request in receiver.requests]
        assert sizes[:2] == [4, 4]
        data = [
            sum(len(json.dumps(line["data"], separators=(",", ":"))) for line in request.lines)
            for request in receiver.requests
        ]
        assert 2000 < max(data) <= 2500
        assert numbers(receiver) == [*range(20)]


def test_batch_waits_for_more_events_until_its_age_is_reached(journal: Path) -> None:
    settings = ExportSettings(batch_events=3, batch_seconds=600)
    with (
        ExportReceiver() as receiver,
        Watched(journal, HttpExporter(receiver.url), settings) as runner,
    ):
        emit(journal, 0, 2)
        emit(journal, 2, 3)
        runner.wait(exported(3))  # a full batch does not wait
        assert [len(request.lines) for request in receiver.requests] == [3]


def test_batches_are_signed_and_keep_their_id_when_they_are_sent_again(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", AS_TEXT)
    monkeypatch.setenv("HEADERS", "authorization=Bearer%20abc, x-tenant=7")
    emit(journal, 0, 3, lambda number: "ü")
    answers = iter([Answer(503), Answer(200, b"stored")])
    with ExportReceiver(lambda request: next(answers)) as receiver:
        exporter = HttpExporter(receiver.url, secret_env="SECRET", headers_env="HEADERS")
        with Watched(journal, exporter) as runner:
            runner.wait(exported(3))
        first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    for request in (first, second):
        webhook = standardwebhooks.Webhook(AS_TEXT)
        webhook.verify(request.content, request.headers, json_parse=False)
        assert request.headers["authorization"] == "Bearer abc"
        assert request.headers["x-tenant"] == "7"
        assert request.headers["content-encoding"] == "gzip"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        webhook.verify(first.content + b" ", first.headers, json_parse=False)


def test_secrets_that_were_redacted_do_not_reach_a_target(journal: Path) -> None:
    sink = JournalSink(journal)

    async def a(ctx: Any) -> None:
        ctx.annotate(password="hunter2", url="https://me:hunter2@host/")
        raise ValueError("Authorization: Bearer hunter2hunter2hunter2hunter2")

    graph = (
        Pipeline("p")
        .with_stage("a", a)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    asyncio.run(graph.run())
    sink.close()
    with ExportReceiver() as receiver:
        with Watched(journal, HttpExporter(receiver.url)) as runner:
            runner.wait(exported(2))
        content = b"".join(request.content for request in receiver.requests)
    assert b"[REDACTED" in content.upper()
    assert b"hunter2" not in content


# ------------------------------------------------------------ receivers that fail


def answers_then_accepts(*answers: Answer) -> Callable[[Request], Answer]:
    remaining = iter(answers)
    return lambda request: next(remaining, Answer())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(500), "HTTP status 500"),
        (Answer(401), "HTTP status 401"),
        (Answer(404), "HTTP status 404"),
        (Answer(302, headers={"location": "/other"}), "HTTP status 302"),
        (Answer(drop=True), "no response: RemoteProtocolError"),
        (Answer(raw=b"220 mail.example ESMTP\r\n"), "no response: RemoteProtocolError"),
        (
            Answer(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"),
            "no response: RemoteProtocolError",
        ),
        (Answer(slow=0.05), "no response within 0.3 s"),
    ],
    ids=["500", "401", "404", "redirect", "drop", "not-http", "truncated", "slow"],
)
def test_batch_that_did_not_arrive_is_sent_again(journal: Path, answer: Answer, reason: str) -> None:
    emit(journal, 0, 250)
    with ExportReceiver(answers_then_accepts(answer, answer)) as receiver:
        with Watched(journal, HttpExporter(receiver.url, timeout=0.3)) as runner:
            runner.wait(lambda state: state.failures == 2)
            assert (runner.state.last_error, runner.state.consecutive_failures) == (reason, 2)
            assert runner.state.retry_at is not None
            runner.wait(exported(250))
        assert numbers(receiver) == [*range(250)]
    found = status(journal)
    assert (found.sent, found.rejected, found.failures, found.attempts) == (250, 0, 2, 5)
    assert (found.retry_at, found.waiting) == (None, 0)


def test_delay_honors_retry_after(journal: Path) -> None:
    emit(journal, 0, 1)
    with (
        ExportReceiver(lambda request: Answer(429, headers={"retry-after": "7"})) as receiver,
        Watched(journal, HttpExporter(receiver.url)) as runner,
    ):
        runner.wait(lambda state: state.failures == 1)
        state = runner.state
        assert state.retry_at is not None
        assert state.failed_at is not None
        assert (state.retry_at - state.failed_at).total_seconds() == 7
        began = time.monotonic()
        runner.stop()
        assert time.monotonic() - began < 5, "a pause does not delay the end"


def test_events_wait_in_the_journal_while_the_receiver_is_down(journal: Path) -> None:
    with ExportReceiver() as first:
        port = first.port
    emit(journal, 0, 1000)
    with Watched(journal, HttpExporter(f"http://127.0.0.1:{port}/events")) as runner:
        runner.wait(lambda state: state.failures >= 6)
        assert runner.state.circuit == "open"
        assert (runner.state.last_error or "").startswith("no connection")
        found = status(journal)
        assert (found.lag_events, found.sent, found.active) == (1000, 0, True)
        assert 0 < found.lag_seconds < 60
        with ExportReceiver(port=port) as receiver:
            runner.wait(exported(1000))
            assert numbers(receiver) == [*range(1000)]
        assert (runner.state.circuit, runner.state.consecutive_failures) == ("closed", 0)


def test_receiver_with_an_untrusted_certificate_receives_nothing(journal: Path, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    emit(journal, 0, 10)
    with (
        ExportReceiver(context=context) as receiver,
        Watched(journal, HttpExporter(receiver.url)) as runner,
    ):
        runner.wait(lambda state: state.failures == 2)
        assert "CERTIFICATE_VERIFY_FAILED" in (runner.state.last_error or "")
        assert receiver.requests == []
        assert runner.state.counters.read == 0


def limit(most: int) -> Callable[[Request], Answer]:
    return lambda request: Answer(413 if len(request.content) > most else 204)


def test_batch_that_is_too_large_is_sent_in_halves_and_a_larger_event_is_rejected(journal: Path) -> None:
    emit(journal, 0, 60, lambda number: "x" * (5000 if number == 40 else 100))
    with ExportReceiver(limit(2000)) as receiver:
        with Watched(journal, HttpExporter(receiver.url)) as runner:
            runner.wait(exported(60))
        assert numbers(receiver) == [number for number in range(60) if number != 40]
    (letter,) = DeadLetters(str(journal / "export" / runner.exporter.name / "rejected"))
    assert (letter.event_id, letter.reason) == ("e40", "HTTP status 413")
    found = status(journal)
    assert (found.sent, found.rejected, found.waiting, found.failures) == (59, 1, 1, 0)


POISON = {13, 14, 77, 150}


def refuses_poison(request: Request) -> Answer:
    bad = any(int(line["event_id"][1:]) in POISON for line in request.lines)
    return Answer(400, b"no such field\n\x1b[31m") if bad else Answer()


def letters_of(journal: Path, name: str = "shop") -> list[tuple[str, str]]:
    found = DeadLetters(str(journal / "export" / name / "rejected"))
    return [(letter.event_id, letter.reason) for letter in found]


def test_rejected_events_are_found_by_halves_and_all_others_arrive_in_order(journal: Path) -> None:
    emit(journal, 0, 200)
    with ExportReceiver(refuses_poison) as receiver:
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(200))
        assert numbers(receiver) == [number for number in range(200) if number not in POISON]
    assert letters_of(journal) == [(f"e{n}", "HTTP status 400: no such field") for n in sorted(POISON)]
    found = status(journal)
    assert (found.sent, found.rejected, found.waiting) == (196, 4, 4)


ISOLATING = replace(FAST, isolate_attempts=3, isolate_seconds=0.001)


def test_event_that_always_causes_a_server_error_is_isolated(journal: Path) -> None:
    def fails_on_poison(request: Request) -> Answer:
        poisoned = any(line["event_id"] in ("e5", "e6", "e40") for line in request.lines)
        return Answer(500 if poisoned else 204)

    emit(journal, 0, 50)
    with ExportReceiver(fails_on_poison) as receiver:
        runner = Watched(journal, HttpExporter(receiver.url, name="shop"), ISOLATING)
        with runner:
            runner.wait(exported(50))
        found = list(dict.fromkeys(numbers(receiver)))
    assert found == [number for number in range(50) if number not in (5, 6, 40)]
    letters = letters_of(journal)
    assert [each for each, _ in letters] == ["e5", "e6", "e40"]
    assert all("while another event was accepted" in reason for _, reason in letters)
    (counters,) = [status(journal)]
    assert (counters.sent, counters.rejected) == (47, 3)


def test_first_events_that_cause_server_errors_are_isolated(journal: Path) -> None:
    def fails_on_poison(request: Request) -> Answer:
        poisoned = any(line["event_id"] in ("e0", "e1", "e2") for line in request.lines)
        return Answer(500 if poisoned else 204)

    emit(journal, 0, 20)
    with (
        ExportReceiver(fails_on_poison) as receiver,
        Watched(journal, HttpExporter(receiver.url, name="shop"), ISOLATING) as runner,
    ):
        runner.wait(exported(20))
        assert [*dict.fromkeys(sorted(numbers(receiver)))] == [*range(3, 20)]
        requests = len(receiver.requests)
    assert [each for each, _ in letters_of(journal)] == ["e0", "e1", "e2"]
    assert status(journal).attempts == requests


def test_first_event_that_causes_a_server_error_is_isolated_after_later_events(journal: Path) -> None:
    def fails_on_poison(request: Request) -> Answer:
        # The order of the events of two writers is not defined.
        return Answer(500 if any(line["event_id"] == "e0" for line in request.lines) else 204)

    emit(journal, 0, 1)
    with (
        ExportReceiver(fails_on_poison) as receiver,
        Watched(journal, HttpExporter(receiver.url, name="shop"), ISOLATING) as runner,
    ):
        runner.wait(lambda state: state.failures >= 4)
        emit(journal, 1, 3)
        runner.wait(exported(3))
    assert status(journal).rejected == 1
    assert [each for each, _ in letters_of(journal)] == ["e0"]


class Choosy(Exporter):
    """A target that rejects the event e1, and fails for batches with certain other events.

    Args:
        unnamed: Whether it reports only the number of events that it rejects.
        failing: Ids of the events that cause failures.
    """

    name = "shop"

    def __init__(self, *, unnamed: bool, failing: set[str]) -> None:
        self.unnamed = unnamed
        self.failing = failing

    async def send(self, batch: Batch) -> Sent:
        ids = [event.id for event in batch.events]
        if self.failing & {*ids}:
            raise NotSent("HTTP status 500", problem="failed")
        if "e1" not in ids:
            return Sent()
        if self.unnamed:
            return Sent(rejected_unnamed=1, message="no such field")
        return Sent(rejected=(Rejected(ids.index("e1"), "no such field"),))


@pytest.mark.parametrize("unnamed", [False, True])
def test_rejected_event_is_no_evidence_that_the_target_works(journal: Path, unnamed: bool) -> None:
    target = Choosy(unnamed=unnamed, failing={"e0", "e2"})
    emit(journal, 0, 3)
    with Watched(journal, target, ISOLATING) as runner:
        runner.wait(lambda state: state.failures >= 25)
        assert runner.state.counters.rejected == 0
        target.failing = set()
        runner.wait(exported(3))
    assert (status(journal).sent, status(journal).rejected) == (2, 1)


@pytest.mark.parametrize("unnamed", [False, True])
def test_event_that_may_have_been_rejected_is_not_sent_as_evidence(journal: Path, unnamed: bool) -> None:
    emit(journal, 0, 2)
    with Watched(journal, Choosy(unnamed=unnamed, failing={"e2"}), ISOLATING) as runner:
        runner.wait(exported(2))
        emit(journal, 2, 4)
        runner.wait(exported(4))
    assert (status(journal).sent, status(journal).rejected) == (2, 2)
    letter, reason = letters_of(journal)[-1]
    assert (letter, "while another event was accepted" in reason) == ("e2", True)


@pytest.mark.parametrize("code", [500, 503, 401, 403, 404])
def test_outage_rejects_no_event(journal: Path, code: int) -> None:
    emit(journal, 0, 4)
    available = threading.Event()
    with ExportReceiver(lambda request: Answer(204 if available.is_set() else code)) as receiver:
        with Watched(journal, HttpExporter(receiver.url, name="shop"), ISOLATING) as runner:
            runner.wait(lambda state: state.failures >= 25)
            available.set()
            runner.wait(exported(4))
        # An event that was sent to find out whether the target is available can arrive twice.
        assert {*numbers(receiver)} == {0, 1, 2, 3}
    assert (status(journal).sent, status(journal).rejected) == (4, 0)


def partial(request: Request) -> Answer:
    indexes = [i for i, line in enumerate(request.lines) if int(line["event_id"][1:]) in POISON]
    rejected = [{"index": index, "reason": "bad amount"} for index in indexes]
    return Answer(200, json.dumps({"rejected": rejected, "duplicates": 1}).encode())


def test_partial_success_rejects_only_the_events_that_it_names(journal: Path) -> None:
    emit(journal, 0, 200)
    with ExportReceiver(partial) as receiver:
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(200))
        assert numbers(receiver) == [number for number in range(200) if number not in POISON]
    assert letters_of(journal) == [(f"e{n}", "bad amount") for n in sorted(POISON)]
    found = status(journal)
    assert (found.sent, found.rejected, found.duplicates) == (196, 4, 2)


@pytest.mark.parametrize("index", [100, -1], ids=["beyond", "negative"])
def test_partial_success_with_an_invalid_index_is_retried(journal: Path, index: int) -> None:
    emit(journal, 0, 10)
    body = json.dumps({"rejected": [{"index": index}]}).encode()
    with ExportReceiver(answers_then_accepts(Answer(200, body))) as receiver:
        with Watched(journal, HttpExporter(receiver.url)) as runner:
            runner.wait(exported(10))
        assert runner.state.last_error == "the target rejected an event that is not in the batch"
        assert len(receiver.requests) == 2


@pytest.mark.parametrize("body", [b"ok", b"\xff", b'{"rejected": 3}', b"[1", b"{}" * 600_000])
def test_body_of_another_format_does_not_change_what_the_status_means(journal: Path, body: bytes) -> None:
    emit(journal, 0, 10)
    with ExportReceiver(lambda request: Answer(200, body)) as receiver:
        with Watched(journal, HttpExporter(receiver.url)) as runner:
            runner.wait(exported(10))
        assert len(receiver.requests) == 1
    assert (status(journal).sent, status(journal).rejected) == (10, 0)


# ------------------------------------------------------------ rejected events


def test_rejected_events_are_sent_again_and_those_still_rejected_are_kept(journal: Path) -> None:
    emit(journal, 0, 200)
    with ExportReceiver(refuses_poison) as receiver:
        exporter = HttpExporter(receiver.url, name="shop")
        with Watched(journal, exporter) as runner:
            runner.wait(exported(200))
            receiver.answer = lambda request: (
                Answer(422) if any(line["event_id"] == "e77" for line in request.lines) else Answer()
            )
            # Another process or thread resends while the runner is active.
            found = resend(journal, HttpExporter(receiver.url, name="shop"))
        assert (found.sent, found.rejected, found.left, found.error) == (3, 1, 0, None)
        assert sorted(numbers(receiver)) == [number for number in range(200) if number != 77]
        assert letters_of(journal) == [("e77", "HTTP status 422")]
        receiver.answer = lambda request: Answer(503)
        found = resend(journal, HttpExporter(receiver.url, name="shop"))
        assert (found.sent, found.left, found.error) == (0, 1, "HTTP status 503")
        assert letters_of(journal) == [("e77", "HTTP status 422")]
        receiver.answer = lambda request: Answer()
        assert resend(journal, HttpExporter(receiver.url, name="shop")).sent == 1
    assert letters_of(journal) == []
    assert status(journal).waiting == 0


def fails_for(*failing: int) -> Callable[[Request], Answer]:
    ids = {f"e{number}" for number in failing}
    return lambda request: Answer(500 if any(line["event_id"] in ids for line in request.lines) else 204)


def reject(journal: Path, receiver: ExportReceiver, first: int, last: int) -> None:
    """Export events that the receiver rejects."""
    receiver.answer = lambda request: Answer(400)
    emit(journal, first, last)
    with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
        runner.wait(exported(last))


@pytest.mark.parametrize("failing", [(0,), (0, 1, 2), (4, 5), (19,), (0, 9, 10, 19)])
def test_rejected_events_that_cause_failures_do_not_stop_the_others(
    journal: Path, failing: tuple[int, ...]
) -> None:
    with ExportReceiver() as receiver:
        for first in (0, 10):  # two dead-letter files
            reject(journal, receiver, first, first + 10)
        receiver.answer = fails_for(*failing)
        found = resend(journal, HttpExporter(receiver.url, name="shop"))
        assert (found.sent, found.rejected, found.left) == (20 - len(failing), len(failing), 0)
        assert found.error is None
        assert {*numbers(receiver)} == {*range(20)} - {*failing}
    assert letters_of(journal) == [(f"e{number}", "HTTP status 500") for number in failing]


def test_no_rejected_event_is_rejected_again_while_the_target_fails_for_all(journal: Path) -> None:
    with ExportReceiver() as receiver:
        reject(journal, receiver, 0, 20)
        before = letters_of(journal)
        receiver.answer = fails_for(*range(20))
        receiver.requests.clear()
        found = resend(journal, HttpExporter(receiver.url, name="shop"))
        assert (found.sent, found.rejected, found.left, found.error) == (0, 0, 20, "HTTP status 500")
        assert len(receiver.requests) <= 20, "the number of attempts is limited"
    assert letters_of(journal) == before


def test_rejected_events_expire_by_size_and_are_counted(journal: Path) -> None:
    settings = ExportSettings(batch_events=10, batch_seconds=0.01, rejected_max_bytes=5_000)
    emit(journal, 0, 100, lambda number: "x" * 100)
    with (
        ExportReceiver(lambda request: Answer(400)) as receiver,
        Watched(journal, HttpExporter(receiver.url, name="shop"), settings) as runner,
    ):
        runner.wait(exported(100))
    found = status(journal)
    assert found.rejected == 100
    assert 0 < found.waiting < 30
    assert found.waiting + found.expired == 100
    assert letters_of(journal)[-1][0] == "e99", "the oldest ones expire first"


def test_rejected_events_expire_by_age(journal: Path) -> None:
    emit(journal, 0, 10)
    with ExportReceiver(lambda request: Answer(400)) as receiver:
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(10))
        assert status(journal).waiting == 10
        settings = ExportSettings(batch_seconds=0.01, rejected_max_age=1e-9)
        emit(journal, 10, 11)
        receiver.answer = lambda request: Answer()
        with Watched(journal, HttpExporter(receiver.url, name="shop"), settings) as runner:
            runner.wait(exported(11))
    assert (status(journal).waiting, status(journal).expired) == (0, 10)


def test_events_that_retention_deleted_are_counted_as_missed(journal: Path) -> None:
    with ExportReceiver() as receiver:
        exporter = HttpExporter(receiver.url, name="shop")
        with Watched(journal, exporter) as runner:
            emit(journal, 0, 1)
            runner.wait(exported(1))
        sink = JournalSink(journal, segment_bytes=4_000, max_bytes=40_000, fsync_interval=3600)
        for number in range(1, 1000):
            sink.try_emit(type="t", data={"event_id": f"e{number}", "text": "x" * 100})
            if number % 20 == 0:
                sink.run_maintenance()
        lag = status(journal)
        assert lag.missed + lag.lag_events == 999
        assert lag.missed > 500
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(lambda state: state.counters.read == 1 + lag.lag_events)
        sink.close()
    found = status(journal)
    assert (found.sent, found.missed, found.lag_events) == (1000 - lag.missed, lag.missed, 0)


def test_exporter_of_existing_events_starts_at_the_end_on_request(journal: Path) -> None:
    emit(journal, 0, 10)
    with ExportReceiver() as receiver:
        runner = ExportRunner(journal, HttpExporter(receiver.url), settings=FAST, at_end=True)
        with runner:
            while runner.status != "exporting":
                threading.Event().wait(0.01)
            emit(journal, 10, 15)
            receiver.wait(lambda: len(receiver.accepted) == 5)
    assert numbers(receiver) == [*range(10, 15)]


# ------------------------------------------------------------ custom exporters


class Failing(Exporter):
    """Fails in a different way in each attempt, then accepts."""

    name = "custom"

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = [*outcomes]
        self.sent: list[ExportEvent] = []
        self.closed = 0

    async def send(self, batch: Batch) -> Any:
        outcome = self.outcomes.pop(0) if self.outcomes else Sent()
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, Sent):
            self.sent += batch.events
        return outcome

    async def close(self) -> None:
        self.closed += 1
        raise RuntimeError("cannot close")


def test_any_error_of_a_custom_exporter_is_retried(journal: Path) -> None:
    emit(journal, 0, 10)
    twice = Sent((Rejected(0, "a"), Rejected(0, "b")))
    exporter = Failing(ValueError("broken"), None, TimeoutError(), NotSent("busy"), twice)
    errors = []
    runner = ExportRunner(
        journal, exporter, settings=FAST, on_change=lambda state: errors.append(state.last_error)
    )
    with runner:
        while len(exporter.sent) < 10 or runner.state.counters.read < 10:
            threading.Event().wait(0.01)
    assert errors[1:5] == [
        "ValueError: broken",
        "send() must return a Sent, got NoneType",
        "no response within 60 s",
        "busy",
    ]
    assert [event.id for event in exporter.sent[-10:]] == [f"e{number}" for number in range(10)]
    assert exporter.closed == 1


def test_exporter_that_awaits_a_cancelled_task_is_retried(journal: Path) -> None:
    emit(journal, 0, 10)

    class Cancelled(Failing):
        is_first = True

        async def send(self, batch: Batch) -> Any:
            if self.is_first:
                self.is_first = False
                task = asyncio.ensure_future(asyncio.sleep(60))
                task.cancel()
                await task
            return await super().send(batch)

        async def close(self) -> None:
            raise asyncio.CancelledError

    exporter = Cancelled()
    runner = Watched(journal, exporter)
    runner.start()
    runner.wait(exported(10))
    assert runner.stop()
    assert len(exporter.sent) == 10
    assert runner.state.last_error == "the exporter awaited a task that was cancelled"
    assert (runner.status, runner.state.failures) == ("stopped", 1)


def test_blocking_send_of_another_thread_does_not_delay_the_caller_of_stop(journal: Path) -> None:
    class Hanging(Exporter):
        name = "hanging"

        async def send(self, batch: Batch) -> Sent:
            began.set()
            await asyncio.sleep(3600)
            return Sent()

    began = threading.Event()
    emit(journal, 0, 10)
    runner = ExportRunner(journal, Hanging(), settings=FAST).start()
    assert began.wait(10)
    at = time.monotonic()
    assert runner.stop(timeout=0.3)
    assert 0.2 < time.monotonic() - at < 5
    assert (status(journal).sent, status(journal).lag_events) == (0, 10)


def test_stop_with_drain_sends_what_the_journal_contains(journal: Path) -> None:
    with ExportReceiver() as receiver:
        settings = ExportSettings(batch_events=10, batch_seconds=600)
        runner = ExportRunner(journal, HttpExporter(receiver.url), settings=settings).start()
        while runner.status != "exporting":
            threading.Event().wait(0.01)
        emit(journal, 0, 95)
        assert runner.stop(drain=True)
        assert numbers(receiver) == [*range(95)]


@pytest.mark.parametrize("name", ["", "a/b", "..", "x" * 81, None])
def test_invalid_name_raises_at_once(journal: Path, name: Any) -> None:
    exporter = Failing()
    exporter.name = name
    with pytest.raises(InvalidArgumentError, match="Exporter: name must be at most 80 letters"):
        ExportRunner(journal, exporter)


def test_invalid_arguments_raise_at_once_without_secrets() -> None:
    with pytest.raises(InvalidArgumentError, match=r"url must be an address that begins with https://") as e:
        HttpExporter("ftp://me:secret@host/x?token=secret")
    assert "secret" not in str(e.value)
    with pytest.raises(InvalidArgumentError, match="batch_events must be a positive integer, got 0"):
        ExportSettings(batch_events=0)
    with pytest.raises(InvalidArgumentError, match="retry_max must be a positive number"):
        ExportSettings(retry_max=float("nan"))
    with pytest.raises(InvalidArgumentError, match="timeout must be a positive number of seconds"):
        HttpExporter("http://host", timeout=0)
    with pytest.raises(JournalNotFoundError):
        export_status("/nonexistent")


def test_status_and_files_contain_no_secret(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", AS_TEXT)
    emit(journal, 0, 1)
    url = "http://me:hunter2@127.0.0.1:1/events?token=hunter2"
    with Watched(journal, HttpExporter(url, secret_env="SECRET")) as runner:
        runner.wait(lambda state: state.failures == 1)
    stored = b"".join(path.read_bytes() for path in journal.rglob("*") if path.is_file())
    assert b"hunter2" not in stored
    assert AS_TEXT.encode() not in stored
    assert status(journal).name == "http-127.0.0.1-1-events"


def test_doctor_finds_and_moves_a_damaged_state_and_export_continues(journal: Path) -> None:
    emit(journal, 0, 10)
    with ExportReceiver() as receiver:
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(10))
        (journal / "export" / "shop" / "state.json").write_bytes(b"\xff")
        done = CliRunner().invoke(app, ["doctor", "--journal", str(journal)])
        assert (done.exit_code, "export/shop/state.json" in done.stdout) == (1, True)
        CliRunner().invoke(app, ["doctor", "--repair", "--journal", str(journal)])
        assert "state.json" not in CliRunner().invoke(app, ["doctor", "--journal", str(journal)]).stdout
        emit(journal, 10, 15)
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(5))
        assert set(receiver.keys().values()) == {1}
        assert len(receiver.accepted) == 15


def test_exporter_with_a_damaged_state_starts_counting_at_zero(journal: Path) -> None:
    emit(journal, 0, 10)
    with ExportReceiver() as receiver:
        (journal / "export" / "shop").mkdir(parents=True)
        (journal / "export" / "shop" / "state.json").write_bytes(b"{")
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(10))
        assert status(journal).sent == 10


# ------------------------------------------------------------ processes


EXPORTER = """
import sys
from stageflow.export import ExportRunner, ExportSettings, HttpExporter

settings = ExportSettings(
    batch_events=20, batch_seconds=0.01, retry_first=0.02, retry_max=0.1, circuit_seconds=0.1
)
runner = ExportRunner(sys.argv[1], HttpExporter({url!r}, name="shop"), settings=settings)
print("started", flush=True)
{more}
runner.run()
"""


def test_another_process_takes_over_within_5_seconds(program: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    emit(journal, 0, 10)
    with ExportReceiver() as receiver:
        script = EXPORTER.format(url=receiver.url, more="")
        first, second = program(script), program(script)
        for each in (first, second):
            each.wait_for("started")
        receiver.wait(lambda: len(receiver.accepted) >= 10)
        holder = int(next((journal / "cursors").glob("export.shop.lock")).read_text())
        active, standby = (first, second) if first.process.pid == holder else (second, first)
        active.process.kill()
        active.process.wait()
        began = time.monotonic()
        emit(journal, 10, 20)
        receiver.wait(lambda: len(receiver.keys()) == 20)
        assert time.monotonic() - began < 5
        assert standby.process.poll() is None
        assert {int(key[0][1:]) for key in receiver.keys().elements()} == {*range(20)}


@pytest.mark.slow
def test_killed_exporter_loses_nothing_and_its_counters_stay_exact(program: Start, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    dice = random.Random(7)
    writer_done = threading.Event()

    def write() -> None:
        sink = JournalSink(journal)
        for number in range(6000):
            sink.try_emit(type="t", data={"event_id": f"e{number}"})
            if number % 200 == 0:
                threading.Event().wait(0.05)
        sink.close()
        writer_done.set()

    def answer(request: Request) -> Answer:
        if dice.random() < 0.1:
            return Answer(drop=True)
        return refuses_poison(request)

    writer = threading.Thread(target=write)
    with ExportReceiver(answer) as receiver:
        script = EXPORTER.format(url=receiver.url, more="")
        journal.mkdir()
        writer.start()
        kills = 0
        while not writer_done.is_set() or kills < 5:
            one = program(script)
            one.wait_for("started")
            seen = len(receiver.requests)
            receiver.wait(lambda seen=seen: len(receiver.requests) > seen + dice.randint(0, 9))
            one.process.kill()
            one.process.wait()
            kills += 1
            if kills >= 5 and writer_done.is_set():
                break
        writer.join()
        with Watched(journal, HttpExporter(receiver.url, name="shop")) as runner:
            runner.wait(exported(6000), 60)
        wanted = {(f"e{number}", 0) for number in range(6000) if number not in POISON}
        assert receiver.keys().keys() == wanted
        firsts = list(dict.fromkeys(numbers(receiver)))
        assert firsts == sorted(firsts), "the first delivery of each event is in order"
    found = status(journal)
    assert (found.sent, found.rejected, found.lag_events) == (6000 - len(POISON), len(POISON), 0)
    assert [each for each, _ in letters_of(journal)] == [f"e{number}" for number in sorted(POISON)]


@pytest.mark.slow
def test_no_event_is_lost_while_exporters_writers_and_the_receiver_are_killed(tmp_path: Path) -> None:
    found = storm(tmp_path, 6, 300)
    assert found.problems == []
    assert found.written > 2_000
    assert found.killed["exporter"] > 3


@pytest.mark.slow
def test_memory_of_an_exporter_is_flat_while_the_receiver_is_down(program: Start, tmp_path: Path) -> None:
    more = """
import threading, json, resource
from stageflow import JournalSink

runner.start()
sink = JournalSink(sys.argv[1])

def write(count):
    for number in range(count):
        sink.try_emit(type="t", data={"text": "x" * 1000})

def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def after(failures):
    while runner.state.failures < failures:
        threading.Event().wait(0.01)
    return rss()

write(2_000)
before = after(3)
write(40_000)
print(json.dumps([before, after(runner.state.failures + 5)]), flush=True)
sys.exit()
"""
    script = EXPORTER.format(url="http://127.0.0.1:1/events", more=more)
    code, out, err = program(script).ended(60)
    assert (code, err.count("cannot send to")) == (0, 1), err
    before, after = json.loads(out.splitlines()[-1])
    assert after - before < 8_000_000
    assert status(tmp_path / "journal").lag_events == 42_000


def test_runs_of_several_processes_arrive_in_order(program: Start, tmp_path: Path) -> None:
    writer = """
import asyncio, sys, stageflow
from stageflow import Pipeline

async def work(ctx):
    return {}

stageflow.configure(journal=sys.argv[1])
graph = Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).build()

async def main():
    for _ in range(200):
        await graph.run()

asyncio.run(main())
"""
    writers = [program(writer) for _ in range(3)]
    with ExportReceiver() as receiver:
        exporter = program(EXPORTER.format(url=receiver.url, more=""))
        receiver.wait(lambda: len(receiver.accepted) == 3 * 200 * 3)
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.process.wait() == -signal.SIGTERM
        by_run: dict[str, list[str]] = {}
        for line in receiver.accepted:
            data = line["data"]
            run = data["correlation_ids"]["pipeline_run_id"]
            by_run.setdefault(run, []).append(data.get("stage_name", "run"))
        assert len(by_run) == 600
        assert Counter(map(tuple, by_run.values())) == {("a", "b", "run"): 600}
    for each in writers:
        assert each.ended()[0] == 0


def test_export_package_does_not_import_the_client_of_a_target() -> None:
    code = "import sys, stageflow.export; print('httpx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
