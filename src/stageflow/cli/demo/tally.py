"""Counts the words that people ask about, in one SQLite file that every run writes to."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from .corpus import Passage, words_in

__all__ = ["Tally"]

_PASSAGES_AT_ONCE = 80
"""So many passages are counted before what they gave is written."""

_PATIENT = 5.0
"""Seconds to wait for another demo in the same directory."""


class Tally:
    """How often each word of the reference was asked about.

    SQLite lets one writer in at a time. With `timeout=0` the others do not queue up inside it:
    they get `sqlite3.OperationalError: database is locked`, and it is for them to come again.

    Args:
        path: The file; made where there is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._writing(timeout=_PATIENT) as database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS word (word TEXT PRIMARY KEY, passages INT, asked INT DEFAULT 0)"
            )

    def learn(self, passages: Sequence[Passage]) -> None:
        """Write down in how many passages each word stands, in one transaction. It blocks.

        Until it is through, nobody else can write.

        Raises:
            sqlite3.OperationalError: Somebody else was writing all the time.
        """
        with self._writing(timeout=_PATIENT) as database:
            database.execute("UPDATE word SET passages = 0")
            for at in range(0, len(passages), _PASSAGES_AT_ONCE):
                some = passages[at : at + _PASSAGES_AT_ONCE]
                known = Counter(word for passage in some for word in set(words_in(passage.text)))
                _insert(database, list(known.items()))

    def add(self, words: Sequence[str]) -> int:
        """Count `words`, and return how many of them the reference knows.

        Raises:
            sqlite3.OperationalError: Somebody else is writing.
        """
        with self._writing() as database:
            counted = database.execute(
                f"UPDATE word SET asked = asked + 1 WHERE word IN ({', '.join('?' * len(words))})", words
            )
            return counted.rowcount

    @contextmanager
    def _writing(self, timeout: float = 0) -> Generator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=timeout, isolation_level=None)) as database:
            # Nothing is synced to the disk: a count that a power cut takes along is no loss.
            database.execute("PRAGMA synchronous = OFF")
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.execute("ROLLBACK")
                raise
            database.execute("COMMIT")


def _insert(database: sqlite3.Connection, rows: list[tuple[str, int]]) -> None:
    # Many rows a statement: at each one the thread lets go of the interpreter, and waits to have it back.
    for at in range(0, len(rows), 400):
        some = rows[at : at + 400]
        database.execute(
            f"INSERT INTO word(word, passages) VALUES {', '.join(['(?, ?)'] * len(some))}"
            " ON CONFLICT(word) DO UPDATE SET passages = passages + excluded.passages",
            [value for row in some for value in row],
        )
