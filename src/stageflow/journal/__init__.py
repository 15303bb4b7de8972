"""The record on disk: written before emission returns, completed after a crash, read by cursor."""

from .check import CursorState, Damage, JournalState, Repaired, WriterState
from .journal import Journal
from .reader import Entry, JournalReader
from .retention import Deleted
from .run_filter import RunFilter
from .sink import JournalSink
from .story import RunStory

__all__ = [
    "CursorState",
    "Damage",
    "Deleted",
    "Entry",
    "Journal",
    "JournalReader",
    "JournalSink",
    "JournalState",
    "Repaired",
    "RunFilter",
    "RunStory",
    "WriterState",
]
