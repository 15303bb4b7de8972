"""The store: events in columns that last, and the questions that can be asked of them."""

from .background import BackgroundCompactor
from .compactor import Compacted, Compactor
from .event_store import EventStore
from .queries import Rows
from .questions import Comparison, ErrorGroup, Side, Slow, Stat

__all__ = [
    "BackgroundCompactor",
    "Compacted",
    "Compactor",
    "Comparison",
    "ErrorGroup",
    "EventStore",
    "Rows",
    "Side",
    "Slow",
    "Stat",
]
