"""Tests for queries while the archive is damaged, missing or unreachable, and for changes of its address."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_durability import cut, data_files, empty
from test_sampling import BEGAN
from test_store_hostile import compact, run, write
from typer.testing import CliRunner

from stageflow.alerts import (
    AlertLoop,
    AlertRules,
    AlertState,
    Call,
    CrashedRuns,
    EventsDropped,
    FailureRate,
    NoRuns,
    Rule,
    SlowerThan,
    SqlRows,
    evaluate,
)
from stageflow.cli._app import app
from stageflow.errors import ArchiveAddressError, ArchiveDamagedError, DamagedFileError
from stageflow.journal import Journal, RunFilter
from stageflow.store import Compactor, EventStore, _snapshot as snapshot, forget_archive, move_archive

pytestmark = pytest.mark.slow

NOW = datetime.now(UTC)
OLD, RECENT = timedelta(days=40), timedelta(minutes=4)
"""How long ago the archived runs started, and the runs that only the journal has."""

Damage = Callable[[Path], Any]


def second(ago: timedelta) -> float:
    return (NOW - ago - BEGAN).total_seconds()


def rows(numbers: Sequence[int], ago: timedelta, **more: Any) -> bytes:
    return b"".join(
        run(number, second=second(ago), fails=number % 3 == 0, stages=1, **more) for number in numbers
    )


def write_at(folder: Path, numbers: Sequence[int], ago: timedelta, **more: Any) -> None:
    """Write runs with an earlier start to segments with the same modification time."""
    before = set(folder.glob("*.ndjson"))
    write(folder, rows(numbers, ago, **more))
    written = (NOW - ago).timestamp() + 5
    for path in {*folder.glob("*.ndjson")} - before:
        os.utime(path, (written, written))


@pytest.fixture(scope="module", autouse=True)
def now() -> None:
    """Take the time when the tests of this file start, which may be long after their collection."""
    global NOW
    NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a journal with six runs whose archive has nine others."""
    folder = tmp_path_factory.mktemp("made") / "journal"
    write_at(folder, range(1, 10), OLD)
    compact(folder)
    assert not list(folder.glob("*.ndjson"))
    write_at(folder, range(20, 26), RECENT)
    folder.chmod(0o700)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "journal")


