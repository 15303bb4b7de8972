"""Rules for the source code: which package may import which, and how a module is written."""

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

# From the bottom up: each of these may import those before it. Every other package may import all of them.
FOUNDATION = (
    "_interrupts",
    "_installation",
    "_cpython",
    "_fork",
    "_numbers",
    "_quantities",
    "_drive",
    "_toml",
    "_decodable",
    "errors",
    "_value",
    "_log",
    "_time",
    "_http",
    "_webhook",
    "_log_tail",
    "_timeparse",
    "_ids",
    "_fingerprint",
    "schema",
    "_wide",
    "_failures",
    "_files",
    "_state_file",
    "_explained",
    "render",
)

ANY = ("any package",)

# A package is a module or a package directly below `stageflow`.
MAY_IMPORT = {
    # values
    "stages": (),
    "retry": ("stages",),
    "results": ("stages", "context"),
    "_genai": (),
    "budget": ("_genai",),
    "_inputs": ("stages",),
    "_items": ("stages",),
    "_log_fields": ("context",),
    "_calls": (),
    "_activation": ("context",),
    "context": ("stages", "_calls", "_genai", "_inputs", "_items", "budget"),
    # execution: does not touch disk or network
    "executors": ("stages", "budget", "_inputs", "_items", "_calls", "context", "_activation"),
    "pipeline": (
        *("stages", "retry", "budget", "results", "_inputs", "_items", "context", "observability"),
        *("_calls", "_activation", "executors"),
    ),
    # instrumentation: the only layer that depends on both execution and recording
    "observability": ("stages", "retry", "budget", "results", "_items", "context", "events"),
    # recording: does not depend on pipelines
    "events": (),
    "journal": ("events",),
    "store": ("journal", "_calls", "_genai"),
    "alerts": ("store", "journal"),
    "export": ("store", "journal", "_genai"),
    # interfaces: call the other packages
    "settings": ("events", "observability", "journal", "export"),
    "lifecycle": ANY,
    "integrations": (
        *("_activation", "_calls", "_genai", "_log_fields", "pipeline", "results", "context", "stages"),
    ),
    "cli": ANY,
    "mcp": ANY,
    "ui": ANY,
    "testing": ANY,
    "__init__": ANY,
    "__main__": ANY,
}

# The layers of the diagram in CONTRIBUTING.md. Other packages are interfaces or belong to the foundation.
LAYERS = {
    "values": (
        "stages",
        "retry",
        "results",
        "_genai",
        "budget",
        "_inputs",
        "_items",
        "_calls",
        "context",
        "_activation",
    ),
    "execution": ("pipeline", "executors"),
    "recording": ("events", "journal", "store", "alerts", "export"),
    "instrumentation": ("observability",),
}

VAGUE_NAMES = {"base", "common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
MAX_LINES = 800
MAX_TOP_LEVEL_NAMES = 32

# Third-party packages and modules of the standard library that `import stageflow` does not load.
HEAVY = (
    "concurrent.futures.process",
    "confluent_kafka",
    "deltalake",
    "duckdb",
    "httpx",
    "logging.handlers",
    "mcp",
    "multiprocessing",
    "nats",
    "numpy",
    "opentelemetry",
    "pydantic",
    "psycopg",
    "pytest",
    "rich",
    "scipy",
    "sqlite3",
    "standardwebhooks",
    "starlette",
    "typer",
)

SOURCE = Path(__file__).parents[1] / "src" / "stageflow"


@dataclass(frozen=True)
class Module:
    """A parsed source file."""

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
    """An import of one module of stageflow by another."""

    by: Module
    of: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.by}:{self.line}: `{self.text}`"


def top(name: str) -> str:
    """Return the package or module directly below `stageflow` that contains a module."""
    return [*name.split("."), "__init__"][1]


