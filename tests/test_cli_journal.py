"""Holds the commands over a journal: what they choose, draw and say, and how they end."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from oracle import recorded
from rich.console import Console
from typer.testing import CliRunner

from stageflow import JournalSink, Pipeline, PipelineContext, Retry, StageOutput
from stageflow._timeparse import TIME_FORMATS, parse_duration, parse_time
from stageflow.cli._app import app
from stageflow.errors import RunNotFoundError
from stageflow.journal import Journal, RunFilter, _reader as newest
from stageflow.render import draw_run
from stageflow.render._runs import draw_runs
from stageflow.store import EventStore

EVIL = "\x1b[2J\x1b]0;owned\x07"


def anything(_: Any) -> bool:
    return True


LATER = 20
"""Seconds that anything may take: with more something hangs."""

# `stageflow.cli` has the function under this name.
tail_module = import_module("stageflow.cli._tail")


# ------------------------------------------------------------ journals to look into


async def search(ctx):
    ctx.annotate(hits=3, query="two words")
    ctx.emit_event("shop.searched", {"words": 2, "from": ctx.run.user_id})


async def pay(ctx):
    if ctx.run.data == "broke":
        raise ValueError(f"no money {EVIL}\nat all")
    if ctx.run.data == "again" and ctx.attempt == 1:
        raise ConnectionError("the bank is down")
    if ctx.run.data == "shut":
        return StageOutput.stop("the shop is shut")
    return None


async def greet(ctx):
    if ctx.run.data == "rude":
        raise RuntimeError("go away")


def graph(name: str, sink: Any, *stages: Any) -> Any:
    pipeline = Pipeline(name)
    for stage in stages:
        pipeline = pipeline.with_stage(*stage[:2], **(stage[2] if len(stage) > 2 else {}))
    return recorded(pipeline, sink)


def write_journal(path: Path) -> None:
    sink = JournalSink(path)
    child = graph("delivery", sink, ("drive", search))

    async def deliver(ctx):
        await child.run(PipelineContext(request_id="child"))

    shop = graph(
        "shop",
        sink,
        ("search", search),
        ("greet", greet, {"optional": True}),
        ("pay", pay, {"dependencies": ("search",), "retry": Retry(3, wait=0.001, on=ConnectionError)}),
    )
    whole = graph("whole", sink, ("deliver", deliver))

    async def run_all() -> None:
        for number, data in enumerate(("fine", "broke", "again", "rude", "shut")):
            await shop.run(
                PipelineContext(request_id=data, user_id=f"u-{number % 2}", session_id="s", data=data)
            )
        await whole.run(PipelineContext(request_id="parent", org_id="o-1"))

    asyncio.run(run_all())
    sink.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shop") / "journal"
    write_journal(path)
    return path


@pytest.fixture(autouse=True)
def _in_a_place_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("STAGEFLOW_JOURNAL", "COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


def stageflow(*arguments: Any, code: int = 0) -> Any:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    assert "Traceback" not in done.output
    return done


def in_process(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "stageflow", *map(str, arguments)],
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def on_a_terminal(*arguments: Any, columns: int = 80, **environment: str) -> str:
    """Return what a command writes to a terminal."""
    reader, writer = pty.openpty()
    process = in_process(
        *arguments,
        stdout=writer,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), **environment},
    )
    os.close(writer)
    text = b""
    try:
        while read := os.read(reader, 65536):
            text += read
    except OSError:  # Linux says so where others give nothing: the other end was closed
        pass
    os.close(reader)
    _, errors = process.communicate(timeout=LATER)
    assert (process.returncode, errors) == (0, "")
    return text.decode().replace("\r\n", "\n")


def drawn(picture: Any, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(picture)
    return file.getvalue()


def requests(out: str) -> list[str | None]:
    return [json.loads(line)["correlation_ids"]["request_id"] for line in out.splitlines()]


def newest_of(path: Path, **ids: str) -> dict[str, Any]:
    return next(
        run
        for run in Journal(path).runs()
        if all(run["correlation_ids"][key] == known for key, known in ids.items())
    )


# ------------------------------------------------------------ runs


def test_runs_are_listed_newest_first_with_their_errors(shop):
    out = stageflow("runs", "--journal", shop).stdout
    head, *lines = out.splitlines()
    assert head.split() == ["began", "outcome", "pipeline", "ms", "stages", "run", "user", "request", "why"]
    assert [line.split()[1] for line in lines] == [
        "ok", "ok", "stopped", "degraded", "ok", "failed", "ok"
    ]  # fmt: skip
    (broke,) = (line for line in lines if " failed " in line)
    run = newest_of(shop, request_id="broke")
    assert broke.startswith(run["started_at"])
    assert run["event_id"] in broke
    assert broke.endswith(r"ValueError: no money \x1b[2J\x1b]0;owned\x07 at all")
    assert "greet: RuntimeError: go away" in out
    assert "the shop is shut" in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["child", "parent", "shut", "rude", "again", "broke", "fine"]),
        (("--roots",), ["parent", "shut", "rude", "again", "broke", "fine"]),
        (("--roots", "--limit", "1"), ["parent"]),
        (("--roots", "--pipeline", "delivery"), []),
        (("--status", "FAIL"), ["broke"]),
        (("--status", "ok"), ["child", "parent", "shut", "rude", "again", "fine"]),
        (("--status", "degraded"), ["rude"]),
        (("--pipeline", "whole"), ["parent"]),
        (("--stage", "pay"), ["shut", "rude", "again", "broke", "fine"]),
        (("--stage", "pay:FAIL"), ["broke"]),
        (("--stage", "greet:fail"), ["rude"]),
        (("--id", "u-1"), ["rude", "broke"]),
        (("--id", "o-1"), ["child", "parent"]),
        (("--id", "again"), ["again"]),
        (("--limit", "2", "--pipeline", "shop"), ["shut", "rude"]),
        (("--limit", "0", "--id", "s"), ["shut", "rude", "again", "broke", "fine"]),
        (("--since", "1h", "--status", "failed"), ["broke"]),
        (("--until", "1 hour ago"), []),
        (("--since", "now"), []),
        (("--pipeline", "nix"), []),
    ],
)
def test_each_filter_selects_its_runs(shop, options, expected):
    done = stageflow("runs", "--json", *options, "--journal", shop)
    assert [known for known in requests(done.stdout) if known] == expected
    assert bool(done.stderr) == (not expected)


def test_runs_can_be_selected_to_the_microsecond(shop):
    # The file system's clock ticks in milliseconds: a file may look older than what is in it.
    os.utime(next(shop.glob("*.ndjson")))
    began = newest_of(shop, request_id="again")["started_at"]
    assert "again" in requests(stageflow("runs", "--json", "--journal", shop, "--since", began).stdout)
    before = stageflow("runs", "--json", "--journal", shop, "--until", began).stdout
    assert requests(before) == ["broke", "fine"]


def test_json_contains_all_fields_of_a_run(shop):
    out = stageflow("runs", "--json", "--limit", "0", "--journal", shop).stdout
    assert [json.loads(line) for line in out.splitlines()] == Journal(shop).runs(limit=None)


def test_message_that_no_run_matches_is_on_stderr(shop, tmp_path):
    done = stageflow("runs", "--journal", shop, "--id", "nobody")
    assert (done.stdout, done.stderr) == ("", f"No runs in {shop} match.\n")
    quiet = stageflow("runs", "--journal", shop, "--id", "nobody", "--json")
    assert (quiet.stdout, quiet.stderr) == ("", done.stderr)
    (tmp_path / "empty").mkdir()
    assert (
        stageflow("runs", "--journal", "empty").stderr == f"There are no runs in {tmp_path / 'empty'} yet.\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("runs", "--status", "faild"), "did you mean 'failed'?"),
        (("runs", "--stage", "pay:RETRY"), "'RETRY' is not one of OK, SKIP, FAIL, CANCEL, OPEN"),
        (("tail", "--status", "opened"), "is not one of"),
        (("tail", "--stage", "pay:x"), "is not one of"),
        (("runs", "--since", "gestern"), "yesterday, 14:30"),
        (("runs", "--limit", "-1"), "greater than or equal to 0"),
        (("show", ""), "the id is empty"),
    ],
)
def test_invalid_argument_is_rejected_with_the_accepted_forms(shop, options, said):
    done = stageflow(*options, "--journal", shop, code=2)
    assert said in re.sub(r"[\s│]+", " ", done.stderr)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 220])
def test_list_fits_the_terminal_and_its_ids_are_accepted_by_show(shop, width):
    runs = Journal(shop).runs()
    lines = drawn(draw_runs(runs, width=width), width=width).splitlines()
    assert max(map(len, lines)) <= width
    column = lines[0].split().index("run")
    if width >= 60:
        for line in lines[1:]:
            found = re.search(r"01[0-9a-f]{6}-[0-9a-f-]+", line)
            if found and column:
                assert len(Journal(shop).run(found[0]).stages) > 0
    if width >= 140:
        assert runs[0]["event_id"] in lines[1]


# ------------------------------------------------------------ which journal


@pytest.mark.parametrize("command", ["runs", "show", "tail", "doctor"])
def test_missing_journal_is_reported_with_a_hint(command):
    done = stageflow(command, "--journal", "nix", code=2)
    assert done.stdout == ""
    assert f"there is no journal at {os.path.abspath('nix')!r}" in done.stderr
    assert "--journal" in done.stderr


def test_default_journals_are_tried_in_order(shop, tmp_path, monkeypatch):
    def count() -> int:
        return len(stageflow("runs", "--json").stdout.splitlines())

    assert repr(str(tmp_path / "journal")) in stageflow("runs", code=2).stderr
    (tmp_path / ".stageflow").mkdir()
    (tmp_path / ".stageflow/demo").symlink_to(shop)
    assert count() == 7
    (tmp_path / "journal").mkdir()
    assert count() == 0
    monkeypatch.setenv("STAGEFLOW_JOURNAL", str(shop))
    assert count() == 7


# ------------------------------------------------------------ show


def test_show_accepts_an_id_a_prefix_and_last(shop):
    run = newest_of(shop, request_id="again")
    known = run["event_id"]
    whole = stageflow("show", known, "--journal", shop).stdout
    assert whole == stageflow("show", known[:20], "--journal", shop).stdout
    for said in (
        known,
        "shop  ok",
        "critical path",
        "search → pay",
        "hits=3",
        "attempt 1: ConnectionError: the bank is down",
        "shop.searched",
        "words=2",
        run["trace"]["trace_id"],
        f"pid={os.getpid()}",
    ):
        assert said in whole
    assert re.search(r"\* pay +OK +2 .*░", whole)
    last = stageflow("show", "--journal", shop).stdout
    assert Journal(shop).runs(RunFilter(roots=True), limit=1)[0]["event_id"] in last
    assert last == stageflow("show", "last", "--journal", shop).stdout


def test_parent_and_child_runs_name_each_other(shop):
    parent, child = (newest_of(shop, request_id="parent"), Journal(shop).runs(limit=1)[0])
    shown = stageflow("show", parent["event_id"], "--journal", shop).stdout
    assert shown.index("child runs") < shown.index(child["event_id"])
    assert re.search(
        rf"parent +{parent['event_id']}", stageflow("show", child["event_id"], "--journal", shop).stdout
    )


def test_json_of_show_contains_run_stages_events_and_children(shop):
    known = newest_of(shop, request_id="parent")["event_id"]
    told = json.loads(stageflow("show", known, "--json", "--journal", shop).stdout)
    story = Journal(shop).run(known)
    assert told == {
        "run": story.run,
        "stages": story.stages,
        "events": [{"type": type, "data": data} for type, data in story.events],
        "children": story.children,
    }
    assert len(told["children"]) == 1


@pytest.mark.parametrize(
    ("run", "said"), [("nix", "contains no run 'nix'"), ("01", "contains 7 runs that match")]
)
def test_run_that_cannot_be_shown_is_reported(shop, run, said):
    done = stageflow("show", run, "--journal", shop, code=1)
    assert done.stdout == ""
    assert said in done.stderr
    assert "hint:" in done.stderr


@pytest.mark.parametrize("command", ["runs", "show", "tail"])
def test_control_characters_in_a_record_are_escaped(shop, command):
    known = newest_of(shop, request_id="broke")["event_id"]
    for way in ((), ("--json",)):
        options = (known,) if command == "show" else ("--id", known)
        out = stageflow(command, *options, *way, "--journal", shop).stdout
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    text = on_a_terminal(command, *options, "--journal", shop, columns=140)
    assert "\x1b[2J" not in text
    assert "\x1b]0" not in text
    assert r"\x1b[2J" in text


# ------------------------------------------------------------ runs that did not end

UNENDING = f"""
import asyncio, sys
from stageflow import JournalSink, Pipeline, PipelineContext, Retry
from stageflow.observability import WideEventEmitter

