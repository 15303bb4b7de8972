"""`PostgresExporter` against a real server: each event once, in order; views like those of the store."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Program
from postgres_server import postgres_server
from psycopg.rows import dict_row
from typer.testing import CliRunner

from stageflow import JournalSink, Pipeline, PipelineContext, Retry
from stageflow.cli._app import app
from stageflow.errors import InvalidArgumentError
from stageflow.export import DeadLetters, ExportRunner, ExportSettings, PostgresExporter, export_status
from stageflow.observability import WideEventEmitter
from stageflow.store import EventStore

Start = Callable[[str], Program]

FAST = ExportSettings(
    batch_events=100, batch_seconds=0.02, retry_first=0.05, retry_max=0.1, circuit_seconds=0.1
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def database(server: str) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"create database {name}")
    yield server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


def query(database: str, sql: str) -> list[dict[str, Any]]:
    with psycopg.connect(database, row_factory=dict_row) as connection:
        connection.execute("set timezone to 'UTC'")
        return connection.execute(sql).fetchall()


def exported(journal: Path, exporter: PostgresExporter, settings: ExportSettings = FAST) -> None:
    """Export everything that the journal contains now."""
    runner = ExportRunner(journal, exporter, settings=settings)
    runner.request_stop(60, drain=True)
    runner.run()
    assert runner.state.consecutive_failures == 0, runner.state.last_error


def emit(journal: Path, *events: dict[str, Any]) -> None:
    sink = JournalSink(journal)
    for data in events:
        sink.try_emit(type="t", data=data)
    sink.close()


def run_id(day: str) -> str:
    """Return a UUIDv7 of a day."""
    ms = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    return str(uuid.UUID(int=(ms << 80) | (7 << 76) | (2 << 62) | uuid.uuid4().int >> 66))


async def record(journal: Path) -> None:
    """Record runs of all outcomes, with retries, custom events and amendments."""
    sink = JournalSink(journal)
    contexts: list[Any] = []

    async def load(ctx: Any) -> dict[str, int]:
        contexts.append(ctx)
        ctx.annotate(hits=3, name="x")
        ctx.emit_event("cache.miss", {"key": "k"})
        if ctx.attempt == 1:
            raise ConnectionError("again")
        if ctx.run.data["number"] % 3 == 0:
            raise ValueError("bad \0 input")
        return {"n": 1}

    async def rank(ctx: Any) -> None: ...

    graph = (
        Pipeline("shop")
        .with_stage("load", load, retry=Retry(attempts=2, wait=0))
        .with_stage("rank", rank, dependencies=("load",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    for number in range(10):
        await graph.run(PipelineContext(user_id=f"u{number % 2}", data={"number": number}))
    for value in (1, 2):
        contexts[0].annotate(late=value, hits=10 * value)
    sink.close()


def test_views_return_what_the_store_returns(tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    asyncio.run(record(journal))
    exported(journal, PostgresExporter(database))
    with EventStore(journal) as store:
        for view in ("runs", "stages"):
            rows = store.sql(f"select * from {view} order by event_id")
            names = [name for name in rows.columns if not name.startswith("attributes.")]
            known = {
                row["column_name"]
                for row in query(
                    database,
                    f"""
                select column_name from information_schema.columns
                where table_schema = 'stageflow' and table_name = '{view}'""",
                )
            }
            missing = {*names} - known
            assert missing == {"rest", "sample_reason", "segment"}, "columns of the storage format"
            shared = [name for name in names if name not in missing]
            sql = f"select {', '.join(shared)} from {view} order by event_id"
            expected = [dict(zip(shared, row, strict=True)) for row in store.sql(sql).rows]
            found = query(database, sql.replace("from ", "from stageflow."))
            assert len(found) == len(expected) > 9
            for mine, theirs in zip(found, expected, strict=True):
                for name in shared:
                    assert comparable(mine[name]) == comparable(theirs[name]), (view, name)
        sql = """select status, count(*) as n, sum(case when failed then 1 else 0 end) as failures
            from runs where started_at > '2020-01-01' and user_id = 'u0' group by status order by status"""
        theirs = [tuple(map(int_or_text, row)) for row in store.sql(sql).rows]
    mine = query(database, sql.replace("from runs", "from stageflow.runs"))
    assert [tuple(map(int_or_text, row.values())) for row in mine] == theirs
    (late,) = query(database, "select attributes from stageflow.stages where attributes ? 'late'")
    assert (late["attributes"]["late"], late["attributes"]["hits"]) == (2, 20), "amendments in order"


def int_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else int(value)


def comparable(value: Any) -> Any:
    if isinstance(value, str):
        value = value.replace("\0", "\ufffd")
        if value[:1] in "[{":
            return json.loads(value.replace("\\u0000", "\ufffd"))
    if isinstance(value, tuple):
        return [*value]
    return value


def test_events_are_stored_once_and_in_order_if_they_are_sent_again(tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    asyncio.run(record(journal))
    exported(journal, PostgresExporter(database, name="first"))
    first = query(database, "select type, event_id, revision from stageflow.events order by number")
    exported(journal, PostgresExporter(database, name="second"))
    assert query(database, "select type, event_id, revision from stageflow.events order by number") == first
    one, two = export_status(journal)
    assert (one.sent, one.duplicates, two.sent, two.duplicates) == (len(first), 0, len(first), len(first))
    written = [
        (line["type"], line["data"].get("event_id"))
        for path in journal.glob("*.ndjson")
        for line in map(json.loads, path.read_bytes().splitlines())
        if "data" in line
    ]
    assert [(row["type"], row["event_id"]) for row in first] == written


def test_events_are_partitioned_by_the_day_of_their_run(tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    old, new = run_id("2026-01-31"), run_id("2026-02-01")
    emit(
        journal,
        {"event_id": f"{old}/a/1", "started_at": "2026-02-01T00:00:01.000000Z"},
        {"event_id": old},
        {"event_id": new},
        {"event_id": "mine", "started_at": "2026-03-05T23:00:00.000000Z"},
        {"event_id": "custom", "emitted_at": "2026-03-06T00:00:00.000000Z"},
        {"text": "no id, no time"},
    )
    exported(journal, PostgresExporter(database))
    rows = query(
        database, "select tableoid::regclass::text as part, event_id, day::text from stageflow.events"
    )
    found = {row["event_id"]: (row["part"], row["day"]) for row in rows}
    assert found[old] == found[f"{old}/a/1"] == ("stageflow.events_20260131", "2026-01-31")
    assert found[new] == ("stageflow.events_20260201", "2026-02-01")
    assert found["mine"] == ("stageflow.events_20260305", "2026-03-05")
    assert found["custom"] == ("stageflow.events_20260306", "2026-03-06")
    assert ("stageflow.events_19700101", "1970-01-01") in found.values()


def test_value_that_postgres_cannot_store_is_replaced_or_rejected(tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    too_long = "".join(uuid.uuid4().hex for _ in range(200))  # for an index
    emit(
        journal,
        {"event_id": "a", "text": "x\0y", "path": "C:\\u0000"},
        {"event_id": too_long},
        {"event_id": "c\0d"},
    )
    exported(journal, PostgresExporter(database, name="shop"))
    rows = query(database, "select event_id, data from stageflow.events order by number")
    assert [row["event_id"] for row in rows] == ["a", "c\ufffdd"]
    assert rows[0]["data"]["text"] == "x\ufffdy"
    assert rows[0]["data"]["path"] == "C:\\u0000"
    (letter,) = DeadLetters(str(journal / "export" / "shop" / "rejected"))
    assert letter.event_id == too_long
    assert "exceeds btree version 4 maximum" in letter.reason
    (status,) = export_status(journal)
    assert (status.sent, status.rejected, status.failures) == (2, 1, 0)


def test_unavailable_server_and_missing_privileges_are_retried(tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    emit(journal, {"event_id": "a"})
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"create role r{journal.stat().st_ino} login")
        role = f"r{journal.stat().st_ino}"
        changed = threading.Condition()

        def notify(state: object) -> None:
            with changed:
                changed.notify_all()

        def wait(until: Callable[[], bool]) -> None:
            with changed:
                assert changed.wait_for(until, 30), runner.state

        exporter = PostgresExporter(database.replace("postgres:", f"{role}:hunter2"), name="shop")
        runner = ExportRunner(journal, exporter, settings=FAST, on_change=notify)
        with runner:
            wait(lambda: runner.state.failures >= 1)
            assert "permission denied for database" in (runner.state.last_error or "")
            # A DBA creates the tables, and allows the exporter only to insert.
            printed = CliRunner().invoke(app, ["export", "sql", "postgres"]).stdout
            admin.execute(printed)
            admin.execute(f"grant usage on schema stageflow to {role}")
            admin.execute(f"grant select, insert on stageflow.events to {role}")
            wait(lambda: runner.state.counters.sent == 1)
            assert [row["event_id"] for row in query(database, "select event_id from stageflow.events")] == [
                "a"
            ]
            # The connection is lost.
            failures = runner.state.failures
            admin.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where application_name = 'stageflow-export' and datname = current_database()"
            )
            emit(journal, {"event_id": "b"})
            wait(lambda: runner.state.counters.sent == 2)
            assert runner.state.failures == failures + 1
        (status,) = export_status(journal)
        assert "hunter2" not in status.target
        admin.execute(f"drop owned by {role}")
        admin.execute(f"drop role {role}")


def test_views_of_an_earlier_version_are_replaced(tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    emit(journal, {"event_id": "a"})
    exported(journal, PostgresExporter(database, name="one"))
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("comment on table stageflow.events is 'stageflow export 0'")
        connection.execute("drop view stageflow.runs; create view stageflow.runs as select 1 as status")
    exported(journal, PostgresExporter(database, name="two"))
    assert query(database, "select event_id, outcome, failed from stageflow.runs") == []
    # A view of the user depends on it: events are still inserted.
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("comment on table stageflow.events is 'stageflow export 0'")
        connection.execute("create view mine as select outcome from stageflow.runs")
    emit(journal, {"event_id": "b"})
    exported(journal, PostgresExporter(database, name="two"))
    assert len(query(database, "select * from stageflow.events")) == 2


def test_exporters_of_several_journals_create_the_tables_at_the_same_time(
    program: Start, tmp_path: Path, database: str
) -> None:
    script = """
