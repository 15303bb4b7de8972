"""The types of the public API as mypy and pyright see them: `python -m tests.public_types` writes them."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SNAPSHOTS = {name: ROOT / "tests" / f"public_types_{name}.txt" for name in ("mypy", "pyright")}
PACKAGES = ("stageflow", "stageflow.journal", "stageflow.pipeline", "stageflow.store", "stageflow.testing")
GENERATED = ROOT / "build" / "public_types.py"


def names() -> Iterator[str]:
    """Yield every public name and every public method, with its package; each object once."""
    seen: set[int] = set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{package}.{name}"
            if inspect.isclass(value):
                for method, member in vars(value).items():
                    if not method.startswith("_") and (
                        inspect.isroutine(member) or isinstance(member, classmethod)
                    ):
                        yield f"{package}.{name}.{method}"


def revealed(checker: str) -> str:
    """Return a line with the type of each name, as a checker reveals it."""
    expressions = list(names())
    GENERATED.parent.mkdir(exist_ok=True)
    imports = "".join(f"import {package}\n" for package in PACKAGES)
    GENERATED.write_text(imports + "".join(f"reveal_type({each})\n" for each in expressions))
    first = len(PACKAGES) + 1
    found = dict(_mypy() if checker == "mypy" else _pyright())
    missing = [each for line, each in enumerate(expressions, first) if line not in found]
    if missing:
        raise RuntimeError(f"{checker} reveals no type of {missing}")
    return "".join(f"{each}: {found[line]}\n" for line, each in enumerate(expressions, first))


def _mypy() -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", GENERATED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    for line in done.stdout.splitlines():
        match = re.match(r'[^:]*:(\d+): note: Revealed type is "(.*)"$', line)
        if match:
            # Without modules: where a class is defined is not part of its type for a user.
            yield int(match[1]), with_sorted_keys(re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", match[2]))


def with_sorted_keys(text: str) -> str:
    """Return a type with sorted keys of each TypedDict: their order depends on the cache of mypy."""

    def sort(keys: re.Match[str]) -> str:
        return "{" + ", ".join(sorted(re.split(r", (?='\w+'\??: )", keys[1]))) + "})"

    def sort_parameters(parameters: re.Match[str]) -> str:
        return "def (*, " + ", ".join(sorted(re.split(r", (?=\w+: )", parameters[1]))) + ") -> TypedDict("

    text = re.sub(r"def \(\*, (.*?)\) -> TypedDict\(", sort_parameters, text)
    return re.sub(r"\{('\w+'\??: .*?)\}\)", sort, text)


def _pyright() -> Iterator[tuple[int, str]]:
    command = [sys.executable, "-m", "pyright", "--outputjson", GENERATED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    for each in json.loads(done.stdout)["generalDiagnostics"]:
        match = re.match(r'Type of ".*?" is "(.*)"$', each["message"], re.DOTALL)
        if match:
            yield each["range"]["start"]["line"] + 1, " ".join(match[1].split())


if __name__ == "__main__":
    for checker, path in SNAPSHOTS.items():
        path.write_text(revealed(checker))
        print(f"wrote {path}")
