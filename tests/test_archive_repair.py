"""Tests for a damaged archive: the report of `doctor`, the repair, and the output of other commands."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_durability import commit_path, cut, data_files, empty, flip, write_batches, zero
from test_store_hostile import compact, run, run_ids, write
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.errors import ArchiveDamagedError, QueryError
from stageflow.store import Compactor, EventStore, check_archive, repair_archive

pytestmark = pytest.mark.slow


def command(*arguments: str | Path, code: int = 0) -> str:
    """Run a command; return what it wrote to both streams, on one line."""
    done = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return re.sub(r"\s+", " ", done.output)


@pytest.fixture(scope="module")
def archived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a journal with three archived runs, in one durable commit each, and without their segments."""
    folder = write_batches(tmp_path_factory.mktemp("archived") / "journal", range(1, 4))
    compact(folder, batch_bytes=1)
    assert not list(folder.glob("*.ndjson"))
    return folder


@pytest.fixture
def folder(archived: Path, tmp_path: Path) -> Path:
    return shutil.copytree(archived, tmp_path / "journal")


# ---------------------------------------------------------------- lost rows


def corrupt(path: Path) -> None:
    flip(path, random.Random(1))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (Path.unlink, "is missing"),
        (corrupt, "does not match its checksum"),
        (empty, "has 0 bytes instead of"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "is missing"),
    ],
)
def test_repair_reports_and_records_the_rows_that_were_lost(
    folder: Path, damage: Callable[[Path], Any], problem: str
) -> None:
    path = data_files(folder)[0]
    before = len(run_ids(folder))
    damage(path)
    written = command("doctor", "--journal", folder, "--repair")
    assert "Nothing to repair" not in written
    assert re.search(
        rf"repaired: \S*{re.escape(path.name)} {problem}.*; the archive no longer has its 1 row", written
    )
    assert len(run_ids(folder)) == before - 1
    # The loss remains recorded.
    for _ in range(2):
        assert "1 row of 1 damaged or missing file lost" in command("doctor", "--journal", folder)
    (lost,) = check_archive(folder).lost
    assert (lost.rows, lost.path) == (1, f"{path.parent.name}/{path.name}")
    assert lost.problem.startswith(problem)
    state = json.loads(command("doctor", "--journal", folder, "--json"))
    assert [file["rows"] for file in state["archive"]["lost"]] == [1]
    assert "Nothing to repair." in command("doctor", "--journal", folder, "--repair")


def test_losses_of_several_repairs_are_all_recorded(folder: Path) -> None:
    for path in data_files(folder)[:2]:
        path.unlink()
        assert repair_archive(folder).lost_rows == 1
    assert sum(file.rows for file in check_archive(folder).lost) == 2


def test_damaged_record_of_losses_is_moved_away(folder: Path) -> None:
    data_files(folder)[0].unlink()
    repair_archive(folder)
    record = folder / "archive" / "_stageflow" / "lost.json"
    record.write_bytes(record.read_bytes().replace(b'"rows":1', b'"rows":2'))
    assert "lost.json is damaged" in command("doctor", "--journal", folder, code=1)
    assert len(run_ids(folder)) == 2
    command("doctor", "--journal", folder, "--repair")
    command("doctor", "--journal", folder)


@pytest.mark.parametrize("damage", [Path.unlink, corrupt])
@pytest.mark.parametrize("beginning", ["part-", "counts-"])
def test_intact_copy_of_a_lost_file_is_restored(
    folder: Path, beginning: str, damage: Callable[[Path], Any]
) -> None:
    path = data_files(folder, beginning)[0]
    content, ids = path.read_bytes(), run_ids(folder)
    damage(path)
    command("doctor", "--journal", folder, "--repair")
    assert path not in data_files(folder, beginning)
    # A damaged copy stays where it is.
    path.write_bytes(content[:-1] + b"X")
    path.chmod(0o600)
    assert "Nothing to repair" in command("doctor", "--journal", folder, "--repair")
    assert path not in data_files(folder, beginning)
    path.write_bytes(content)
    assert "a repair adds it again" in command("doctor", "--journal", folder, code=1)
    assert "is intact and part of the archive again" in command("doctor", "--journal", folder, "--repair")
    assert run_ids(folder) == ids
    with EventStore(folder) as store:
        assert sum(total.count for total in store.totals() if total.stage is None) == len(ids)
    assert check_archive(folder).lost == []
    # It does not count as lost after it was merged into another file.
    for number in range(4, 12):
        write(folder, run(number))
        compact(folder)
    assert check_archive(folder).lost == []
    assert "Nothing to repair" in command("doctor", "--journal", folder, "--repair")
    assert len(run_ids(folder)) == len(ids) + 8


