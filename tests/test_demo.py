"""Runs the demo as a user does, holds its journal against the law, and kills it."""

import json
import os
import pty
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from kill_demo import kill_after, moments
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.cli.demo import _corpus as index
from stageflow.cli.demo._corpus import PlainScan, read_corpus

RUNS = 40
STAGES = 10
KILLS = 5
"""For more of them: `python -m tests.kill_demo 50`."""


class Demo(NamedTuple):
    """One demo that was run, and what it left."""

    directory: Path
    status: int
    out: str
    err: str

    def events(self, event_type: str) -> list[dict]:
        return [
            line["data"]
            for file in self.directory.rglob("*.ndjson")
            for line in map(json.loads, file.read_bytes().splitlines())
            if line["type"] == event_type
        ]


def demo(directory: Path, *options: str, **environment: str) -> Demo:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "stageflow", "demo", *options],
        cwd=directory,
        env={key: value for key, value in os.environ.items() if key != "COLUMNS"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    return Demo(directory, done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Demo:
    return demo(tmp_path_factory.mktemp("demo"), "--runs", str(RUNS))


def run_id(event: dict) -> str:
    return event["correlation_ids"]["pipeline_run_id"]


def test_it_ends_well_and_says_nothing_on_the_side(shown):
    assert (shown.status, shown.err) == (0, "")


def test_the_journal_keeps_the_law(shown):
    runs, stages = shown.events("pipeline.wide"), shown.events("stage.wide")
    terminal = [stage for stage in stages if stage["status"] != "RETRY"]
    assert len({run_id(run) for run in runs}) == len(runs) == RUNS
    assert set(Counter((run_id(stage), stage["stage_name"]) for stage in terminal).values()) == {1}
    assert len(terminal) == RUNS * STAGES
    ends = Counter((run_id(stage), stage["status"]) for stage in terminal)
    for run in runs:
        counts = [run[f"stages_{end}"] for end in ("completed", "failed", "skipped", "cancelled")]
        assert counts == [ends[run_id(run), status] for status in ("OK", "FAIL", "SKIP", "CANCEL")]
        assert run["stages_total"] == sum(counts) == STAGES


def test_every_way_to_end_is_there(shown):
    outcomes = {run["outcome"] for run in shown.events("pipeline.wide")}
    assert outcomes == {"ok", "degraded", "stopped", "failed", "timeout", "cancelled"}
    stages = shown.events("stage.wide")
    retried = {stage["error"] for stage in stages if stage["status"] == "RETRY"}
    assert retried == {"OperationalError: database is locked"}
    skipped = {stage["stage_name"] for stage in stages if stage["status"] == "SKIP"}
    assert {"look_up", "quote", "compare", "contrast"} <= skipped


def test_it_shows_what_the_journal_has(shown):
    counted = Counter(run["outcome"] for run in shown.events("pipeline.wide"))
    for outcome, many in counted.items():
        assert re.search(rf"^ +{outcome} +{many} ", shown.out, re.MULTILINE)
    answers = shown.events("desk.answered")
    assert answers[0]["question"] in shown.out
    assert answers[0]["answer"].splitlines()[0] in shown.out
    assert re.search(rf"pipeline.wide +{RUNS} of +{RUNS} ", shown.out)
    assert re.search(rf"terminal stage.wide +{RUNS * STAGES} of +{RUNS * STAGES} ", shown.out)
    assert "The record is whole." in shown.out
    failed = {run_id(run) for run in shown.events("pipeline.wide") if run["outcome"] == "failed"}
    assert any(known in shown.out for known in failed)
    assert "fts5: syntax error" in shown.out


def test_in_a_pipe_it_is_plain_and_fits(shown):
    assert "\x1b" not in shown.out
    pictures = shown.out[: shown.out.index("The journal ──")]
    assert max(map(len, pictures.splitlines())) <= 80


def test_the_commands_it_names_look_into_the_journal(shown):
    commands = re.findall(
        r"^  (\S.* \.stageflow/demo.*)$", shown.out[shown.out.rindex("The journal") :], re.M
    )
    commands = [command for command in commands if "as JSON" not in command]
    assert {"runs", "show", "tail", "doctor"} <= {command.split()[1] for command in commands}
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=shown.directory, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout, command


def test_a_second_demo_in_the_same_place_shows_its_own_runs(tmp_path):
    assert demo(tmp_path, "--runs", "3").status == 0
    second = demo(tmp_path, "--runs", "4")
    assert re.search(r"pipeline.wide +4 of +4 ", second.out)
    assert len(second.events("pipeline.wide")) == 7


def test_one_question_is_answered_and_its_run_told(tmp_path):
    asked = demo(tmp_path, "--journal", "j", "--ask", 'How does "with" work? And `contextlib.suppress`?')
    assert asked.status == 0, asked.err
    assert "contextlib.suppress(*exceptions)" in asked.out
    assert 'from help("with")' in asked.out
    (run,) = asked.events("pipeline.wide")
    assert run["outcome"] == "ok"
    assert run_id(run) in asked.out
    assert (tmp_path / "j").is_dir()


@pytest.mark.parametrize(
    ("question", "outcome", "said"),
    [
        ("", "stopped", "nothing was asked"),
        ("qwertz", "stopped", "the language reference has nothing on that"),
        ("Why? " * 60, "failed", "the question has 299 characters"),
        ("fts: (", "failed", "no FTS5 expression"),
        ("How do I use `list.push`?", "degraded", "has no attribute 'push'"),
        ('Compare "with" with "try".', "ok", 'from help("with"), help("try")'),
    ],
)
def test_each_question_ends_as_it_should(tmp_path, question, outcome, said):
    asked = demo(tmp_path, "--ask", question)
    assert asked.status == 0, asked.err
    assert [run["outcome"] for run in asked.events("pipeline.wide")] == [outcome]
    assert said in " ".join(asked.out.split())


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = demo(tmp_path, "--journal", "file")
    assert done.status == 1
    assert "cannot be written to file" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize("plain", [True, False])
def test_on_a_terminal_it_is_coloured_unless_told_not_to(tmp_path, plain):
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1" if plain else ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "stageflow", "demo", "--ask", "What is a slice?"],
        cwd=tmp_path,
        env=environment,
        stdout=writer,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    text = b""
    try:
        while read := os.read(reader, 65536):
            text += read
    except OSError:  # Linux says so where others give nothing: the other end was closed
        pass
    os.close(reader)
    assert process.wait() == 0
    assert "The record is whole." in text.decode()
    assert (b"\x1b" in text) is not plain


def test_without_full_text_search_it_scans_and_says_so(tmp_path, monkeypatch):
    def compiled_without(_):
        raise sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(index, "FullText", compiled_without)
    done = CliRunner().invoke(app, ["demo", "--runs", "20", "--journal", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "a plain scan in Python (this SQLite has no full-text search: no such module: fts5)" in " ".join(
        done.output.split()
    )
    assert "The record is whole." in done.output


def test_the_plain_scan_finds_what_has_most_of_the_words():
    hits = PlainScan(read_corpus()).search(["object", "considered", "false"], 3)
    assert "truth" in {hit.passage.topic for hit in hits}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("moment", moments(KILLS))
def test_what_was_acknowledged_survives_a_kill(tmp_path, moment):
    death = kill_after(moment, tmp_path)
    assert not death.problems
    assert len(death.acknowledged) >= moment
