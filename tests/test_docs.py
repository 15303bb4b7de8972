"""Every Python code block of the README and docs/ prints the documented output, and all links are valid."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import inspect
import io
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stageflow.events import clear_event_sink

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAIN_GUARD = 'if __name__ == "__main__":'
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<prints>.*?)```)?", re.DOTALL)


def matches(expected: str, printed: str) -> bool:
    """Compare two texts; `...` in the expected text matches anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.rstrip().split("..."))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


def with_mark(page: Path) -> Any:
    """Mark the page whose code blocks start a local Ray cluster."""
    marks = [pytest.mark.ray, pytest.mark.timeout(120)] if page.name == "ray.md" else []
    return pytest.param(page, marks=marks, id=page.name)


@pytest.mark.parametrize("page", [with_mark(page) for page in PAGES])
def test_code_blocks_run_and_print_the_documented_output(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    text = page.read_text()
    handlers = [*logging.getLogger().handlers]
    try:
        with asyncio.Runner() as runner:
            for block in BLOCK.finditer(text):
                line = text[: block.start()].count("\n") + 1
                printed = io.StringIO()
                if MAIN_GUARD in block["code"]:
                    printed.write(run_program(block["code"], tmp_path))
                else:
                    with contextlib.redirect_stdout(printed):
                        run_block("\n" * line + block["code"], page.name, namespace, runner)
                if block["prints"] is not None:
                    assert matches(block["prints"], printed.getvalue()), (
                        f"{page.name}:{line} printed\n{printed.getvalue()}"
                    )
        for name, value in list(namespace.items()):
            if name.startswith("test_"):
                value()
    finally:
        clear_event_sink()
        logging.getLogger().handlers[:] = handlers
        if page.name == "ray.md":
            import ray

            ray.shutdown()


def run_program(code: str, folder: Path) -> str:
    """Run a block that is a complete program, as a reader does who saves it to a file; return its output."""
    file = folder / "program.py"
    file.write_text(code)
    done = subprocess.run([sys.executable, file], cwd=folder, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_block(code: str, name: str, namespace: dict[str, Any], runner: asyncio.Runner) -> None:
    """Run a block: on the event loop of its page if it contains `await`, otherwise without an event loop."""
    # The page does not inherit the `from __future__` imports of this file.
    compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:

        async def awaited() -> None:
            await eval(compiled, namespace)

        runner.run(awaited())
    else:
        exec(compiled, namespace)


def sections(page: Path) -> set[str]:
    """Return the anchors that a Markdown renderer creates for the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page whose file or section does not exist."""
    broken = []
    for target, section in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", page.read_text()):
        linked = page.parent / target if target else page
        if not linked.exists() or (section and section not in sections(linked)):
            broken.append(f"{target}#{section}" if section else target)
    return broken


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_links_refer_to_existing_files_and_sections(page: Path) -> None:
    assert not broken_links(page)


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Other page\n\n```sh\n# a comment\n```\n\n## A `code` heading\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md) [b](other.md#a-code-heading) [c](#page) [d](https://example.com/x#y)\n"
        "[e](missing.md) [f](other.md#a-comment) [g](#other-page)\n"
    )
    assert broken_links(page) == ["missing.md", "other.md#a-comment", "#other-page"]


def test_changelog_names_the_packages_that_export_moved_names() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"^\| (`[^|]+) \| `(stageflow\.\w+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 6
    for names, package in rows:
        exported = importlib.import_module(package).__all__
        missing = set(re.findall(r"`(\w+)`", names)) - set(exported)
        assert not missing, f"{package} does not export {missing}"
