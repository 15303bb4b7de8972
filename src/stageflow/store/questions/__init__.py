"""The named questions, one a file: SQL over the views of a snapshot, and typed answers."""

from .compare import Comparison, Side, compare
from .errors import ErrorGroup, errors
from .slowest import Slow, slowest
from .stats import Stat, stats

__all__ = ["Comparison", "ErrorGroup", "Side", "Slow", "Stat", "compare", "errors", "slowest", "stats"]
