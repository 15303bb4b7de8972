"""The store: events in columns that last, and the questions that can be asked of them."""

from .archive_check import ArchiveState, DamagedFile, RepairedArchive, check_archive, repair_archive
from .archive_move import ForgottenArchive, MovedArchive, forget_archive, move_archive
from .background import BackgroundCompactor
from .compactor import Compacted, Compactor
from .event_store import EventStore
from .explanation import explain
from .explanation.difference import Difference, Explanation, LeftOut, Part, Together
from .lost_files import LostFile
from .queries import Rows
from .questions import Comparison, ErrorGroup, Share, Side, Slow, Stat, Total, Volume
from .sampler import SampleRule, TailSampler, read_sampler
from .sampling import Sampled

__all__ = [
    "ArchiveState",
    "BackgroundCompactor",
    "Compacted",
    "Compactor",
    "Comparison",
    "DamagedFile",
    "Difference",
    "ErrorGroup",
    "EventStore",
    "Explanation",
    "ForgottenArchive",
    "LeftOut",
    "LostFile",
    "MovedArchive",
    "Part",
    "RepairedArchive",
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
    "check_archive",
    "explain",
    "forget_archive",
    "move_archive",
    "read_sampler",
    "repair_archive",
]