def test_copy_whose_events_are_archived_again_is_not_restored(folder: Path) -> None:
    path = data_files(folder)[0]
    content, ids = path.read_bytes(), run_ids(folder)
    path.unlink()
    repair_archive(folder)
    (lost,) = set(ids) - set(run_ids(folder))
    write(folder, run(int(lost[:8])))
    compact(folder)
    assert run_ids(folder) == ids
    path.write_bytes(content)
    path.chmod(0o600)
    assert repair_archive(folder).restored == []
    assert run_ids(folder) == ids
    command("doctor", "--journal", folder)


# ---------------------------------------------------------------- the record of the durable version


def change_a_digit(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(re.sub(rb'"version":\d+', b'"version":9', content))


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [empty, cut, zero, change_a_digit, make_fifo, make_directory])
def test_repair_rewrites_a_damaged_record_of_the_durable_version(
    folder: Path, damage: Callable[[Path], Any]
) -> None:
    durable = folder / "archive" / "_stageflow" / "durable.json"
    version = json.loads(durable.read_bytes())["version"]
    ids = run_ids(folder)
    damage(durable)
    with pytest.raises(ArchiveDamagedError, match=r"(?s)durable\.json is damaged.*doctor --repair"):
        compact(folder)
    assert "durable.json" in command("doctor", "--journal", folder, code=1)
    assert "durable.json moved to _stageflow/" in command("doctor", "--journal", folder, "--repair")
    assert json.loads(durable.read_bytes())["version"] >= version
    command("doctor", "--journal", folder)
    compact(folder)
    assert run_ids(folder) == ids
    # The new record protects the log as the old one did.
    empty(max((folder / "archive" / "_delta_log").glob("*.json")))
    with pytest.raises(ArchiveDamagedError, match="was durable"):
        compact(folder)


# ---------------------------------------------------------------- a damaged log


@pytest.mark.parametrize("version", [0, 1, 2])
def test_doctor_reports_how_many_events_a_damaged_log_puts_at_risk(folder: Path, version: int) -> None:
    write(folder, run(4))  # the journal has this one
    files = [*data_files(folder), *data_files(folder, "counts-")]
    empty(commit_path(folder, version))
    state = check_archive(folder)
    assert [Path(file.path).name for file in state.damaged] == [commit_path(folder, version).name]
    assert (state.files, state.bytes) == (len(files), sum(path.stat().st_size for path in files))
    written = command("doctor", "--journal", folder, code=1)
    assert f"archive: {len(files)} files" in written
    assert "every checksum matches; 1 file of its log or state damaged or missing" in written
    assert "restore it from a backup" in written
    at_stake = "gives up 3 archived events in 3 files, which the journal no longer has"
    assert at_stake in written
    assert at_stake in command("compact", "--journal", folder, code=1)
    with pytest.raises(ArchiveDamagedError, match=at_stake):
        repair_archive(folder)
    # If a file of events is damaged as well, it is reported, and its events cannot be counted.
    corrupt(files[0])
    written = command("doctor", "--journal", folder, code=1)
    assert "1 damaged or missing; 1 file of its log" in written
    assert "gives up 2 archived events in 2 files" in written


def test_hint_states_that_nothing_is_lost_while_the_journal_has_all_events(tmp_path: Path) -> None:
    folder = write_batches(tmp_path / "journal", range(1, 4))
    Compactor(folder, batch_bytes=1, keep_seconds=3600).compact()
    empty(commit_path(folder, 1))
    assert "gives up no event" in command("doctor", "--journal", folder, code=1)


def test_doctor_and_compact_agree_that_an_old_archive_cannot_be_recovered(folder: Path) -> None:
    shutil.rmtree(folder / "archive" / "_stageflow")  # as an older version left it
    empty(max((folder / "archive" / "_delta_log").glob("*.json")))
    for arguments in (["doctor"], ["doctor", "--repair"], ["compact"]):
        written = command(*arguments, "--journal", folder, code=1)
        assert "restore it from a backup" in written, arguments
        assert "the journal cannot replace the rest" in written, arguments
        assert "recovers the archive" not in written, arguments
        assert "durable" not in written, arguments


