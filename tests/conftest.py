"""Shared setup of the tests: fixed random examples, reset of global state, test programs in subprocesses."""

from __future__ import annotations

import functools
import json
import re
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import typer.testing
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

import stageflow
from stageflow.events import MemoryEventSink, clear_event_sink
from stageflow.settings import reset

# The same examples in every test run; none are stored on disk. `--hypothesis-profile long` checks more.
for profile, examples in (("short", 30), ("long", 200)):
    settings.register_profile(
        profile,
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("short")

# Creating all commands takes longer than running most of them, and `CliRunner` does it in each call.
typer.testing._get_command = functools.cache(typer.testing._get_command)

# A shell ignores SIGINT in background jobs; test programs would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


OURS = str(Path(stageflow.__file__).parent)
STDLIB = (sysconfig.get_paths()["stdlib"], "<frozen")

JOURNAL = OURS + "/journal/"
FILES = {OURS + "/_files.py", OURS + "/_state_file.py"}
MAY_WRITE = {"append", "_write", "_take_back", "_look", "_switch_to_new", "__init__", "close"}
"""The functions of the journal that can block: it writes, and opens files, before emission returns."""


def called_by_us() -> bool:
    """Return whether the nearest caller outside the standard library is a module of stageflow.

    Modules of the journal that read are excluded: their functions are documented as blocking, and tests call
    them on the loop. The architecture tests check that a run does not call them.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name != __file__ and "blockbuster" not in name and not name.startswith(STDLIB):
            if name in FILES:
                frame = frame.f_back
                continue
            if name.startswith(JOURNAL):
                writes = name.endswith(("/_writer.py", "/_sink.py"))
                return writes and frame.f_code.co_name not in MAY_WRITE
            # `configure` reads a file once, before any run starts.
            return name.startswith(OURS) and not name.endswith(("/settings.py", "/lifecycle.py"))
        frame = frame.f_back
    return False


@pytest.fixture(autouse=True)
def _nothing_of_ours_blocks_the_loop() -> Iterator[None]:
    """Raise an error if stageflow blocks a running event loop, except for the write of the journal."""
    buster = BlockBuster(scanned_modules=["stageflow"])
    for function in buster.functions.values():
        allowed = function.can_block_predicate
        function.can_block_predicate = lambda *args, allowed=allowed, **options: (
            not called_by_us() or allowed(*args, **options)
        )
    buster.activate()
    yield
    buster.deactivate()


@pytest.fixture(autouse=True)
def _no_setting_is_left() -> Iterator[None]:
    yield
    reset()
    clear_event_sink()


@pytest.fixture
def sink() -> MemoryEventSink:
    """A sink that stores the events of the test in a list."""
    return MemoryEventSink()


_STALLED = re.compile(r"blocked (the event loop|its caller) for \d+ ms")


def without_stalls(stderr: str) -> str:
    """Return the standard error of a program without the warnings that a busy machine causes."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not _STALLED.search(line))


class Program:
    """A Python program in a separate process."""

    def __init__(self, script: str, journal: Path) -> None:
        self.journal = journal
        # Some programs fork while threads are running, to test the behavior of the child.
        warnings = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
        self.process = subprocess.Popen(
            [sys.executable, *warnings, "-c", textwrap.dedent(script), str(journal)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, line: str) -> None:
        """Return once the program has printed `line`."""
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line + "\n", self.ended()

    def ended(self, within: float = 30) -> tuple[int, str, str]:
        """Wait for the end of the program; return its exit status, stdout and stderr (`without_stalls`)."""
        try:
            out, err = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the program did not end within {within} s; it printed {out!r} and {err!r}")
        return self.process.returncode, out, without_stalls(err)

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events in its journal."""
        lines = [
            json.loads(line)
            for path in sorted(self.journal.rglob("*.ndjson"))
            for line in path.read_bytes().splitlines()
        ]
        # The lifecycle marks of the journal have no data.
        return [(line["type"], line["data"]) for line in lines if "data" in line]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], Program]]:
    """Start a script in a separate process; the path of its journal is `sys.argv[1]`."""
    started: list[Program] = []

    def start(script: str) -> Program:
        started.append(Program(script, tmp_path / "journal"))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()
