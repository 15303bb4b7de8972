"""Finds passages: by SQLite's full-text index, or by a plain scan where SQLite has none."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .corpus import Passage, words_in

__all__ = ["FullText", "Hit", "Index", "PlainScan", "open_index"]


class Hit(NamedTuple):
    """A passage that was found; the higher the score, the better it fits."""

    passage: Passage
    score: float


class Index(Protocol):
    """A way to find passages."""

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        """Return the passages with any of `words`, best first."""
        ...

    def match(self, expression: str, limit: int) -> list[Hit]:
        """Return the passages that an FTS5 expression matches, best first."""
        ...

    def close(self) -> None:
        """Let go of what it holds."""
        ...


class FullText:
    """SQLite FTS5: words by their stems, ranked by BM25; topic and heading count for more.

    Raises:
        sqlite3.OperationalError: This SQLite was compiled without FTS5.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._database = sqlite3.connect(":memory:")
        self._database.execute(
            "CREATE VIRTUAL TABLE passage USING fts5(topic, heading, text, tokenize='porter unicode61')"
        )
        self._database.executemany(
            "INSERT INTO passage(rowid, topic, heading, text) VALUES (?, ?, ?, ?)",
            ((number, *passage) for number, passage in enumerate(passages)),
        )

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        return self.match(" OR ".join(f'"{word}"' for word in words), limit) if words else []

    def match(self, expression: str, limit: int) -> list[Hit]:
        rows = self._database.execute(
            "SELECT rowid, -bm25(passage, 4, 3, 1) FROM passage WHERE passage MATCH ?"
            " ORDER BY 2 DESC LIMIT ?",
            (expression, limit),
        ).fetchall()
        return [Hit(self._passages[number], score) for number, score in rows]

    def close(self) -> None:
        self._database.close()


class PlainScan:
    """Reads every passage for every question, in Python; ranks by how many of the words it has."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._read = [(passage, frozenset(words_in(" ".join(passage)))) for passage in passages]

    def search(self, words: Sequence[str], limit: int) -> list[Hit]:
        wanted = set(words)
        hits = [Hit(passage, len(wanted & known)) for passage, known in self._read if wanted & known]
        # Of two that have as many of the words, the shorter one says less beside the point.
        return sorted(hits, key=lambda hit: (-hit.score, len(hit.passage.text)))[:limit]

    def match(self, expression: str, limit: int) -> list[Hit]:
        raise LookupError(f"the expression {expression!r} needs a SQLite with FTS5")

    def close(self) -> None:
        pass


def open_index(passages: Sequence[Passage]) -> tuple[Index, str]:
    """Return the best index that this machine has, and its name in words."""
    try:
        return FullText(passages), f"SQLite {sqlite3.sqlite_version} FTS5"
    except sqlite3.OperationalError as error:
        return PlainScan(passages), f"a plain scan in Python (this SQLite has no full-text search: {error})"
