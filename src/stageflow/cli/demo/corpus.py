"""The language reference that comes with CPython, cut into passages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Passage", "read_corpus", "words_in"]

_UNDERLINE = re.compile(r"([*=\-~\"'^])\1{2,}")
_GOES_ON = re.compile(r"\s|\* |(?:Changed|New|Deprecated) |See also|(?!class )[a-z]+ ")
"""How a block begins that belongs to the one before it: code, an item, a remark, the rest of a sentence."""
_WORD = re.compile(r"[a-z_]\w*", re.IGNORECASE)


class Passage(NamedTuple):
    """One paragraph of the reference, with the code or the list that belongs to it.

    Attributes:
        topic: What to give to `help()` to read on: `help("yield")`.
        heading: The heading that it stands under.
        text: The passage itself.
    """

    topic: str
    heading: str
    text: str


def read_corpus() -> list[Passage]:
    """Return all passages, each text once.

    Raises:
        ModuleNotFoundError: This Python came without its `pydoc_data`.
    """
    from pydoc_data.topics import topics

    # Some topics contain others whole, so that each reads well by itself: the shortest has the passage.
    by_text: dict[str, Passage] = {}
    for topic, text in sorted(topics.items(), key=lambda item: len(item[1])):
        for passage in _passages(topic, text):
            by_text.setdefault(passage.text, passage)
    return list(by_text.values())


def words_in(text: str) -> list[str]:
    """Return the words and names of a text, lower case.

    Example:
        >>> words_in("What is __init__?")
        ['what', 'is', '__init__']
    """
    return [word.lower() for word in _WORD.findall(text)]


def _passages(topic: str, text: str) -> Iterator[Passage]:
    heading, kept = "", ""
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.strip("\n").split("\n")
        if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1].strip()):
            if kept:
                yield Passage(topic, heading, kept)
            heading, kept = lines[0].strip(), "\n".join(lines[2:])
        elif kept and (_GOES_ON.match(lines[0]) or kept.startswith(" ")):
            kept += "\n\n" + "\n".join(lines)
        else:
            if kept:
                yield Passage(topic, heading, kept)
            kept = "\n".join(lines)
    if kept:
        yield Passage(topic, heading, kept)