def remove_address(folder: Path) -> None:
    (folder / "archive.json").write_bytes(b"{")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: empty(commit_path(folder, 0)),
        lambda folder: cut(data_files(folder)[0]),
        lambda folder: shutil.rmtree(folder / "archive" / "_delta_log"),
        lambda folder: change_a_digit(folder / "archive" / "_stageflow" / "durable.json"),
        remove_address,
    ],
)
def test_runs_of_the_journal_are_shown_if_the_archive_is_damaged(
    folder: Path, damage: Callable[[Path], Any]
) -> None:
    write(folder, run(4))
    damage(folder)
    for arguments in (["runs", "--json"], ["show", "last", "--json"]):
        written = command(*arguments, "--journal", folder)
        assert (
            "warning: only the runs of the journal are shown, because the archive cannot be read:" in written
        )
        assert "00000004" in written
    # Commands that count fail, because a part of the events would result in a wrong number.
    for arguments in (["stats"], ["query", "select count(*) from runs"]):
        assert "hint:" in command(*arguments, "--journal", folder, code=1)


SCHEMAS = {
    "a type that does not exist": (rb'type\\":\\"string\\"', rb"type\":\"strinh\""),
    "a schema that is empty": (rb'"schemaString":"(?:\\.|[^"])*"', rb'"schemaString":""'),
    "a protocol of the future": (rb'"minReaderVersion":\d+', rb'"minReaderVersion":99'),
    "a key of another name": (rb'"schemaString"', rb'"schemaStrinh"'),
    "a day that is none": (rb'"day":"[^"]*"', rb'"day":"x"'),
}
"""Damage of a commit that is still valid JSON and not covered by a checksum."""


@pytest.mark.parametrize("kind", SCHEMAS)
def test_log_that_delta_cannot_read_is_reported(folder: Path, kind: str) -> None:
    pattern, replacement = SCHEMAS[kind]
    changed = 0
    for path in (folder / "archive" / "_delta_log").glob("*.json"):
        content = path.read_bytes()
        path.write_bytes(re.sub(pattern, replacement.replace(rb"\"", rb'\\"'), content))
        changed += path.read_bytes() != content
    assert changed
    for arguments in (["doctor"], ["stats"], ["query", "select count(*) from runs"], ["compact"]):
        done = CliRunner().invoke(app, [*arguments, "--journal", str(folder)])
        assert isinstance(done.exception, SystemExit), (arguments, done.exception)
        assert done.exit_code == 1, arguments
        assert "_delta_log" in done.output.replace("\n", ""), (arguments, done.output)
        assert "<unknown>" not in done.output


@pytest.mark.parametrize("file", ["the first commit", "the newest commit", "the hint"])
def test_deeply_nested_log_file_is_an_error_without_traceback(folder: Path, file: str) -> None:
    path: Path = FILES[file](folder)
    path.write_bytes(b'{"add":' + b"[" * 3000)
    for arguments in (["doctor"], ["stats"], ["compact"], ["doctor", "--repair"]):
        done = CliRunner().invoke(app, [*arguments, "--journal", str(folder)])
        assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)


@pytest.mark.parametrize("stats", [rb'"stats":"[', rb'"stats":"{\"numRecords\":[],'])
def test_damaged_statistics_of_a_file_make_no_row_unreadable(folder: Path, stats: bytes) -> None:
    ids = run_ids(folder)
    for path in (folder / "archive" / "_delta_log").glob("*.json"):
        path.write_bytes(path.read_bytes().replace(b'"stats":"{', stats))
    assert run_ids(folder) == ids
    write(folder, run(4))
    compact(folder)
    assert len(run_ids(folder)) == len(ids) + 1


@pytest.mark.parametrize("at", [-5, -8, -30, 4, 40])
def test_file_that_duckdb_cannot_read_is_reported(folder: Path, at: int) -> None:
    """Damage the file in place, including its footer and its length."""
    with EventStore(folder, verify=True) as store:
        store.runs()  # all files were found intact
        for path in data_files(folder):
            content = bytearray(path.read_bytes())
            for byte in range(4):
                content[at + byte if at < -4 or at >= 0 else at] ^= 0xFF
            path.write_bytes(content)
        names = "|".join(re.escape(path.name) for path in data_files(folder))
        with pytest.raises(ArchiveDamagedError, match=names):
            store.sql("select * from events", timeout=60)
    with EventStore(folder) as fresh, pytest.raises(ArchiveDamagedError, match=names):
        fresh.sql("select * from events")


# ---------------------------------------------------------------- wrong addresses


