"""Holds the plan of the house: which room may import which, and how a file is kept."""

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from itertools import pairwise
from pathlib import Path

import pytest

ANY = ("any room",)

# A room is a module or a package right below `stageflow`. Beside itself it may import these rooms,
# and every room may import the ground.
MAY_IMPORT = {
    # the run wing: knows nothing of disks or networks
    "stages": (),
    "context": ("stages",),
    "executors": (),
    "pipeline": ("stages", "context", "observability", "executors"),
    # the bridge: the one place that knows both wings
    "observability": ("stages", "context", "events"),
    # the record wing: knows nothing of pipelines
    "events": (),
    "journal": ("events",),
    "store": ("journal",),
    "alerts": ("store", "journal"),
    "export": ("store", "journal"),
    # the faces: ask the rooms above
    "settings": ("events", "observability", "journal"),
    "lifecycle": ANY,
    "cli": ANY,
    "ui": ANY,
    "testing": ANY,
    "__init__": ANY,
    "__main__": ANY,
}
# From the bottom up: each of the ground may import what stands before it, and nothing else of ours.
GROUND = (
    "interrupts",
    "_cpython",
    "_fork",
    "_numbers",
    "_drive",
    "_toml",
    "errors",
    "_value",
    "_safe_log",
    "clock",
    "timestamps",
    "ids",
    "schema",
    "_wide",
    "_failures",
    "render",
)

DRAWERS = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
MOST_LINES = 800

# What `import stageflow` leaves to those who use it.
HEAVY = (
    "concurrent.futures.process",
    "deltalake",
    "duckdb",
    "logging.handlers",
    "multiprocessing",
    "numpy",
    "opentelemetry",
    "pytest",
    "rich",
    "scipy",
    "sqlite3",
    "typer",
)

HOUSE = Path(__file__).parents[1] / "src" / "stageflow"


@dataclass(frozen=True)
class Module:
    """One file of the house, parsed."""

    path: Path
    name: str  # as it is imported: "stageflow.events" is events/__init__.py
    tree: ast.Module
    lines: int

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    def __str__(self) -> str:
        return self.path.as_posix()


@dataclass(frozen=True)
class Import:
    """One import of a module of ours by another, as it is written."""

    by: Module
    of: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.by}:{self.line}: `{self.text}`"


def room(name: str) -> str:
    """The room that a module lives in; the top of the house is its `__init__`."""
    return [*name.split("."), "__init__"][1]


def read(house: Path) -> dict[str, Module]:
    modules = {}
    for file in sorted(house.rglob("*.py")):
        path = file.relative_to(house.parents[1])
        name = ".".join(file.relative_to(house.parent).with_suffix("").parts).removesuffix(".__init__")
        source = file.read_text(encoding="utf-8")
        modules[name] = Module(path, name, ast.parse(source, str(path)), len(source.splitlines()))
    return modules


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, save what stands under `if TYPE_CHECKING:`."""
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        children = node.orelse
    for child in children:
        yield child
        yield from run_time_nodes(child)


def imports(modules: dict[str, Module]) -> Iterator[Import]:
    """Every import inside the house, also those inside functions."""
    for module in modules.values():
        for node in run_time_nodes(module.tree):
            if isinstance(node, ast.Import):
                named = [(alias.name,) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = resolve_name("." * node.level + (node.module or ""), module.package)
                named = [(f"{source}.{alias.name}", source) for alias in node.names]
            else:
                continue
            for candidates in named:
                of = next((name for name in candidates if name in modules), None)
                if of is not None:
                    yield Import(module, of, node.lineno, ast.unparse(node))


def broken_rules(house: Path) -> list[str]:
    """What of the table does not hold, a line for each."""
    modules = read(house)
    broken = [
        f"{module}: `{room(name)}` is no room of the house. The rooms are in MAY_IMPORT and GROUND."
        for name, module in modules.items()
        if room(name) not in {*MAY_IMPORT, *GROUND}
    ]
    for found in imports(modules):
        by, of = room(found.by.name), room(found.of)
        if by in GROUND:
            allowed = GROUND[: GROUND.index(by)]
            rule = f"`{by}` is ground and may import {listed(allowed)}."
        else:
            allowed = (*MAY_IMPORT.get(by, ANY), *GROUND)
            rule = f"`{by}` may import {listed(MAY_IMPORT.get(by, ANY))} beside the ground."
        if by != of and of not in allowed and ANY[0] not in allowed:
            broken.append(f"{found} imports `{found.of}`. {rule}")
    return broken


def listed(rooms: tuple[str, ...]) -> str:
    return ", ".join(f"`{room}`" for room in rooms) or "nothing of ours"


def circle(house: Path) -> list[str]:
    """The imports of one circle, in order, or nothing."""
    by_edge = {(found.by.name, found.of): found for found in imports(read(house))}
    graph: dict[str, set[str]] = {}
    for by, of in by_edge:
        if by != of:
            graph.setdefault(by, set()).add(of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names = error.args[1][::-1]  # graphlib lists it from the imported to the importer
        return [str(by_edge[edge]) for edge in pairwise(names)]
    return []


def badly_kept(house: Path) -> list[str]:
    """What is wrong with a file as a file, a line for each."""
    broken = []
    for module in read(house).values():
        if module.lines > MOST_LINES:
            broken.append(f"{module}: {module.lines} lines. Past {MOST_LINES} a module is two concepts.")
        broken += [
            f"{module}: `{part}` is a drawer. A file is named for its one idea."
            for part in module.name.split(".")
            if part.strip("_") in DRAWERS
        ]
        first = (ast.get_docstring(module.tree) or "").partition("\n")[0].strip()
        if not first:
            broken.append(
                f"{module}: no docstring. A file opens with one sentence that says what lives there."
            )
        elif not first.endswith(".") or re.search(r"[.!?] +[A-Z]", first):
            broken.append(f"{module}: the docstring's first line is not one sentence: {first!r}")
    return broken


def as_ruff_sorts(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then the rest: RUF022, which `make format` applies."""
    return (0 if len(name) > 1 and name.isupper() else 1 if name[0].isupper() else 2, name)


