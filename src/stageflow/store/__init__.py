"""The store: events in columns that last, and the questions that can be asked of them."""

from .background import BackgroundCompactor
from .compactor import Compacted, Compactor
from .difference import Difference, Explanation, LeftOut, Part
from .event_store import EventStore
from .explain import explain
from .queries import Rows
from .questions import Comparison, ErrorGroup, Side, Slow, Stat

__all__ = [
    "BackgroundCompactor",
    "Compacted",
    "Compactor",
    "Comparison",
    "Difference",
    "ErrorGroup",
    "EventStore",
    "Explanation",
    "LeftOut",
    "Part",
    "Rows",
    "Side",
    "Slow",
    "Stat",
    "explain",
]
