"""Runs the suite on every installed Python, and prints a table: `python -m tests.matrix`.

The command finds interpreters on the `PATH` and in pyenv. `STAGEFLOW_PYTHONS` adds others, separated by
colons: the path of an interpreter, or the root directory of a chroot with interpreters in `usr/bin`. Each
version uses a separate environment and a separate copy of the source tree.

Every version runs with the releases that `constraints.txt` pins. The oldest version also runs with the lowest
release of each dependency that `pyproject.toml` allows, and the newest one with the newest releases.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

TREE = Path(__file__).parents[1]

UNPINNED = {
    "3.15": {
        "numpy": "the pinned release is the last one for Python 3.11, and has no wheel for 3.15",
        "scipy": "the pinned release is the last one for Python 3.11, and has no wheel for 3.15",
    },
}
"""Packages for which a version uses another release than `constraints.txt` pins, with the reason."""

LEFT_OUT: dict[str, dict[str, str]] = {}
"""Test files that a version skips, with the reason; listed below the table."""

CHROOT_FOLDER = "var/tmp/stageflow-matrix"


Releases = Literal["pinned", "lowest", "newest"]


class Interpreter(NamedTuple):
    """One Python.

    Attributes:
        version: As "3.14".
        full_version: As "3.14.8".
        path: Inside the chroot, if there is one.
        root: The root folder of its chroot, or None.
    """

    version: str
    full_version: str
    path: str
    root: Path | None

    def folder(self, releases: Releases) -> Path:
        """Return the directory of its environment and its copy of the tree."""
        name = self.version if releases == "pinned" else f"{self.version}-{releases}"
        return (self.root / CHROOT_FOLDER if self.root else TREE / ".matrix") / name

    def inside(self, path: Path) -> str:
        """Return the path inside the chroot for a path below its root."""
        return str(path) if self.root is None else f"/{path.relative_to(self.root)}"

    def command(self, *arguments: str, cwd: Path, env: dict[str, str] | None = None) -> list[str]:
        """Return the command that runs a program in the system of the interpreter."""
        set_variables = ["env", *(f"{name}={value}" for name, value in (env or {}).items())]
        if self.root is None:
            return [*set_variables, "sh", "-c", f"cd {shlex.quote(str(cwd))} && exec {shlex.join(arguments)}"]
        script = f"cd {shlex.quote(self.inside(cwd))} && exec {shlex.join(arguments)}"
        return ["chroot", str(self.root), *set_variables, "sh", "-c", script]


class Result(NamedTuple):
    """The result of the suite on one version."""

    interpreter: Interpreter
    releases: Releases
    passed: int
    failed: int
    skipped: int
    seconds: float
    note: str


def supported() -> list[str]:
    """Return the Python versions that the package declares."""
    classifiers = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]["classifiers"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in classifiers)
    return sorted((match[1] for match in found if match), key=lambda version: int(version[2:]))


def candidates() -> Iterator[tuple[str, Path | None]]:
    """Yield all candidate interpreters, explicitly configured ones first."""
    for named in filter(None, os.environ.get("STAGEFLOW_PYTHONS", "").split(os.pathsep)):
        path = Path(named)
        if path.is_dir():
            for version in supported():
                if (path / f"usr/bin/python{version}").exists():
                    yield f"/usr/bin/python{version}", path
        else:
            yield named, None
    for version in supported():
        yield shutil.which(f"python{version}") or "", None
        pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
        for folder in sorted(pyenv.glob(f"{version}.*"), reverse=True):
            yield str(folder / "bin" / "python"), None


def interpreters() -> dict[str, Interpreter]:
    """Return the first working interpreter of each supported version."""
    found: dict[str, Interpreter] = {}
    ask = "import sys; print('%d.%d %d.%d.%d' % (sys.version_info[:2] + sys.version_info[:3]))"
    for path, root in candidates():
        command = [path, "-c", ask] if root is None else ["chroot", str(root), path, "-c", ask]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            continue  # a shim without an interpreter
        version, full_version = answer.split()
        if version in supported():
            found.setdefault(version, Interpreter(version, full_version, path, root))
    return found


def check_mounts(root: Path) -> None:
    """Exit with an explanation if mounts that the tests need are missing in a chroot."""
    missing = [name for name in ("proc", "dev/shm", "dev/pts") if not os.path.ismount(root / name)]
    if missing:
        sys.exit(
            f"{root}: {', '.join(missing)} not mounted. Run: mount -t proc proc {root}/proc; "
            f"mount -t tmpfs shm {root}/dev/shm; mount --bind /dev/pts {root}/dev/pts"
        )


def copy_tree(to: Path) -> None:
    """Copy the files that git tracks or would add."""
    listed = ["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0")
    shutil.rmtree(to, ignore_errors=True)
    for name in filter(None, names):
        if (TREE / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(TREE / name, to / name)


def constraints(python: Interpreter, releases: Releases) -> str:
    """Return the constraints of these releases, one line for each package."""
    if releases == "newest":
        return ""
    if releases == "lowest":
        compiled = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
        compiled += ["--resolution", "lowest-direct", "--all-extras", "--python-version", python.version]
        return run_quietly([*compiled, str(TREE / "pyproject.toml")])
    lines = (TREE / "constraints.txt").read_text().splitlines()
    unpinned = UNPINNED.get(python.version, {})
    return "\n".join(line for line in lines if line.partition("==")[0] not in unpinned)


def install(python: Interpreter, releases: Releases) -> None:
    """Create the environment, or reuse one created from the same list of packages."""
    folder = python.folder(releases)
    venv, tree = folder / "venv", folder / "tree"
    pins = constraints(python, releases)
    made_from = f"{python.full_version}\n{pins}\n{(TREE / 'pyproject.toml').read_text()}"
    stamp = folder / "made-from"
    if stamp.exists() and stamp.read_text() == made_from:
        return
    shutil.rmtree(venv, ignore_errors=True)
    (folder / "constraints.txt").write_text(pins + "\n")
    run_quietly(python.command(python.path, "-m", "venv", python.inside(venv), cwd=folder))
    pip = (python.inside(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet")
    pinned = ("install", "-c", python.inside(folder / "constraints.txt"))
    build = ("hatchling", "hatch-fancy-pypi-readme", "setuptools", "wheel")
    run_quietly(python.command(*pip, *pinned, *build, cwd=tree))
    run_quietly(python.command(*pip, *pinned, "--no-build-isolation", "-e", ".[cli,dev]", cwd=tree))
    stamp.write_text(made_from)


def run_quietly(command: Sequence[str]) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{shlex.join(command)} exited with {found.returncode}:\n{found.stderr[-3000:]}")
    return found.stdout


def run_suite(python: Interpreter, releases: Releases, uvloop: bool, arguments: Sequence[str]) -> Result:
    """Run the suite and write its output to a log next to the environment."""
    began = time.monotonic()
    folder = python.folder(releases)
    tree, report = folder / "tree", folder / "report.xml"
    report.unlink(missing_ok=True)
    note = "uvloop" if uvloop else ""
    try:
        if python.root is not None:
            check_mounts(python.root)
        folder.mkdir(parents=True, exist_ok=True)
        copy_tree(tree)
        install(python, releases)
        built = (python.inside(folder / "venv/bin/python"), "hatch_build.py")  # the page of the web UI
        run_quietly(python.command(*built, cwd=tree))
        env = {"PYTHONPATH": python.inside(tree / "tests/uvloop_site")} if uvloop else {}
        excluded = [f"--ignore={name}" for name in LEFT_OUT.get(python.version, {})]
        pytest = (python.inside(folder / "venv/bin/python"), "-m", "pytest")
        command = python.command(
            *pytest, f"--junitxml={python.inside(report)}", *excluded, *arguments, cwd=tree, env=env
        )
        log = folder / ("log-uvloop" if uvloop else "log")
        with log.open("wb") as file:
            subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
        count = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    except (RuntimeError, OSError, ElementTree.ParseError) as error:
        return Result(python, releases, 0, 1, 0, time.monotonic() - began, f"could not run: {error}")
    failed = count["failures"] + count["errors"]
    passed = count["tests"] - failed - count["skipped"]
    if failed:
        note = f"{note} see {log}".strip()
    return Result(python, releases, passed, failed, count["skipped"], time.monotonic() - began, note)


def combinations(
    versions: Sequence[str], installed: Container[str], releases: Sequence[Releases] | None
) -> Iterator[tuple[str, Releases]]:
    """Yield the versions with the releases to run them with."""
    usable = [version for version in versions if version in installed]
    for version in versions:
        yield from ((version, one) for one in releases or ("pinned",))
        if releases is None and version in usable[:1]:
            yield version, "lowest"
        if releases is None and version in usable[-1:]:
            yield version, "newest"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--only", metavar="3.N", nargs="*", help="run only these versions")
    parser.add_argument("--uvloop", action="store_true", help="run with uvloop as the default event loop")
    parser.add_argument(
        "--releases",
        choices=("pinned", "lowest", "newest"),
        nargs="*",
        help="run only with these releases of the dependencies, on each version",
    )
    parser.add_argument("arguments", nargs="*", help="arguments for pytest, after --")
    options = parser.parse_args()
    installed = interpreters()
    versions = options.only or supported()
    row = "{:<9}{:<10}{:>8}{:>8}{:>9}{:>10}  {}"
    print(row.format("Python", "releases", "passed", "failed", "skipped", "seconds", ""))
    ok = True
    for version, releases in combinations(versions, installed, options.releases):
        python = installed.get(version)
        if python is None:
            note = "not installed; add it to STAGEFLOW_PYTHONS"
            print(row.format(version, releases, "-", "-", "-", "-", note))
            continue
        found = run_suite(python, releases, options.uvloop, options.arguments)
        ok = ok and not found.failed and found.passed > 0
        counts = (found.passed, found.failed, found.skipped, f"{found.seconds:.0f}")
        print(row.format(python.full_version, releases, *counts, found.note), flush=True)
        for name, why in UNPINNED.get(version, {}).items() if releases == "pinned" else ():
            print(f"         not as pinned: {name} ({why})")
        for name, why in LEFT_OUT.get(version, {}).items():
            print(f"         skipped: {name} ({why})")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
