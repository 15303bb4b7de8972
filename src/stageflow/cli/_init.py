"""The `init` command."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ._output import print_text

__all__ = ["init"]


_FILES = ("pyproject.toml", "pipeline.py", "test_pipeline.py", "README.md", ".gitignore")

_TEMPLATES = Path(__file__).with_name("templates")


def init(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Project directory; created if it does not exist.", show_default=False
        ),
    ],
) -> None:
    """Create a small project with a pipeline, a test and settings, ready to run.

    The command never changes existing files: if one of the files exists, it writes nothing.

    - `stageflow init shop`
    """
    name = re.sub(r"[^a-z0-9]+", "-", directory.resolve().name.lower()).strip("-") or "project"
    if existing := [file for file in _FILES if (directory / file).exists()]:
        raise typer.BadParameter(
            f"{directory} already contains {', '.join(existing)}; nothing was written", param_hint="DIR"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for file in _FILES:
        text = (_TEMPLATES / f"{file.lstrip('.')}.txt").read_text(encoding="utf-8")
        text = text.replace("{{name}}", name).replace("{{version}}", __version__)
        with (directory / file).open("x", encoding="utf-8") as target:
            target.write(text)
    print_text(f"Wrote {', '.join(_FILES)} to {directory}.")
    print_text(
        f"Next: cd {directory}, then python pipeline.py, stageflow show and, if pytest is installed,"
        " python -m pytest."
    )