@pytest.mark.parametrize("address", ["nonexistent", "s3:/bucket/events"])
def test_address_without_an_archive_is_an_error(tmp_path: Path, address: str) -> None:
    address = address if ":" in address else str(tmp_path / address)
    for arguments in (
        ["stats"],
        ["errors"],
        ["slowest"],
        ["totals"],
        ["volume"],
        ["query", "select 1"],
    ):
        written = command(*arguments, "--archive", address, code=1)
        assert re.fullmatch(rf"there is no archive at \S*{re.escape(address)} ", written), arguments
    assert not (tmp_path / "nonexistent").exists()


# ---------------------------------------------------------------- queries that are refused


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select 1; select 2", "expected a single statement, got 2"),
        ("", "the query is empty"),
        (" -- nothing", "the query is empty"),
        ("drop view runs", "expected a SELECT statement, got a statement of type DROP"),
    ],
)
def test_statement_that_is_not_a_query_is_an_error(folder: Path, sql: str, message: str) -> None:
    written = command("query", sql, "--journal", folder, code=1)
    assert message in written
    assert "the views are runs, stages, items, events and counts" in written


def test_hint_of_a_timeout_names_the_option(folder: Path) -> None:
    sql = "select count(*) from range(10_000_000_000) a, range(1_000) b"
    assert "--timeout on the command line" in command(
        "query", sql, "--journal", folder, "--timeout", "1s", code=1
    )


@pytest.mark.parametrize(
    "sql",
    [
        "select list(x) from (select random()::varchar || repeat('x', 1000) as x from range(1_000_000))",
        "select count(distinct x) from (select random() as x from range(30_000_000))",
    ],
)
def test_out_of_memory_error_contains_no_advice_about_settings(folder: Path, sql: str) -> None:
    with (
        EventStore(folder, memory="100MB", disk="10MB") as store,
        pytest.raises(QueryError, match=r"Out of Memory.*\n.*query: ") as raised,
    ):
        store.sql(sql)
    written = str(raised.value)
    assert not re.search(r"\bset\b|pragma|describe runs|duckdb\.org", written, re.IGNORECASE), written
    assert "aggregate before sorting" in written


def test_only_errors_about_columns_have_hints_about_columns(folder: Path) -> None:
    assert "describe runs" in command("query", "select nothing from runs", "--journal", folder, code=1)
    assert "describe runs" not in command("query", "select cast('x' as int)", "--journal", folder, code=1)


# ---------------------------------------------------------------- something else in place of a file

FILES = {
    "the first commit": lambda folder: commit_path(folder, 0),
    "the newest commit": lambda folder: max((folder / "archive" / "_delta_log").glob("*.json")),
    "the hint": lambda folder: folder / "archive" / "_delta_log" / "_last_checkpoint",
    "a file of events": lambda folder: data_files(folder)[0],
    "the record of losses": lambda folder: folder / "archive" / "_stageflow" / "lost.json",
    "the lock": lambda folder: folder / "archive" / "_stageflow" / "lock",
}


OTHERS: list[Callable[[Path], Any]] = [os.mkdir, lambda path: path.symlink_to("nowhere")]


@pytest.mark.parametrize("file", FILES)
def test_entry_in_place_of_a_file_does_not_block(folder: Path, tmp_path: Path, file: str) -> None:
    write(folder, run(4))
    # A FIFO, which blocks a reader, in place of every file; a directory and a link in place of every other.
    replacements = (os.mkfifo, OTHERS[list(FILES).index(file) % len(OTHERS)])
    copies = [
        shutil.copytree(folder, tmp_path / str(number) / folder.name) for number in range(len(replacements))
    ]
    paths: list[Path] = [FILES[file](copy) for copy in copies]
    for replace, path in zip(replacements, paths, strict=True):
        path.unlink(missing_ok=True)
        replace(path)
    # Use a process, because a thread that waits in native code cannot be interrupted.
    script = """if True:
        import sys
        from typer.main import get_command
        from stageflow.cli._app import app
        query = ["query", "select count(*) from runs"]
        command = get_command(app)
        for journal in sys.argv[1:]:
            for arguments in (["doctor"], ["compact"], query, ["doctor", "--repair"]):
                try:
                    command([*arguments, "--journal", journal])
                except SystemExit as ended:
                    print("exit code", ended.code)
            for stream in (sys.stdout, sys.stderr):
                print("next journal", file=stream, flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, copies)], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    printed = zip(done.stdout.split("next journal"), done.stderr.split("next journal"), strict=True)
    for copy, path, (out, err) in zip(copies, paths, printed, strict=False):
        assert out.count("exit code") == 4, err
        if "exit code 1" in out:
            assert path.name in (out + err).replace("\n", "")
        if path.parent.name == "_stageflow":
            assert "exit code 1" in out
            command("doctor", "--journal", copy)  # it is repaired
