"""The documentation of the installed version: pages, sections and search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError, did_you_mean

__all__ = ["read_docs"]


_PACKAGE = Path(__file__).parents[1]
_DIRECTORIES = (_PACKAGE / "docs", _PACKAGE.parents[1] / "docs")
"""Locations of the pages: in an installation, and in a checkout."""

_MAX_SECTIONS = 4
_MAX_SECTION = 1_200
"""Maximum length of a section in a result, in characters."""

_ENDING = re.compile(r"(?<=\w{3})(ies|es|s|y|ing|ed)$")
"""English suffixes, removed so that forms of a word match: retry, retries."""

_COMMON = {
    "a",
    "an",
    "and",
    "are",
    "can",
    "do",
    "does",
    "for",
    "how",
    "i",
    "in",
    "is",
    "of",
    "the",
    "to",
    "what",
    "with",
}

_HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)
_CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def read_docs(topic: str | None) -> dict[str, Any]:
    """Return the titles of all pages, the sections of one page, or the sections that best match the words.

    Args:
        topic: Name of a page ("explain"), of a section ("explain#the-result"), or words; None for a list.

    Raises:
        InvalidArgumentError: No section contains the words.
    """
    pages = {path.stem: path for path in sorted(_directory().glob("*.md"))}
    if topic is None:
        return {"pages": {name: _title(path) for name, path in pages.items()}}
    name, _, anchor = topic.strip().removeprefix("docs/").partition("#")
    name = name.removesuffix(".md")
    if name in pages:
        sections = _sections(pages[name])
        if not anchor:
            return {"page": name, "file": str(pages[name]), "sections": [title for title, _ in sections]}
        for title, text in sections:
            if _anchor(title) == _anchor(anchor):
                return {"page": name, "sections": [_section(title, text)]}
        near = did_you_mean(anchor, [_anchor(title) for title, _ in sections])
        raise InvalidArgumentError(f"the page {name} has no section {anchor!r}{near}")
    return _search(pages, topic)


def _search(pages: dict[str, Path], topic: str) -> dict[str, Any]:
    stems = {_ENDING.sub("", word) for word in re.findall(r"[\w.]+", topic.lower()) if word not in _COMMON}
    found = []
    for page, path in pages.items():
        for title, text in _sections(path):
            lowered = text.lower()
            score = sum(
                min(lowered.count(stem), 3) + 4 * (stem in title.lower()) + 2 * (stem in page)
                for stem in stems
            )
            if score:
                found.append((score, -len(text), page, title, text))
    if not found:
        raise InvalidArgumentError(f"no page contains {topic!r}; without a topic, `docs` lists all pages")
    found.sort(reverse=True)
    return {
        "sections": [
            {"page": page} | _section(title, text) for _, _, page, title, text in found[:_MAX_SECTIONS]
        ]
    }


def _section(title: str, text: str) -> dict[str, Any]:
    lines = [text[:_MAX_SECTION]] if len(text) <= _MAX_SECTION else [text[:_MAX_SECTION], "…"]
    return {"title": title, "lines": "\n".join(lines).splitlines()}


def _directory() -> Path:
    for directory in _DIRECTORIES:
        if (directory / "quickstart.md").is_file():
            return directory
    raise InvalidArgumentError("this installation does not contain the documentation")


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()


def _sections(path: Path) -> list[tuple[str, str]]:
    """Return the sections of a page: the heading, and the text up to the next heading."""
    text = path.read_text(encoding="utf-8")
    # A comment in a code block is not a heading.
    headings = list(_HEADING.finditer(_CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)))
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    return [
        (heading[2].strip(), text[heading.end() : end].strip())
        for heading, end in zip(headings, ends, strict=True)
    ]


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")
