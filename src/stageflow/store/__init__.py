"""The store: events in columns that last, and the questions that can be asked of them."""

from .background import BackgroundCompactor
from .compactor import Compacted, Compactor
from .event_store import EventStore
from .explanation import explain
from .explanation.difference import Difference, Explanation, LeftOut, Part, Together
from .queries import Rows
from .questions import Comparison, ErrorGroup, Share, Side, Slow, Stat, Total, Volume
from .sampler import SampleRule, TailSampler, read_sampler
from .sampling import Sampled

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
    "SampleRule",
    "Sampled",
    "Share",
    "Side",
    "Slow",
    "Stat",
    "TailSampler",
    "Together",
    "Total",
    "Volume",
    "explain",
    "read_sampler",
]
