"""The documentation site: `make docs` builds it without warnings, with a text version of each page."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
import time
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "tools" / "site" / "build.py", "--out", out],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    began = time.monotonic()
    done = build(ROOT, out)
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"built in {time.monotonic() - began:.0f} s")
    return out


class Links(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if (tag == "a" and (link := found.get("href"))) or (tag == "img" and (link := found.get("src"))):
            self.links.append(link)
        if anchor := found.get("id"):
            self.anchors.add(anchor)


@pytest.mark.timeout(120)
def test_links_between_pages_and_anchors_exist(site: Path) -> None:
    pages = {}
    for file in site.glob("*.html"):
        pages[file.name] = Links()
        pages[file.name].feed(file.read_text())
    broken = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"(https?|mailto):", link):
                continue
            target, _, anchor = link.partition("#")
            target = target or name
            if target not in pages:
                if not (site / target).is_file():
                    broken.append(f"{name}: {link}")
            elif anchor and anchor not in pages[target].anchors:
                broken.append(f"{name}: {link}")
    assert not broken
    assert len(pages) > 50


@pytest.mark.timeout(120)
def test_every_page_has_a_text_version_that_llms_txt_lists(site: Path) -> None:
    listed = re.findall(r"^- \[[^]]+\]\((\S+\.md)\)", (site / "llms.txt").read_text(), re.MULTILINE)
    pages = {file.stem for file in site.glob("*.html")} - {"genindex", "search"}
    assert {Path(name).stem for name in listed} | {"index"} == pages
    everything = (site / "llms-full.txt").read_text()
    for name in listed:
        text = (site / name).read_text()
        assert text.startswith("# ")
        assert text.strip() in everything
    assert (site / "llms.txt").read_text().startswith("# stageflow\n\n> stageflow is a Python library")


@pytest.mark.timeout(120)
def test_api_pages_contain_every_public_name(site: Path) -> None:
    packages = tomllib.loads((ROOT / "tools/site/navigation.toml").read_text())["api"]["packages"]
    for package in packages:
        name = package.removeprefix("stageflow.").replace(".", "-")
        headings = re.findall(r"^## (.+)$", (site / f"api-{name}.md").read_text(), re.MULTILINE)
        assert headings == list(importlib.import_module(package).__all__)
    assert "explain(\n    where: str | None = None,\n    *," in (site / "api-store.md").read_text()


@pytest.mark.timeout(120)
def test_link_to_a_missing_section_fails_the_build(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    for name in ("docs", "tools", "src"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "static"))
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    page = root / "docs" / "glossary.md"
    page.write_text(page.read_text() + "\n[nothing](cli.md#no-such-section) and [none](no-such-page.md)\n")
    done = build(root, tmp_path / "site")
    assert done.returncode == 1
    assert "no-such-section" in done.stderr
    assert "no-such-page" in done.stderr
