"""What commands print at 80 columns: complete paths and names, whole words, and errors outside of tables."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console
from rich.text import Text
from test_store import compact, run_some

from stageflow.journal import Journal, JournalReader
from stageflow.render._alerts import draw_alert_list, draw_alert_run, draw_alert_tests
from stageflow.render._state import draw_journal_state
from stageflow.render._style import Pairs, Paragraph, UncroppedConsole, wrap

LATER = 30
"""Seconds that anything may take: with more something hangs."""


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "stageflow", *map(str, arguments)]


def on_a_terminal(*arguments: Any, columns: int = 80) -> list[str]:
    """Return the lines that a command writes to a terminal, on standard output and error."""
    reader, writer = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1", "COLUMNS": str(columns)}
    process = subprocess.Popen(command(*arguments), stdout=writer, stderr=writer, env=environment)
    os.close(writer)
    text = b""
    try:
        while read := os.read(reader, 65536):
            text += read
    except OSError:  # the other end was closed
        pass
    os.close(reader)
    process.wait(LATER)
    return text.decode().replace("\r\n", "\n").splitlines()


def in_a_pipe(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=LATER,
        env={**os.environ, "COLUMNS": "40", **environment},
    )


@pytest.fixture
def long_path(tmp_path: Path) -> Path:
    return tmp_path / "a_directory_with_a_name_of_many_characters" / "and_another_one" / "journal"


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A journal whose archive has a damaged file that alert rules need."""
    folder = tmp_path / "journal"
    run_some(folder)
    compact(folder)
    for file in (folder / "archive").rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "alerts.toml").write_text(
        "".join(
            f'[[rules]]\nkind = "sql"\nname = "{name}"\nsql = "select * from runs where ended_at > $since"\n'
            "window = 8640000\n"
            for name in ("first", "second")
        )
    )
    return folder


# ------------------------------------------------------------ wrapping


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("cannot read /a/long/path here", 14, ["cannot read", "/a/long/path", "here"]),
        ("error: no\n  hint: give another one", 16, ["error: no", "  hint: give", "  another one"]),
        ("/longer/than/the/row is one line", 8, ["/longer/than/the/row", "is one", "line"]),
        ("  see /a/path/of/22/columns or not", 22, ["  see", " /a/path/of/22/columns", "  or not"]),
        ("漢字 漢字 漢字", 9, ["漢字 漢字", "漢字"]),
        ("", 5, [""]),
        ("a\n\nb  c", 5, ["a", "", "b  c"]),
    ],
)
def test_text_is_wrapped_only_at_spaces(text: str, width: int, lines: list[str]) -> None:
    assert [line.plain for line in wrap(Text(text), width)] == lines


def drawn(picture: Any, width: int = 80, kind: type[Console] = UncroppedConsole) -> str:
    console = kind(width=width, color_system=None)
    with console.capture() as captured:
        console.print(picture, crop=False)
    return captured.get()


def test_value_that_does_not_fit_its_column_starts_on_a_new_line() -> None:
    rows = [("id", Text("short")), ("path", Text("/x" * 20))]
    assert drawn(Pairs(rows, max_label=20), 30) == f"id    short\npath\n{'/x' * 20}\n"


def test_path_that_needs_the_full_width_is_not_indented() -> None:
    assert drawn(Paragraph(Text(f"see {'/x' * 10} now"), "  - "), 20) == f"  - see\n{'/x' * 10}\n    now\n"


def test_other_consoles_print_long_words_in_full() -> None:
    assert drawn(Paragraph(Text("x" * 50)), 20, Console).replace("\n", "") == "x" * 50


@pytest.mark.parametrize("arguments", [["runs"], ["tail"], ["doctor"], ["stats"], ["compact"]])
def test_errors_on_a_terminal_keep_paths_and_words(arguments: list[str], long_path: Path) -> None:
    lines = on_a_terminal(*arguments, "--journal", long_path, columns=60)
    assert any(str(long_path) in line for line in lines), lines
    assert max(len(line) for line in lines if str(long_path) not in line) <= 60
    words = {word for line in lines for word in line.split()}
    assert {"directory", "STAGEFLOW_JOURNAL=DIR;", "`stageflow", ".stageflow/demo"} <= words


@pytest.mark.parametrize(
    "arguments", [["compact", "--max-age", "3"], ["runs", "--since", "soon"], ["stats", "--frobnicate"]]
)
def test_errors_about_arguments_are_text_without_a_box(arguments: list[str]) -> None:
    piped = in_a_pipe(*arguments).stderr
    (error,) = [line for line in piped.splitlines() if line.startswith("Error: ")]
    assert "│" not in piped
    shown = on_a_terminal(*arguments, columns=40)
    start = next(number for number, line in enumerate(shown) if line.startswith("Error: "))
    assert " ".join(shown[start:]) == error


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_errors_in_a_pipe_are_not_wrapped(environment: dict[str, str], long_path: Path) -> None:
    error, hint = in_a_pipe("runs", "--journal", long_path, **environment).stderr.splitlines()
    assert error == f"there is no journal at {str(long_path)!r}"
    assert hint.startswith("  hint: name the directory of a journal with --journal DIR")