async def first(ctx):
    ctx.annotate(hits=3)

async def again(ctx):
    if ctx.attempt == 1:
        raise ConnectionError("down")
    print("ready", flush=True)
    await asyncio.sleep({LATER})

async def slow(ctx):
    await asyncio.sleep({LATER})

pipeline = (
    Pipeline("unending")
    .with_stage("first", first)
    .with_stage("again", again, dependencies=("first",), retry=Retry(3, wait=0.02))
    .with_stage("slow", slow, dependencies=("first",))
    .with_stage("last", first, dependencies=("again", "slow"))
)
emitter = WideEventEmitter(JournalSink(sys.argv[1]))
graph = pipeline.build(emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=emitter)
asyncio.run(graph.run(PipelineContext(user_id="u-9")))
"""


def test_run_is_open_until_its_process_is_killed_and_then_crashed(program):
    running = program(UNENDING)
    running.wait_for("ready")
    journal = running.journal
    listed = stageflow("runs", "--journal", journal, "--status", "open").stdout
    assert re.search(r" open +unending .* 1/4 .* u-9 +not ended: again, slow, last", listed)
    shown = stageflow("show", "--journal", journal).stdout
    assert re.search(r"^unending  open  [\d.,]+ ms so far$", shown, re.MULTILINE)
    assert re.search(r"^  slow +(OPEN|RUNNING .*▓)$", shown, re.MULTILINE)
    assert "attempt 1: ConnectionError: down" in shown
    assert json.loads(stageflow("show", "--journal", journal, "--json").stdout)["run"]["ended_at"] is None
    state = json.loads(stageflow("doctor", "--journal", journal, "--json").stdout)
    assert [(writer["state"], len(writer["open_runs"])) for writer in state["writers"]] == [("live", 1)]

    running.process.kill()
    running.process.wait(LATER)
    sick = stageflow("doctor", "--journal", journal, code=1).stdout
    assert re.search(r" dead +\d+ ", sick)
    assert re.search(r" crashed +unending ", stageflow("runs", "--journal", journal).stdout)
    shown = stageflow("show", "--journal", journal).stdout
    # A heartbeat, if there was one before the process died, distinguishes ready and running stages.
    assert re.search(r"^  slow +CANCEL +[01] +[\d.,]+ ", shown, re.MULTILINE)
    assert re.search(r"^  again +CANCEL +1 +[\d.,]+ +0.00 +[░·]+$", shown, re.MULTILINE)
    assert re.search(r"^  last +CANCEL +0$", shown, re.MULTILINE)
    assert re.search(r"process died (while the stage was ready or running|during attempt 1)", shown)
    newest_event = stageflow("tail", "-n", "1", "--journal", journal).stdout
    assert " crashed " in newest_event
    stageflow("doctor", "--journal", journal)


IN_PROGRESS = f"""
import asyncio, sys, time
from stageflow import JournalSink, Pipeline, PipelineContext, Retry
from stageflow.observability import WideEventEmitter

