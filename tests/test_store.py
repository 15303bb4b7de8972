"""The store: journal and archive asked as one, every event exactly once and as it was emitted."""

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
    """Leave runs of all kinds in a journal, and close it."""
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


def as_sets(story: Any) -> tuple[Any, ...]:
    """A story, of which two stages that ended in the same microsecond may stand in any order."""

    def sorted_by_id(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(events, key=lambda event: event["event_id"])

    return (
        story.run,
        sorted_by_id(story.stages),
        sorted([(type, data) for type, data in story.events], key=str),
        sorted_by_id(story.children),
    )


# ---------------------------------------------------------------- each event, once, as it was


def test_a_story_is_the_same_in_the_journal_in_the_archive_and_in_between(tmp_path: Path) -> None:
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


def test_the_runs_of_a_store_are_those_that_the_journal_had_newest_first(tmp_path: Path) -> None:
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
def test_a_filter_chooses_the_same_runs_in_the_archive(tmp_path: Path, where: RunFilter) -> None:
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


@given(st.lists(st.lists(st.dictionaries(keys, values, max_size=5), max_size=4), min_size=1, max_size=3))
@settings(max_examples=settings.default.max_examples // 3)
def test_attributes_come_back_as_they_were_whatever_they_are(
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
            sink.deliver(_event(data))
        sink.close()
        compact(folder, max_attributes=8)
    with EventStore(folder) as store:
        found = store._queries.run(
            lambda cursor: _attributes(cursor.execute("from events where starts_with(event_id, 'made/')")),
            "",
        )
    assert found == written


def _event(data: dict[str, Any]) -> Any:
    from stageflow.events._sink import Event

    return Event("stage.wide", data)


def _attributes(cursor: Any) -> Any:
    from stageflow.store._rows import events_of

    return {data["event_id"]: data["attributes"] for _, data in events_of(cursor)}


def test_a_key_that_a_newer_schema_has_is_kept(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path / "journal", fsync="never")
    run_some(tmp_path / "other", times=1)
    lines = next((tmp_path / "other").glob("*.ndjson")).read_text().split("\n")
    data = next(json.loads(line)["data"] for line in lines if line.startswith('{"type":"pipeline.wide"'))
    sink.deliver(_event(data | {"from_the_future": {"deep": 1}}))
    sink.close()
    compact(tmp_path / "journal")
    with EventStore(tmp_path / "journal") as store:
        ((rest,),) = store.sql("select rest from events").rows
    assert json.loads(rest)["from_the_future"] == {"deep": 1}


def test_events_of_other_programs_are_kept_as_they_are(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path / "journal", fsync="never")
    from stageflow.events._sink import Event

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


# ---------------------------------------------------------------- what comes later, and what comes twice


def late(folder: Path, archive_between: bool) -> dict[str, Any]:
    """Run a pipeline whose stage says more after it ended, and return its events by id."""
    sink = JournalSink(folder, fsync="never", segment_bytes=1)
    contexts: list[Any] = []

    async def speaks(ctx: Any) -> dict[str, Any]:
        ctx.annotate(tokens=1, model="m1")
        contexts.append(ctx)
        return {}

    graph = (
        Pipeline("late")
        .with_stage("speaks", speaks)
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
        story = store.run("last")
    (stage,) = story.stages
    return {"stage": stage["attributes"], "run": story.run["attributes"]}


@pytest.mark.parametrize("archive_between", [False, True])
def test_what_amends_an_event_is_in_it_wherever_the_two_are(tmp_path: Path, archive_between: bool) -> None:
    folder = tmp_path / "journal"
    expected = {
        "stage": {"tokens": 7, "model": "m1", "late": "yes", "later": {"deep": True}},
        "run": {"answer": "long"},
    }
    assert late(folder, archive_between) == expected
    compact(folder)
    with EventStore(folder) as store:
        story = store.run("last")
        assert {"stage": story.stages[0]["attributes"], "run": story.run["attributes"]} == expected
        assert store.sql("select count(*) from events").rows == [(2,)]
        assert store.sql("""select "attributes.tokens" from stages""").rows == [(7.0,)]


def test_an_event_that_was_emitted_twice_counts_once_wherever_the_two_are(tmp_path: Path) -> None:
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


def test_a_run_under_way_and_one_that_was_cut_off_are_told_as_they_are(
    tmp_path: Path, program: Callable[[str], Program]
) -> None:
    dies = program("""
        import asyncio, sys
        from stageflow import JournalSink, Pipeline, set_event_sink

        async def first(ctx): return {}
        async def waits(ctx):
            print("waiting", flush=True)
            await asyncio.sleep(60)

        # Each event in a file of its own: all but the last is closed, and goes into the archive.
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
        story = store.run("last")
        assert [(stage["stage_name"], stage["status"]) for stage in story.stages] == [("first", "OK")]
        dies.process.send_signal(signal.SIGKILL)
        dies.ended()
        compact(dies.journal)
        (run,) = store.runs()
        assert (run["status"], run["outcome"]) == ("FAIL", "crashed")
        story = store.run(run["event_id"])
        assert [(stage["stage_name"], stage["status"]) for stage in story.stages] == [
            ("first", "OK"),
            ("waits", "CANCEL"),
        ]
        assert store.sql("select count(*) from events").rows == [(3,)]


def test_a_segment_that_vanishes_between_listing_and_opening_is_looked_for_in_the_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    load = snapshot_module.load_rows
    looks = []

    def vanished(*args: Any) -> Any:
        looks.append(len(args[2]))
        if len(looks) == 1:
            compact(folder)
            assert not list(folder.glob("*.ndjson"))
        return load(*args)

    with EventStore(folder) as store:
        before = store.sql("select event_id from events order by 1").rows
        assert before
    monkeypatch.setattr(snapshot_module, "load_rows", vanished)
    with EventStore(folder) as store:
        assert store.sql("select event_id from events order by 1").rows == before
    assert looks == [1, 0]


def test_a_file_of_the_archive_that_was_replaced_and_removed_is_looked_for_again(tmp_path: Path) -> None:
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


@pytest.mark.timeout(180)  # on a loaded machine
def test_a_storm_of_kills_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    left = storm(tmp_path, 3)
    assert not left.problems
    assert left.acknowledged > 100
    assert left.views
    assert left.commits


# ---------------------------------------------------------------- what stays, and where


def test_a_segment_stays_in_the_journal_until_every_reader_has_read_it(tmp_path: Path) -> None:
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


def test_an_archive_elsewhere_is_remembered_by_its_journal(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    runs = ids(run_some(folder))
    compact(folder, archive=tmp_path / "else where [1]")
    assert not (folder / "archive").exists()
    with EventStore(folder) as store:
        assert store.run(runs[0]).run["outcome"] == "degraded"
    with EventStore(archive=tmp_path / "else where [1]") as store:
        assert len(store.runs()) == 6


def test_a_reader_that_finds_much_to_do_takes_it_into_the_archive_itself(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    told: list[tuple[int, int]] = []
    with EventStore(
        folder, compact_beyond=100, progress=lambda done, whole: told.append((done, whole))
    ) as store:
        assert len(store.runs()) == 6
        assert store.archive.version >= 0
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] > 0


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
def test_a_query_can_read_the_views_and_nothing_else(store: EventStore, query: str) -> None:
    before = store.sql("select count(*) from events").rows
    with pytest.raises(QueryError):
        store.sql(query)
    assert store.sql("select count(*) from events").rows == before


def test_a_query_that_is_wrong_says_what_it_was_and_the_way_out(store: EventStore) -> None:
    with pytest.raises(QueryError) as raised:
        store.sql("select no_such_column from runs")
    assert "no_such_column" in str(raised.value)
    assert "query: select no_such_column from runs" in str(raised.value)
    assert '"attributes.NAME"' in str(raised.value)


def test_a_query_that_takes_too_long_is_ended(store: EventStore) -> None:
    with pytest.raises(QueryError, match=r"no result within 0\.2 s"):
        store.sql("select sum(a.range * b.range) from range(10000000) a, range(10000000) b", timeout=0.2)
    assert store.sql("select 1").rows == [(1,)]


def test_a_query_that_needs_too_much_memory_is_ended(tmp_path: Path) -> None:
    with (
        EventStore(run_and_compact(tmp_path / "journal"), memory="200MB") as store,
        pytest.raises(QueryError, match="Memory"),
    ):
        store.sql("select list(range) from range(1000000000)")


def test_an_answer_says_whether_there_is_more(store: EventStore) -> None:
    assert store.sql("from range(3)", limit=3).more is False
    rows = store.sql("select range as n from range(3)", limit=2)
    assert (rows.more, rows.dicts()) == (True, [{"n": 0}, {"n": 1}])
    assert store.sql("select $one + 1", {"one": 41}).rows == [(42,)]


def test_a_store_without_a_journal_says_so(tmp_path: Path) -> None:
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


def test_who_may_only_read_a_journal_sees_it_as_it_stands(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    runs = ids(run_some(folder))
    os.chmod(folder, 0o500)
    try:
        with EventStore(folder, compact_beyond=1) as store:
            assert store.run(runs[0]).run["outcome"] == "degraded"
    finally:
        os.chmod(folder, 0o700)
