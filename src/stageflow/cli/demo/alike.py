"""Which two passages say nearly the same: real work, and with all of the reference a minute of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

from .corpus import Passage

__all__ = ["Pair", "most_alike"]

_PAIRS_A_TURN = 25
"""So many pairs, about half a millisecond, and others have the loop."""

_WORDS = 60
"""Of longer passages the beginning is compared."""


class Pair(NamedTuple):
    """Two passages, and how alike they are: 0 not at all, 1 word for word."""

    left: Passage
    right: Passage
    ratio: float


async def most_alike(left: Iterable[Passage], right: Iterable[Passage]) -> tuple[Pair | None, int]:
    """Compare each passage of `left` with each of `right`; return the best pair and how many there were.

    Passages of one topic are not compared with each other. It can be cancelled every few pairs.
    """
    best: Pair | None = None
    compared = 0
    others = [(passage, passage.text.split()[:_WORDS]) for passage in right]
    for passage in left:
        # A matcher prepares its second sequence once, for any number of first ones.
        matcher = SequenceMatcher(None, b=passage.text.split()[:_WORDS], autojunk=False)
        for other, words in others:
            if other.topic == passage.topic:
                continue
            compared += 1
            if compared % _PAIRS_A_TURN == 0:
                await asyncio.sleep(0)
            matcher.set_seq1(words)
            least = best.ratio if best else 0.0
            # The quick ones are upper bounds: most pairs need no closer look.
            if matcher.real_quick_ratio() > least and matcher.quick_ratio() > least:
                ratio = matcher.ratio()
                if ratio > least:
                    best = Pair(passage, other, ratio)
    return best, compared
