"""Holds the command line: what it prints, what it writes, and what it says when it cannot."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import stageflow
from stageflow.cli._app import app

SCHEMAS = Path(stageflow.__file__).parent / "schemas"


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["-m", "stageflow"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, check=False, timeout=50
    )


def call(*arguments: str) -> Result:
    """Run a command in this process, where starting another would show nothing more."""
    return CliRunner().invoke(app, arguments, terminal_width=200)


def test_version_is_printed():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"stageflow {stageflow.__version__}\n", "")


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ()])
def test_help_names_the_commands(arguments):
    done = run(*arguments)
    assert done.returncode == (0 if arguments else 2)
    assert {"demo", "runs", "show", "tail", "doctor", "schema", "--version"} <= set(done.stdout.split())
    assert "stageflow demo" in done.stdout


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("demo", {"--runs", "--ask", "--journal"}),
        ("runs", {"--status", "--pipeline", "--stage", "--id", "--since", "--until", "--limit", "--json"}),
        ("show", {"--journal", "--json"}),
        ("tail", {"--follow", "-n", "--type", "--status", "--pipeline", "--stage", "--id", "--json"}),
        ("doctor", {"--repair", "--json"}),
        ("schema", {"--to"}),
    ],
)
def test_help_of_a_command_names_its_options(command, options):
    done = call(command, "--help")
    assert done.exit_code == 0
    assert options <= set(done.stdout.split())


def test_console_script_runs_the_app():
    (script,) = entry_points(group="console_scripts", name="stageflow")
    assert script.value == "_stageflow_command:main"


@pytest.mark.parametrize("event_type", ["stage.wide", "pipeline.wide"])
def test_schema_prints_the_published_schema(event_type):
    done = call("schema", event_type)
    assert done.exit_code == 0
    assert done.stdout == (SCHEMAS / f"{event_type}.json").read_text(encoding="utf-8")


def test_schema_without_a_name_prints_all():
    published = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in SCHEMAS.glob("*.json")}
    assert json.loads(call("schema").stdout) == published
    assert len(published) == 4


def test_schema_writes_the_published_files_byte_for_byte(tmp_path):
    to = tmp_path / "made" / "for it"
    done = call("schema", "--to", str(to))
    assert (done.exit_code, done.stdout) == (0, "")
    written = {file.name: file.read_bytes() for file in to.iterdir()}
    assert written == {file.name: file.read_bytes() for file in SCHEMAS.glob("*.json")}


def test_schema_with_a_name_writes_only_that_schema(tmp_path):
    assert call("schema", "stage.wide", "--to", str(tmp_path)).exit_code == 0
    assert [file.name for file in tmp_path.iterdir()] == ["stage.wide.json"]


def test_schema_reports_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    done = run("schema", "--to", str(tmp_path / "file"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(tmp_path / "file") in done.stderr


def test_unknown_schema_is_rejected_with_the_known_names():
    done = run("schema", "stage.narrow")
    assert done.returncode == 2
    assert "'stage.wide', 'pipeline.wide'" in " ".join(done.stderr.split())


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_extra_is_named(missing):
    done = run(code=f"import sys; sys.modules[{missing!r}] = None; from stageflow.cli import main; main()")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == 'the command line needs typer and rich: pip install "stageflow[cli]"\n'


def test_import_error_of_the_library_is_not_reported_as_a_missing_extra():
    done = run(
        code="import sys; sys.modules['stageflow.journal'] = None; from stageflow.cli import main; main()"
    )
    assert done.returncode == 1
    assert "stageflow.journal" in done.stderr
    assert "pip install" not in done.stderr
