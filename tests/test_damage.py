"""Tests a journal whose files were damaged, or replaced by links and directories."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import corruption
import pytest
from conftest import Program

from stageflow import JournalSink, Pipeline, PipelineContext, StageGraph
from stageflow.alerts import AlertRules, FailureRate, run_alerts
from stageflow.alerts._rule import read_silences
from stageflow.alerts._state import STATE_FILE, read_state
from stageflow.errors import DamagedFileError
from stageflow.journal import Journal, JournalReader, RunFilter
from stageflow.journal._retention import RetentionPolicy, read_deletion_counts
from stageflow.journal._segments import list_writers
from stageflow.observability import WideEventEmitter
from stageflow.store import Compactor, EventStore
from stageflow.store._address import ADDRESS_FILE, read_address

pytestmark = pytest.mark.slow

Start = Callable[[str], Program]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete journal; the runs of the crashed and the live writer are completed."""
    path = tmp_path_factory.mktemp("damage") / "journal"
    corruption.build(path)
    Journal(path).recover()
    return path


@pytest.fixture
def journal(whole: Path, tmp_path: Path) -> Path:
    path = tmp_path / "journal"
    shutil.copytree(whole, path)
    corruption.point_to(path)
    assert Journal(path).check().problems == []
    return path


def runs_of(path: Path) -> set[str]:
    return {run["event_id"] for run in Journal(path).runs(limit=None)}


def command(path: Path, *arguments: str) -> tuple[int, str]:
    trial = corruption.Trial(path, "", [], corruption.Counter())
    written = trial.command(" ".join(arguments), list(arguments), allowed=())
    assert not [problem for problem in trial.problems if "Traceback" in problem]
    code = re.search(r"exit code (\d+)", trial.problems[0])
    assert code is not None
    return int(code[1]), re.sub(r"\s+", " ", written)


# ------------------------------------------------------------ random damage


@pytest.mark.parametrize("seed", range(2))
def test_random_damage_affects_only_the_file_that_has_it(seed: int) -> None:
    outcome = corruption.run_trials(10, seed, slow_every=10)
    assert outcome.problems == []


# ------------------------------------------------------------ lines


LINES = {
    "invalid UTF-8 in a value": lambda line: line.replace(b'"event_id":"', b'"event_id":"\xe6', 1),
    "invalid UTF-8 in a key": lambda line: line.replace(b'"error":', b'"err\xff":', 1),
    "invalid UTF-8 in the type": lambda line: line.replace(b'{"type":"', b'{"type":"\xe6', 1),
    "zeros": lambda line: bytes(len(line)),
    "half of a surrogate pair": lambda line: line.replace(b'"error":null', b'"error":"\\ud800"', 1),
    "a number beyond a double": lambda line: re.sub(rb'"duration_ms":[0-9.]+', b'"duration_ms":1e999', line),
    "a number of 5,000 digits": lambda line: re.sub(
        rb'"duration_ms":[0-9.]+', b'"duration_ms":' + b"9" * 5000, line
    ),
    "excessive nesting": lambda line: line.replace(
        b'"error":null', b'"error":' + b"[" * 100_000 + b"]" * 100_000, 1
    ),
    "NaN": lambda line: re.sub(rb'"duration_ms":[0-9.]+', b'"duration_ms":NaN', line),
    "another JSON value": lambda line: b"[1, 2]",
}


@pytest.mark.parametrize("kind", LINES)
def test_damaged_line_hides_only_itself(journal: Path, kind: str) -> None:
    before = runs_of(journal)
    (path,) = [path for path in journal.glob("*-000001.ndjson") if b'"live-0"' in path.read_bytes()]
    lines = path.read_bytes().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if b'"pipeline.wide"' in line and b'"live-2"' in line)
    lines[at] = LINES[kind](lines[at][:-1]) + b"\n"
    path.write_bytes(b"".join(lines))

    assert runs_of(journal) == before - {"live-2"}
    assert Journal(journal).run("live-1").run["outcome"] == "ok"
    with JournalReader(journal) as reader:
        shown = {data["event_id"] for entry in reader if (data := entry.data()) and "event_id" in data}
        assert reader.broken == 1
    assert {"live-1", "live-3"} <= shown
    assert "live-2" not in shown
    state = Journal(journal).check()
    assert [damage.path for damage in state.broken] == [str(path)]
    with EventStore(journal) as store:
        found = {run["event_id"]: run for run in store.runs(limit=None)}
        assert before - {"live-2"} <= set(found)
        assert 0 < sum(stat.count for stat in store.stats()) < 1e6
        ((whole,),) = store.sql("select sum(duration_ms) from runs").rows
        assert 0 < whole < 1e9
    assert Journal(journal).repair().broken == 1
    assert Journal(journal).check().problems == []
    assert runs_of(journal) == before - {"live-2"}


