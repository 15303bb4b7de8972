"""The record on disk: written before emission returns, completed after a crash, read by cursor."""

from .journal import Journal, RunFilter, RunStory
from .reader import Entry, JournalReader
from .sink import JournalSink

__all__ = ["Entry", "Journal", "JournalReader", "JournalSink", "RunFilter", "RunStory"]