# ------------------------------------------------------------ doctor


@pytest.mark.parametrize("columns", [50, 80])
def test_doctor_shows_complete_names(tmp_path: Path, columns: int) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    reader = "a-reader-with-a-name-of-many-characters-for-the-warehouse-of-the-company"
    with JournalReader(folder, reader) as opened:
        opened.read()
        opened.commit()
    (segment,) = folder.glob("*.ndjson")
    with segment.open("ab") as file:
        file.write(b"damaged\n")
    lines = [line.strip() for line in on_a_terminal("doctor", "--journal", folder, columns=columns)]
    for name in (str(folder), segment.name, segment.name.rpartition("-")[0], reader):
        assert any(name in line.split() for line in lines), (name, lines)
    assert "…" not in "".join(lines)


def test_names_that_fit_stay_in_a_table() -> None:
    state = {
        "path": "journal", "writers": [], "bytes": 0, "free_bytes": 0, "crashed": 0, "quarantined": 0,
        "deleted": {"lines": 0}, "torn": [], "problems": [],
        "cursors": [
            {
                "name": "warehouse", "active": True, "behind_bytes": 10, "events": 1, "broken": 0, "torn": 0,
                "missed": 0,
            }
        ],
        "broken": [{"path": "journal/file.ndjson", "offset": 3, "bytes": 4}],
    }  # fmt: skip
    shown = drawn(draw_journal_state(state))
    assert re.search(r"^warehouse +yes +10 B +1", shown, re.MULTILINE)
    assert re.search(r"^file.ndjson +broken +3 +4$", shown, re.MULTILINE)


def test_problems_of_doctor_keep_paths(damaged: Path) -> None:
    deep = damaged.parent / ("deep_" * 12) / "journal"
    shutil.copytree(damaged, deep)
    (deep / "archive.json").unlink(missing_ok=True)
    lines = on_a_terminal("doctor", "--journal", deep)
    problems = lines[lines.index("Needs attention:") + 1 :]
    assert any(f"--journal {deep}" in line or line.strip().startswith(str(deep)) for line in problems), lines


# ------------------------------------------------------------ alerts


def test_alerts_run_prints_an_error_once_below_the_table(damaged: Path, tmp_path: Path) -> None:
    lines = on_a_terminal("alerts", "run", "--journal", damaged, "--rules", tmp_path / "alerts.toml")
    table = [line for line in lines if re.match("first|second", line)]
    assert len(table) == 2
    assert all("error, see below" in line for line in table), lines
    text = " ".join(lines)
    assert "error of first, second: ArchiveDamagedError" in text
    assert text.count("ArchiveDamagedError") == 1
    assert "restore it from a backup" in text
    assert max(map(len, table)) <= 80


def test_alerts_list_prints_an_error_once_below_the_table(damaged: Path, tmp_path: Path) -> None:
    rules = tmp_path / "alerts.toml"
    in_a_pipe("alerts", "run", "--journal", damaged, "--rules", rules)
    shown = in_a_pipe("alerts", "list", "--journal", damaged, "--rules", rules).stdout
    assert shown.count("error, see below") == 2
    assert shown.count("ArchiveDamagedError") == 1


def test_alerts_test_prints_errors_below_the_table() -> None:
    error = "cannot reach https://ops.example/a/long/path/of/a/hook\n  hint: check the address"
    tests = [{"receiver": name, "kind": "webhook", "error": error} for name in ("ops", "chat")]
    lines = drawn(draw_alert_tests(tests), 60).splitlines()
    assert [re.sub(" +", " ", line.strip()) for line in lines[2:4]] == [
        "ops webhook failed",
        "chat webhook failed",
    ]
    assert "error of ops, chat: cannot reach" in lines
    assert "https://ops.example/a/long/path/of/a/hook" in lines


def test_alerts_without_errors_have_only_tables() -> None:
    standing = {"rules": [], "silences": [], "receivers": {}, "waiting": []}
    run = {**standing, "busy": False, "at": "2026-11-23T10:00:00Z", "findings": [], "sent": []}
    assert "error" not in drawn(draw_alert_run(run))
    assert "error" not in drawn(draw_alert_list(standing))


def test_state_of_a_journal_can_be_drawn_by_other_consoles(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    run_some(folder)
    state = msgspec.to_builtins(Journal(folder).check())
    shown = drawn(draw_journal_state(state), 40, Console)
    assert state["writers"][0]["name"] in shown.replace("\n", "")
