"""What all runs share: the passages, the index, the tally."""

from __future__ import annotations

from pathlib import Path

from .corpus import Passage, read_corpus
from .index import Index, open_index
from .tally import Tally

__all__ = ["Desk"]


class Desk:
    """The reference desk, opened for the day.

    Args:
        directory: Where the tally is kept.

    Attributes:
        passages: Every passage of the reference.
        topics: The passages of each topic.
        index: Finds passages.
        index_name: What the index is, in words.
        tally: Counts what was asked.

    Raises:
        ModuleNotFoundError: This Python came without its language reference.
        OSError: The directory cannot be made.
        sqlite3.OperationalError: The tally cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        self.passages = read_corpus()
        self.topics: dict[str, list[Passage]] = {}
        for passage in self.passages:
            self.topics.setdefault(passage.topic, []).append(passage)
        self.index: Index
        self.index, self.index_name = open_index(self.passages)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.tally = Tally(directory / "tally.sqlite3")
