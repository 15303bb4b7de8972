"""`stageflow demo`: its output, the record guarantees in its journal, and kills of its process."""

import io
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
from conftest import without_stalls
from kill_demo import kill_after, moments
from rich.console import Console
from typer.testing import CliRunner
from ui_server import serve_command

from stageflow.cli._app import app
from stageflow.cli.demo import _corpus as corpus
from stageflow.cli.demo._corpus import LinearScan, read_corpus
from stageflow.render import draw_explanation
from stageflow.store import EventStore

pytestmark = pytest.mark.slow

RUNS = 40
STAGES = 10
KILLS = 5
"""Number of kills; `python -m tests.kill_demo 50` runs more."""


class Demo(NamedTuple):
    """The output and the journal of one demo."""

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
    return Demo(directory, done.returncode, done.stdout, without_stalls(done.stderr))


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Demo:
    return demo(tmp_path_factory.mktemp("demo"), "--runs", str(RUNS))


def run_id(event: dict) -> str:
    return event["correlation_ids"]["pipeline_run_id"]


def test_demo_exits_with_0_and_an_empty_stderr(shown):
    assert (shown.status, shown.err) == (0, "")


def test_journal_satisfies_the_record_guarantees(shown):
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


def test_demo_has_a_run_for_every_outcome(shown):
    outcomes = {run["outcome"] for run in shown.events("pipeline.wide")}
    assert outcomes == {"ok", "degraded", "stopped", "failed", "timeout", "cancelled"}
    stages = shown.events("stage.wide")
    retried = {stage["error"] for stage in stages if stage["status"] == "RETRY"}
    assert retried == {"OperationalError: database is locked"}
    skipped = {stage["stage_name"] for stage in stages if stage["status"] == "SKIP"}
    assert {"look_up", "quote", "compare", "contrast"} <= skipped


def test_output_shows_the_content_of_the_journal(shown):
    counted = Counter(run["outcome"] for run in shown.events("pipeline.wide"))
    for outcome, many in counted.items():
        assert re.search(rf"^ +{outcome} +{many} ", shown.out, re.MULTILINE)
    answers = shown.events("desk.answered")
    assert answers[0]["question"] in shown.out
    assert answers[0]["answer"].splitlines()[0] in shown.out
    assert re.search(rf"pipeline.wide +{RUNS} of +{RUNS} ", shown.out)
    assert re.search(rf"terminal stage.wide +{RUNS * STAGES} of +{RUNS * STAGES} ", shown.out)
    assert "The record is complete." in shown.out
    failed = {run_id(run) for run in shown.events("pipeline.wide") if run["outcome"] == "failed"}
    assert any(known in shown.out for known in failed)
    assert "fts5: syntax error" in shown.out


def test_output_in_a_pipe_has_no_escape_sequences_and_80_columns(shown):
    assert "\x1b" not in shown.out
    drawn = shown.out[: shown.out.index("The journal ──")]
    # The path of a frame is not broken, however long it is.
    assert max(len(line) for line in drawn.splitlines() if len(line.split()) > 1) <= 80


def test_stack_frames_are_complete_on_a_narrow_terminal(tmp_path):
    narrow = demo(tmp_path, "--runs", str(RUNS), COLUMNS="40")
    frame = re.search(r"^ *(\S+_pipeline\.py):\d+$", narrow.out, re.MULTILINE)
    assert frame
    assert Path(frame[1]).is_file()


