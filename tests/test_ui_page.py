"""Tests for the files of the page: its types, its size, its notices, and an installation without it."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stageflow._quantities import duration

ROOT = Path(__file__).parents[1]
WEB = ROOT / "web"
STATIC = ROOT / "src" / "stageflow" / "ui" / "static"


def test_types_of_the_api_are_generated_from_the_responses() -> None:
    done = subprocess.run(
        [sys.executable, "tools/api_types.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (WEB / "src" / "api.ts").read_text() == done.stdout, "`make api-types` writes the types again"


def test_page_was_built_from_the_current_sources() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import hatch_build, pathlib; print(hatch_build.is_current(pathlib.Path()))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n", "`make ui-build` builds the page"


def test_failure_to_build_the_page_is_reported_without_a_traceback(tmp_path: Path) -> None:
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    (tmp_path / "web").mkdir()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho the registry does not respond\nexit 1\n")
    npm.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "hatch_build.py"],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("cannot build the page of the web UI: npm ci ")
    assert "the registry does not respond" in done.stderr
    assert "Traceback" not in done.stderr


def test_page_is_small() -> None:
    files = [STATIC / name for name in ("index.html", "app.js", "app.css", "saved.js", "worker.js")]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) < 150_000


def test_page_contains_no_inline_script_and_requests_no_other_server() -> None:
    html = (STATIC / "index.html").read_text()
    assert [tag for tag in re.findall(r"<script[^>]*>", html) if "src=" not in tag] == []
    assert re.findall(r"(?:src|href)=\"(?:https?:)?//", html) == []


def test_notices_name_every_package_of_the_page() -> None:
    notices = (STATIC / "THIRD_PARTY_NOTICES").read_text()
    packages = (WEB / "dist" / "packages.txt").read_text().split()
    assert packages
    assert re.findall(r"^=+\n(\S+)\n=+$", notices, re.MULTILINE) == packages
    declared = json.loads((WEB / "package.json").read_text())["dependencies"]
    assert set(packages) >= set(declared)


DURATIONS_MS = (
    *(0, 0.0004, 0.001, 0.05, 0.125, 0.5, 1, 9.95, 9.96, 12.34, 99.4, 99.5, 99.96, 100, 590.25, 999.4, 999.5),
    *(1000, 1005, 1255.943, 2650, 2654.9, 2655, 9995, 12_345, 59_994, 59_995, 60_000, 125_000, 3_599_999),
    *(3_600_000, 3_780_000, 172_799_999, 172_800_000, 1e9, -0.5, -2650, -125_000),
)

FORMAT = """
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const [vite, source, values] = process.argv.slice(1);
const { transformWithOxc } = await import(pathToFileURL(vite));
const { code } = await transformWithOxc(readFileSync(source, "utf8"), source);
const { duration } = await import("data:text/javascript," + encodeURIComponent(code));
console.log(JSON.stringify(JSON.parse(values).map(duration)));
"""


def test_page_and_server_write_durations_in_the_same_way() -> None:
    done = subprocess.run(
        [
            *("node", "--input-type=module", "--eval", FORMAT),
            *(str(WEB / "node_modules/vite/dist/node/index.js"), str(WEB / "src/duration.ts")),
            json.dumps(DURATIONS_MS),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    shown = dict(zip(DURATIONS_MS, json.loads(done.stdout), strict=True))
    assert shown == {ms: duration(ms) for ms in DURATIONS_MS}
    assert (shown[2650], shown[99.96], shown[125_000]) == ("2.65 s", "100 ms", "2 min 05 s")


def test_lock_file_names_no_registry() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []


def test_installation_without_the_page_explains_how_to_get_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("static", "__pycache__"))
    (tmp_path / "journal").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "stageflow", "ui", "--journal", "journal", "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    problem, hint = done.stderr.splitlines()
    assert problem.endswith("it was built without npm, or with STAGEFLOW_NO_UI=1")
    assert hint.startswith("  hint: in a checkout, run `make ui-build`")


@pytest.mark.parametrize("name", ["run.html", "cause.html"])
def test_saving_html_without_the_page_explains_how_to_get_it(tmp_path: Path, name: str) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("static", "__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    command = [sys.executable, "-m", "stageflow"]
    subprocess.run(
        [*command, "demo", "--runs", "20"],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
    )
    arguments = ["show", "last"] if name == "run.html" else ["explain", "outcome = 'ok'"]
    done = subprocess.run(
        [*command, *arguments, "--html", name, "--journal", ".stageflow/demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "make ui-build" in done.stderr
    assert not (tmp_path / name).exists()
