"""Builds the documentation site: HTML, the Markdown of each page, `llms.txt` and `llms-full.txt`.

    python tools/site/build.py [--out DIR]

A warning, such as a link to a section that does not exist, is an error.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from api import api_pages, page_of
from diagrams import with_drawn_diagrams

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def assemble(source: Path) -> list[dict[str, Any]]:
    """Write the pages to a directory; return the sections of the navigation."""
    navigation = tomllib.loads((HERE / "navigation.toml").read_text())
    api = navigation["api"]
    generated = {
        "changelog": (ROOT / "CHANGELOG.md").read_text(),
        "contributing": (ROOT / "CONTRIBUTING.md").read_text(),
        **dict(api_pages(ROOT / "src", api["packages"])),
    }
    pages = {path.stem: path.read_text() for path in (ROOT / "docs").glob("*.md")} | generated
    api["pages"] = [page_of(package) for package in api["packages"]]
    sections: list[dict[str, Any]] = [*navigation["section"][:-1], api, navigation["section"][-1]]
    listed = [page for section in sections for page in section["pages"]]
    if problem := set(pages) ^ set(listed) or {page for page in listed if listed.count(page) > 1}:
        sys.exit(f"navigation.toml lists these pages more than once or not at all: {sorted(problem)}")
    for name, text in pages.items():
        (source / f"{name}.md").write_text(with_page_links(text))
    (source / "index.md").write_text(with_page_links(index(sections)))
    shutil.copytree(ROOT / "docs" / "images", source / "images")
    return sections


def with_page_links(text: str) -> str:
    """Return the text of a page with its links changed to pages of the site."""
    text = re.sub(r"\]\((?:\.\./)?(CHANGELOG|CONTRIBUTING)\.md", lambda link: f"]({link[1].lower()}.md", text)
    text = re.sub(r"\]\(LICENSE\)", "](https://spdx.org/licenses/MIT.html)", text)
    return re.sub(r"\]\(docs/", "](", text)


def index(sections: list[dict[str, Any]]) -> str:
    """Return the home page: the README, with the navigation instead of its list of pages."""
    text = (ROOT / "README.md").read_text().partition("\n## Documentation\n")[0]
    parts = [text, "\n## Documentation\n"]
    for section in sections:
        entries = "\n".join(section["pages"])
        parts.append(f"\n```{{toctree}}\n:caption: {section['title']}\n:maxdepth: 1\n\n{entries}\n```\n")
    return "".join(parts)


def write_text_versions(source: Path, out: Path, sections: list[dict[str, Any]]) -> None:
    """Write the Markdown of each page next to its HTML, `llms.txt` and `llms-full.txt`."""
    readme = (ROOT / "README.md").read_text()
    summary = readme.split("\n\n")[1].replace("\n", " ")
    lines, everything = ["# stageflow", "", f"> {summary}", ""], []
    for section in sections:
        lines += [f"## {section['title']}", "", section["about"], ""]
        for page in section["pages"]:
            text = (source / f"{page}.md").read_text()
            (out / f"{page}.md").write_text(text)
            title, about = text.split("\n", 1)[0].lstrip("# "), first_sentence(text)
            lines.append(f"- [{title}]({page}.md)" + (f": {about}" if about else ""))
            everything.append(text.strip())
        lines.append("")
    (out / "llms.txt").write_text("\n".join(lines))
    (out / "llms-full.txt").write_text(
        "\n\n".join([readme.partition("\n## Documentation\n")[0], *everything]) + "\n"
    )
    (out / "index.md").write_text(with_page_links(readme))
    # Sphinx moves images to another directory, but the README on a package index refers to this one.
    shutil.copytree(ROOT / "docs" / "images", out / "images")


def first_sentence(text: str) -> str:
    """Return the first sentence of a page, without links; empty if a code block comes first."""
    for paragraph in re.split(r"\n\n+", text)[1:]:
        if paragraph.startswith("```"):
            return ""
        if re.match(r"[A-Z`\[]", paragraph):
            joined = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.:])\s", joined)[0].rstrip(":")
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "site", help="output directory of the site"
    )
    options = parser.parse_args()
    if shutil.which("dot") is None:
        sys.exit("Graphviz, which draws the diagrams, is not installed: run tools/install-packages as root")
    began = time.monotonic()
    source = options.out.with_name(f"{options.out.name}-source")
    for folder in (source, options.out):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    sections = assemble(source)
    sphinx = (
        sys.executable,
        "-m",
        "sphinx",
        "-b",
        "html",
        "-c",
        HERE,
        "-W",
        "--keep-going",
        "-q",
        "-j",
        "auto",
    )
    doctrees = options.out.with_name(f"{options.out.name}-doctrees")
    write_text_versions(source, options.out, sections)
    for page in source.glob("*.md"):
        page.write_text(with_drawn_diagrams(page.read_text()))
    if subprocess.run([*sphinx, "-d", doctrees, source, options.out], check=False).returncode:
        sys.exit("the documentation has the problems above")
    print(f"{options.out / 'index.html'}: {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