def command(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """Run a command; return what it wrote to standard output and standard error, each on one line."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.stdout), re.sub(r"\s+", " ", done.stderr)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\x5a" * path.stat().st_size)


def log_of(folder: Path) -> Path:
    return folder / "archive" / "_delta_log"


def replace_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Damage] = {
    "cut": lambda folder: cut(data_files(folder)[0]),
    "empty": lambda folder: empty(data_files(folder)[0]),
    "overwritten": lambda folder: overwrite(data_files(folder)[0]),
    "missing": lambda folder: data_files(folder)[0].unlink(),
    "not a file": lambda folder: replace_by_directory(data_files(folder)[0]),
    "emptied log": lambda folder: [empty(path) for path in log_of(folder).glob("*.json")],
    "log without files": lambda folder: [path.unlink() for path in log_of(folder).glob("*.json")],
    "missing log": lambda folder: shutil.rmtree(log_of(folder)),
    "missing archive": lambda folder: shutil.rmtree(folder / "archive"),
    "emptied archive": lambda folder: [shutil.rmtree(folder / "archive"), (folder / "archive").mkdir()],
    "damaged address": lambda folder: (folder / "archive.json").write_bytes(b"\xe6"),
}

RULES: list[Rule] = [
    FailureRate(name="failure rate", above=0.05, min_events=1),
    SlowerThan(name="slow", above=0.005, min_events=1),
    CrashedRuns(name="crashes", window=600),
    NoRuns(name="no runs", pipeline="other"),
    FailureRate(name="stage", stage="s0", above=0.05, min_events=1),
]
"""Rules whose events are all in the journal."""

NEED_ARCHIVE: list[Rule] = [
    FailureRate(name="long window", above=0.05, window=50 * 24 * 3600.0),
    SqlRows(name="any query", sql="select * from runs where ended_at > $since"),
    EventsDropped(name="dropped", window=50 * 24 * 3600.0),
]


# ------------------------------------------------------------ damage


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_reported_once_and_the_journal_is_shown(folder: Path, kind: str) -> None:
    DAMAGES[kind](folder)
    for arguments in (["stats"], ["errors"], ["totals"], ["query", "select count(*) from runs"], ["explain"]):
        out, error = command(*arguments, "--journal", folder, code=1)
        assert out == ""
        assert re.search(r"archive.*hint: .*(restore|specify|doctor)", error), error
        assert "Traceback" not in error
    for arguments in (["runs", "--json"], ["show", "last", "--json"]):
        out, error = command(*arguments, "--journal", folder)
        assert "0000002" in out
        assert "warning: only the runs of the journal are shown" in error
    assert command("runs", "--json", "--journal", folder)[0].count('"event_id"') == 6
    out, _ = command("doctor", "--journal", folder, code=1)
    assert "archive" in out.partition("Needs attention")[2]


@pytest.mark.parametrize("kind", DAMAGES)
def test_rules_that_do_not_need_the_damaged_part_are_evaluated(folder: Path, kind: str) -> None:
    DAMAGES[kind](folder)
    with EventStore(folder) as store:
        evaluation = evaluate(store, [*NEED_ARCHIVE, *RULES], AlertState(), NOW)
    found = {finding.rule: finding for finding in evaluation.findings}
    for rule in NEED_ARCHIVE:
        assert re.search("archive.*; ", found[rule.name].error or ""), rule.name  # and the remedy
    for rule in RULES:
        assert found[rule.name].error is None, rule.name
        assert "archive" in (found[rule.name].archive_error or "")
    assert found["failure rate"].status == "firing"
    assert (found["failure rate"].summary, found["failure rate"].events) == ("failure rate 33.3 %", "6 runs")
    assert (found["slow"].status, found["no runs"].status) == ("firing", "firing")
    assert {notice.rule for notice in evaluation.notices} == {"failure rate", "slow", "no runs", "stage"}


@pytest.mark.parametrize("kind", DAMAGES)
def test_statistics_of_the_journal_are_shown_with_a_warning(folder: Path, kind: str) -> None:
    DAMAGES[kind](folder)
    for arguments in (["stats"], ["errors"], ["totals"], ["slowest"], ["explain"]):
        out, error = command(*arguments, "--since", "10m", "--journal", folder)
        assert out
        assert "warning: part of the archive cannot be read, but this result does not depend on it" in error
    out, _ = command("stats", "--over", "runs", "--since", "10m", "--json", "--journal", folder)
    assert json.loads(out)["count"] == 6


@pytest.mark.parametrize("kind", ["missing", "not a file", "dangling link", "missing counts"])
def test_missing_file_is_looked_for_only_twice(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = data_files(folder, *["counts-"] * (kind == "missing counts"))[0]
    path.unlink()
    if kind == "not a file":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    loads = 0
    load_rows = snapshot.load_rows

    def count(*args: Any) -> Any:
        nonlocal loads
        loads += 1
        return load_rows(*args)

    monkeypatch.setattr(snapshot, "load_rows", count)
    with EventStore(folder) as store:
        for ask in (store.refresh, store.stats, store.totals, lambda: store.sql("from runs")):
            loads = 0
            with contextlib.suppress(ArchiveDamagedError):
                ask()
            assert loads <= 4  # two looks at everything, and two at what can be read
        with pytest.raises(ArchiveDamagedError, match=re.escape(path.name)):
            store.totals()


def test_query_of_intact_days_succeeds(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    write_at(folder, range(1, 10), OLD)
    compact(folder)
    write_at(folder, range(20, 26), timedelta(days=2))
    compact(folder)
    assert not list(folder.glob("*.ndjson"))
    old, recent = sorted(data_files(folder))
    cut(old)
    rule = FailureRate(name="week", above=0.05, window=7 * 24 * 3600.0, min_events=1)
    with EventStore(folder) as store:
        (finding,) = evaluate(store, [rule], AlertState(), NOW).findings
        assert (finding.status, finding.events) == ("firing", "6 runs")
        assert old.name in (finding.archive_error or "")
        since = (NOW - timedelta(days=10)).isoformat()
        (stat,) = store.stats("runs", RunFilter(since=since))
        assert stat.count == 6
        with pytest.raises(ArchiveDamagedError, match=re.escape(old.name)):
            store.stats("runs")
        cut(recent)
        (finding,) = evaluate(store, [rule], AlertState(), NOW).findings
        assert recent.name in (finding.error or "")


def test_damaged_counts_affect_only_queries_that_read_them(folder: Path) -> None:
    cut(data_files(folder, "counts-")[0])
    with EventStore(folder) as store:
        assert store.sql("select count(*) from runs").rows == [(15,)]
        assert "counts-" in str(store.archive_error)
        assert store.stats("runs")[0].count == 15
        for question in (store.totals, store.volume, lambda: store.sql("from counts")):
            with pytest.raises(ArchiveDamagedError, match="counts-"):
                question()
    assert command("runs", "--json", "--limit", "0", "--journal", folder)[0].count('"event_id"') == 15


def test_repaired_archive_is_used_again(folder: Path) -> None:
    path = data_files(folder)[0]
    content = path.read_bytes()
    with EventStore(folder) as store:
        assert store.stats("runs")[0].count == 15
        cut(path)
        since = RunFilter(since=(NOW - timedelta(hours=1)).isoformat())
        assert store.stats("runs", since)[0].count == 6
        assert store.archive_error is not None
        path.write_bytes(content)
        assert store.stats("runs")[0].count == 15
        assert store.archive_error is None


def test_damage_found_while_reading_is_left_out_as_well(folder: Path) -> None:
    path = data_files(folder)[0]
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)  # its footer is intact
    path.write_bytes(content)
    with EventStore(folder) as store:
        (finding,) = evaluate(store, RULES[:1], AlertState(), NOW).findings
        assert (finding.status, finding.error) == ("firing", None)
        with pytest.raises(ArchiveDamagedError, match=re.escape(path.name)):
            store.slowest()


def test_journal_that_may_lack_events_does_not_replace_the_archive(folder: Path) -> None:
    """Segments were removed until shortly before the window, or it is unknown when."""
    shutil.rmtree(folder / "archive")
    since = NOW - OLD - timedelta(days=1)
    with EventStore(folder) as store:
        assert store.sql("select count(*) from runs", since=NOW - timedelta(hours=1)).rows == [(6,)]
        with pytest.raises(ArchiveDamagedError):
            store.sql("select count(*) from runs", since=since)
        deleted = json.loads((folder / "deleted.json").read_text())
        del deleted["until"], deleted["crc32"]  # as an older version left it
        (folder / "deleted.json").write_text(json.dumps(deleted))
        with pytest.raises(ArchiveDamagedError):
            store.sql("select count(*) from runs", since=NOW - timedelta(hours=1))


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root reads every file")
@pytest.mark.parametrize("what", ["archive", "archive/_delta_log", "a file"])
def test_unreadable_archive_is_reported_and_left_out(folder: Path, what: str) -> None:
    path = data_files(folder)[0] if what == "a file" else folder / what
    path.chmod(0)
    as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []

    script = """if True:
        import json, sys
        from typer.testing import CliRunner
        from stageflow.cli._app import app
        for command in json.loads(sys.argv[1]):
            done = CliRunner().invoke(app, command, catch_exceptions=False)
            print(json.dumps([done.exit_code, done.stdout, done.stderr]))
    """
    commands = [
        [*arguments.split(), "--journal", str(folder)]
        for arguments in (
            "runs --json",
            "stats",
            "stats --over runs --since 10m --json",
            "doctor",
            "doctor --repair",
        )
    ]
    try:
        done = subprocess.run(
            [*as_user, sys.executable, "-c", script, json.dumps(commands)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        shown, refused, counted, checked, repaired = map(json.loads, done.stdout.splitlines())
        assert shown[0] == 0, shown
        assert shown[1].count('"event_id"') >= 6
        assert "warning: only the runs of the journal are shown" in shown[2]
        assert refused[:2] == [1, ""]
        assert str(path.name) in refused[2]
        assert "hint:" in refused[2]
        assert json.loads(counted[1])["count"] == 6
        assert checked[0] == 1
        assert path.name in checked[1]
        assert repaired[0] == 1
    finally:
        path.chmod(0o700)
    assert counts(folder) == (15, 30)  # the repair took nothing out


def test_alert_loop_reports_once_that_the_archive_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(log_of(folder))
    sent: list[str] = []
    rules = AlertRules(
        rules=(NEED_ARCHIVE[1], NoRuns(name="no runs", pipeline="other")),
        receivers=(Call(name="me", function=lambda notice: sent.append(notice.title)),),
    )
    with AlertLoop(folder, rules, every=0.05) as loop:
        while loop.runs < 3:
            time.sleep(0.01)
    assert sent == ["[FIRING] no runs: no runs in 10 min"]
    assert loop.failures == 0
    warnings = [each.message for each in caplog.records if each.levelno == logging.WARNING]
    assert len([each for each in warnings if "cannot evaluate alert rule 'any query'" in each]) == 1
    assert (
        len([each for each in warnings if "cannot read part of the archive (no alert rule needs it)" in each])
        == 1
    )


# ------------------------------------------------------------ out of reach


def set_environment(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an address of object storage that refuses connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    set_environment(monkeypatch, port)
    return "s3://bucket/events"


@pytest.fixture
def overloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Start object storage that answers each request with status 503; return the list of requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(503)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        set_environment(monkeypatch, server.server_port)
        yield requests
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("retries", "expected"), [(None, 5), ("0", 1), ("2", 3)])
def test_failed_request_is_retried_a_limited_number_of_times(
    folder: Path, overloaded: list[str], retries: str | None, expected: int
) -> None:
    options = {} if retries is None else {"max_retries": retries}
    (folder / "archive.json").write_text(json.dumps({"address": "s3://bucket/events"}))
    with EventStore(folder, storage_options=options) as store:
        for ask in (store.stats, lambda: store.sql("from runs"), store.refresh, store.totals):
            overloaded.clear()
            with pytest.raises(OSError, match="cannot be reached"):
                ask()
            assert len(overloaded) == expected
    overloaded.clear()
    with pytest.raises(OSError, match="cannot be reached"):
        Compactor(folder, storage_options=options).compact()
    assert len(overloaded) == expected


@pytest.mark.timeout(120)
def test_unavailable_object_storage_is_a_warning_if_the_journal_suffices(folder: Path, down: str) -> None:
    (folder / "archive.json").write_text(json.dumps({"address": down}))
    out, error = command("runs", "--json", "--journal", folder)
    assert out.count('"event_id"') == 6
    assert f"archive {down} cannot be reached" in error
    assert "check its address, the network and the credentials" in error
    assert "\x1b" not in error
    with EventStore(folder) as store:
        (finding,) = evaluate(store, RULES[:1], AlertState(), NOW).findings
        assert (finding.status, finding.error) == ("firing", None)
        assert down in (finding.archive_error or "")
        with pytest.raises(OSError, match=f"archive {down} cannot be reached"):
            store.sql("select count(*) from runs")


@pytest.mark.timeout(120)
def test_address_that_cannot_be_reached_is_not_stored(tmp_path: Path, down: str) -> None:
    folder = write(tmp_path / "journal", rows([1, 2, 3], RECENT))
    _, error = command("compact", "--archive", down, "--journal", folder, code=1)
    assert f"archive {down} cannot be reached" in error
    assert not (folder / "archive.json").exists()
    assert command("stats", "--over", "runs", "--journal", folder)[1] == ""
    compact(folder)
    with EventStore(folder) as store:
        assert store.stats("runs")[0].count == 3
        assert store.archive_error is None


@pytest.mark.parametrize("command_name", ["runs", "show", "stats", "totals"])
def test_wrong_address_is_a_warning_if_the_journal_suffices(tmp_path: Path, command_name: str) -> None:
    folder = write(tmp_path / "journal", rows([1, 2, 3], RECENT))
    out, error = command(command_name, "--archive", tmp_path / "nowhere", "--json", "--journal", folder)
    assert out
    assert f"there is no archive at {tmp_path / 'nowhere'}" in error
    assert not (folder / "archive.json").exists()
    assert not (tmp_path / "nowhere").exists()


def test_runs_and_show_read_an_archive_alone(folder: Path) -> None:
    assert command("runs", "--archive", folder / "archive", "--json")[0].count('"event_id"') == 9
    out, _ = command("show", "00000003-run", "--archive", folder / "archive", "--json")
    assert '"event_id":"00000003-run"' in out
    both, error = command("runs", "--archive", folder / "archive", "--json", "--journal", folder)
    assert (both.count('"event_id"'), error) == (15, "")


# ------------------------------------------------------------ another address


def counts(folder: Path) -> tuple[float, float]:
    with EventStore(folder) as store:
        return sum(one.count for one in store.stats("runs")), sum(one.count for one in store.totals())


def test_address_is_stored_with_the_first_commit(tmp_path: Path) -> None:
    folder = write(tmp_path / "journal", closed=True)
    for path in folder.glob("*.ndjson"):
        path.unlink()
    _, error = command("compact", "--archive", tmp_path / "archive", "--journal", folder)
    assert "on the first commit" in error
    assert not (folder / "archive.json").exists()
    write(folder, rows([1], RECENT))
    _, error = command("compact", "--archive", tmp_path / "archive", "--journal", folder)
    assert error == ""
    assert json.loads((folder / "archive.json").read_text())["address"] == str(tmp_path / "archive")


def test_changing_the_address_reports_the_events_that_would_not_be_visible(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    _, error = command("compact", "--archive", other, "--journal", folder, code=1)
    assert "18 events of 9 runs would not be visible" in error
    assert "--move" in error
    assert "--forget" in error
    with pytest.raises(ArchiveAddressError) as raised:
        Compactor(folder, other).compact()
    assert (raised.value.events, raised.value.runs) == (18, 9)
    assert not other.exists()
    assert not (folder / "archive.json").exists()
    shutil.rmtree(log_of(folder))
    with pytest.raises(ArchiveAddressError, match="18 events of 9 runs"):  # by its files
        Compactor(folder, other).compact()
    shutil.rmtree(folder / "archive")
    with pytest.raises(ArchiveAddressError, match="0 events of 0 runs"):
        Compactor(folder, other).compact()


def test_moved_archive_has_everything_and_open_stores_follow(folder: Path, tmp_path: Path) -> None:
    before = counts(folder)
    with EventStore(folder) as store:
        compactor = Compactor(folder, keep_seconds=0)
        assert store.stats("runs")[0].count == 15
        _, error = command(
            "compact", "--archive", tmp_path / "other", "--move", "--keep", "1s", "--journal", folder
        )
        assert "18 events moved" in error
        shutil.rmtree(folder / "archive")
        assert store.stats("runs")[0].count == 15
        write(folder, rows(range(30, 33), RECENT))
        compactor.compact()
        assert not (folder / "archive").exists()
        assert store.stats("runs")[0].count == 18
    assert counts(folder) == (before[0] + 3, before[1] + 6)
    assert command("doctor", "--journal", folder)
    again = move_archive(folder, tmp_path / "other")  # as a service does that is started again
    assert (again.files, again.source) == (0, again.address)


def test_interrupted_move_is_completed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import stageflow.store._move as module

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    before = counts(folder)
    with monkeypatch.context() as patched:
        patched.setattr(module, "store_address", die)
        with pytest.raises(KeyboardInterrupt):
            move_archive(folder, tmp_path / "other")
    assert counts(folder) == before
    assert move_archive(folder, tmp_path / "other").rows == 18
    shutil.rmtree(folder / "archive")
    assert counts(folder) == before


def test_archive_is_not_moved_into_another_one_nor_while_it_is_damaged(folder: Path, tmp_path: Path) -> None:
    stranger = write(tmp_path / "stranger", rows([7], OLD))
    compact(stranger)
    with pytest.raises(ArchiveAddressError, match="contains another archive"):
        move_archive(folder, stranger / "archive")
    cut(data_files(folder)[0])
    with pytest.raises(ArchiveDamagedError):
        move_archive(folder, tmp_path / "other")
    assert not (folder / "archive.json").exists()


def test_forgotten_archive_is_replaced_by_a_new_one(folder: Path, tmp_path: Path) -> None:
    _, error = command("compact", "--forget", "--journal", folder, code=1)
    assert "exists, so a new one cannot be created there" in error
    _, error = command("compact", "--archive", tmp_path / "other", "--forget", "--journal", folder)
    assert "18 events of 9 runs" in error
    assert counts(folder) == (6, 12)
    assert data_files(folder)  # nothing was deleted
    assert command("doctor", "--journal", folder)


def test_new_address_is_stored_when_the_archive_is_given_up(folder: Path, tmp_path: Path) -> None:
    compact(folder)
    before = counts(folder)
    other = tmp_path / "other"
    _, error = command("compact", "--archive", other, "--forget", "--journal", folder)
    assert "are no longer visible" in error
    assert "nothing to archive" not in error
    assert counts(folder) == (0, 0) != before
    (folder / "archive").rename(tmp_path / "away")
    assert Compactor(folder).archive.address == str(other)
    assert counts(folder) == (0, 0)
    write(folder, rows([7], OLD))
    command("compact", "--journal", folder)
    assert other.is_dir()
    assert not (folder / "archive").exists()


def test_forget_changes_nothing_if_the_new_address_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    before = counts(folder)
    stranger = write(tmp_path / "stranger", rows([7], OLD))
    compact(stranger)
    log = next((stranger / "archive" / "_delta_log").glob("*.json"))
    log.write_bytes(b"\xe6")
    with pytest.raises(ArchiveDamagedError):
        forget_archive(folder, stranger / "archive")
    assert not (folder / "archive.json").exists()
    assert counts(folder) == before


def test_archive_with_a_lost_log_can_be_given_up_as_the_hint_states(folder: Path) -> None:
    shutil.rmtree(log_of(folder))
    _, error = command("compact", "--journal", folder, code=1)
    assert "move the archive away, and run `stageflow compact --forget" in error
    (folder / "archive").rename(folder.parent / "away")
    command("compact", "--forget", "--journal", folder)
    assert counts(folder) == (6, 12)
    assert forget_archive(folder, folder.parent / "new").events == 0


def test_damaged_address_is_replaced_by_the_requested_one(folder: Path) -> None:
    (folder / "archive.json").write_bytes(b"\xe6")
    with pytest.raises(DamagedFileError):
        Compactor(folder)
    command("compact", "--archive", folder / "archive", "--journal", folder)
    assert counts(folder) == (15, 30)
    assert Journal(folder).check().damaged == []
