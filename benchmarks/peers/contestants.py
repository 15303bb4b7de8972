"""Who is measured, and the environments that the others need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["OURS", "PEERS", "ROOT", "Contestant", "InstallError", "install", "install_requirements"]

ROOT = Path(__file__).parents[2]
_ENVIRONMENTS = ROOT / ".venv-peers"
_MOST_SECONDS = 900


@dataclass(frozen=True)
class Contestant:
    """A row of the tables.

    Attributes:
        title: What the row is called.
        adapter: The module of this folder that runs it.
        options: Keyword arguments of its `prepare`.
        python: The interpreter of its environment; default the one that runs this.
    """

    title: str
    adapter: str
    options: dict[str, bool] = field(default_factory=dict)
    python: str = sys.executable


OURS = (
    Contestant("floor", "floor"),
    Contestant("stageflow, events off", "ours"),
    Contestant("stageflow, journal on", "ours", {"journal": True}),
)

PEERS = {
    "stageflow_core": "stageflow-core",
    "hamilton": "Hamilton",
    "pydantic_graph": "pydantic-graph",
    "langgraph": "LangGraph",
    "haystack": "Haystack",
    "pydantic_ai": "pydantic-ai",
}
"""Adapters of the others, which also name their environments and requirements, and what they are called."""


class InstallError(Exception):
    """An environment that could not be made, and why."""


def install(adapter: str) -> Contestant:
    """Return the contestant with this adapter; make its environment where it is missing or outdated."""
    wanted = Path(__file__).with_name(f"{adapter}.txt")
    python = install_requirements(adapter, wanted)
    version = wanted.read_text().strip().partition("==")[2]
    return Contestant(f"{PEERS[adapter]} {version}", adapter, python=python)


def install_requirements(name: str, wanted: Path) -> str:
    """Return the interpreter of an environment; create it if it is missing or its requirements changed."""
    requirements = wanted.read_text()
    environment = _ENVIRONMENTS / name
    python = environment / "bin" / "python"
    done = environment / "installed.txt"
    if not done.exists() or done.read_text() != requirements:
        print(f"installing {', '.join(requirements.split())}", file=sys.stderr)
        _run(sys.executable, "-m", "venv", "--clear", str(environment))
        pip = (str(python), "-m", "pip", "--disable-pip-version-check", "--quiet")
        _run(*pip, "install", "-r", str(wanted))
        done.write_text(requirements)
    return str(python)


def _run(*command: str) -> None:
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_MOST_SECONDS)
    except subprocess.TimeoutExpired:
        raise InstallError(f"not installed after {_MOST_SECONDS} s") from None
    if ran.returncode:
        said = (ran.stderr or ran.stdout).strip().splitlines() or [f"exit code {ran.returncode}"]
        raise InstallError(next((line for line in reversed(said) if line.startswith("ERROR")), said[-1]))