PACKAGES = [name for name, module in read(HOUSE).items() if name == module.package]


def test_rooms_import_what_the_table_lets_them():
    broken = broken_rules(HOUSE)
    assert not broken, "\n" + "\n".join(broken)


def test_no_import_goes_in_a_circle():
    found = circle(HOUSE)
    assert not found, "modules import each other in a circle:\n" + "\n".join(found)


def test_files_are_one_idea_each():
    broken = badly_kept(HOUSE)
    assert not broken, "\n" + "\n".join(broken)


def test_import_is_light():
    code = (
        "import json, sys; before = set(sys.modules); import stageflow; "
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = [
        name
        for name in json.loads(done.stdout)
        if any(name == heavy or name.startswith(f"{heavy}.") for heavy in HEAVY)
    ]
    assert not loaded, f"`import stageflow` loads {', '.join(loaded)}. Import it where it is used."


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_sorted_and_there(package):
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", ()))
    assert names == sorted(names, key=as_ruff_sorts), (
        f"{package}.__all__ is not sorted: `make format` does it"
    )
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{package}.__all__ names what is not there: {', '.join(missing)}"


# The rules themselves, on small houses that break them.


@pytest.fixture
def build(tmp_path):
    def build(files: dict[str, str]) -> Path:
        house = tmp_path / "src" / "stageflow"
        for name, source in {"__init__": "", **files}.items():
            file = house / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'"""One sentence."""\n{source}\n')
        return house

    return build


@pytest.mark.parametrize(
    "line",
    [
        "from stageflow.pipeline import Pipeline",
        "from ..pipeline import Pipeline",
        "from .. import pipeline",
        "from stageflow import pipeline",
        "import stageflow.pipeline as p",
        "def late():\n    from stageflow.pipeline.graph import StageGraph",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import stageflow.pipeline",
    ],
)
def test_an_import_against_the_table_is_found(build, line):
    house = build({"events/sink": line, "pipeline/__init__": "", "pipeline/graph": ""})
    (broken,) = broken_rules(house)
    assert broken.startswith("src/stageflow/events/sink.py:")
    assert "pipeline" in broken
    assert broken.endswith("`events` may import nothing of ours beside the ground.")


@pytest.mark.parametrize(
    "line",
    [
        "from .queue import Queue",
        "from ..errors import StageflowError",
        "from stageflow import errors",
        "import stageflow_other",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stageflow.pipeline import Pipeline",
        "import typing\nif typing.TYPE_CHECKING:\n    from ..pipeline import Pipeline",
    ],
)
def test_an_import_within_the_table_is_not(build, line):
    house = build({"events/sink": line, "events/queue": "", "errors": "", "pipeline/__init__": ""})
    assert broken_rules(house) == []


def test_the_top_of_the_house_is_a_face(build):
    (broken,) = broken_rules(build({"events/sink": "from stageflow import Pipeline"}))
    assert "imports `stageflow`" in broken


def test_the_ground_imports_downwards(build):
    assert broken_rules(build({"interrupts": "", "ids": "from .interrupts import INTERRUPTS"})) == []
    (broken,) = broken_rules(build({"interrupts": "from . import ids", "ids": ""}))
    assert "`interrupts` is ground and may import nothing of ours" in broken


def test_a_room_without_a_place_is_found(build):
    (broken,) = broken_rules(build({"attic/chest": ""}))
    assert "`attic` is no room of the house" in broken


def test_a_circle_is_drawn(build):
    house = build(
        {
            "events/a": "from .b import x",
            "events/b": "import stageflow.events.c",
            "events/c": "from . import a",
        }
    )
    found = circle(house)
    assert len(found) == 3
    assert any(line.endswith("b.py:2: `import stageflow.events.c`") for line in found)


def test_a_package_may_import_its_own_modules(build):
    house = build({"events/__init__": "from .a import x", "events/a": "from . import b", "events/b": ""})
    assert circle(house) == []


def test_a_badly_kept_file_is_found(build):
    house = build({"events/utils": "", "events/long": "x = 1\n" * MOST_LINES})
    (house / "bare.py").write_text("x = 1\n")
    (house / "two.py").write_text('"""Two sentences. In one line."""\n')
    found = "\n".join(badly_kept(house))
    assert "events/utils.py: `utils` is a drawer" in found
    assert f"events/long.py: {MOST_LINES + 2} lines" in found
    assert "bare.py: no docstring" in found
    assert "two.py: the docstring's first line is not one sentence" in found


@pytest.mark.parametrize(
    "name", ["crash_replay", "journal_storm", "kill_alerts", "kill_demo", "soak", "store_storm"]
)
def test_long_forms_of_tests_have_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{name}", "--help"],
        cwd=HOUSE.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m tests.{name}")
