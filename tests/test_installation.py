"""Detection of other distributions that install a package with the same name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import _stageflow_command
import stageflow

OTHERS = {"stageflow-core": "protocols.py", "stageflow-framework": "capabilities.py"}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory of packages with a copy of stageflow and its command."""
    site = tmp_path / "site"
    shutil.copytree(
        Path(stageflow.__file__).parent, site / "stageflow", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(_stageflow_command.__file__, site)
    return site


def install(site: Path, name: str, *modules: str) -> None:
    """Install a distribution whose package has the same name."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("stageflow\n")
    for module in modules:
        (site / "stageflow" / module).write_text("")


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"},
        cwd=site.parent,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("name", OTHERS)
def test_import_fails_if_another_distribution_has_installed_modules(site: Path, name: str) -> None:
    install(site, name, OTHERS[name])
    done = run(site, "-c", "import stageflow")
    assert done.returncode == 1
    assert f"ImportError: the distribution {name} also installs" in done.stderr
    assert (
        f"run `pip uninstall {name}`, then `pip install --force-reinstall --no-deps stageflow`" in done.stderr
    )


def test_import_fails_if_modules_of_an_uninstalled_distribution_are_left(site: Path) -> None:
    (site / "stageflow" / "protocols.py").write_text("")
    done = run(site, "-c", "import stageflow")
    assert "contains modules of another distribution: remove this directory" in done.stderr


def test_clean_installation_is_imported_without_a_warning(site: Path) -> None:
    done = run(site, "-W", "error", "-c", "import stageflow")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", OTHERS)
def test_doctor_reports_another_distribution(site: Path, name: str) -> None:
    install(site, name)
    (site.parent / "journal").mkdir()
    done = run(site, "-m", "stageflow", "doctor", "--journal", "journal")
    assert done.returncode == 1, done.stderr
    assert f"the distribution {name} also installs a package named `stageflow`" in done.stdout


def test_command_reports_modules_of_another_distribution(site: Path) -> None:
    install(site, "stageflow-core", "protocols.py")
    done = run(site, "-c", "import _stageflow_command; _stageflow_command.main()")
    assert done.returncode == 1
    assert done.stderr.startswith("the distribution stageflow-core also installs a package named `stageflow`")


def test_command_reports_that_the_package_was_replaced(site: Path) -> None:
    shutil.rmtree(site / "stageflow")
    (site / "stageflow" / "cli").mkdir(parents=True)
    install(site, "stageflow-core", "__init__.py", "cli/__init__.py")
    done = run(site, "-c", "import _stageflow_command; _stageflow_command.main()")
    assert done.returncode == 1
    assert "another distribution replaced the package `stageflow`" in done.stderr
    assert "pip install --force-reinstall" in done.stderr


def test_import_on_windows_states_the_supported_systems() -> None:
    code = "import sys; sys.platform = 'win32'; import stageflow"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 1
    assert (
        "ImportError: stageflow runs on Linux and macOS, not on Windows: use the Windows Sub" in done.stderr
    )
