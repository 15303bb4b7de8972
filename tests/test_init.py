"""`stageflow init`: the project that it writes runs, and passes its tests and checks."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stageflow.cli._app import app
from stageflow.journal import Journal

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if not key.startswith("STAGEFLOW_")},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    done = run(folder, "stageflow", "init", "My Shop")
    assert (done.returncode, done.stderr) == (0, "")
    assert "pipeline.py" in done.stdout
    return folder / "My Shop"


def test_project_runs_and_records(project: Path) -> None:
    done = run(project, "pipeline")
    assert (done.returncode, done.stdout, done.stderr) == (0, "7 words, 5 of them different\n", "")
    (recorded,) = Journal(project / "journal").runs()
    assert (recorded["pipeline_name"], recorded["pipeline_metadata"]["service"]) == ("my-shop", "my-shop")
    shown = run(project, "stageflow", "show")
    assert "my-shop  ok" in shown.stdout


def test_project_passes_its_tests_and_checks(project: Path) -> None:
    tested = run(project, "pytest", "-q", "-p", "no:cacheprovider")
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout
    for check in (("ruff", "check"), ("ruff", "format", "--check", "--line-length", "110")):
        done = run(project, *check, ".")
        assert done.returncode == 0, done.stdout
    typed = run(project, "mypy", "--strict", "--cache-dir", os.devnull, "pipeline.py", "test_pipeline.py")
    assert typed.returncode == 0, typed.stdout
    settings = tomllib.loads((project / "pyproject.toml").read_text())
    assert settings["project"]["name"] == settings["tool"]["stageflow"]["service"] == "my-shop"


def test_project_can_be_installed(project: Path, tmp_path: Path) -> None:
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(tmp_path))
    done = run(project, "pip", "install", *options, ".")
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.glob("*.py")] == ["pipeline.py"]


def test_existing_files_are_not_changed(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("mine")
    done = CliRunner().invoke(app, ["init", str(tmp_path)])
    assert done.exit_code == 2
    assert "already contains pipeline.py; nothing was written" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["pipeline.py"]
    assert (tmp_path / "pipeline.py").read_text() == "mine"


def test_project_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", "."], catch_exceptions=False).exit_code == 0
    assert (tmp_path / ".gitignore").read_text().endswith("journal/\n")
