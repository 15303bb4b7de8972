"""The wheel: its contents, its description, and its use without a checkout. `make dist` tests more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def build(folder: Path, target: str = "wheel") -> Path:
    """Build a distribution of the checkout."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
        cwd=ROOT,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1790000000", "STAGEFLOW_NO_UI": "1"},
        check=True,
        capture_output=True,
        timeout=50,
    )
    (distribution,) = folder.iterdir()
    return distribution


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_wheel_is_reproducible(wheel: Path, tmp_path: Path) -> None:
    assert build(tmp_path).read_bytes() == wheel.read_bytes()


def test_wheel_contains_only_the_package_and_its_documentation(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "stageflow",
        "_stageflow_command.py",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    for name in ("py.typed", "mcp/SKILL.md", "docs/quickstart.md", "schemas/stage.wide.json"):
        assert f"stageflow/{name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "tests" in name.split("/") or name.endswith(".pyc")]


def test_sdist_contains_only_what_the_wheel_is_built_from(tmp_path: Path) -> None:
    with tarfile.open(build(tmp_path, "sdist")) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    tops = {name.split("/")[0] for name in names}
    assert tops <= {
        *(".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"),
        *("docs", "hatch_build.py", "src", "web"),
    }
    assert not [name for name in names if {"node_modules", "tests"} & set(name.split("/"))]


def test_description_has_absolute_links(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(name))
    text = metadata.get_payload(decode=True)
    assert isinstance(text, bytes)
    assert b"/quickstart.html)" in text
    assert text.count(b"](") == text.count(b"](https://")
    assert {line.partition(",")[0] for line in metadata.get_all("Project-URL", [])} == {
        "Documentation",
        "Changelog",
    }


def test_unpacked_wheel_runs_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import json, stageflow\n"
        "from stageflow.mcp._docs import read_docs\n"
        "results = stageflow.Pipeline('p').with_stage('a', lambda ctx: {'n': 1}).build().run_sync()\n"
        "page = read_docs('retry')['sections'][0]['page']\n"
        "print(json.dumps([stageflow.__file__, results.data('a'), page]))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        check=True,
        capture_output=True,
        text=True,
        timeout=50,
    )
    file, data, page = json.loads(done.stdout)
    assert Path(file).is_relative_to(tmp_path)
    assert (data, page) == ({"n": 1}, "pipelines")


def test_distribution_tool_has_help() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "dist.py", "--help"], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0
    assert "--release" in done.stdout
