"""The event journal on disk: append, recover after a crash, read by cursor, prune and repair."""

from ._check import (
    CursorState,
    Damage,
    DamagedFile,
    JournalState,
    WriterState,
    cursor_state as cursor_state,
)

# For other packages of stageflow.
from ._cursor import (
    CursorFile as CursorFile,
    Position as Position,
    cursor_lock as cursor_lock,
    cursor_names as cursor_names,
    load_cursor as load_cursor,
    reset_cursor as reset_cursor,
    store_cursor as store_cursor,
)
from ._format import (
    REQUIRED as REQUIRED,
    SAMPLE_DECISION as SAMPLE_DECISION,
    WRITER_CLOSED as WRITER_CLOSED,
    SampleDecision as SampleDecision,
    decode_sample_decision as decode_sample_decision,
    is_timestamp as is_timestamp,
    is_well_formed as is_well_formed,
)
from ._journal import Journal, find_run as find_run, no_run as no_run, several_runs as several_runs
from ._reader import (
    Entry,
    JournalReader,
    Unread as Unread,
    newest_entries as newest_entries,
    unread as unread,
)
from ._recovery import writer_is_alive as writer_is_alive, writer_is_closed as writer_is_closed
from ._repair import Moved, Repaired
from ._retention import (
    Deleted,
    RetentionPolicy as RetentionPolicy,
    is_complete_since as is_complete_since,
    read_deletion_counts as read_deletion_counts,
    read_failures as read_failures,
    write_failures as write_failures,
)
from ._run_filter import OTHER_IDS as OTHER_IDS, Names, RunFilter
from ._run_record import RunRecord, amend as amend
from ._segments import (
    Segment as Segment,
    find_lines as find_lines,
    list_writers as list_writers,
    new_writer as new_writer,
    original_size as original_size,
    read_after as read_after,
    segment_name as segment_name,
)
from ._sink import JournalSink

__all__ = [
    "CursorState",
    "Damage",
    "DamagedFile",
    "Deleted",
    "Entry",
    "Journal",
    "JournalReader",
    "JournalSink",
    "JournalState",
    "Moved",
    "Names",
    "Repaired",
    "RunFilter",
    "RunRecord",
    "WriterState",
]
