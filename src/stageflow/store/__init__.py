"""The store: archives events in columns, and answers queries over the journal and the archive."""

# Names without an entry in `__all__` are for other packages of stageflow.
from .._explained import (
    Change,
    Difference,
    LeftOut,
    Location,
    Measured,
    Part,
    SameError,
    StageMeasured,
    UnusualValue,
)
from ._address import (
    ADDRESS_FILE as ADDRESS_FILE,
    has_archive as has_archive,
    read_address as read_address,
    same_address as same_address,
)
from ._archive_check import ArchiveState, DamagedFile, RepairedArchive, check_archive, repair_archive
from ._backfill import (
    ArchivePin as ArchivePin,
    pin_archive as pin_archive,
    pinned_archive as pinned_archive,
    unpin_archive as unpin_archive,
)
from ._columns import (
    ATTRIBUTE as ATTRIBUTE,
    COLUMNS as COLUMNS,
    DATA_PATHS as DATA_PATHS,
    FAILED as FAILED,
    columns_of as columns_of,
    quoted as quoted,
    text as text,
)
from ._compactor import BackgroundCompactor, CompactionResult, Compactor
from ._compared import time_range as time_range
from ._comparison import Comparison, Side, SlowRecord
from ._decider import Decider as Decider
from ._decisions import Decision as Decision, Decisions as Decisions, SamplingCounts
from ._error_groups import (
    FAILURE_COLUMNS as FAILURE_COLUMNS,
    ErrorGroup,
    failed_with as failed_with,
    failure_condition as failure_condition,
)
from ._event_store import EventStore
from ._explain import explain
from ._explain._explanation import Explanation
from ._explain._request import ExplainOptions
from ._explain._run_explanation import RunExplanation
from ._explain._selected import (
    explain_one_run as explain_one_run,
    explain_selected as explain_selected,
    may_be_run_id as may_be_run_id,
    select as select,
)
from ._field_names import SYNONYMS as SYNONYMS
from ._findings import OverviewFinding
from ._interruption import Interruption
from ._losses import LostFile
from ._merge import count_if as count_if, percentiles as percentiles, ranked as ranked
from ._move import ForgottenArchive, MovedArchive, forget_archive, move_archive
from ._overview import (
    SUMMARY_COLUMNS as SUMMARY_COLUMNS,
    FirstSighting,
    Overview,
    PipelineSummary,
    RunSummary,
    VersionSummary,
    first_sightings as first_sightings,
    run_summary as run_summary,
)
from ._pinned import PinnedStore
from ._queries import Rows
from ._query_process import query_in_subprocess
from ._sampling import SampleRule, SamplingResult, TailSampler, read_sampler
from ._selection import (
    Over as Over,
    as_predicate as as_predicate,
    compare_with_earlier as compare_with_earlier,
    condition as condition,
    field_sql as field_sql,
    parenthesized as parenthesized,
    resolve_field as resolve_field,
)
from ._snapshot import LONGEST_RUN as LONGEST_RUN
from ._statistics import Share, Stat, Total, Volume

__all__ = [
    "ArchiveState",
    "BackgroundCompactor",
    "Change",
    "CompactionResult",
    "Compactor",
    "Comparison",
    "DamagedFile",
    "Difference",
    "ErrorGroup",
    "EventStore",
    "ExplainOptions",
    "Explanation",
    "FirstSighting",
    "ForgottenArchive",
    "Interruption",
    "LeftOut",
    "Location",
    "LostFile",
    "Measured",
    "MovedArchive",
    "Overview",
    "OverviewFinding",
    "Part",
    "PinnedStore",
    "PipelineSummary",
    "RepairedArchive",
    "Rows",
    "RunExplanation",
    "RunSummary",
    "SameError",
    "SampleRule",
    "SamplingCounts",
    "SamplingResult",
    "Share",
    "Side",
    "SlowRecord",
    "StageMeasured",
    "Stat",
    "TailSampler",
    "Total",
    "UnusualValue",
    "VersionSummary",
    "Volume",
    "check_archive",
    "explain",
    "forget_archive",
    "move_archive",
    "query_in_subprocess",
    "read_sampler",
    "repair_archive",
]
