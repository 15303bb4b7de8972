"""Groups of failures with the same error: their members, their trend, and the table on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from test_sampling import BEGAN, write_runs
from typer.testing import CliRunner

import stageflow
from stageflow import Pipeline, PipelineContext, StageContext
from stageflow._time import rfc3339
from stageflow.cli._app import app
from stageflow.journal import Journal, RunFilter
from stageflow.store import Compactor, ErrorGroup, EventStore

HOUR = 3600.0


def failures(
    number: int,
    fingerprint: str | None,
    message: str = "ValueError: x",
    start: float = 0.0,
    every: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """Return failed runs that start `every` seconds from `start` on, each of another user."""
    for n in range(number):
        run = {
            "id": f"{message[:40]}-{fingerprint}-{n}",
            "fails": True,
            "error": message.replace("N", str(n)),
        }
        run |= {"second": start + n * every, "user": f"u{n % 3}"}
        yield run if fingerprint is None else {**run, "fingerprint": fingerprint}


def time_of(seconds: float) -> str:
    return rfc3339(int((BEGAN + timedelta(seconds=seconds)).timestamp() * 1e6))


def period(since: float = 0.0, until: float = HOUR) -> RunFilter:
    return RunFilter(since=time_of(since), until=time_of(until))


@pytest.fixture(params=[False, True], ids=["journal", "archive"])
def archived(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def groups(folder: Path, runs: Iterable[dict[str, Any]], archived: bool, **options: Any) -> list[ErrorGroup]:
    write_runs(folder, runs)
    if archived:
        Compactor(folder, keep_seconds=0).compact()
    with EventStore(folder) as store:
        return store.errors(period(), **options)


# ------------------------------------------------------------ groups


def test_failures_with_one_fingerprint_are_one_group(tmp_path: Path, archived: bool) -> None:
    runs = [
        *failures(5, "1:aa", "LookupError: no object 'a.N'"),
        *failures(3, "1:aa", "LookupError: no object 'b'", start=100),
        *failures(2, "1:bb", "LookupError: no object 'b'", start=50),
    ]
    first, second = groups(tmp_path, runs, archived)
    assert (first.fingerprint, first.rows, first.count, first.runs) == ("1:aa", 8, 8.0, 8)
    assert first.message == "LookupError: no object 'b'"  # the newest
    assert (first.first, first.last) == (BEGAN + timedelta(seconds=0.01), BEGAN + timedelta(seconds=102.01))
    assert first.users == 3
    assert first.examples[0] == "LookupError: no object 'b'-1:aa-2"
    assert len(first.examples) == 5
    assert (second.fingerprint, second.rows, second.users) == ("1:bb", 2, 2)


def test_failures_without_fingerprints_are_grouped_by_their_normalized_messages(
    tmp_path: Path, archived: bool
) -> None:
    runs = [
        *failures(4, None, "ValueError: row N is bad"),
        *failures(2, None, "ValueError: column N is bad"),
        *failures(1, "1:aa", "ValueError: row N is bad"),
    ]
    found = groups(tmp_path, runs, archived)
    assert [(group.fingerprint, group.rows, group.users) for group in found] == [
        (None, 4, 3),
        (None, 2, 2),
        ("1:aa", 1, 1),
    ]


def test_run_that_failed_itself_is_listed_although_a_stage_had_failed_before(tmp_path: Path) -> None:
    async def fails(ctx: StageContext) -> None:
        raise ValueError("x")

    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    stageflow.configure(journal=tmp_path, health_seconds=None)
    graph = Pipeline("p").with_stage("a", fails).with_stage("b", waits).build(on_failure="continue")
    asyncio.run(graph.run(deadline=0.05))
    (run,) = Journal(tmp_path).runs()
    with EventStore(tmp_path) as store:
        found = {group.stage: group for group in store.errors()}
    assert set(found) == {"a", None}
    assert (run["outcome"], run["error_fingerprint"]) == ("timeout", found[None].fingerprint)


def test_every_failed_run_has_and_shows_the_fingerprint_of_a_group(tmp_path: Path) -> None:
    async def fails(ctx: StageContext) -> None:
        raise ExceptionGroup("tasks failed", [KeyError(f"key {n}") for n in range(ctx.run.data)])

    stageflow.configure(journal=tmp_path, health_seconds=None)
    graph = Pipeline("p").with_stage("a", fails).build()
    for number, user in enumerate(("u1", "u2", "u2"), 1):
        asyncio.run(graph.run(PipelineContext(user_id=user, data=number)))
    with EventStore(tmp_path) as store:
        (group,) = store.errors()
        assert {run["error_fingerprint"] for run in store.runs()} == {group.fingerprint}
    assert (group.kind, group.runs, group.users) == ("KeyError and 2 others", 3, 2)
    shown = CliRunner().invoke(app, ["show", "last", "--journal", str(tmp_path)])
    assert f"fingerprint    {group.fingerprint}" in shown.stdout
    where = f"error_fingerprint = '{group.fingerprint}'"
    listed = CliRunner().invoke(app, ["errors", "--where", where, "--json", "--journal", str(tmp_path)])
    assert json.loads(listed.stdout)["runs"] == 3


# ------------------------------------------------------------ trend


def test_trend_counts_failures_in_twelve_parts_of_the_period(tmp_path: Path, archived: bool) -> None:
    runs = [
        *failures(3, "1:aa", start=1),
        *failures(2, "1:aa", start=HOUR - 10, every=5),
        *failures(1, "1:bb", start=HOUR / 2 + 1),
    ]
    for run in runs[:2]:
        run["sample_rate"] = 10
    often, once = groups(tmp_path, [{**run, "id": str(n)} for n, run in enumerate(runs)], archived)
    assert often.trend == [21.0, *[0.0] * 10, 2.0]
    assert once.trend == [*[0.0] * 6, 1.0, *[0.0] * 5]


@pytest.mark.parametrize(("start", "is_new"), [(HOUR * 0.24, False), (HOUR * 0.26, True)])
def test_error_is_not_new_in_the_first_quarter_of_the_record(
    tmp_path: Path, start: float, is_new: bool
) -> None:
    runs = [*failures(2, "1:aa", start=start), *failures(3, "1:bb", "ValueError: y")]
    first, group = groups(tmp_path, runs, archived=False)
    assert (first.fingerprint, first.is_new) == ("1:bb", False)
    assert group.is_new is is_new


def test_error_is_new_in_a_period_if_it_did_not_occur_before(tmp_path: Path) -> None:
    write_runs(
        tmp_path,
        [
            *failures(3, "1:old"),
            *failures(2, "1:old", "ValueError: y", start=HOUR * 0.8),
            *failures(1, "1:new", start=HOUR * 0.85),
        ],
    )
    half = period(HOUR / 2)
    with EventStore(tmp_path) as store:
        (change,) = store.overview(half).changes
        everything = {group.fingerprint: group.is_new for group in store.errors()}
        in_half = {group.fingerprint: group.is_new for group in store.errors(half)}
        assert store.sql(f"select count(*) from runs where {change.where}").rows == [(1,)]
    assert in_half == everything == {"1:old": False, "1:new": True}
    assert (change.kind, change.at) == ("error", time_of(HOUR * 0.85))


def test_first_occurrence_is_that_of_the_record_also_before_the_period(
    tmp_path: Path, archived: bool
) -> None:
    day = 24 * HOUR
    runs = [
        *failures(1, "1:aa", start=-31 * day),
        *failures(1, "1:aa", start=-2 * HOUR),
        *failures(2, "1:aa", start=HOUR * 0.8),
        *failures(1, "1:bb", start=HOUR * 0.85),
        *failures(1, "1:bb", start=2 * HOUR),
    ]
    write_runs(tmp_path, [{**run, "id": f"run-{n}"} for n, run in enumerate(runs)])
    if archived:
        Compactor(tmp_path, keep_seconds=0).compact()
    of_user = "user_id = 'u1'"
    with EventStore(tmp_path) as store:
        old, new = store.errors(period())
        (filtered,) = store.errors(period(), where=of_user)
        everything = {group.fingerprint: group for group in store.errors()}
        (of_one,) = store.errors(where=of_user)

    def ended(seconds: float) -> datetime:
        return BEGAN + timedelta(seconds=seconds + 0.01)

    # The 30 days before the period count; its other statistics are of the period.
    assert (old.rows, old.first, old.last) == (2, ended(-2 * HOUR), ended(HOUR * 0.8 + 1))
    assert (sum(old.trend), old.is_new) == (2.0, False)
    assert (new.rows, new.first, new.is_new) == (1, ended(HOUR * 0.85), True)
    assert (filtered.rows, filtered.first, filtered.is_new) == (1, ended(-2 * HOUR), False)
    assert everything["1:aa"].first == of_one.first == ended(-31 * day)
    assert everything["1:bb"].last == ended(2 * HOUR)


def test_period_without_a_filter_is_from_the_first_failure_until_now(tmp_path: Path) -> None:
    now = (datetime.now(UTC) - BEGAN).total_seconds()
    write_runs(tmp_path, [*failures(1, "1:aa", start=now - HOUR), *failures(1, "1:bb", start=now - 1)])
    with EventStore(tmp_path) as store:
        old, new = sorted(store.errors(), key=lambda group: group.first)
    assert (old.trend[0], old.is_new) == (1.0, False)
    assert (new.trend[-1], new.is_new) == (1.0, True)


def test_trend_of_a_single_failure_has_a_period(tmp_path: Path) -> None:
    (group,) = groups(tmp_path, failures(1, "1:aa"), archived=False)
    assert sum(group.trend) == 1.0


# ------------------------------------------------------------ the terminal


def on_terminal(columns: int, *arguments: str, **environment: str) -> str:
    """Return what a command prints on a terminal of this width."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "stageflow", *arguments],
        stdin=child,
        stdout=child,
        stderr=subprocess.DEVNULL,  # shows the progress
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": str(columns), **environment},
    )
    os.close(child)
    printed = b""
    try:
        while chunk := os.read(parent, 65536):
            printed += chunk
    except OSError:  # Linux reports the end of a terminal as an error
        pass
    finally:
        os.close(parent)
    assert process.wait(30) == 0, printed
    return printed.decode().replace("\r\n", "\n")


