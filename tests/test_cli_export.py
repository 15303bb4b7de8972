"""`stageflow export`: runs until a signal, shows the status, and sends rejected events again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from export_receiver import Answer, ExportReceiver, Request
from typer.testing import CliRunner

from stageflow import JournalSink
from stageflow.cli._app import app
from stageflow.export import export_status


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    emit(tmp_path / "journal", 0, 50)
    return tmp_path / "journal"


def emit(journal: Path, first: int, last: int) -> None:
    sink = JournalSink(journal)
    for number in range(first, last):
        sink.try_emit(type="t", data={"event_id": f"e{number}", "emitted_at": "2026-11-27T10:00:00.000000Z"})
    sink.close()


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments], terminal_width=200)


def odd_are_rejected(request: Request) -> Answer:
    odd = [i for i, line in enumerate(request.lines) if int(line["event_id"][1:]) % 2]
    return Answer(200, json.dumps({"rejected": [{"index": i, "reason": "odd"} for i in odd]}).encode())


@pytest.fixture
def started(journal: Path) -> Iterator[Any]:
    processes: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "stageflow", "export", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, **variables},
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_once_sends_what_exists_and_exits(journal: Path) -> None:
    with ExportReceiver() as receiver:
        done = call("run", receiver.url, "--once", "--name", "shop")
        assert (done.exit_code, done.stdout) == (0, "shop: 50 sent, 0 rejected.\n")
        done = call("run", receiver.url, "--once", "--name", "shop")
        assert (done.exit_code, done.stdout) == (0, "shop: 50 sent, 0 rejected.\n")
        assert set(receiver.keys().values()) == {1}
    done = call("run", "http://127.0.0.1:1/", "--once", "--name", "down")
    assert (done.exit_code, done.stdout) == (1, "down: 0 sent, 0 rejected.\n")
    assert "exporter 'down' cannot send to http://127.0.0.1:1/: no connection" in done.stderr


def test_once_reports_that_another_process_exports(started: Any, journal: Path) -> None:
    with ExportReceiver() as receiver:
        started("run", receiver.url, "--name", "shop")
        receiver.wait(lambda: len(receiver.accepted) == 50)
        done = call("run", receiver.url, "--once", "--name", "shop")
        assert (done.exit_code, done.stdout) == (0, "shop: another process exports.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_command_after_the_current_batch(
    started: Any, journal: Path, number: signal.Signals
) -> None:
    with ExportReceiver() as receiver:
        process = started("run", receiver.url)
        receiver.wait(lambda: len(receiver.accepted) == 50)
        emit(journal, 50, 60)
        receiver.wait(lambda: len(receiver.accepted) == 60)
        process.send_signal(number)
        assert (process.communicate(timeout=20), process.returncode) == (("", ""), 0)
    (status,) = export_status(journal)
    assert (status.sent, status.lag_events, status.active) == (60, 0, False)


def test_receiver_that_does_not_respond_delays_the_end_only_until_the_time_limit(
    started: Any, journal: Path
) -> None:
    with ExportReceiver(lambda request: Answer(slow=60)) as receiver:
        process = started("run", receiver.url, "--stop-timeout", "500ms")
        receiver.wait(lambda: len(receiver.requests) == 1)
        began = time.monotonic()
        process.terminate()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 5
    (status,) = export_status(journal)
    assert (status.sent, status.lag_events) == (0, 50)


def test_targets_of_the_settings_are_the_default(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExportReceiver() as receiver:
        monkeypatch.setenv("STAGEFLOW_EXPORT", json.dumps([{"url": receiver.url, "name": "shop"}]))
        assert call("run", "--once").stdout == "shop: 50 sent, 0 rejected.\n"
        monkeypatch.setenv("TARGET", receiver.url + "?key=secret")
        done = call("run", "--once", "--url-env", "TARGET", "--name", "other")
        assert done.stdout == "other: 50 sent, 0 rejected.\n"


def test_status_shows_lag_counters_and_the_last_error(journal: Path) -> None:
    assert call("status").stdout == "No exporter has run for this journal.\n"
    with ExportReceiver(odd_are_rejected) as receiver:
        call("run", receiver.url, "--once", "--name", "shop")
    emit(journal, 50, 60)
    call("run", receiver.url, "--once", "--name", "shop")
    done = call("status")
    assert done.exit_code == 0
    first, _, row, _, *notes = done.stdout.splitlines()
    assert first.split() == [
        *("exporter", "state", "lag", "oldest", "sent", "rejected", "waiting", "missed", "failures")
    ]
    name, state, lag, *_, sent, rejected, waiting, missed, failures = row.split()
    assert (name, state, lag, sent, rejected, waiting) == ("shop", "retrying", "10", "25", "25", "25")
    assert (missed, failures) == ("0", "1")
    assert notes[0] == f"shop -> {receiver.url}"
    assert notes[1].startswith("last error of shop (")
    assert "no connection" in notes[1]
    (as_json,) = map(json.loads, call("status", "--json").stdout.splitlines())
    assert (as_json["lag_events"], as_json["rejected"], as_json["active"]) == (10, 25, False)
    assert as_json["lag_seconds"] > 0


def test_retry_sends_rejected_events_and_keeps_those_rejected_again(journal: Path) -> None:
    with ExportReceiver(odd_are_rejected) as receiver:
        call("run", receiver.url, "--once", "--name", "shop")
        done = call("retry", receiver.url, "--name", "shop")
        assert (done.exit_code, done.stdout) == (1, "shop: 0 sent, 25 rejected again.\n")
        receiver.answer = lambda request: Answer(500)
        done = call("retry", receiver.url, "--name", "shop")
        assert done.stdout == "shop: 0 sent, 0 rejected again, 25 not sent (HTTP status 500).\n"
        receiver.answer = lambda request: Answer()
        done = call("retry", receiver.url, "--name", "shop", "--json")
        assert (done.exit_code, json.loads(done.stdout)["sent"]) == (0, 25)
        assert len(receiver.keys()) == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "a URL is required"),
        (["run", "ftp://me:secret@host"], "expected a URL that begins with http:, https:"),
        (["run", "http://a", "http://b", "--name", "x"], "expected a single target"),
        (["run", "--url-env", "MISSING"], "the environment variable MISSING is not set"),
        (["run", "http://a", "http://a"], "more than one exporter is named 'http-a'"),
        (["retry"], "a URL is required"),
        (["run", "http://a", "--name", "a/b"], "name must be at most 80 letters"),
    ],
)
def test_invalid_arguments_are_reported_without_secrets(
    journal: Path, arguments: list[str], message: str
) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert "secret" not in done.stderr
