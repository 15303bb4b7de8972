"""Tests for the store: queries over journal and archive return each event once and unchanged."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from hypothesis import given, settings, strategies as st
from store_storm import storm

from stageflow import JournalSink, Pipeline, PipelineContext, PipelineResults, Retry, StageOutput
from stageflow.errors import JournalNotFoundError, QueryError, RunNotFoundError
from stageflow.events import Event
from stageflow.journal import Journal, RunFilter
from stageflow.observability import WideEventEmitter
from stageflow.store import Compactor, EventStore, _snapshot as snapshot_module

Graph = Callable[[JournalSink], Any]


async def fails(ctx: Any) -> None:
    try:
        raise ConnectionError("no route")
    except ConnectionError as error:
        raise ValueError("search is down") from error


async def notes(ctx: Any) -> dict[str, Any]:
    ctx.emit_event("cache.miss", {"key": "k", "status": 3, "nested": {"a": [1, None]}})
    ctx.annotate(
        hits=2,
        ratio=0.25,
        whole=3.0,
        text="zwölf",
        flag=True,
        nothing=None,
        nested={"a": [1, 2]},
        listed=["x", "y"],
        huge=2**60,
    )
    ctx.annotate_run(tier="gold", Tier="other case")
    return {"documents": ["a", "b"]}


async def flaky(ctx: Any) -> dict[str, Any]:
    if ctx.attempt == 1:
        raise TimeoutError("slow")
    return {}


def build(sink: JournalSink, *, failing: bool = False) -> Any:
    async def inner(ctx: Any) -> StageOutput:
        child = Pipeline("child").with_stage("only", notes)
        await child.build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        ).run()
        return StageOutput.ok()

    pipeline = (
        Pipeline("ask")
        .with_stage("notes", notes)
        .with_stage("flaky", flaky, dependencies=("notes",), retry=Retry(attempts=2, wait=0))
        .with_stage("skipped", lambda ctx: StageOutput.skip("not now"), dependencies=("notes",))
        .with_stage("inner", inner, dependencies=("flaky",))
        .with_stage("maybe", fails, optional=True)
    )
    if failing:
        pipeline = pipeline.with_stage("fails", fails, dependencies=("inner",))
    return pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
    )


def run_some(folder: Path, times: int = 3, **context: Any) -> list[PipelineResults]:
    """Write runs of all kinds to a journal, and close it."""
    sink = JournalSink(folder, fsync="never")

    async def runs() -> list[PipelineResults]:
        return [
            await build(sink, failing=number % 2 == 1).run(PipelineContext(user_id=f"u{number}", **context))
            for number in range(times)
        ]

    results = asyncio.run(runs())
    sink.close()
    return results


def ids(results: list[PipelineResults]) -> list[str]:
    return [str(result.context.pipeline_run_id) for result in results]


def compact(folder: Path, **options: Any) -> None:
    Compactor(folder, keep_seconds=options.pop("keep_seconds", 0), **options).compact()


def as_sets(record: Any) -> tuple[Any, ...]:
    """Return a run record in a fixed order: stages that ended in the same microsecond have none."""

    def sorted_by_id(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(events, key=lambda event: event["event_id"])

    return (
        record.run,
        sorted_by_id(record.stages),
        sorted([(type, data) for type, data in record.events], key=str),
        sorted_by_id(record.children),
    )


# ---------------------------------------------------------------- each event once and unchanged


def test_run_record_is_the_same_from_journal_archive_or_both(tmp_path: Path) -> None:
    runs = ids(run_some(tmp_path / "journal"))
    expected = {run: as_sets(Journal(tmp_path / "journal").run(run)) for run in runs}
    with EventStore(tmp_path / "journal") as store:
        assert {run: as_sets(store.run(run)) for run in runs} == expected
        compact(tmp_path / "journal")
        assert not list((tmp_path / "journal").glob("*.ndjson"))
        assert {run: as_sets(store.run(run)) for run in runs} == expected
        later = ids(run_some(tmp_path / "journal"))
        expected |= {run: as_sets(Journal(tmp_path / "journal").run(run)) for run in later}
        assert {run: as_sets(store.run(run)) for run in runs + later} == expected
        assert store.run("last").run == Journal(tmp_path / "journal").run("last").run


def test_runs_returns_the_runs_of_the_journal_newest_first(tmp_path: Path) -> None:
    run_some(tmp_path / "journal", times=4)
    expected = Journal(tmp_path / "journal").runs(limit=None)
    assert len(expected) == 8  # each has a child
    compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        assert store.runs(limit=None) == expected
        assert store.runs(limit=3) == expected[:3]
        page = store.runs(limit=3)
        while page:
            assert page == expected[: len(page)]
            del expected[: len(page)]
            page = store.runs(limit=3, before=page[-1])
        assert not expected


@pytest.mark.parametrize(
    "where",
    [
        RunFilter(status="FAIL"),
        RunFilter(status="degraded"),
        RunFilter(pipeline="child"),
        RunFilter(stage="fails"),
        RunFilter(stage="fails:FAIL"),
        RunFilter(id="u1"),
        RunFilter(roots=True),
        RunFilter(roots=True, status="OK"),
        RunFilter(slower_than=0.0002),
        RunFilter(since="2020-01-01T00:00:00Z", until="2021-01-01T00:00:00Z"),
    ],
    ids=str,
)
def test_filter_selects_the_same_runs_in_journal_and_archive(tmp_path: Path, where: RunFilter) -> None:
    run_some(tmp_path / "journal")
    expected = Journal(tmp_path / "journal").runs(where)
    compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        assert store.runs(where) == expected


keys = st.one_of(
    st.sampled_from(["a", "A", "b.c", 'quo"te', "it's", "with blank", "ä", "slash/", "~", ""]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(keys, inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.slow
@given(st.lists(st.lists(st.dictionaries(keys, values, max_size=5), max_size=4), min_size=1, max_size=3))
@settings(max_examples=settings.default.max_examples // 3)
def test_attributes_of_any_value_survive_archiving(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[dict[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("any") / "journal"
    written: dict[str, dict[str, Any]] = {}
    template: dict[str, Any] = {}
    for batch in batches:
        if not template:
            run_some(folder, times=1)
            line = next(folder.glob("*.ndjson")).read_text().split("\n")
            template = next(
                json.loads(each)["data"] for each in line if each.startswith('{"type":"stage.wide"')
            )
        sink = JournalSink(folder, fsync="never")
        for attributes in batch:
            data = template | {"event_id": f"made/{len(written)}", "attributes": attributes}
            written[data["event_id"]] = attributes
            sink.deliver(Event("stage.wide", data))
        sink.close()
        compact(folder, max_attributes=8)
    with EventStore(folder) as store:
        found = store._queries.run(
            lambda cursor: _attributes(cursor.execute("from events where starts_with(event_id, 'made/')")),
            "",
        )
    assert found == written


def _attributes(cursor: Any) -> Any:
    from stageflow.store._rows import events_of

    return {data["event_id"]: data["attributes"] for _, data in events_of(cursor)}


def test_unknown_key_of_a_newer_schema_is_kept(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path / "journal", fsync="never")
    run_some(tmp_path / "other", times=1)
    lines = next((tmp_path / "other").glob("*.ndjson")).read_text().split("\n")
    data = next(json.loads(line)["data"] for line in lines if line.startswith('{"type":"pipeline.wide"'))
    sink.deliver(Event("pipeline.wide", data | {"from_the_future": {"deep": 1}}))
    sink.close()
    compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        ((rest,),) = store.sql("select rest from events").rows
    assert json.loads(rest)["from_the_future"] == {"deep": 1}


@pytest.mark.parametrize("type", ["stage.wide", "pipeline.wide"])
@pytest.mark.parametrize("removed", ["error", "truncated", "stage_name"])
def test_event_with_as_many_keys_as_its_schema_is_kept(tmp_path: Path, type: str, removed: str) -> None:
    run_some(tmp_path / "other", times=1)
    lines = next((tmp_path / "other").glob("*.ndjson")).read_text().split("\n")
    data = next(json.loads(line)["data"] for line in lines if line.startswith(f'{{"type":"{type}"'))
    data.pop(removed, None)
    sink = JournalSink(tmp_path / "journal", fsync="never")
    sink.deliver(Event(type, {**data, "from_the_future": {"deep": 1}}))
    sink.close()
    compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        ((rest,),) = store.sql("select rest from events").rows
    assert json.loads(rest)["from_the_future"] == {"deep": 1}


def test_events_of_other_programs_are_kept_unchanged(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path / "journal", fsync="never")

    strange: list[tuple[str, Any]] = [
        ("stage.wide", {"not": "ours"}),
        ("pipeline.wide", {"event_id": 7, "status": ["odd"]}),
        ("mine", None),
        ("mine", {"started_at": "yesterday", "sample_rate": "x"}),
        ("mine", {}),
    ]
    for type, data in strange:
        sink.deliver(Event(type, data))
    sink.close()
    for _ in range(2):
        with EventStore(tmp_path / "journal") as store:
            rows = store.sql("select type, rest from events").rows
        found = [(type, json.loads(rest)) for type, rest in rows]
        assert sorted(found, key=str) == sorted(strange, key=str)
        compact(tmp_path / "journal")


# ---------------------------------------------------------------- amendments and repeated events


def late(folder: Path, archive_between: bool) -> dict[str, Any]:
    """Run a pipeline whose stage is annotated after it ended, and return the attributes of stage and run."""
    sink = JournalSink(folder, fsync="never", segment_bytes=1)
    contexts: list[Any] = []

    async def annotated(ctx: Any) -> dict[str, Any]:
        ctx.annotate(tokens=1, model="m1")
        contexts.append(ctx)
        return {}

    graph = (
        Pipeline("late")
        .with_stage("annotated", annotated)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )

    async def main() -> None:
        await graph.run()
        if archive_between:
            await asyncio.to_thread(compact, folder)
        contexts[0].annotate(tokens=7, late="yes")
        if archive_between:
            await asyncio.to_thread(compact, folder)
        contexts[0].annotate(later={"deep": True})
        contexts[0].annotate_run(answer="long")

    asyncio.run(main())
    sink.close()
    with EventStore(folder) as store:
        record = store.run("last")
    (stage,) = record.stages
    return {"stage": stage["attributes"], "run": record.run["attributes"]}


@pytest.mark.parametrize("archive_between", [False, True])
def test_amendment_is_merged_into_its_event_in_journal_and_archive(
    tmp_path: Path, archive_between: bool
) -> None:
    folder = tmp_path / "journal"
    expected = {
        "stage": {"tokens": 7, "model": "m1", "late": "yes", "later": {"deep": True}},
        "run": {"answer": "long"},
    }
    assert late(folder, archive_between) == expected
    compact(folder)
    with EventStore(folder) as store:
        record = store.run("last")
        assert {"stage": record.stages[0]["attributes"], "run": record.run["attributes"]} == expected
        assert store.sql("select count(*) from events").rows == [(2,)]
        assert store.sql("""select "attributes.tokens" from stages""").rows == [(7.0,)]


def test_event_that_was_emitted_twice_counts_once(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    results = run_some(folder, times=1)[0]
    with EventStore(folder) as store:
        before = store.sql("select event_id from events order by 1").rows
        compact(folder)
        for _ in range(2):
            sink = JournalSink(folder, fsync="never")
            emitter = WideEventEmitter(sink)
            for name, result in results.items():
                for _ in range(2):
                    emitter.emit_stage_wide(name, result, results.context)
            emitter.emit_pipeline_wide(results, results.context)
            sink.close()
            assert store.sql("select event_id from events order by 1").rows == before
            compact(folder)
            assert store.sql("select event_id from events order by 1").rows == before


def test_running_and_crashed_runs_are_shown_with_their_state(
    tmp_path: Path, program: Callable[[str], Program]
) -> None:
    dies = program("""
        import asyncio, sys
        from stageflow import JournalSink, Pipeline, set_event_sink

        async def first(ctx): return {}
        async def waits(ctx):
            print("waiting", flush=True)
            await asyncio.sleep(60)

        # One event per segment: all segments except the last are closed, and can be archived.
        set_event_sink(JournalSink(sys.argv[1], segment_bytes=1))
        graph = (Pipeline("dies").with_stage("first", first)
            .with_stage("waits", waits, dependencies=("first",))
            .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True))
        asyncio.run(graph.run())
    """)
    dies.wait_for("waiting")
    compact(dies.journal)
    with EventStore(dies.journal) as store:
        (run,) = store.runs()
        assert (run["status"], run["outcome"]) == ("OPEN", "open")
        record = store.run("last")
        assert [(stage["stage_name"], stage["status"]) for stage in record.stages] == [("first", "OK")]
        dies.process.send_signal(signal.SIGKILL)
        dies.ended()
        compact(dies.journal)
        (run,) = store.runs()
        assert (run["status"], run["outcome"]) == ("FAIL", "crashed")
        record = store.run(run["event_id"])
        assert [(stage["stage_name"], stage["status"]) for stage in record.stages] == [
            ("first", "OK"),
            ("waits", "CANCEL"),
        ]
        assert store.sql("select count(*) from events").rows == [(3,)]


def test_segment_archived_while_it_is_read_is_read_from_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    load = snapshot_module.load_rows
    loads = []

    def archive_first(*args: Any) -> Any:
        loads.append(len(args[2]))
        if len(loads) == 1:
            compact(folder)
            assert not list(folder.glob("*.ndjson"))
        return load(*args)

    with EventStore(folder) as store:
        before = store.sql("select event_id from events order by 1").rows
        assert before
    monkeypatch.setattr(snapshot_module, "load_rows", archive_first)
    with EventStore(folder) as store:
        assert store.sql("select event_id from events order by 1").rows == before
    assert loads == [1, 0]


def test_archive_file_that_was_replaced_and_deleted_is_listed_again(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    with EventStore(run_and_compact(folder)) as store:
        count = store.sql("select count(*) from events").rows
        for _ in range(8):
            run_some(folder, times=1)
            compact(folder, target_bytes=10_000_000)
        compactor = Compactor(folder)
        compactor.archive.refresh()
        compactor.archive.remove_unused(hours=0)
        assert len(compactor.archive.files()) < 5
        ((after,),) = store.sql("select count(*) from events").rows
        assert after > count[0][0]


def run_and_compact(folder: Path) -> Path:
    run_some(folder, times=1)
    compact(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(180)  # on a loaded machine
def test_killed_compactors_and_writers_neither_lose_nor_duplicate_events(tmp_path: Path) -> None:
    left = storm(tmp_path, 3)
    assert not left.problems
    assert left.acknowledged > 100
    assert left.views
    assert left.commits


# ---------------------------------------------------------------- retention and address of the archive


def test_segment_stays_in_the_journal_until_every_reader_has_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    with Journal(folder).reader("warehouse") as reader:
        compact(folder)
        entries = reader.read(100_000)
        assert entries
        compact(folder)
        assert list(folder.glob("*.ndjson"))
        reader.commit()
        compact(folder)
        assert not list(folder.glob("*.ndjson"))


def test_old_days_are_dropped_by_age_and_by_size(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    (segment,) = folder.glob("*.ndjson")
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    text = segment.read_text()
    for number, day in enumerate(("2026-01-01", "2026-01-02", "2026-01-03")):
        name = segment.name.replace("-p", f"-p{number}0")
        (folder / name).write_text(text.replace(today, day).replace('"event_id":"', f'"event_id":"{number}'))
    compact(folder)
    with EventStore(folder) as store:
        days = "select distinct day::varchar from events order by 1"
        assert [day for (day,) in store.sql(days).rows] == ["2026-01-01", "2026-01-02", "2026-01-03", today]
        age = (datetime.now(UTC) - datetime(2026, 1, 2, tzinfo=UTC)).total_seconds()
        assert Compactor(folder, max_age=age).compact().dropped_rows > 0
        assert [day for (day,) in store.sql(days).rows] == ["2026-01-02", "2026-01-03", today]
        size = sum(file.size for file in store.archive.files() if file.has_events)
        assert Compactor(folder, max_bytes=size - 1).compact().dropped_rows > 0
        assert [day for (day,) in store.sql(days).rows] == ["2026-01-03", today]


def test_compactor_leaves_the_open_segment_of_a_live_writer(tmp_path: Path) -> None:
    """A segment is archived as a whole: later events in it would never be read."""
    sink = JournalSink(tmp_path)
    graph = build(sink)
    found: list[PipelineResults] = []

    def roots(store: EventStore) -> list[str]:
        question = "select pipeline_run_id from runs where parent_run_id is null order by 1"
        return [run_id for (run_id,) in store.sql(question, limit=None).rows]

    with EventStore(tmp_path, compact_beyond=None) as opened:
        for _ in range(3):
            found += [asyncio.run(graph.run()) for _ in range(5)]
            compact(tmp_path)
            assert roots(opened) == sorted(ids(found))
        sink.close()
        compact(tmp_path)
        rows = opened.sql("select event_id, count(*) from events group by 1 having count(*) > 1").rows
        assert rows == []
        assert roots(opened) == sorted(ids(found))


def test_journal_stores_the_address_of_its_archive(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    runs = ids(run_some(folder))
    compact(folder, archive=tmp_path / "else where [1]")
    assert not (folder / "archive").exists()
    with EventStore(folder) as store:
        assert store.run(runs[0]).run["outcome"] == "degraded"
    with EventStore(archive=tmp_path / "else where [1]") as store:
        assert len(store.runs()) == 6


def test_store_archives_a_large_backlog_before_a_query(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    calls: list[tuple[int, int]] = []
    with EventStore(
        folder, compact_beyond=100, progress=lambda done, total: calls.append((done, total))
    ) as store:
        assert len(store.runs()) == 6
        assert store.archive.version >= 0
    assert calls[0][0] == 0
    assert calls[-1][0] == calls[-1][1] > 0


# ---------------------------------------------------------------- SQL


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with EventStore(run_and_compact(tmp_path / "journal")) as opened:
        yield opened


@pytest.mark.parametrize(
    "query",
    [
        "insert into live by name select * from live",
        "with more as (insert into live by name select * from live returning *) select * from more",
        "create table mine as select 1",
        "drop view runs",
        "copy (select 1) to 'mine.csv'",
        "set memory_limit = '10GB'",
        "attach 'mine.db'",
        "install httpfs",
        "pragma version",
        "select 1; select 2",
        "",
        "select * from read_text('/etc/hostname')",
        "select * from read_csv('/etc/passwd')",
        "from glob('/etc/*')",
    ],
)
def test_query_can_read_the_views_and_nothing_else(store: EventStore, query: str) -> None:
    before = store.sql("select count(*) from events").rows
    with pytest.raises(QueryError):
        store.sql(query)
    assert store.sql("select count(*) from events").rows == before


def test_error_of_an_invalid_query_contains_the_query_and_a_hint(store: EventStore) -> None:
    with pytest.raises(QueryError) as raised:
        store.sql("select no_such_column from runs")
    assert "no_such_column" in str(raised.value)
    assert "query: select no_such_column from runs" in str(raised.value)
    assert '"attributes.NAME"' in str(raised.value)


def test_query_that_exceeds_the_timeout_is_interrupted(store: EventStore) -> None:
    with pytest.raises(QueryError, match=r"no result within 0\.2 s"):
        store.sql("select sum(a.range * b.range) from range(10000000) a, range(10000000) b", timeout=0.2)
    assert store.sql("select 1").rows == [(1,)]


def test_query_that_exceeds_the_memory_limit_fails(tmp_path: Path) -> None:
    with (
        EventStore(run_and_compact(tmp_path / "journal"), memory="200MB") as store,
        pytest.raises(QueryError, match="Memory"),
    ):
        store.sql("select list(range) from range(1000000000)")


def test_rows_report_whether_the_limit_cut_off_more(store: EventStore) -> None:
    assert store.sql("from range(3)", limit=3).more is False
    rows = store.sql("select range as n from range(3)", limit=2)
    assert (rows.more, rows.dicts()) == (True, [{"n": 0}, {"n": 1}])
    assert store.sql("select $one + 1", {"one": 41}).rows == [(42,)]


def test_store_without_a_journal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JournalNotFoundError):
        EventStore(tmp_path / "none")
    with pytest.raises(ValueError, match="a journal or an archive is required"):
        EventStore()
    (tmp_path / "empty").mkdir()
    with EventStore(tmp_path / "empty") as store:
        assert store.runs() == []
        assert store.stats() == store.errors() == store.slowest() == store.compare("true", "true") == []
        with pytest.raises(RunNotFoundError):
            store.run("last")
        with pytest.raises(RunNotFoundError):
            store.run("01")


def test_store_of_a_read_only_journal_reads_it_without_recovery(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    runs = ids(run_some(folder))
    os.chmod(folder, 0o500)
    try:
        with EventStore(folder, compact_beyond=1) as store:
            assert store.run(runs[0]).run["outcome"] == "degraded"
    finally:
        os.chmod(folder, 0o700)
