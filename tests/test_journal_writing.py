"""Tests writing to the journal: one write per event, segments, limits, and failing disks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from oracle import check_record

from stageflow import JournalSink, Pipeline, PipelineContext, StageGraph
from stageflow.events import FanoutEventSink, MemoryEventSink
from stageflow.events._delivery import DELIVERY
from stageflow.journal import Deleted, Journal, JournalReader, RunFilter
from stageflow.observability import WideEventEmitter
from stageflow.testing import VirtualClock

Start = Callable[[str], Program]


async def nothing(ctx: Any) -> None: ...


async def fail(ctx: Any) -> None:
    if ctx.run.data.get("fail"):
        raise ValueError("told to")


def graph_on(sink: Any, **options: Any) -> StageGraph:
    pipeline = Pipeline("p").with_stage("a", nothing).with_stage("b", fail, dependencies=("a",))
    return pipeline.build(
        **{"emit_stage_wide_events": True, "emit_pipeline_wide_event": True, **options},
        wide_event_emitter=WideEventEmitter(sink),
    )


def segments(path: Path) -> list[Path]:
    return sorted(path.glob("*.ndjson"))


def events_in(path: Path) -> list[tuple[str, dict[str, Any]]]:
    with JournalReader(path) as reader:
        return [(entry.type, entry.data() or {}) for entry in reader]


def runs_in(path: Path) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    runs: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for type, data in events_in(path):
        runs.setdefault(data["correlation_ids"]["pipeline_run_id"], []).append((type, data))
    return runs


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "journal"
    yield path
    for sink in [sink for sink in _made if sink.path == str(path)]:
        sink.close()
        _made.remove(sink)


_made: list[JournalSink] = []


def open_journal(path: Path, **options: Any) -> JournalSink:
    _made.append(JournalSink(path, **options))
    return _made[-1]


# ------------------------------------------------------------ lines and files


async def test_event_is_in_the_file_when_its_emission_returns(journal: Path) -> None:
    sink = open_journal(journal)
    looked: list[list[str]] = []

    class Look:
        def try_emit(self, *, type: str, data: Any) -> None:
            (file,) = segments(journal)
            looked.append([json.loads(line)["type"] for line in file.read_text().splitlines()])

    await graph_on(FanoutEventSink(sink, Look())).run()
    marked = ["run.open"]
    assert looked == [
        [*marked, "stage.wide"],
        [*marked, "stage.wide", "stage.wide"],
        [*marked, "stage.wide", "stage.wide", "pipeline.wide"],
    ]


async def test_marks_of_the_journal_reach_no_other_sink(journal: Path) -> None:
    memory = MemoryEventSink()
    await graph_on(FanoutEventSink(open_journal(journal), memory)).run()
    assert [type for type, _ in memory.events] == ["stage.wide", "stage.wide", "pipeline.wide"]
    assert [type for type, _ in events_in(journal)] == ["stage.wide", "stage.wide", "pipeline.wide"]


async def test_custom_event_can_have_the_type_of_a_mark(journal: Path) -> None:
    async def stage(ctx: Any) -> None:
        ctx.emit_event("run.open", {"mine": True})

    emitter = WideEventEmitter(open_journal(journal))
    await (
        Pipeline("p")
        .with_stage("a", stage)
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter)
        .run()
    )
    assert [type for type, _ in events_in(journal)] == ["run.open", "stage.wide", "pipeline.wide"]


async def test_files_are_private_to_their_owner(journal: Path) -> None:
    await graph_on(open_journal(journal)).run()
    with JournalReader(journal, "me") as reader:
        reader.read()
        reader.commit()
    for path in (journal, *journal.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


async def test_full_segment_is_followed_by_another(journal: Path) -> None:
    graph = graph_on(open_journal(journal, segment_bytes=10_000))
    for number in range(20):
        await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
    assert len(segments(journal)) > 5
    assert all(path.stat().st_size <= 10_000 for path in segments(journal))
    runs = runs_in(journal)
    assert list(runs) == [f"r{number}" for number in range(20)]
    for events in runs.values():
        check_record(events, "ab")


async def test_old_segment_is_followed_by_another(journal: Path) -> None:
    graph = graph_on(open_journal(journal, segment_seconds=0.05))
    while len(segments(journal)) < 3:
        await graph.run()
    for events in runs_in(journal).values():
        check_record(events, "ab")


async def test_threads_write_complete_lines(journal: Path) -> None:
    def note(ctx: Any) -> None:
        for number in range(50):
            ctx.emit_event("note", {"n": number, "text": "x" * 5000})

    pipeline = Pipeline("p")
    for name in "abcdefgh":
        pipeline = pipeline.with_stage(name, note)
    emitter = WideEventEmitter(open_journal(journal, segment_bytes=100_000))
    await pipeline.build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter
    ).run()
    events = events_in(journal)
    check_record(events, "abcdefgh")
    notes = Counter((data["stage_name"], data["n"]) for type, data in events if type == "note")
    assert len(notes) == 400
    assert set(notes.values()) == {1}


@pytest.mark.parametrize("fsync", ["never", "interval", "always"])
async def test_all_fsync_modes_write_the_same_events(journal: Path, fsync: Any) -> None:
    await graph_on(open_journal(journal, fsync=fsync)).run()
    check_record(events_in(journal), "ab")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsync": "often"}, "JournalSink: fsync must be 'never', 'interval' or 'always', got 'often'"),
        ({"segment_bytes": 0}, "JournalSink: segment_bytes must be a number greater than 0, got 0"),
        ({"max_bytes": "1 GB"}, "JournalSink: max_bytes must be a number greater than 0, got '1 GB'"),
        ({"fsync_interval": -1}, "JournalSink: fsync_interval must be a number greater than 0, got -1"),
    ],
)
def test_invalid_option_is_rejected(journal: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match="JournalSink") as caught:
        JournalSink(journal, **options)
    assert str(caught.value) == message


async def test_pickled_sink_writes_to_the_same_directory(journal: Path) -> None:
    sink = open_journal(journal, fsync="never")
    again = pickle.loads(pickle.dumps(sink))
    await graph_on(sink).run()
    await graph_on(again).run()
    again.close()
    assert len(segments(journal)) == 2
    assert len(runs_in(journal)) == 2


async def test_closed_journal_reopens_for_the_next_event(journal: Path) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)
    await graph.run()
    sink.close()
    await graph.run()
    assert [len(events) for events in runs_in(journal).values()] == [3, 3]


# ------------------------------------------------------------ disks that fail


def full(monkeypatch: pytest.MonkeyPatch, room: int) -> Callable[[int], None]:
    """Simulate a disk with `room` free bytes, which writes what fits and then raises ENOSPC."""
    left = room
    real = os.write

    def write(fd: int, line: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(fd, line[:left])
        left -= written
        return written

    def give(more: int) -> None:
        nonlocal left
        left += more

    monkeypatch.setattr("stageflow.journal._writer.os.write", write)
    return give


async def test_events_lost_on_a_full_disk_are_counted(
    journal: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)
    give = full(monkeypatch, 10_000)
    for number in range(10):
        assert (await graph.run(PipelineContext(pipeline_run_id=f"full-{number}"))).ok
    (file,) = segments(journal)
    assert file.read_bytes().endswith(b"\n")  # the part of a line that had fitted was taken back
    kept = len(events_in(journal))
    counted = DELIVERY.channel_of(sink).stats()
    assert counted.offered == 30
    assert counted.delivered == kept
    assert counted.dropped == {"disk_full": 30 - kept}
    told = [record.getMessage() for record in caplog.records if "disk_full" in record.getMessage()]
    assert len(told) == 1
    assert str(journal) in told[0]

    give(1 << 30)  # somebody made room
    assert (await graph.run(PipelineContext(pipeline_run_id="after"))).ok
    assert DELIVERY.channel_of(sink).stats().delivered == kept + 3
    check_record(runs_in(journal)["after"], "ab")


async def test_run_whose_end_did_not_fit_on_the_disk_is_not_crashed(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)

    async def fill(ctx: Any) -> None:
        nonlocal give
        give = full(monkeypatch, 10)

    give: Callable[[int], None] = lambda more: None  # noqa: E731
    filling = (
        Pipeline("fills")
        .with_stage("fill", fill)
        .build(emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink))
    )
    await filling.run(PipelineContext(pipeline_run_id="lost"))
    give(1 << 30)
    await graph.run(PipelineContext(pipeline_run_id="after"))
    sink.close()
    assert [run["event_id"] for run in Journal(journal).runs()] == ["after"]
    story = Journal(journal).run("lost")
    assert story.run["outcome"] == "closed"
    assert story.run["reason"].startswith("pipeline.wide was lost")


def test_file_size_limit_counts_as_a_full_disk(program: Start) -> None:
    one = program(
        """
        import asyncio, resource, sys
        from stageflow import *
        from stageflow.events import stats
        from stageflow.observability import WideEventEmitter
        from stageflow.events import stats

        async def nothing(ctx): ...

        sink = JournalSink(sys.argv[1])
        graph = Pipeline("p").with_stage("a", nothing).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )

        async def main():
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
            for number in range(20):
                assert (await graph.run()).ok
            counted = stats().of("JournalSink")
            assert counted.offered == 40
            print(counted.delivered, counted.dropped["disk_full"])

        asyncio.run(main())
        """
    )
    status, out, err = one.ended()
    assert status == 0, err
    delivered, dropped = map(int, out.split())
    assert delivered + dropped == 40
    assert delivered == len(one.events()) > 0


async def test_removed_directory_is_created_again(journal: Path) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)
    await graph.run(PipelineContext(pipeline_run_id="before"))
    shutil.rmtree(journal)
    async with asyncio.timeout(10):
        while not journal.is_dir():  # it is noticed within 100 ms
            assert (await graph.run()).ok
    await graph.run(PipelineContext(pipeline_run_id="after"))
    check_record(runs_in(journal)["after"], "ab")
    assert DELIVERY.channel_of(sink).stats().dropped == {}


async def test_events_lost_because_of_a_replaced_directory_are_counted(
    journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)
    journal.rmdir()
    journal.write_text("in the way")
    assert (await graph.run()).ok
    assert DELIVERY.channel_of(sink).stats().dropped == {"journal_unwritable": 3}
    assert str(journal) in caplog.text
    journal.unlink()
    assert (await graph.run()).ok
    assert DELIVERY.channel_of(sink).stats().delivered == 3
    check_record(events_in(journal), "ab")


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EMFILE])
async def test_events_lost_without_file_descriptors_are_counted_and_writing_resumes(
    journal: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)

    def refuse(*arguments: Any, **options: Any) -> int:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patch:
        patch.setattr("stageflow.journal._writer.os.open", refuse)
        assert (await graph.run()).ok
    assert DELIVERY.channel_of(sink).stats().dropped == {"journal_unwritable": 3}
    assert (await graph.run()).ok
    assert DELIVERY.channel_of(sink).stats().delivered == 3


async def test_no_line_is_written_after_a_torn_line(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = open_journal(journal)
    graph = graph_on(sink)

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        full(patch, 2000)
        patch.setattr("stageflow.journal._writer.os.ftruncate", refuse)
        assert (await graph.run()).ok
    assert (await graph.run(PipelineContext(pipeline_run_id="after"))).ok
    first, second = segments(journal)
    assert not first.read_bytes().endswith(b"\n")
    assert second.read_bytes().endswith(b"\n")
    with JournalReader(journal) as reader:
        found = [entry.data() or {} for entry in reader]
    assert reader.torn == 1
    assert reader.broken == 0
    assert [data["event_id"] for data in found][-3:] == ["after/a/1", "after/b/1", "after"]


async def test_too_long_line_is_dropped_and_counted(journal: Path) -> None:
    async def long(ctx: Any) -> None:
        ctx.emit_event("note", {"text": "x" * 20_000})

    sink = open_journal(journal, max_line_bytes=10_000)
    await (
        Pipeline("p")
        .with_stage("a", long)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
        .run()
    )
    assert DELIVERY.channel_of(sink).stats().dropped == {"line_too_long": 1}
    check_record(events_in(journal), "a")


def test_order_is_independent_of_the_wall_clock(journal: Path) -> None:
    clock = VirtualClock()
    graph = graph_on(open_journal(journal, segment_bytes=5_000))

    async def main() -> None:
        for number in range(10):
            await graph.run(PipelineContext(pipeline_run_id=f"r{number}"))
            if number == 4:
                clock.step_wall(-3600)

    clock.run(main())
    runs = runs_in(journal)
    assert list(runs) == [f"r{number}" for number in range(10)]
    for events in runs.values():
        check_record(events, "ab")


# ------------------------------------------------------------ the bound on the directory


async def test_retention_deletes_oldest_runs_first_and_failed_runs_last(journal: Path) -> None:
    sink = open_journal(journal, max_bytes=200_000, fsync_interval=0.01)
    graph = graph_on(sink)
    failed = []
    number = 0
    async with asyncio.timeout(30):
        # The keeper makes room in a thread of its own, beside the runs.
        while not (journal / "deleted.json").exists() or number < 200:
            if number == 400:  # more failed runs than these would not fit, and be deleted as well
                await asyncio.sleep(0.01)
                continue
            number += 1
            context = PipelineContext(pipeline_run_id=f"r{number:05}", data={"fail": number % 50 == 0})
            if not (await graph.run(context)).ok:
                failed.append(f"r{number:05}")
    sink.run_maintenance()
    sink.close()
    found = runs_in(journal)
    assert "r00001" not in found
    assert f"r{number:05}" in found
    assert failed[0] in found
    for run in failed:
        check_record(found[run], "ab")
    deleted = Journal(journal).check().deleted
    assert isinstance(deleted, Deleted)
    assert deleted.lines > 0
    assert deleted.bytes > 0
    assert sum(path.stat().st_size for path in segments(journal)) < 300_000
    assert [run["event_id"] for run in Journal(journal).runs(RunFilter(status="FAIL"), limit=None)][
        ::-1
    ] == failed


async def test_max_age_waits_for_readers_but_max_bytes_does_not(journal: Path) -> None:
    old = JournalSink(journal, segment_bytes=3_000)
    graph = graph_on(old)
    for number in range(4):
        await graph.run(PipelineContext(pipeline_run_id=f"old-{number}"))
    old.close()
    long_ago = 1_000_000_000
    for path in segments(journal):
        os.utime(path, (long_ago, long_ago))
    reader = JournalReader(journal, "slow")
    reader.commit()
    aging = open_journal(journal, max_age=3600.0, max_bytes=None, fsync_interval=0.01)
    await graph_on(aging).run(PipelineContext(pipeline_run_id="new"))
    aging.run_maintenance()
    assert {"old-0", "new"} <= set(runs_in(journal))

    assert len([*reader]) == 15
    reader.commit()
    reader.close()
    aging.close()
    again = open_journal(journal, max_age=3600.0, max_bytes=None, fsync_interval=0.01)
    await graph_on(again).run(PipelineContext(pipeline_run_id="newer"))
    again.run_maintenance()
    assert set(runs_in(journal)) == {"new", "newer"}
    assert Journal(journal).check().deleted.unread == 0
