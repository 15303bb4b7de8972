"""Every block of Python in the README and in docs/ runs, and prints what stands below it."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest

from stageflow.events import clear_event_sink

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<prints>.*?)```)?", re.DOTALL)


def matches(expected: str, printed: str) -> bool:
    """Compare line by line; `...` in what is expected stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in expected.rstrip().split("..."))
    return re.fullmatch(pattern, printed.rstrip(), re.DOTALL) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_and_print_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    text = page.read_text()
    try:
        with asyncio.Runner() as runner:
            for block in BLOCK.finditer(text):
                line = text[: block.start()].count("\n") + 1
                printed = io.StringIO()
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


def run_block(code: str, name: str, namespace: dict[str, Any], runner: asyncio.Runner) -> None:
    """Run a block, on the loop of its page where it awaits, without a loop where it does not."""
    # Without the `from __future__` imports of this file, which the page does not have.
    compiled = compile(code, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    if compiled.co_flags & inspect.CO_COROUTINE:

        async def awaited() -> None:
            await eval(compiled, namespace)

        runner.run(awaited())
    else:
        exec(compiled, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