FIELDS = {
    "an invalid time": (rb'"started_at":"[^"]*"', b'"started_at":"2026-02-31T99:00:00Z"'),
    "a year of five digits": (rb'"(started|ended)_at":"2', rb'"\1_at":"22'),
    "a year before the first": (rb'"(started|ended)_at":"2', rb'"\1_at":"-2'),
    "a status that is a number": (rb'"status":"OK"', b'"status":7'),
    "an unknown status": (rb'"status":"OK"', b'"status":"OJ"'),
    "ids that are a list": (rb'"correlation_ids":\{[^}]*\}', b'"correlation_ids":[1]'),
    "a negative duration": (rb'"duration_ms":[0-9.]+', b'"duration_ms":-1'),
    "stages of the wrong type": (rb'"stages":\[', b'"stages":[5,'),
    "attributes that are text": (rb'"attributes":\{[^}]*\}', b'"attributes":"x"'),
    "a weight of zero": (rb'"sample_rate":1', b'"sample_rate":0'),
    "a duplicate id": (rb'"event_id":"dead-0"', b'"event_id":"dead-1"'),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_wrong_types_do_not_break_readers(whole: Path, tmp_path: Path, kind: str) -> None:
    pattern, replacement = FIELDS[kind]
    journal = tmp_path / "journal"
    shutil.copytree(whole, journal)
    corruption.point_to(journal)
    corruption.undo_completions(journal)
    (path,) = [path for path in journal.glob("*.ndjson") if b'"dead-0"' in path.read_bytes()]
    # In every line of the crashed writer, including those from which its runs are completed.
    content = re.sub(pattern, replacement, path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    others = {f"live-{n}" for n in range(5)} | {f"closed-{n}" for n in range(12)}

    assert others <= runs_of(journal)
    assert others <= {
        run["event_id"] for run in Journal(journal).runs(RunFilter(since="2020-01-01T00:00:00Z"), limit=None)
    }
    for arguments in (["runs"], ["show", "last"], ["tail", "-n", "100"], ["stats"], ["slowest"], ["errors"]):
        code, written = command(journal, *arguments)
        assert code == 0, f"{arguments[0]}: {written}"
    with JournalReader(journal) as reader:
        assert all(entry.data() is not None for entry in reader)
    with EventStore(journal) as store:
        assert others <= {run["event_id"] for run in store.runs(limit=None)}
    Journal(journal).repair()
    assert Journal(journal).check().problems == []


# ------------------------------------------------------------ kept segments


@pytest.mark.parametrize(
    "header",
    [b"", b"\x00" * 40, b'{"type":"journal.kept","journal":{"size":-5,"offsets":[0]}}', b"\xe6" * 30],
)
def test_pruned_segment_without_its_header_is_read_again(journal: Path, header: bytes) -> None:
    before = runs_of(journal)
    kept = max(journal.glob("*.kept.ndjson"), key=lambda path: path.stat().st_size)
    lines = kept.read_bytes().splitlines(keepends=True)
    with JournalReader(journal) as reader:
        once = len(list(reader))
    kept.write_bytes(b"".join([header + b"\n", *lines[1:]]))

    assert runs_of(journal) == before
    with JournalReader(journal) as fresh:
        assert len(list(fresh)) == once, "every line is read exactly once"
    assert any(str(kept) in problem for problem in Journal(journal).check().problems)
    Journal(journal).repair()
    assert Journal(journal).check().problems == []
    assert kept.read_bytes().splitlines(keepends=True)[1:] == lines[1:]
    with JournalReader(journal) as fresh:
        assert len(list(fresh)) == once
    assert RetentionPolicy(max_bytes=1).apply(str(journal)).lines > 0


def test_original_segment_in_place_of_a_pruned_one_loses_no_line(journal: Path) -> None:
    before = runs_of(journal)
    kept = max(journal.glob("*.kept.ndjson"), key=lambda path: path.stat().st_size)
    other = next(path for path in sorted(journal.glob("*.ndjson")) if b'"closed-6"' in path.read_bytes())
    content = kept.read_bytes(), other.read_bytes()
    # The first line belongs to a run that no other file contains.
    lines = content[1].splitlines(keepends=True)
    lines.sort(key=lambda line: b'"pipeline.wide"' not in line)
    kept.write_bytes(b"".join(lines))
    other.write_bytes(content[0])
    assert runs_of(journal) == before
    Journal(journal).repair()
    assert Journal(journal).check().problems == []
    assert runs_of(journal) == before


def test_last_run_with_a_damaged_id_does_not_hide_the_previous_one(journal: Path) -> None:
    (path,) = [path for path in journal.glob("*-000001.ndjson") if b'"live-0"' in path.read_bytes()]
    head, _, tail = path.read_bytes().rpartition(b'"event_id":"live-4"')
    path.write_bytes(head + b'"event_id":"live-Z"' + tail)
    assert Journal(journal).runs()[0]["event_id"] == "live-Z"
    assert Journal(journal).run("last").run["event_id"] == "live-3"
    with EventStore(journal) as store:
        assert store.run("last").run["event_id"] == "live-3"


def test_repair_blanks_only_the_damaged_line_of_a_pruned_segment(journal: Path) -> None:
    kept = max(journal.glob("*.kept.ndjson"), key=lambda path: path.stat().st_size)
    lines = kept.read_bytes().splitlines(keepends=True)
    lines[2] = b"\xe6" * (len(lines[2]) - 1) + b"\n"
    kept.write_bytes(b"".join(lines))
    assert Journal(journal).repair().broken == 1
    lines[2] = b" " * (len(lines[2]) - 1) + b"\n"
    assert kept.read_bytes() == b"".join(lines)


# ------------------------------------------------------------ state files


STATE = {
    "cursors/warehouse.json": lambda path: JournalReader(path, "warehouse").close(),
    "deleted.json": lambda path: read_deletion_counts(str(path)),
    "archive.json": lambda path: read_address(str(path)),
    "alerts.json": lambda path: read_state(str(path / "alerts.json")),
    "alerts.silences.json": lambda path: read_silences(str(path / "alerts.json")),
}


def another_digit(content: bytes) -> bytes:
    digits = [found.start() for found in re.finditer(rb"[0-9a-z]", content[20:])]
    at = 20 + digits[-1]
    return content[:at] + (b"1" if content[at : at + 1] != b"1" else b"2") + content[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "another digit": another_digit,
    "invalid UTF-8": lambda content: content.replace(b'":"', b'":"\xe6', 1) + b"\xe6",
    "zeros": lambda content: bytes(len(content)),
    "half of it": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another type": lambda content: b'"text"',
    "odd values": lambda content: b'{"positions":{"w":[1,-5]},"lines":-1,"address":"","rules":7}',
    "a huge number": lambda content: (
        b'{"positions":{"w":[1,1e30]},"lines":1e30,"address":1e30,"version":1e30}'
    ),
}


KINDS = [
    (name, damage)
    for name in STATE
    for damage in (*DAMAGE, "a directory", "a symbolic link", "a FIFO")
    # A list cannot contain a checksum: a changed digit is a different, valid time.
    if (name, damage) != ("alerts.silences.json", "another digit")
]


def without_archive(journal: Path) -> None:
    """Remove the archive, because `doctor` would check it every time."""
    shutil.rmtree(journal / "archive")
    for path in (journal / "archive.json", *(journal / "cursors").glob("archive*")):
        path.unlink()


@pytest.mark.parametrize(("name", "damage"), KINDS)
def test_damaged_state_file_is_reported_and_moved_to_broken(journal: Path, name: str, damage: str) -> None:
    file = journal / name
    if not file.exists():
        file.write_bytes(b"{}")
    if name != "archive.json":
        without_archive(journal)
    content = file.read_bytes()
    outside = journal.parent / "outside"
    outside.write_bytes(b"private")
    if damage in DAMAGE:
        file.write_bytes(DAMAGE[damage](content))
    else:
        file.unlink()
        if damage == "a directory":
            file.mkdir()
        elif damage == "a symbolic link":
            file.symlink_to(outside)
        else:
            os.mkfifo(file)

    with pytest.raises(DamagedFileError, match=re.escape(file.name)) as caught:
        STATE[name](journal)
    assert caught.value.hint
    before = runs_of(journal)
    code, written = command(journal, "doctor")
    assert code == 1
    assert file.name in written.replace(" ", "")
    code, written = command(journal, "doctor", "--repair")
    assert code == 0, written
    moved = list((journal / "broken").glob(f"*{file.name}-*"))
    assert len(moved) == 1
    if damage in DAMAGE:
        assert moved[0].read_bytes() == DAMAGE[damage](content)
    assert command(journal, "doctor")[0] == 0
    STATE[name](journal)
    assert runs_of(journal) == before
    assert outside.read_bytes() == b"private"


def test_cursor_of_another_reader_is_rejected(journal: Path) -> None:
    cursors = journal / "cursors"
    (cursors / "lake.json").write_bytes((cursors / "warehouse.json").read_bytes())
    with pytest.raises(DamagedFileError, match="it contains the cursor of reader 'warehouse'"):
        JournalReader(journal, "lake")


def test_reader_with_a_repaired_cursor_reads_everything_even_at_end(journal: Path) -> None:
    with JournalReader(journal) as reader:
        everything = len(list(reader))
    (journal / "cursors" / "warehouse.json").write_bytes(b"{")
    Journal(journal).repair()
    with JournalReader(journal, "warehouse", at_end=True) as reader:
        assert len(list(reader)) == everything


def test_reader_starts_from_the_beginning_if_its_position_is_inside_a_line(journal: Path) -> None:
    with JournalReader(journal) as reader:
        everything = len(list(reader))
    reader = JournalReader(journal, "odd")
    reader.close()
    file = journal / "cursors" / "odd.json"
    positions = {
        writer: [segments[0].sequence, 17] for writer, segments in list_writers(str(journal)).items()
    }
    file.write_text(json.dumps({"positions": positions}))  # edited manually: without a checksum
    with JournalReader(journal, "odd") as reader:
        assert len(list(reader)) >= everything - reader.missed


def test_retention_continues_with_a_damaged_count(journal: Path) -> None:
    (journal / "deleted.json").write_bytes(b"\xe6")
    assert RetentionPolicy(max_bytes=1).apply(str(journal)).lines > 0
    assert read_deletion_counts(str(journal)).lines > 0
    assert [path.read_bytes() for path in (journal / "broken").glob("deleted.json-*")] == [b"\xe6"]


def test_damaged_alert_state_is_not_reset(journal: Path) -> None:
    (journal / "alerts.json").write_bytes(b"\xe6")
    with EventStore(journal) as store, pytest.raises(DamagedFileError, match=re.escape(STATE_FILE.remedy)):
        run_alerts(store, AlertRules(rules=(FailureRate(name="failures", above=0.1, window=3600.0),)))
    assert (journal / "alerts.json").read_bytes() == b"\xe6"


def test_damaged_address_does_not_create_a_new_archive(journal: Path) -> None:
    (journal / "archive.json").write_bytes(b"\xe6")
    with pytest.raises(DamagedFileError, match=re.escape(ADDRESS_FILE.remedy)):
        Compactor(journal)
    with EventStore(journal) as store, pytest.raises(DamagedFileError, match=re.escape(ADDRESS_FILE.remedy)):
        store.runs()


@pytest.mark.parametrize(
    ("name", "found", "why"),
    [
        ("deleted.json", "directory", "the path is a directory, not a regular file"),
        (
            "20261123T160028Z-p4711-9f3a61c2-000001.ndjson",
            "directory",
            "the path is a directory, not a regular file",
        ),
        ("cursors/x.json", "fifo", "the path is a FIFO, not a regular file"),
        ("lock.lock", "link", "the path is a symbolic link, not a regular file"),
        ("broken", "file", "the path is a file, not a directory"),
        ("broken", "link", "the path is a symbolic link, not a directory"),
    ],
)
def test_misplaced_entry_is_reported(journal: Path, name: str, found: str, why: str) -> None:
    path = journal / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    {
        "directory": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
        "link": lambda: path.symlink_to("nowhere"),
        "file": lambda: path.write_bytes(b""),
    }[found]()
    (damaged,) = Journal(journal).check().damaged
    assert (damaged.path, damaged.reason) == (str(path), why)


@pytest.mark.parametrize(
    ("arguments", "name", "hint"),
    [
        (["doctor"], "deleted.json", "stageflow doctor --repair"),
        (["doctor"], "cursors/warehouse.json", "stageflow doctor --repair"),
        (["doctor"], "archive.json", "stageflow compact --archive ADDRESS"),
        (["doctor", "--repair"], "archive.json", "stageflow compact --archive ADDRESS"),
        (["stats"], "archive.json", "stageflow compact --archive ADDRESS"),
        (["runs"], "archive.json", "stageflow compact --archive ADDRESS"),
        (["show", "nobody"], None, "stageflow runs"),
    ],
)
def test_hints_name_the_journal_of_the_command(
    journal: Path, arguments: list[str], name: str | None, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = journal.rename(journal.parent / "a journal")

    def written() -> str:
        if name is not None:
            (place / name).write_bytes(b"\xe6")
        return command(place, *arguments)[1]

    assert f"`{hint} --journal '{place}'`" in written()
    # One that the environment names need not be repeated.
    monkeypatch.setenv("STAGEFLOW_JOURNAL", str(place))
    assert f"`{hint}`" in written()


# ------------------------------------------------------------ what is gone


def in_segments(journal: Path, runs: int = 6) -> list[Path]:
    """Write so many runs, each in segments of its own, and return the segments."""
    sink = JournalSink(journal, segment_bytes=1)
    graph = corruption.graph_on(sink, "parts")
    for number in range(runs):
        graph.run_sync(PipelineContext(pipeline_run_id=f"run-{number}", user_id="u1"))
    sink.close()
    return sorted(journal.glob("*.ndjson"))


@pytest.mark.parametrize(
    ("gone", "numbers"),
    [
        ([3], "1 segment of writer NAME (number 4) is missing; restore it"),
        ([4, 5], "2 segments of writer NAME (numbers 5 to 6) are missing; restore them"),
        ([0], "1 segment of writer NAME (number 1) is missing"),
        ([0, 1, 2], "3 segments of writer NAME (numbers 1 to 3) are missing"),
    ],
)
def test_missing_segments_are_reported_until_repair_records_them(
    tmp_path: Path, gone: list[int], numbers: str
) -> None:
    journal = tmp_path / "journal"
    segments = in_segments(journal)
    assert Journal(journal).check().problems == []
    with JournalReader(journal, "slow"):
        pass
    for number in gone:
        segments[number].unlink()

    state = Journal(journal).check()
    (found,) = state.missing
    assert (found.first, found.last) == (gone[0] + 1, gone[-1] + 1)
    problem = numbers.replace("NAME", segments[0].name.rsplit("-", 1)[0])
    assert any(problem in each for each in state.problems)
    assert command(journal, "doctor")[0] == 1

    before = runs_of(journal)
    assert Journal(journal).repair().missing == [found]
    assert Journal(journal).check().problems == []
    assert runs_of(journal) == before
    with JournalReader(journal, "slow") as reader:
        assert reader.read(1000)
        assert reader.missed > 0
    # What the repair wrote does not stop retention, which removes everything.
    RetentionPolicy(max_bytes=1).apply(str(journal))
    assert Journal(journal).check().problems == []


@pytest.mark.parametrize(
    "room", [RetentionPolicy(max_bytes=1), RetentionPolicy(max_bytes=9_000), RetentionPolicy(max_age=0.0)]
)
def test_segments_that_retention_removed_are_not_missing(tmp_path: Path, room: RetentionPolicy) -> None:
    journal = tmp_path / "journal"
    sink = JournalSink(journal, segment_bytes=1)
    for outcome in ("fails", "works", "fails", "works", "works"):
        corruption.graph_on(sink, outcome).run_sync(PipelineContext(user_id="u1"))
        failing(sink, outcome == "fails").run_sync()
    before = len(list(journal.glob("*.ndjson")))
    room.apply(str(journal))
    assert len(list(journal.glob("*.ndjson"))) < before
    assert Journal(journal).check().missing == []
    sink.close()


def test_segments_are_not_missing_if_retention_is_killed_or_its_counts_are_lost(
    tmp_path: Path, program: Start
) -> None:
    journal = tmp_path / "journal"  # where `program` has it
    segments = in_segments(journal)
    killed = program(
        """
        import os, signal, sys
        from stageflow.journal._retention import RetentionPolicy

        calls = []
        def stopped():
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        RetentionPolicy(max_bytes=1).apply(sys.argv[1], stopped)
        """
    )
    assert killed.ended()[0] == -9
    left = sorted(journal.glob("*.ndjson"))
    assert 0 < len(left) < len(segments)
    assert Journal(journal).check().problems == []
    (journal / "deleted.json").write_bytes(b"damaged")
    assert Journal(journal).check().missing == []
    Journal(journal).repair()
    assert Journal(journal).check().problems == []


def failing(sink: JournalSink, fails: bool) -> StageGraph:
    async def stage(ctx: object) -> None:
        if fails:
            raise ValueError("no")

    return (
        Pipeline("fails")
        .with_stage("stage", stage)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )


def test_removed_segment_is_missing_in_a_journal_with_retention(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    segments = in_segments(journal)
    for segment in segments[:2]:
        os.utime(segment, (1, 1))
    RetentionPolicy(max_age=1000.0).apply(str(journal))
    assert not segments[0].exists()
    assert Journal(journal).check().problems == []
    ends = [path for path in segments if path.exists() and b'"pipeline.wide"' in path.read_bytes()]
    after = segments[segments.index(ends[1]) + 1]
    after.unlink()
    assert [gap.first for gap in Journal(journal).check().missing] == [segments.index(after) + 1]


LOST_ENDS = {
    "a damaged line": lambda content: content.replace(b'"pipeline.wide"', b'"pipeline.wide\xff', 1),
    "a file that was truncated": lambda content: b"",
    "a line of blanks": lambda content: b" " * (len(content) - 1) + b"\n",
}


@pytest.mark.parametrize("damage", LOST_ENDS)
def test_run_with_a_damaged_end_is_not_open(tmp_path: Path, damage: str) -> None:
    journal = tmp_path / "journal"
    segments = in_segments(journal, 3)
    (path,) = [
        path
        for path in segments
        if b'"pipeline.wide"' in path.read_bytes() and b'"event_id":"run-1"' in path.read_bytes()
    ]
    path.write_bytes(LOST_ENDS[damage](path.read_bytes()))

    state = Journal(journal).check()
    assert state.without_end == ["run-1"]
    assert any("the end of 1 run is damaged or missing (run-1)" in each for each in state.problems)
    for repaired in (False, True):
        run = Journal(journal).run("run-1").run
        assert (run["status"], run["outcome"]) == ("CLOSED", "closed")
        assert "damaged or missing" in run["reason"]
        _, written = command(journal, "show", "run-1")
        assert "so far" not in written
        assert "damaged or missing" in written
        assert Journal(journal).in_progress() == []
        if not repaired:
            assert Journal(journal).repair().without_end == ["run-1"]
    assert Journal(journal).check().problems == []
    assert Journal(journal).repair().without_end == []
    assert Journal(journal).run("run-2").run["outcome"] == "ok"


def test_run_in_progress_stays_open(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    sink = JournalSink(journal)

    async def look(ctx: object) -> None:
        assert Journal(journal).run("mine").run["status"] == "OPEN"
        state = Journal(journal).check()
        assert (state.without_end, state.problems) == ([], [])
        assert Journal(journal).repair().without_end == []

    graph = Pipeline("looks").with_stage("look", look)
    assert (
        graph.build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
        .run_sync(PipelineContext(pipeline_run_id="mine"))
        .ok
    )
    sink.close()


# ------------------------------------------------------------ links, and files that cannot be read


@pytest.mark.parametrize(
    "name",
    [
        "lock",
        "archive.lock",
        "alerts.json.lock",
        "cursors/warehouse.lock",
        "cursors/new.json",
        "broken",
        "cursors",
    ],
)
@pytest.mark.parametrize("target", ["a file", "a directory", "nothing"])
def test_journal_never_follows_symbolic_links(journal: Path, name: str, target: str) -> None:
    outside = journal.parent / "outside"
    if target == "a file":
        outside.write_bytes(b"private")
    elif target == "a directory":
        outside.mkdir()
    link = journal / name
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(outside)

    graph = corruption.graph_on(sink := JournalSink(journal, max_bytes=100_000, segment_bytes=5_000), "more")
    graph.run_sync()
    sink.run_maintenance()
    sink.close()
    for reads in (
        lambda: list(JournalReader(journal, "warehouse")),
        lambda: list(JournalReader(journal, "new")),
        lambda: Compactor(journal, keep_seconds=0).compact(),
        lambda: RetentionPolicy(max_bytes=1).apply(str(journal)),
    ):
        with contextlib.suppress(DamagedFileError):
            reads()
    assert any(str(link) in problem for problem in Journal(journal).check().problems)
    if target == "a file":
        assert outside.read_bytes() == b"private"
    elif target == "a directory":
        assert list(outside.iterdir()) == []
    else:
        assert not outside.exists()
    Journal(journal).repair()
    assert Journal(journal).check().damaged == []
    assert not link.is_symlink()
    list(JournalReader(journal, "again"))


@pytest.mark.parametrize("place", ["broken", "cursors", "broken and cursors"])
@pytest.mark.parametrize("what", ["a symbolic link", "a file"])
def test_repair_moves_all_misplaced_entries(journal: Path, place: str, what: str) -> None:
    outside = journal.parent / "outside"
    outside.mkdir()
    (outside / "link.json").symlink_to("nowhere")
    (outside / "folder.json").mkdir()
    for name in place.split(" and "):
        shutil.rmtree(journal / name, ignore_errors=True)
        if what == "a file":
            (journal / name).write_bytes(b"mine")
        else:
            (journal / name).symlink_to(outside)
    # These sort before `broken`, and are moved into it.
    (journal / "a.json").mkdir()
    (journal / "b.lock").symlink_to("nowhere")

    moved = {Path(each.path).name for each in Journal(journal).repair().moved}
    assert moved == {*place.split(" and "), "a.json", "b.lock"}
    assert Journal(journal).check().problems == []
    assert {path.name for path in outside.iterdir()} == {"link.json", "folder.json"}


async def test_links_with_the_names_of_the_next_segments_are_skipped(tmp_path: Path) -> None:
    journal, outside = tmp_path / "journal", tmp_path / "outside"
    outside.write_bytes(b"private")
    sink = JournalSink(journal, segment_bytes=1)
    graph = corruption.graph_on(sink, "more")
    await graph.run()
    last = max(journal.glob("*.ndjson"))
    stem, number = last.name.removesuffix(".ndjson").rsplit("-", 1)
    names = [f"{stem}-{int(number) + n:06d}.ndjson" for n in range(1, 4)]
    for name in (names[0], f".{names[1]}"):
        (journal / name).symlink_to(outside)
    (journal / names[2]).mkdir()
    await graph.run()
    sink.close()
    assert outside.read_bytes() == b"private"
    assert [run["outcome"] for run in Journal(journal).runs()] == ["ok", "ok"]
    assert len(Journal(journal).check().damaged) == 3
    Journal(journal).repair()
    assert Journal(journal).check().damaged == []


def test_unreadable_file_hides_only_itself(program: Start) -> None:
    one = program(
        """
        import atexit, os, shutil, stat, tempfile
        from pathlib import Path
        from stageflow import *
        from stageflow.observability import WideEventEmitter

        async def nothing(ctx): ...

        # Not in the directory of pytest, whose parents only its owner may search.
        journal = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, journal)
        for name in ("hidden", "shown"):
            sink = JournalSink(journal)
            graph = Pipeline(name).with_stage("a", nothing).build(
                emit_stage_wide_events=True, emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(sink))
            graph.run_sync(PipelineContext(pipeline_run_id=name))
            sink.close()
        (path,) = [path for path in journal.glob("*.ndjson") if b'"hidden"' in path.read_bytes()]
        path.chmod(0)
        Journal(journal).check(), Journal(journal).run("shown"), JournalReader(journal).read()
        if os.getuid() == 0:  # permissions do not restrict root
            for each in (journal, *journal.iterdir()):
                os.chown(each, 65534, 65534)
            os.seteuid(65534)
        assert [run["event_id"] for run in Journal(journal).runs()] == ["shown"]
        assert Journal(journal).run("shown").run["outcome"] == "ok"
        reader = JournalReader(journal)
        read = [entry.data()["event_id"] for entry in reader.read()]
        assert read == ["shown/a/1", "shown"], read
        try:
            reader.read()
        except PermissionError as error:
            assert path.name in str(error)
        else:
            raise AssertionError("no message reported the skipped file")
        assert any(path.name in problem for problem in Journal(journal).check().problems)
        path.chmod(0o600)
        assert [entry.data()["event_id"] for entry in reader.read()] == ["hidden/a/1", "hidden"]
        print("done")
        """
    )
    status, out, err = one.ended()
    assert (status, out) == (0, "done\n"), err
    assert "skipping an unreadable part of the journal" in err
