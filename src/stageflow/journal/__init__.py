"""The record on disk: written before emission returns, completed after a crash, read by cursor."""

from .check import CursorState, Damage, DamagedFile, JournalState, WriterState
from .journal import Journal
from .reader import Entry, JournalReader
from .repair import Moved, Repaired
from .retention import Deleted
from .run_filter import RunFilter
from .sink import JournalSink
from .story import RunStory

__all__ = [
    "CursorState",
    "Damage",
    "DamagedFile",
    "Deleted",
    "Entry",
    "Journal",
    "JournalReader",
    "JournalSink",
    "JournalState",
    "Moved",
    "Repaired",
    "RunFilter",
    "RunStory",
    "WriterState",
]
