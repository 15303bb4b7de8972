"""The record on disk."""

from .sink import JournalSink

__all__ = ["JournalSink"]
