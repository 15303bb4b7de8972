"""Follows the tutorials literally: writes their files, runs their commands, and compares the output."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import matches

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted(DOCS.glob("tutorial-*.md")), DOCS / "pytest-plugin.md"]
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INSTALLATION = ("python3 -m venv", ". .venv/bin/activate", "pip install")


def commands(block: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block and the output after it."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def spaced(text: str) -> str:
    """Return a text with single spaces: the widths of columns depend on the values."""
    return "\n".join(" ".join(line.split()) for line in text.strip().splitlines())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Reader:
    """A person in an empty directory, with an environment in which everything is installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.servers: list[subprocess.Popen[bytes]] = []
        scripts = Path(sys.executable).parent
        self.environment = {
            **os.environ,
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        }

    def run(self, command: str, expected: str) -> None:
        command = command.replace("8000", str(self.port))
        if command.startswith("uvicorn"):
            self.serve(command)
            return
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        # A line of the page is the beginning of what is printed: it may be followed by more.
        assert matches(f"{spaced(expected)}...", spaced(done.stdout)), f"$ {command}\n{done.stdout}"
        assert expected.strip() or not done.stdout, f"$ {command}\n{done.stdout}"

    def serve(self, command: str) -> None:
        self.servers.append(
            subprocess.Popen(["bash", "-c", f"exec {command}"], cwd=self.folder, env=self.environment)
        )
        ends = time.monotonic() + 50
        while time.monotonic() < ends:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        pytest.fail(f"{command} does not listen")

    def leave(self) -> None:
        for server in self.servers:
            server.terminate()
            server.wait(30)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_can_be_followed_literally(page: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    count = 0
    try:
        for kind, name, text in BLOCK.findall(page.read_text()):
            if name:
                (tmp_path / name).write_text(text)
            else:
                assert kind == "console", f"{page.name} has a block without a file name: {text}"
                for command, output in commands(text):
                    if not command.startswith(INSTALLATION):
                        reader.run(command, output)
                        count += 1
    finally:
        reader.leave()
    assert count >= 1


def test_blocks_of_the_quickstart_are_one_program(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    blocks: list[str] = []
    count = 0
    for kind, _, text in BLOCK.findall((DOCS / "quickstart.md").read_text()):
        if kind == "python":
            blocks.append(text)
            (tmp_path / "words.py").write_text("\n".join(blocks))
        elif kind == "console":
            for command, output in commands(text):
                is_installed = not command.startswith("jq") or shutil.which("jq")
                if is_installed and not command.startswith(INSTALLATION):
                    reader.run(command, output)
                    count += 1
    assert count >= 5


def test_formatted_programs(tmp_path: Path) -> None:
    for page in PAGES:
        for kind, name, text in BLOCK.findall(page.read_text()):
            if kind == "python":
                (tmp_path / f"{page.stem}-{len(list(tmp_path.iterdir()))}-{name}").write_text(text)
    ruff = [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "110", tmp_path]
    done = subprocess.run(ruff, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stdout


def test_different_output_is_found(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.run("echo one two", "one ...\n")
    with pytest.raises(AssertionError):
        reader.run("echo one two", "two\n")
    with pytest.raises(AssertionError):
        reader.run("echo one", "")
    with pytest.raises(AssertionError):
        reader.run("false", "")