import sys, asyncio, threading
from pathlib import Path
from stageflow import JournalSink
from stageflow.export import ExportRunner, ExportSettings, PostgresExporter

path = Path(sys.argv[1]) / NUMBER
sink = JournalSink(path)
for number in range(500):
    started_at = f"2026-05-0{number % 9 + 1}T00:00:00.000000Z"
    sink.try_emit(type="t", data={"event_id": f"{NUMBER}-{number}", "started_at": started_at})
sink.close()
runner = ExportRunner(path, PostgresExporter(URL))
runner.request_stop(60, drain=True)
print("ready", flush=True)
sys.stdin.readline()
runner.run()
print(runner.state.counters.sent, runner.state.last_error)
"""
    started = [program(f"NUMBER = '{number}'\nURL = {database!r}\n{script}") for number in range(3)]
    for each in started:
        each.wait_for("ready")
    for each in started:
        assert each.process.stdin is not None
        each.process.stdin.write("\n")
        each.process.stdin.flush()
    for each in started:
        assert each.ended()[:2] == (0, "500 None\n")
    assert query(database, "select count(*) as n from stageflow.events") == [{"n": 1500}]


def test_killed_exporter_stores_each_event_once(program: Start, tmp_path: Path, database: str) -> None:
    journal = tmp_path / "journal"
    emit(journal, *({"event_id": f"e{number}"} for number in range(3000)))
    script = f"""