def test_suggested_commands_query_the_journal(shown):
    commands = re.findall(
        r"^  (\S.* \.stageflow/demo.*)$", shown.out[shown.out.rindex("The journal") :], re.M
    )
    commands = [command for command in commands if "as JSON" not in command]
    (browser,) = [command for command in commands if command.split()[1] == "ui"]
    commands.remove(browser)
    with serve_command(browser.replace("--open", "--port 0"), cwd=shown.directory) as served:
        assert len(served.get("runs")["rows"]) > 20
    assert {"runs", "show", "tail", "doctor"} <= {command.split()[1] for command in commands}
    for command in commands:
        done = subprocess.run(
            command, shell=True, cwd=shown.directory, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        assert done.stdout, command


def test_readme_shows_how_explain_answers_for_the_demo(tmp_path):
    """Numbers are not compared: a busy machine can make further runs fail."""
    demo(tmp_path)
    with EventStore(tmp_path / ".stageflow" / "demo") as store:
        (explanation,) = store.explain_by_pipeline()
    console = Console(file=io.StringIO(), width=88)
    console.print(draw_explanation(explanation, width=88))
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    block = readme.partition("$ stageflow explain --journal .stageflow/demo\n")[2].partition("\n...")[0]

    def words(text: str) -> str:
        return " ".join(re.sub(r"[0-9][0-9.e-]*", "#", text).split())

    assert words(block)
    assert words(console.file.getvalue()).startswith(words(block))


def test_second_demo_in_the_same_directory_shows_only_its_own_runs(tmp_path):
    assert demo(tmp_path, "--runs", "3").status == 0
    second = demo(tmp_path, "--runs", "4")
    assert re.search(r"pipeline.wide +4 of +4 ", second.out)
    assert len(second.events("pipeline.wide")) == 7


def test_single_question_is_answered_and_its_run_shown(tmp_path):
    asked = demo(tmp_path, "--journal", "j", "--ask", 'How does "with" work? And `contextlib.suppress`?')
    assert asked.status == 0, asked.err
    assert "contextlib.suppress(*exceptions)" in asked.out
    assert 'from help("with")' in asked.out
    (run,) = asked.events("pipeline.wide")
    assert run["outcome"] == "ok"
    assert run_id(run) in asked.out
    assert (tmp_path / "j").is_dir()


@pytest.mark.parametrize(
    ("question", "outcome", "expected"),
    [
        ("", "stopped", "the question is empty"),
        ("qwertz", "stopped", "the language reference contains no match"),
        ("Why? " * 60, "failed", "the question has 299 characters"),
        ("fts: (", "failed", "invalid FTS5 expression"),
        ("How do I use `list.push`?", "degraded", "has no attribute 'push'"),
        ('Compare "with" with "try".', "ok", 'from help("with"), help("try")'),
    ],
)
def test_question_has_the_expected_outcome_and_output(tmp_path, question, outcome, expected):
    asked = demo(tmp_path, "--ask", question)
    assert asked.status == 0, asked.err
    assert [run["outcome"] for run in asked.events("pipeline.wide")] == [outcome]
    assert expected in " ".join(asked.out.split())


def test_unwritable_directory_is_reported(tmp_path):
    (tmp_path / "file").touch()
    done = demo(tmp_path, "--journal", "file")
    assert done.status == 1
    assert "Cannot write the journal to file" in done.out
    assert "Traceback" not in done.err


@pytest.mark.parametrize("plain", [True, False])
def test_output_on_a_terminal_is_colored_unless_no_color_is_set(tmp_path, plain):
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
    except OSError:  # the other end was closed; other systems return an empty read
        pass
    os.close(reader)
    assert process.wait() == 0
    assert "The record is complete." in text.decode()
    assert (b"\x1b" in text) is not plain


def test_demo_without_full_text_search_reports_a_linear_scan(tmp_path, monkeypatch):
    def compiled_without(_):
        raise sqlite3.OperationalError("no such module: fts5")

    monkeypatch.setattr(corpus, "FullText", compiled_without)
    done = CliRunner().invoke(app, ["demo", "--runs", "20", "--journal", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "a linear scan in Python (this SQLite has no full-text search: no such module: fts5)" in " ".join(
        done.output.split()
    )
    assert "The record is complete." in done.output


def test_linear_scan_ranks_passages_by_matching_words():
    hits = LinearScan(read_corpus()).search(["object", "considered", "false"], 3)
    assert "truth" in {hit.passage.topic for hit in hits}
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


@pytest.mark.parametrize("moment", moments(KILLS))
def test_acknowledged_events_survive_a_kill(tmp_path, moment):
    death = kill_after(moment, tmp_path)
    assert not death.problems
    assert len(death.acknowledged) >= moment
