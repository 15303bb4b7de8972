"""The named questions, one a file: SQL over the views of a snapshot, and typed answers."""

from .compare import Comparison, Side, compare
from .errors import ErrorGroup, errors
from .slowest import Slow, slowest
from .stats import Interval, Stat, stats
from .totals import Total, totals
from .volume import Share, Volume, volume

__all__ = [
    "Comparison",
    "ErrorGroup",
    "Interval",
    "Share",
    "Side",
    "Slow",
    "Stat",
    "Total",
    "Volume",
    "compare",
    "errors",
    "slowest",
    "stats",
    "totals",
    "volume",
]