def read(source: Path) -> dict[str, Module]:
    modules = {}
    for file in sorted(source.rglob("*.py")):
        path = file.relative_to(source.parents[1])
        name = ".".join(file.relative_to(source.parent).with_suffix("").parts).removesuffix(".__init__")
        text = file.read_text(encoding="utf-8")
        modules[name] = Module(path, name, ast.parse(text, str(path)), len(text.splitlines()))
    return modules


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below a node, except those under `if TYPE_CHECKING:`."""
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
        children = node.orelse
    for child in children:
        yield child
        yield from run_time_nodes(child)


def imports(modules: dict[str, Module], *, with_types: bool = False) -> Iterator[Import]:
    """Yield every import of a module of stageflow, including those in functions."""
    for module in modules.values():
        for node in (ast.walk if with_types else run_time_nodes)(module.tree):
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


def forbidden_imports(source: Path) -> list[str]:
    """Return a line for each import that the table does not allow."""
    modules = read(source)
    broken = [
        f"{module}: `{top(name)}` is not in MAY_IMPORT or FOUNDATION."
        for name, module in modules.items()
        if top(name) not in {*MAY_IMPORT, *FOUNDATION}
    ]
    for found in imports(modules):
        by, of = top(found.by.name), top(found.of)
        if by in FOUNDATION:
            allowed = FOUNDATION[: FOUNDATION.index(by)]
            rule = f"`{by}` may import {listed(allowed)}."
        else:
            allowed = (*MAY_IMPORT.get(by, ANY), *FOUNDATION)
            rule = f"`{by}` may import {listed(MAY_IMPORT.get(by, ANY))}, and the foundation."
        if by != of and of not in allowed and ANY[0] not in allowed:
            broken.append(f"{found} imports `{found.of}`. {rule}")
    return broken


def bypassing_imports(source: Path) -> list[str]:
    """Return a line for each import that bypasses the `__init__` of another package."""
    modules = read(source)
    return [
        f"{found} bypasses `stageflow.{top(found.of)}`: import from that package, and export the name there."
        for found in imports(modules, with_types=True)
        if top(found.by.name) != top(found.of) and found.of.count(".") > 1
    ]


def listed(packages: tuple[str, ...]) -> str:
    return ", ".join(f"`{package}`" for package in packages) or "no other package"


def cycle(source: Path) -> list[str]:
    """Return the imports of one cycle in order, or nothing."""
    by_edge = {(found.by.name, found.of): found for found in imports(read(source))}
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


def faults_of_modules(source: Path) -> list[str]:
    """Return a line for each module that is too long, has a vague name or lacks a docstring."""
    broken = []
    for module in read(source).values():
        if module.lines > MAX_LINES:
            broken.append(f"{module}: {module.lines} lines; more than {MAX_LINES} suggest two concepts.")
        broken += [
            f"{module}: `{part}` is a vague name. A module is named after its concept."
            for part in module.name.split(".")
            if part.strip("_") in VAGUE_NAMES
        ]
        first = (ast.get_docstring(module.tree) or "").partition("\n")[0].strip()
        if not first:
            broken.append(f"{module}: no docstring.")
        elif not first.endswith(".") or re.search(r"[.!?] +[A-Z]", first):
            broken.append(f"{module}: the first line of the docstring is not one sentence: {first!r}")
    return broken


def sort_key(name: str) -> tuple[int, str]:
    """Sort constants, then classes, then other names: RUF022, which `make format` applies."""
    return (0 if len(name) > 1 and name.isupper() else 1 if name[0].isupper() else 2, name)


def architecture_diagram(source: Path) -> str:
    """Return a Mermaid diagram of the layers, with an arrow to each layer that a layer imports directly."""
    layer_of = {package: layer for layer, packages in LAYERS.items() for package in packages}
    layer_of |= dict.fromkeys(FOUNDATION, "foundation")
    members: dict[str, set[str]] = {layer: set() for layer in (*LAYERS, "interfaces", "foundation")}
    for name in read(source):
        package = top(name)
        if not package.startswith("__"):
            members[layer_of.setdefault(package, "interfaces")].add(package)
    arrows: dict[str, set[str]] = {layer: set() for layer in members}
    for found in imports(read(source)):
        by, of = (layer_of.get(top(name)) for name in (found.by.name, found.of))
        if by and of and by != of:
            arrows[by].add(of)
    lines = ["flowchart TB"]
    for layer, packages in members.items():
        shown = sorted(name for name in packages if not name.startswith("_"))
        lines.append(f'    {layer}["{layer}: {", ".join(shown)}"]')
    for layer, below in arrows.items():
        indirect = {further for other in below for further in arrows[other]}
        lines += [f"    {layer} --> {other}" for other in members if other in below - indirect]
    return "\n".join(lines)


PACKAGES = [name for name, module in read(SOURCE).items() if name == module.package]


def test_packages_import_only_what_the_table_allows():
    broken = forbidden_imports(SOURCE)
    assert not broken, "\n" + "\n".join(broken)


def test_no_import_bypasses_the_interface_of_a_package():
    broken = bypassing_imports(SOURCE)
    assert not broken, "\n" + "\n".join(broken)


def test_imports_form_no_cycle():
    found = cycle(SOURCE)
    assert not found, "modules import each other in a cycle:\n" + "\n".join(found)


def test_modules_have_one_concept_and_a_docstring():
    broken = faults_of_modules(SOURCE)
    assert not broken, "\n" + "\n".join(broken)


def test_modules_of_packages_are_private():
    public = [
        str(module)
        for name, module in read(SOURCE).items()
        if name != module.package and name.count(".") > 1 and not name.rpartition(".")[2].startswith("_")
    ]
    # pytest imports the plugin by its name.
    assert public == ["src/stageflow/testing/plugin.py"]


def test_diagram_in_contributing_shows_the_imports_between_layers():
    page = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    drawn = page.partition("```mermaid\n")[2].partition("\n```")[0]
    assert drawn == architecture_diagram(SOURCE), architecture_diagram(SOURCE)


def test_import_loads_no_heavy_package():
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
def test_public_names_are_sorted_and_exist(package):
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", ()))
    assert names == sorted(names, key=sort_key), f"{package}.__all__ is not sorted: run `make format`"
    missing = [name for name in names if not hasattr(module, name)]
    assert not missing, f"{package}.__all__ contains names that do not exist: {', '.join(missing)}"


def test_no_public_name_is_also_a_module_of_its_package():
    # The import of such a module, at any time, would replace the name.
    modules = set(read(SOURCE))
    for package in PACKAGES:
        names = getattr(importlib.import_module(package), "__all__", ())
        assert not modules & {f"{package}.{name}" for name in names}


def test_top_level_has_few_names():
    import stageflow

    assert len(stageflow.__all__) <= MAX_TOP_LEVEL_NAMES


# The rules, applied to small packages that break them.


@pytest.fixture
def build(tmp_path):
    def build(files: dict[str, str]) -> Path:
        source = tmp_path / "src" / "stageflow"
        for name, text in {"__init__": "", **files}.items():
            file = source / f"{name}.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f'"""One sentence."""\n{text}\n')
        return source

    return build


@pytest.mark.parametrize(
    "line",
    [
        "from stageflow.pipeline import Pipeline",
        "from ..pipeline import Pipeline",
        "from .. import pipeline",
        "from stageflow import pipeline",
        "import stageflow.pipeline as p",
        "def late():\n    from stageflow.pipeline._graph import StageGraph",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import stageflow.pipeline",
    ],
)
def test_forbidden_import_is_found(build, line):
    source = build({"events/_sink": line, "pipeline/__init__": "", "pipeline/_graph": ""})
    (broken,) = forbidden_imports(source)
    assert broken.startswith("src/stageflow/events/_sink.py:")
    assert "pipeline" in broken
    assert broken.endswith("`events` may import no other package, and the foundation.")


@pytest.mark.parametrize(
    "line",
    [
        "from ._queue import Queue",
        "from ..errors import StageflowError",
        "from stageflow import errors",
        "import stageflow_other",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stageflow.pipeline import Pipeline",
        "import typing\nif typing.TYPE_CHECKING:\n    from ..pipeline import Pipeline",
    ],
)
def test_allowed_import_is_not_reported(build, line):
    source = build({"events/_sink": line, "events/_queue": "", "errors": "", "pipeline/__init__": ""})
    assert forbidden_imports(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "from ..events._sink import EventSink",
        "from ..events import _sink",
        "import stageflow.events._sink",
        "def late():\n    from stageflow.events._sink import EventSink",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..events._sink import EventSink",
    ],
)
def test_import_that_bypasses_a_package_is_found(build, line):
    source = build({"events/__init__": "", "events/_sink": "", "journal/_sink": line})
    (broken,) = bypassing_imports(source)
    assert "journal/_sink.py" in broken
    assert broken.endswith(
        "bypasses `stageflow.events`: import from that package, and export the name there."
    )


def test_import_from_a_package_or_within_it_is_not_reported(build):
    source = build(
        {
            "events/__init__": "from ._sink import EventSink",
            "events/_sink": "",
            "journal/_sink": "from ..events import EventSink\nfrom ..errors import StageflowError",
            "errors": "",
        }
    )
    assert bypassing_imports(source) == []


def test_top_level_package_is_an_interface(build):
    (broken,) = forbidden_imports(build({"events/_sink": "from stageflow import Pipeline"}))
    assert "imports `stageflow`" in broken


def test_foundation_imports_only_modules_below(build):
    assert forbidden_imports(build({"_interrupts": "", "_ids": "from ._interrupts import INTERRUPTS"})) == []
    (broken,) = forbidden_imports(build({"_interrupts": "from . import _ids", "_ids": ""}))
    assert "`_interrupts` may import no other package" in broken


def test_package_missing_in_the_table_is_found(build):
    (broken,) = forbidden_imports(build({"attic/chest": ""}))
    assert "`attic` is not in MAY_IMPORT or FOUNDATION" in broken


def test_cycle_is_reported_in_order(build):
    source = build(
        {
            "events/_a": "from ._b import x",
            "events/_b": "import stageflow.events._c",
            "events/_c": "from . import _a",
        }
    )
    found = cycle(source)
    assert len(found) == 3
    assert any(line.endswith("_b.py:2: `import stageflow.events._c`") for line in found)


def test_package_may_import_its_own_modules(build):
    source = build({"events/__init__": "from ._a import x", "events/_a": "from . import _b", "events/_b": ""})
    assert cycle(source) == []


def test_problems_of_modules_are_found(build):
    source = build({"events/utils": "", "events/_long": "x = 1\n" * MAX_LINES})
    (source / "bare.py").write_text("x = 1\n")
    (source / "two.py").write_text('"""Two sentences. In one line."""\n')
    found = "\n".join(faults_of_modules(source))
    assert "events/utils.py: `utils` is a vague name" in found
    assert f"events/_long.py: {MAX_LINES + 2} lines" in found
    assert "bare.py: no docstring" in found
    assert "two.py: the first line of the docstring is not one sentence" in found


@pytest.mark.parametrize(
    "name",
    ["crash_replay", "export_storm", "journal_storm", "kill_alerts", "kill_demo", "soak", "store_storm"],
)
def test_long_forms_of_tests_have_help(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.{name}", "--help"],
        cwd=SOURCE.parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m tests.{name}")