sink = JournalSink(sys.argv[1], segment_bytes=4096)

def graph(pipeline):
    return pipeline.build(
        emit_stage_wide_events=True, emit_pipeline_wide_event=True, wide_event_emitter=WideEventEmitter(sink)
    )

async def quick(ctx):
    ctx.annotate(rows=3)

async def inner(ctx):
    ctx.annotate(step="embedding")
    await asyncio.sleep({LATER})

async def parent(ctx):
    ctx.annotate({{"db.rows": 17}})
    ctx.annotate_run(tier="gold")
    await graph(Pipeline("ended").with_stage("work", quick)).run()
    await graph(Pipeline("inner").with_stage("work", inner)).run()

async def again(ctx):
    if ctx.attempt == 1:
        raise ConnectionError("down")
    ctx.annotate(attempts_note="second")
    await asyncio.sleep({LATER})

def in_a_thread(ctx):
    ctx.annotate(where="thread")
    print("ready", flush=True)
    time.sleep({LATER})

pipeline = (
    Pipeline("outer")
    .with_stage("quick", quick)
    .with_stage("parent", parent, dependencies=("quick",))
    .with_stage("again", again, dependencies=("quick",), retry=Retry(3, wait=0.02))
    .with_stage("in_a_thread", in_a_thread, dependencies=("quick",))
    .with_stage("last", quick, dependencies=("parent",))
)
asyncio.run(graph(pipeline).run(PipelineContext(user_id="u-9")))
"""


@pytest.fixture
def in_progress(program) -> Path:
    """A journal with a run in progress, of which a heartbeat reports the attributes of three stages."""
    running = program(IN_PROGRESS)
    running.wait_for("ready")
    deadline = time.monotonic() + LATER
    while time.monotonic() < deadline:
        found = [run for run in Journal(running.journal).runs() if run["pipeline_name"] == "outer"]
        stages = found[0]["stages_running"] if found else []
        if len(stages) == 3 and found[0]["attributes"] and all(each["attributes"] for each in stages):
            return running.journal
        time.sleep(0.05)
    pytest.fail("no heartbeat reports the attributes")


def outer_of(path: Path) -> str:
    return next(run["event_id"] for run in Journal(path).runs() if run["pipeline_name"] == "outer")


def test_open_run_is_shown_with_what_is_known_so_far(in_progress):
    shown = stageflow("show", outer_of(in_progress), "--journal", in_progress).stdout
    assert re.search(r"^  attributes +tier=gold$", shown, re.MULTILINE)
    assert re.search(r"^  parent +RUNNING +1 +[\d.,]+ +▓+$", shown, re.MULTILINE)
    assert re.search(r"^  again +RUNNING +2 +[\d.,]+ +░?▓+$", shown, re.MULTILINE)
    assert re.search(r"^  in_a_thread +RUNNING +1 +[\d.,]+ +▓+$", shown, re.MULTILINE)
    assert re.search(r"^  quick +OK .*\n( +\S.*\n){7}  last +OPEN$", shown, re.MULTILINE)
    assert "▓ still running" in shown
    for attributes in ("db.rows=17", "attempts_note=second", "where=thread", "rows=3"):
        assert attributes in shown
    assert re.search(r"^  \S+Z +ok +ended ", shown, re.MULTILINE)
    assert re.search(r"^  \S+Z +open +inner .* running: work$", shown, re.MULTILINE)


def test_open_run_as_json_has_attributes_and_open_children(in_progress):
    story = json.loads(stageflow("show", outer_of(in_progress), "--json", "--journal", in_progress).stdout)
    running = {each["stage_name"]: each["attributes"] for each in story["run"]["stages_running"]}
    assert running == {
        "parent": {"db.rows": 17},
        "again": {"attempts_note": "second"},
        "in_a_thread": {"where": "thread"},
    }
    children = [(child["pipeline_name"], child["outcome"]) for child in story["children"]]
    assert children == [("ended", "ok"), ("inner", "open")]


def test_open_child_run_is_shown_by_itself(in_progress):
    inner = next(run["event_id"] for run in Journal(in_progress).runs() if run["pipeline_name"] == "inner")
    shown = stageflow("show", inner, "--journal", in_progress).stdout
    assert re.search(r"^  work +RUNNING +1 +[\d.,]+ +▓+$", shown, re.MULTILINE)
    assert re.search(rf"^  parent +{outer_of(in_progress)}$", shown, re.MULTILINE)


def test_open_run_of_a_journal_with_an_archive_has_all_its_children(in_progress):
    archived = json.loads(stageflow("compact", "--keep", "0s", "--json", "--journal", in_progress).stdout)
    assert archived["rows"] > 0
    shown = stageflow("show", outer_of(in_progress), "--journal", in_progress).stdout
    assert re.search(r"^  parent +RUNNING ", shown, re.MULTILINE)
    assert re.search(r"^  \S+Z +ok +ended ", shown, re.MULTILINE)
    assert re.search(r"^  \S+Z +open +inner ", shown, re.MULTILINE)


def test_bars_of_running_stages_are_ascii_where_the_terminal_is(in_progress):
    story = Journal(in_progress).run(outer_of(in_progress))
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    Console(file=file, width=80).print(draw_run(story.run, story.stages))
    file.flush()
    shown = file.buffer.getvalue().decode()
    assert re.search(r"^  parent .*RUNNING.* ={8,}", shown, re.MULTILINE)


# ------------------------------------------------------------ tail


def events_of(path: Path) -> list[dict[str, Any]]:
    """Return the events of a journal that one process wrote, as its files have them."""
    lines = [
        json.loads(line) for file in sorted(path.glob("*.ndjson")) for line in file.read_text().splitlines()
    ]
    return [line for line in lines if "data" in line]


def tailed(*options: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stageflow("tail", "--json", *options).stdout.splitlines()]


@pytest.mark.parametrize("many", [0, 1, 5, 1000])
def test_tail_prints_the_newest_events_in_journal_order(shop, many):
    assert tailed("-n", many, "--journal", shop) == (events_of(shop)[-many:] if many else [])


@pytest.mark.parametrize("chunk", [1, 100, 5000])
def test_files_are_read_backwards_whatever_the_size_of_a_piece(shop, tmp_path, monkeypatch, chunk):
    copy = tmp_path / "copy"
    copy.mkdir()
    (file,) = shop.glob("*.ndjson")
    (copy / file.name).write_bytes(file.read_bytes()[:-1])  # the last line, a mark, is torn now
    monkeypatch.setattr(newest, "_CHUNK", chunk)
    assert newest.newest_entries(str(copy), 7, anything, anything)
    found = [json.loads(entry.json) for entry in newest.newest_entries(str(copy), 1000, anything, anything)]
    assert found == [event["data"] for event in events_of(shop)]


def test_tail_reads_only_the_newest_files_of_several_processes(tmp_path, monkeypatch):
    for number in range(3):
        write_journal(tmp_path / str(number))
    journal = tmp_path / "journal"
    journal.mkdir()
    for file in tmp_path.glob("[0-2]/*.ndjson"):
        file.rename(journal / file.name)
    files = sorted(journal.iterdir())
    for hours, file in enumerate(reversed(files)):
        os.utime(file, (file.stat().st_mtime - 3600 * hours,) * 2)
    opened = []
    really = newest._lines_backwards
    monkeypatch.setattr(
        newest, "_lines_backwards", lambda segment: (opened.append(segment.path), really(segment))[1]
    )
    found = newest.newest_entries(str(journal), 10, anything, anything)
    assert {entry.writer for entry in found} == {files[-1].name[: -len("-000001.ndjson")]}
    assert opened == [str(files[-1])]
    everything = newest.newest_entries(str(journal), 1000, anything, anything)
    assert len(everything) == len(events_of(journal))
    assert [entry.writer for entry in everything] == sorted(
        (entry.writer for entry in everything),
        key=[file.name[: -len("-000001.ndjson")] for file in files].index,
    )


@pytest.mark.parametrize(
    ("options", "fits"),
    [
        (("--type", "shop.searched"), lambda type, data: type == "shop.searched"),
        (("--status", "retry"), lambda _, data: data.get("status") == "RETRY"),
        (("--status", "degraded"), lambda _, data: data.get("outcome") == "degraded"),
        (("--pipeline", "whole"), lambda _, data: data["pipeline_metadata"]["topology"] == "whole"),
        (("--stage", "pay"), lambda _, data: data.get("stage_name") == "pay"),
        (
            ("--stage", "pay:FAIL"),
            lambda _, data: (data.get("stage_name"), data.get("status")) == ("pay", "FAIL"),
        ),
        (("--id", "u-1"), lambda _, data: data["correlation_ids"]["user_id"] == "u-1"),
    ],
)
def test_each_filter_of_tail_selects_its_events(shop, options, fits):
    expected = [event for event in events_of(shop) if fits(event["type"], event["data"])]
    assert expected
    assert tailed(*options, "-n", 1000, "--journal", shop) == expected


def test_tail_in_a_pipe_prints_each_event_in_full_on_one_line(shop):
    lines = stageflow("tail", "-n", "1000", "--journal", shop).stdout.splitlines()
    assert len(lines) == len(events_of(shop))
    (failed,) = (line for line in lines if " FAIL " in line and " pay " in line)
    assert "ValueError: no money" in failed
    searched = next(line for line in lines if "shop.searched" in line)
    assert "words=2" in searched
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z  ", searched)


def test_tail_on_a_terminal_fits_and_has_errors_on_separate_lines(shop):
    text = on_a_terminal("tail", "-n", "1000", "--journal", shop, columns=80, NO_COLOR="1")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \(UTC\)", lines[0])
    assert re.search(r"^ {11}ConnectionError: the bank is down$", text, re.MULTILINE)


def test_tail_shows_events_that_the_application_passed_to_the_sink(tmp_path):
    sink = JournalSink("journal")
    for data in ({"status": 7, "duration_ms": "x", "correlation_ids": 3}, None, {"ended_at": "soon"}):
        sink.try_emit(type="by.hand", data=data)
    sink.close()
    assert len(stageflow("tail").stdout.splitlines()) == 3
    assert len(tailed()) == 3
    assert tailed("--stage", "x") == tailed("--pipeline", "x") == tailed("--id", "x") == []


def one_more(path: Path) -> None:
    """Let one run end in a journal."""
    sink = JournalSink(path)
    asyncio.run(graph("late", sink, ("only", greet)).run(PipelineContext(request_id="late")))
    sink.close()


@pytest.fixture
def following(shop: Path, tmp_path: Path) -> Iterator[Any]:
    started = []

    def start(*options: Any) -> tuple[subprocess.Popen[str], Path]:
        write_journal(tmp_path / "journal")
        started.append(in_process("tail", "-f", "-n", "1", *options))
        assert started[-1].stdout.readline()  # it was there; now it waits
        return started[-1], tmp_path / "journal"

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_tail_follows_until_ctrl_c_and_ends_without_a_message(following):
    process, journal = following("--json", "--type", "pipeline.wide")
    one_more(journal)
    assert json.loads(process.stdout.readline())["data"]["pipeline_name"] == "late"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LATER)
    assert (process.returncode, out, err) == (130, "", "")


def test_tail_ends_when_its_reader_closes_the_pipe(following):
    process, _ = following()
    process.stdout.close()  # nothing is written any more, and still it ends
    assert process.wait(LATER) == 0
    assert process.stderr.read() == ""


def test_event_written_during_the_search_for_the_newest_is_shown_once(shop, tmp_path, monkeypatch):
    write_journal(tmp_path / "journal")
    really, turns = tail_module.newest_entries, iter((False, False, True))

    def meanwhile(*arguments: Any) -> Any:
        one_more(tmp_path / "journal")
        return really(*arguments)

    monkeypatch.setattr(tail_module, "newest_entries", meanwhile)
    monkeypatch.setattr(tail_module, "_output_is_closed", lambda: next(turns))
    monkeypatch.setattr(tail_module, "_POLL_SECONDS", 0.0)
    assert [event["data"].get("pipeline_name") for event in tailed("-f", "-n", "2")] == [None, "late"]


# ------------------------------------------------------------ pipes and terminals


@pytest.mark.parametrize("command", [("runs", "--json"), ("tail", "-n", "100000"), ("show", "last")])
def test_closed_pipe_ends_the_command_without_a_message(shop, command):
    reader, writer = os.pipe()
    os.close(reader)
    process = in_process(*command, "--journal", shop, stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=LATER)
    assert (process.returncode, err) == (141, "")


@pytest.mark.parametrize("command", ["runs", "doctor"])
def test_color_is_used_only_on_terminals_without_no_color(shop, command):
    assert "\x1b[" in on_a_terminal(command, "--journal", shop)
    assert "\x1b[" not in on_a_terminal(command, "--journal", shop, NO_COLOR="1")
    out = stageflow(command, "--journal", shop).stdout
    assert "\x1b" not in out
    assert not re.search(r" $", out, re.MULTILINE)


@pytest.mark.parametrize("command", ["runs", "show", "tail", "doctor"])
def test_help_has_examples(command):
    out = " ".join(stageflow(command, "--help").stdout.split())
    assert f"• stageflow {command}" in out
    assert "STAGEFLOW_JOURNAL" in out
    assert "--json" in out


# ------------------------------------------------------------ doctor


def test_doctor_finds_no_problem_in_an_intact_journal(shop):
    done = stageflow("doctor", "--journal", shop)
    assert "No problems found." in done.stdout
    assert (done.stderr, len(done.stdout.splitlines())) == ("", 11)


def test_doctor_shows_damage_and_repairs_it(tmp_path):
    write_journal(tmp_path / "journal")
    (file,) = (tmp_path / "journal").glob("*.ndjson")
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    lines[3] = b"no json" + lines[3]
    file.write_bytes(b"".join(lines) + b'{"type":"torn')
    before = events_of_readable(file)

    sick = stageflow("doctor", code=1)
    assert re.search(rf"{file.name} +torn +\d+ +13$", sick.stdout, re.MULTILINE)
    assert re.search(rf"{file.name} +broken +{len(b''.join(lines[:3]))} ", sick.stdout)
    assert "Needs attention:" in sick.stdout
    assert len(json.loads(stageflow("doctor", "--json", code=1).stdout)["problems"]) >= 2
    assert file.read_bytes().endswith(b"torn"), "nothing is changed without --repair"

    mended = stageflow("doctor", "--repair")
    assert "1 torn last line moved to broken/" in mended.stdout
    assert "1 damaged line moved to broken/" in mended.stdout
    assert "No problems found." in mended.stdout
    assert "Nothing to repair." in stageflow("doctor", "--repair").stdout
    assert json.loads(stageflow("doctor", "--repair", "--json").stdout)["repaired"]["torn"] == 0
    assert events_of_readable(file) == before


@pytest.mark.parametrize("many", [1, 2])
def test_doctor_counts_in_correct_grammar(tmp_path, many):
    for _ in range(many):
        write_journal(tmp_path / "journal")
    for file in (tmp_path / "journal").glob("*.ndjson"):
        lines = file.read_bytes().splitlines(keepends=True)
        lines[3] = b"no json" + lines[3]
        # Without its last line, and unlocked, its writer counts as dead.
        file.write_bytes(b"".join(lines[:-1]) + b'{"type":"torn')
    # Not by the command: that would complete the runs first.
    problems = Journal(tmp_path / "journal").check().problems
    if many == 1:
        assert problems[0].startswith("1 writer died and ")
        skipped = "readers skip it, and `stageflow doctor --repair` removes it"
        assert problems[1] == f"1 last line is torn; {skipped}"
        assert problems[2] == f"1 line is damaged; {skipped}"
    else:
        assert problems[0].startswith("2 writers died and ")
        skipped = "readers skip them, and `stageflow doctor --repair` removes them"
        assert problems[1] == f"2 last lines are torn; {skipped}"
        assert problems[2] == f"2 lines are damaged; {skipped}"


def test_problems_in_json_name_the_journal_of_the_command(tmp_path):
    write_journal(tmp_path / "journal")
    (tmp_path / "journal" / "deleted.json").write_bytes(b"no json")
    for named, command in (
        (("--journal", tmp_path / "journal"), f"`stageflow doctor --repair --journal {tmp_path}/journal`"),
        ((), "`stageflow doctor --repair`"),
    ):
        (problem,) = json.loads(stageflow("doctor", "--json", *named, code=1).stdout)["problems"]
        assert command in problem


def test_doctor_draws_the_archive_before_its_verdict(tmp_path):
    write_journal(tmp_path / "journal")
    stageflow("compact")
    lines = stageflow("doctor").stdout.splitlines()
    assert lines[-1] == "No problems found."
    assert any(line.startswith("archive ") for line in lines[:-1])


def events_of_readable(file: Path) -> int:
    def is_json(line: bytes) -> bool:
        try:
            return bool(json.loads(line))
        except ValueError:
            return False

    return sum(map(is_json, file.read_bytes().splitlines()))


def test_doctor_lists_readers_with_their_positions(tmp_path):
    write_journal(tmp_path / "journal")
    with Journal("journal").reader("warehouse") as reader:
        reader.read(5)
        reader.commit()
        assert re.search(r"^warehouse +yes +[\d.]+ kB +5$", stageflow("doctor").stdout, re.MULTILINE)


# ------------------------------------------------------------ times

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-11-23T10:00:00"),
        ("30m", "2026-11-23T11:30:00"),
        ("1h30m", "2026-11-23T10:30:00"),
        ("90s", "2026-11-23T11:58:30"),
        ("7d", "2026-11-16T12:00:00"),
        ("2w", "2026-11-09T12:00:00"),
        ("1.5 hours", "2026-11-23T10:30:00"),
        ("2 hours 5 minutes ago", "2026-11-23T09:55:00"),
        ("1 Day Ago", "2026-11-22T12:00:00"),
        ("now", "2026-11-23T12:00:00"),
        ("today", "2026-11-23T00:00:00"),
        ("yesterday", "2026-11-22T00:00:00"),
        ("yesterday 14:30", "2026-11-22T14:30:00"),
        ("9:15", "2026-11-23T09:15:00"),
        ("14:30", "2026-11-22T14:30:00"),
        ("11:59:59", "2026-11-23T11:59:59"),
        ("2026-11-23", "2026-11-23T00:00:00"),
        ("2026-11-23T10:00", "2026-11-23T10:00:00"),
        ("2026-11-23 10:00", "2026-11-23T10:00:00"),
        ("2026-11-23T10:00Z", "2026-11-23T10:00:00"),
        ("2026-11-23T10:00+02:00", "2026-11-23T08:00:00"),
    ],
)
def test_relative_times_are_parsed(text, expected):
    assert parse_time(text, NOON, UTC) == expected + ".000000Z"


def test_time_in_the_format_of_events_is_accepted():
    assert parse_time("2026-11-23T20:57:00.769094Z", NOON) == "2026-11-23T20:57:00.769094Z"


def test_time_without_a_time_zone_is_local():
    east = timezone(timedelta(hours=13))
    assert parse_time("today", NOON, east) == "2026-11-23T11:00:00.000000Z"
    assert parse_time("2026-11-23T10:00", NOON, east) == "2026-11-22T21:00:00.000000Z"


@pytest.mark.parametrize(
    "text",
    [
        *("", "ago", "h", "5", "14", "20261123", "2hm", "-2h", "25:00", "2026-13-01", "tomorrow"),
        *("yesterday x", "99999999999d", "0001-01-01", "9999-12-31T23:59-12:00", "\uff12h"),
    ],
)
def test_invalid_time_is_rejected_with_the_accepted_forms(text):
    with pytest.raises(ValueError) as refused:
        parse_time(text, NOON, timezone(timedelta(hours=2)))
    assert TIME_FORMATS in str(refused.value)


def test_slow_runs_can_be_selected(shop):
    everything = [
        json.loads(line)
        for line in stageflow("runs", "--json", "--limit", "0", "--journal", shop).stdout.splitlines()
    ]
    slowest = max(run["duration_ms"] for run in everything)
    slow = stageflow(
        "runs", "--json", "--slower-than", f"{slowest - 0.0005:.6f}ms", "--journal", shop
    ).stdout.splitlines()
    assert [json.loads(line)["duration_ms"] for line in slow] == [slowest]


def test_directory_without_segments_is_not_a_journal(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for command in ("runs", "doctor", "show"):
        done = stageflow(command, "--journal", tmp_path, code=2)
        assert "the directory contains files, but none of them belong to a journal" in done.stderr


# ------------------------------------------------------------ ids


@pytest.mark.parametrize(
    ("known", "request_id"), [("broke", "broke"), ("bro", "broke"), ("parent", "parent"), ("o-", "parent")]
)
def test_show_accepts_every_kind_of_id_and_prefixes(shop, known, request_id):
    for prefer_store in (False, True):
        records: Any = EventStore(shop) if prefer_store else Journal(shop)
        assert records.run(known).run["correlation_ids"]["request_id"] == request_id
    run = newest_of(shop, request_id=request_id)
    assert run["event_id"] in stageflow("show", known, "--journal", shop).stdout


@pytest.mark.parametrize(("known", "number"), [("u-1", 2), ("s", 5), ("u-", 5)])
def test_show_lists_the_runs_that_share_an_id(shop, known, number):
    done = stageflow("show", known, "--journal", shop, code=1)
    assert f"contains {number} runs that match {known!r}: 01" in done.stderr
    with (
        EventStore(shop) as store,
        pytest.raises(RunNotFoundError, match=f"contains {number} runs that match"),
    ):
        store.run(known)


def test_show_prefers_an_exact_id_over_a_prefix(tmp_path):
    sink = JournalSink("journal")
    for request_id in ("r-1", "r-10"):
        asyncio.run(graph("only", sink, ("only", greet)).run(PipelineContext(request_id=request_id)))
    sink.close()
    assert "request_id=r-1\n" in stageflow("show", "r-1").stdout
    assert "request_id=r-10\n" in stageflow("show", "r-10").stdout


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--user", "u-1"), ["rude", "broke"]),
        (("--org", "o-1"), ["child", "parent"]),
        (("--session", "s", "--status", "FAIL"), ["broke"]),
        (("--request", "again"), ["again"]),
        (("--user", "o-1"), []),
        (("--where", "user_id = 'u-1' and stages_failed > 0"), ["rude", "broke"]),
        (("--where", "outcome <> 'ok'", "--user", "u-0"), ["shut"]),
    ],
)
def test_runs_are_filtered_by_each_id_and_by_sql(shop, options, expected):
    done = stageflow("runs", "--json", *options, "--journal", shop)
    assert [known for known in requests(done.stdout) if known] == expected
    if "--where" not in options:
        with EventStore(shop) as store:
            filter = RunFilter(**{options[0][2:]: options[1]})
            found = [run["correlation_ids"]["request_id"] for run in store.runs(filter)]
        assert set(expected) <= set(found)


# ------------------------------------------------------------ names that do not occur


@pytest.mark.parametrize(
    "command",
    [
        ("runs",),
        ("runs", "--json"),
        ("runs", "--where", "true"),
        ("tail",),
        ("stats",),
        ("errors",),
        ("slowest",),
        ("slowest", "--over", "stages"),
        ("compare", "status = 'OK'", "status = 'FAIL'"),
        ("explain",),
        ("explain", "slow"),
        ("totals",),
        ("totals", "--stages"),
    ],
)
def test_unknown_pipeline_and_stage_are_reported_with_the_closest_name(shop, command):
    for option, name, message in (
        ("--pipeline", "shopp", "There is no pipeline 'shopp'; did you mean 'shop'?"),
        ("--stage", "serch", "There is no stage 'serch'; did you mean 'search'?"),
    ):
        done = stageflow(*command, option, name, "--journal", shop)
        assert done.stderr == f"{message}\n"
        if command[0] != "explain":
            assert done.stdout == ""


def test_unknown_pipeline_is_reported_by_sampling(shop, tmp_path):
    (tmp_path / "sampling.toml").write_text("one_in = 2")
    done = stageflow("sampling", "sampling.toml", "--pipeline", "shopp", "--journal", shop)
    assert done.stderr == "There is no pipeline 'shopp'; did you mean 'shop'?\n"


def test_names_include_those_of_runs_in_progress(in_progress):
    for records in (Journal(in_progress), EventStore(in_progress)):
        names = records.names()
        assert {"outer", "inner", "ended"} <= names.pipelines
        assert {"in_a_thread", "work", "last"} <= names.stages
    assert "no pipeline" in stageflow("runs", "--pipeline", "oute", "--journal", in_progress).stderr
    done = stageflow("runs", "--pipeline", "outer", "--status", "ok", "--journal", in_progress)
    assert done.stderr == f"No runs in {in_progress} match.\n"


# ------------------------------------------------------------ time windows


@pytest.mark.parametrize(
    "command",
    [
        ("runs",),
        ("stats",),
        ("errors",),
        ("slowest",),
        ("explain",),
        ("totals",),
        ("sampling", "sampling.toml"),
    ],
)
def test_until_that_precedes_since_is_an_error(shop, tmp_path, command):
    (tmp_path / "sampling.toml").write_text("one_in = 2")
    done = stageflow(*command, "--until", "2h", "--since", "1h", "--journal", shop, code=2)
    assert re.search(r"--until \(\S+Z\) must be later than --since \(\S+Z\)", done.stderr)
    assert done.stdout == ""


def test_filter_whose_window_ends_before_it_begins_is_an_error():
    with pytest.raises(ValueError, match="until must be later than since"):
        RunFilter(since="2026-11-23T12:00:00Z", until="2026-11-23T11:00:00Z")


@pytest.mark.parametrize(
    "command", [("explain", "1h..2h"), ("compare", "true", "now..1h"), ("explain", "--against", "1h..1h")]
)
def test_selected_window_that_ends_before_it_begins_is_an_error(shop, command):
    done = stageflow(*command, "--journal", shop, code=2)
    assert "ends before it begins" in done.stderr


@pytest.mark.parametrize(
    ("span", "seconds"),
    [("500ms", 0.5), ("2s", 2), ("1m", 60), ("1s500ms", 1.5), ("0.5 ms", 0.0005), ("3 mins", 180)],
)
def test_time_spans_have_units_down_to_milliseconds(span, seconds):
    assert parse_duration(span) == seconds


@pytest.mark.parametrize("value", ["500", "2.5"])
def test_slower_than_requires_a_unit(shop, value):
    done = stageflow("runs", "--slower-than", value, "--journal", shop, code=2)
    assert f"{value!r} has no unit; write --slower-than {value}ms" in done.stderr


# ------------------------------------------------------------ help and completion

COMMAND_NAMES = [
    ("demo",),
    ("runs",),
    ("show",),
    ("tail",),
    ("stats",),
    ("errors",),
    ("slowest",),
    ("compare",),
    ("explain",),
    ("query",),
    ("compact",),
    ("totals",),
    ("volume",),
    ("sampling",),
    ("doctor",),
    ("schema",),
    ("alerts", "run"),
    ("alerts", "check"),
    ("alerts", "test"),
    ("alerts", "silence"),
    ("alerts", "list"),
    ("export", "run"),
    ("export", "status"),
    ("export", "retry"),
    ("export", "sql"),
]


@pytest.mark.parametrize("command", [(), ("alerts",), ("export",), *COMMAND_NAMES])
def test_help_shows_no_type_of_a_flag_or_an_argument(command):
    text = stageflow(*command, "--help").stdout
    assert not re.search(r"<(bool|Any|str)>", text)


def test_completion_lists_commands_and_options_in_bash(tmp_path):
    script = f"""
        eval "$({sys.executable} -m stageflow --show-completion bash)"
        complete_last() {{
            COMP_WORDS=("$@")
            COMP_CWORD=$(($# - 1))
            _stageflow_completion stageflow
            echo "${{COMPREPLY[@]}}"
        }}
        complete_last stageflow expl
        complete_last stageflow stats --b
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        timeout=LATER * 2,
        env={**os.environ, "PATH": path},
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == (["explain", "--by"], "")


@pytest.mark.parametrize("command", ["--install-completion", "--show-completion"])
def test_help_names_the_options_for_completion(command):
    assert command in stageflow("--help").stdout
