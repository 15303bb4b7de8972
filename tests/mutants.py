"""Mutates one line of code at a time, and reports the mutations that no test detects: `make mutants`.

The sample is seeded and contains one mutation per file, for a number of files. Cosmic Ray, which is installed
in a separate environment, generates the mutations. Each is tested in a copy of the tree: first with the tests
of its package, until one fails; then, with `--whole`, with the whole suite. A surviving mutation indicates
untested behaviour, or a change without effect.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import difflib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

TREE = Path(__file__).parents[1]
SOURCE = Path("src/stageflow")

# The tests of a package or module; all tests if there is no entry.
TESTS_OF = {
    "alerts": ("alerts",),
    "cli": ("cli", "cli_journal", "cli_store", "demo", "alerts"),
    "context": ("annotation", "inputs", "outcomes", "bad_input", "composition", "interrupts"),
    "events": ("delivery", "counting", "hostile", "logging_sink", "journal_fork", "settings"),
    "executors": ("outcomes", "cancellation", "testing", "memory"),
    "journal": (
        "journal_writing",
        "journal_readers",
        "journal_recovery",
        "journal_hostile",
        "journal_fork",
        "cli_journal",
    ),
    "observability": ("bad_input", "redaction", "outcomes", "interrupts", "law", "composition", "settings"),
    "pipeline": (
        "inputs",
        "errors",
        "retry",
        "interceptors",
        "limits",
        "composition",
        "many_runs",
        "bad_input",
        "outcomes",
        "cancellation",
        "budget",
        "law",
    ),
    "budget.py": ("budget",),
    "render": ("render", "page", "cli", "cli_journal", "demo"),
    "stages": ("retry", "outcomes", "bad_input", "interceptors"),
    "store": ("store", "explain", "sampling", "cli_store", "store_hostile", "alerts"),
    "testing": ("testing", "clock"),
    "errors.py": ("errors", "bad_input"),
    "_interrupts.py": ("interrupts",),
    "lifecycle.py": ("settings",),
    "settings.py": ("settings",),
}

# Type annotations and unions of classes: these changes have almost no effect at run time.
LEFT_OUT = re.compile(
    r"core/(ReplaceBinaryOperator_BitOr_|Replace.*_BitOr$|Remove_?Decorator|VariableRe|VariableIn)"
)

PACKAGE_SECONDS = 600
WHOLE_SECONDS = 1200


class Mutation(NamedTuple):
    """One mutation of one file."""

    path: Path
    operator: str
    occurrence: int
    line: int
    before: str
    after: str
    code: str


class Fate(NamedTuple):
    """The result of a mutation: the test that failed, or None."""

    mutation: Mutation
    killed_by: str | None
    seconds: float


def mutations_of(path: Path, dice: random.Random) -> Mutation | None:
    """Return a random mutation of a file, with every operator equally likely; None if there is none."""
    code = (TREE / path).read_text()
    nodes = list(ast_nodes(get_ast(code)))
    kinds: dict[str, list[tuple[str, int, int]]] = {}
    for name in operator_names():
        operator: Any = get_operator(name)
        if LEFT_OUT.match(name) or operator.arguments():
            continue
        positions = [at for node in nodes for at in operator().mutation_positions(node)]
        for occurrence, (start, _) in enumerate(positions):
            kinds.setdefault(name.split("_")[0], []).append((name, occurrence, start[0]))
    while kinds:
        kind = dice.choice(sorted(kinds))
        name, occurrence, line = dice.choice(kinds.pop(kind))
        mutated = mutate_code(code, get_operator(name)(), occurrence)
        if mutated is None or not compiles(mutated):
            continue
        changed = [
            text
            for text in difflib.ndiff(code.splitlines(), mutated.splitlines())
            if text.startswith(("- ", "+ "))
        ]
        if changed and not changed[0].lstrip("- ").startswith(("#", '"')):
            before, after = changed[0][2:].strip(), changed[-1][2:].strip()
            return Mutation(path, name.removeprefix("core/"), occurrence, line, before, after, mutated)
    return None


def compiles(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def sample(count: int, seed: int, within: str) -> list[Mutation]:
    """Return one mutation per file, for a number of files."""
    dice = random.Random(seed)
    files = sorted(path.relative_to(TREE) for path in (TREE / SOURCE).rglob("*.py"))
    files = [path for path in files if within in str(path) and "demo" not in path.parts]
    dice.shuffle(files)
    found: list[Mutation] = []
    for path in files:
        mutation = mutations_of(path, dice)
        if mutation is not None:
            found.append(mutation)
        if len(found) == count:
            break
    return found


def tests_of(path: Path) -> list[str]:
    """Return the test files for the package of a module."""
    room = path.relative_to(SOURCE).parts[0]
    return [f"tests/test_{name}.py" for name in TESTS_OF.get(room, ())] or ["tests"]


def fate_of(mutation: Mutation, python: str, whole: bool) -> Fate:
    """Run the tests on a copy of the tree that has the mutation."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
        shutil.copytree(TREE, copy, ignore=ignored)
        (copy / mutation.path).write_text(mutation.code)
        killed_by = first_failure(copy, python, tests_of(mutation.path), PACKAGE_SECONDS)
        if killed_by is None and whole:
            killed_by = first_failure(copy, python, ["tests"], WHOLE_SECONDS)
    return Fate(mutation, killed_by, time.monotonic() - began)


def first_failure(copy: Path, python: str, tests: Sequence[str], seconds: float) -> str | None:
    """Return the first test that fails, or None."""
    command = [python, "-m", "pytest", "-x", "--tb=no", "-p", "no:cacheprovider", "-o", "addopts=", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        out = None
    with contextlib.suppress(ProcessLookupError):  # also kills processes that the tests left running
        os.killpg(process.pid, signal.SIGKILL)
    if out is None:  # the tests hang, or the machine is too busy
        process.communicate()
        return f"the time limit of {seconds:g} s"
    if process.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
    return failed[1] if failed else f"pytest exited with {process.returncode}: {out[-200:]!r}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("--python", default=str(TREE / ".venv/bin/python"), help="the interpreter")
    parser.add_argument("--count", type=int, default=20, help="number of files, default 20")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sample, default 1")
    parser.add_argument("--within", default="", help="only files whose path contains this")
    parser.add_argument("--only", default="", help="run only those sampled files whose path contains this")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel jobs, default 2")
    parser.add_argument("--whole", action="store_true", help="run the whole suite on survivors")
    parser.add_argument("--list", action="store_true", help="list the sample and run nothing")
    options = parser.parse_args()
    mutations = sample(options.count, options.seed, options.within)
    mutations = [one for one in mutations if options.only in str(one.path)]
    if options.list:
        for one in mutations:
            print(f"{one.path}:{one.line} {one.operator}\n  - {one.before}\n  + {one.after}")
        return 0
    survivors = 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(fate_of, one, options.python, options.whole) for one in mutations]
        for future in concurrent.futures.as_completed(waiting):
            one, killed_by, seconds = future.result()
            survivors += killed_by is None
            fate = "SURVIVED" if killed_by is None else f"killed by {killed_by}"
            print(
                f"{one.path}:{one.line} {one.operator}: {fate} ({seconds:.0f} s)\n"
                f"  - {one.before}\n  + {one.after}",
                flush=True,
            )
    print(f"{len(mutations)} mutants with seed {options.seed}, {survivors} survived")
    return 0


if __name__ == "__main__":
    sys.exit(main())
