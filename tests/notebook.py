"""Executes cells of a notebook in a kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["outputs_of"]


def outputs_of(sources: Iterable[str], folder: Path) -> list[list[dict[str, Any]]]:
    """Execute cells in a directory, and return the outputs of each cell."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate(sources)
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    path = folder / "cells.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    commands = Path(sys.executable).parent
    done = subprocess.run(
        [commands / "jupyter-execute", "--inplace", path.name],
        cwd=folder,
        env={**os.environ, "JUPYTER_PATH": str(commands.parent / "share" / "jupyter")},
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [cell["outputs"] for cell in json.loads(path.read_text())["cells"]]