import sys
from stageflow.export import ExportRunner, ExportSettings, PostgresExporter

settings = ExportSettings(batch_events=50)
exporter = PostgresExporter({database!r}, name="shop")

def show(state):
    print("sent", flush=True)

ExportRunner(sys.argv[1], exporter, settings=settings, on_change=show).run()
"""
    for kills in range(6):
        one = program(script)
        for _ in range(1 + kills):
            one.wait_for("sent")
        one.process.kill()
        one.process.wait()
    exported(journal, PostgresExporter(database, name="shop"))
    rows = query(database, "select event_id from stageflow.events order by number")
    assert [row["event_id"] for row in rows] == [f"e{number}" for number in range(3000)]
    (status,) = export_status(journal)
    assert (status.sent, status.lag_events) == (3000, 0)


def test_printed_sql_creates_what_the_exporter_creates(database: str, tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["export", "sql", "postgres", "--schema", "audit"]).stdout
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(printed)
    journal = tmp_path / "journal"
    emit(journal, {"event_id": "a", "started_at": "2026-05-01T00:00:00.000000Z"})
    exported(journal, PostgresExporter(database, schema="audit"))
    assert query(database, "select event_id from audit.events") == [{"event_id": "a"}]
    assert query(database, "select event_id from audit.stages") == []


def test_invalid_arguments_raise_without_secrets() -> None:
    with pytest.raises(
        InvalidArgumentError, match="url must be a URL that begins with postgresql://"
    ) as caught:
        PostgresExporter("mysql://me:secret@host/x")
    assert "secret" not in str(caught.value)
    with pytest.raises(InvalidArgumentError, match="schema must be at most 50 lower-case letters"):
        PostgresExporter("postgresql://host/x", schema="a; drop table b")