HOSTILE = "ValueError: \x1b[31mred\x1b[0m\n\u202eevil\ttab\0 " + "漢字 " * 300 + "x" * 10_000


@pytest.fixture
def incident(tmp_path: Path) -> Path:
    write_runs(
        tmp_path,
        [
            *failures(40, "1:aa", "ConnectionError: no answer from db-N", every=80),
            *failures(3, "1:bb", HOSTILE, start=HOUR - 20),
            *({**run, "pipeline": "a pipeline with a very long name " * 5} for run in failures(2, "1:cc")),
            *failures(1, "1:dd", ""),
        ],
    )
    return tmp_path


def test_errors_fit_a_terminal_of_80_columns(incident: Path) -> None:
    window = ("--since", time_of(0), "--until", time_of(HOUR))
    printed = on_terminal(80, "errors", *window, "--journal", str(incident))
    lines = printed.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert not {"\x1b", "\0", "\t", "\u202e"} & set(printed)
    assert lines[0].split() == ["count", "runs", "users", "pipeline", "trend", "first", "last"]
    assert "  runs  ConnectionError: no answer from db-N-1:aa-39\n" in printed
    assert "ConnectionError: no answer from db-39" in printed
    assert "  new  ValueError: " in printed
    assert "▇" in printed or "█" in printed
    for width in (40, 20, 200):
        narrow = on_terminal(width, "errors", *window, "--journal", str(incident))
        assert max(map(cell_len, narrow.splitlines())) <= width


def test_errors_in_json_have_every_field(incident: Path) -> None:
    command = [sys.executable, "-m", "stageflow", "errors", "--json", "--journal", str(incident)]
    command += ["--since", time_of(0), "--until", time_of(HOUR)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["fingerprint"] for row in rows] == ["1:aa", "1:bb", "1:cc", "1:dd"]
    assert set(rows[0]) == set(ErrorGroup.__struct_fields__)
    assert (rows[1]["is_new"], rows[1]["users"], sum(rows[1]["trend"])) == (True, 3, 3.0)
    assert rows[1]["message"].endswith("x" * 100)
