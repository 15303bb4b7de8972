"""Creates the views over a consistent state of the archive and the journal, with each event once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from .._failures import FailureOutcomes
from .._time import epoch_us, rfc3339
from ..journal import Journal, Segment, is_complete_since, list_writers
from ..schema import CorrelationIds, PipelineMetadata
from ._archive import Archive, ArchiveFile
from ._columns import AMENDMENTS, ATTRIBUTE, FAILED, SCHEMAS, Attributes, columns_of, quoted, text
from ._merge import count_rows, failed_column, failed_status, merge, sum_counts
from ._parquet import LocalFiles, may_be_damage, select_rows
from ._rows import load_rows
from ._statistics import Volume, volume

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["EVERYTHING", "LONGEST_RUN", "RETRIES", "Scope", "Snapshot", "is_missing_file"]


LONGEST_RUN = timedelta(days=7)
"""Assumed maximum duration of a run. Rows are stored by the day of their start; readers skip earlier days."""

RETRIES = 20
"""How often a reader lists the files again if a listed file has disappeared."""

_JOURNAL_ONLY: Literal["journal"] = "journal"

_State = tuple[object, FailureOutcomes, tuple[tuple[str, int], ...]]


class Scope(Struct, frozen=True):
    """The rows that a query needs. If a part of the archive cannot be read, the rest may suffice.

    Attributes:
        since: RFC 3339; the query needs only events that were written at or after this time; empty for all.
        first_day: The query needs only rows of this day and later, such as "2026-11-24"; empty for all.
        counts: Whether the query reads the `counts` view.
    """

    since: str = ""
    first_day: str = ""
    counts: bool = True

    @classmethod
    def ended_since(cls, time: datetime, *, counts: bool = False) -> Scope:
        """Return the scope of rows that ended at or after a time."""
        first = (time.astimezone(UTC) - LONGEST_RUN).date().isoformat()
        return cls(rfc3339(epoch_us(time.isoformat())), first, counts)

    @classmethod
    def began_since(cls, since: str | None, *, counts: bool = False) -> Scope:
        """Return the scope of rows that started at or after a time (RFC 3339); None for all rows."""
        return cls(since or "", (since or "")[:10], counts)

    def needs(self, file: ArchiveFile) -> bool:
        """Return whether a file may contain rows of the scope."""
        return file.day >= self.first_day and (self.counts or file.has_events)


EVERYTHING = Scope()


class Snapshot:
    """The `events`, `stages`, `runs` and `counts` views of a database, and the files that they read.

    The segments are listed before the archive is read. If a segment is archived in between, its events are
    in the version of the archive that is read, and the segment is ignored. If it is archived later, its
    events are not in that version, and its file still exists; otherwise the files are listed again.

    Args:
        database: The database in which the views are created.
        journal: Directory of the journal; None for the archive alone.
        archive: The archive.
        failures: Called at each refresh; returns which outcomes count as failures.
        max_attributes: Maximum number of attribute columns.
        verify: Whether to verify the checksum of each archive file before reading it.
    """

    def __init__(
        self,
        database: DuckDBPyConnection,
        journal: str | None,
        archive: Archive,
        failures: Callable[[], FailureOutcomes],
        max_attributes: int,
        verify: bool = False,
    ) -> None:
        self._verify = verify
        self._database = database
        self._journal = journal
        self._archive = archive
        self._failures = failures
        self._local = LocalFiles(archive)
        self._max_attributes = max_attributes
        self._state: _State | None = None
        self._files: list[ArchiveFile] = []
        self._damaged: set[str] = set()
        self.weighted = False

    @property
    def folders(self) -> list[str]:
        """The directories that the database must be able to read."""
        return [self._local.folder, *([self._journal] if self._journal is not None else [])]

    def refresh(self) -> None:
        """Load the current state of the journal and the archive.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged or missing.
            OSError: The journal or the archive cannot be read.
        """
        self._refresh(None)

    def refresh_within(self, scope: Scope) -> bool:
        """Load only the rows of a scope, after `refresh` failed because of the archive.

        Returns:
            False if a part of the scope cannot be read.

        Raises:
            OSError: The journal cannot be read.
        """
        can_read = self._archive.readable and self._archive.version >= 0
        if can_read and not any(map(scope.needs, self._damaged_files())):
            try:
                self._refresh(scope)
            except Exception as error:
                if not may_be_damage(error):
                    raise
            else:
                return True
        if self._journal is not None and is_complete_since(self._journal, scope.since):
            self._refresh(_JOURNAL_ONLY)
            return True
        return False

    def _refresh(self, part: Scope | Literal["journal"] | None) -> None:
        """Load everything, the rows of a scope, or the journal without the archive."""
        previous: _State | None = None
        for attempt in range(RETRIES):
            live = self._list_live(include_archived=part == _JOURNAL_ONLY)
            files = [] if part == _JOURNAL_ONLY else self._archive.files()
            known = {} if part == _JOURNAL_ONLY else self._archive.attributes()
            if isinstance(part, Scope):
                files = list(filter(part.needs, files))
            elif part is None and (damaged := self._damaged_files()):
                raise self._local.error_of(damaged)
            state = self._state_of(live, part)
            if state == self._state:
                return
            self._state = None
            try:
                self._load([segment for segment, _ in live], files, known, state[1])
            except Exception as error:
                # A file that is still listed was not replaced by another process: it is missing.
                if attempt == RETRIES - 1 or state == previous or not is_missing_file(error):
                    raise
                previous = state
            else:
                self._state = state
                return

    def _state_of(self, live: list[tuple[Segment, int]], part: Scope | Literal["journal"] | None) -> _State:
        return (
            (self._archive.version, part),
            self._failures(),
            tuple((segment.path, size) for segment, size in live),
        )

    def is_current(self) -> bool:
        """Return whether the journal and the archive are unchanged since all of both was loaded.

        Raises:
            OSError: The journal or the archive cannot be read.
        """
        return self._state == self._state_of(self._list_live(include_archived=False), None)

    def volume(self, cursor: DuckDBPyConnection) -> Volume:
        """Return the size of the loaded events."""
        _, _, live = self._state or (0, (), ())
        files = self._files
        paths = self._local.paths(file for file in files if file.has_events)
        return volume(cursor, files, paths, sum(size for _, size in live))

    def verify(self) -> None:
        """Verify every file of the archive that is not yet known to be intact.

        Raises:
            ArchiveDamagedError: A file is damaged or missing.
        """
        files = self._archive.files()
        self._local.invalidate()  # a file may have been damaged after it was read for the first time
        damaged = self._local.damaged_in(files)
        self._damaged = {file.path for file in damaged}
        if damaged:
            raise self._local.error_of(damaged)

    def _damaged_files(self) -> list[ArchiveFile]:
        """Return the files that were found damaged earlier and still are."""
        if not self._damaged:
            return []
        known = [file for file in self._archive.files() if file.path in self._damaged]
        damaged = self._local.damaged_in(known)
        self._damaged = {file.path for file in damaged}
        return damaged

    @property
    def state(self) -> object:
        """The state that was loaded last; equal if the same files were listed."""
        return self._state

    def invalidate(self) -> None:
        """Load everything again at the next refresh."""
        self._state = None

    def _list_live(self, *, include_archived: bool) -> list[tuple[Segment, int]]:
        """Return the segments that are not in the archive, and their sizes."""
        if self._journal is None:
            self._archive.refresh()
            return []
        with contextlib.suppress(OSError):
            # A process without write permission reads the journal without recovering it.
            Journal(self._journal).recover()
        writers = list_writers(self._journal)
        if not include_archived:
            self._archive.refresh()
        found = []
        for writer, segments in writers.items():
            for segment in segments:
                if include_archived or segment.sequence > self._archive.watermark(writer):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((segment, os.stat(segment.path).st_size))
        return found

    def _load(
        self,
        live: list[Segment],
        files: list[ArchiveFile],
        known: Attributes,
        failures: FailureOutcomes,
    ) -> None:
        database = self._database
        self._files = files
        attributes = load_rows(database, "live", live, known, self._max_attributes)
        if self._verify and (damaged := self._local.damaged_in(files)):
            self._damaged |= {file.path for file in damaged}
            raise self._local.error_of(damaged)
        superseded = merge(database, "live", attributes, files, self._local).superseded
        archived = select_rows(self._local.paths(file for file in files if file.has_events))
        rows = "from live"
        if archived is not None:
            remaining = f" where {superseded.is_current}" if superseded.count else ""
            rows = f"select * from {archived}{remaining} union all by name from live"
        database.execute(f"""
            create or replace view events as select *, {failed_column(failures)} as {FAILED}
            from ({rows}) where type not in ({text(*AMENDMENTS)})""")
        counts = select_rows(self._local.paths(file for file in files if not file.has_events))
        counted = f"({count_rows('live', superseded)})" + (
            f" union all by name from {counts}" if counts else ""
        )
        database.execute(f"""
            create or replace view counts as
            select started_at as hour, topology, pipeline_name, stage_name, status, outcome, service_version,
                sample_rate as count, day,
                {failed_column(failures, is_run="stage_name is null")} as {FAILED}
            from ({sum_counts(counted)})""")
        used = self._used_attributes(attributes)
        self._create_view("stages", "stage.wide", used["stage.wide"])
        self._create_view("runs", "pipeline.wide", used["pipeline.wide"])
        self._create_item_view()
        found = database.execute("select coalesce(max(sample_rate), 1) > 1 from events").fetchone()
        self.weighted = found is not None and bool(found[0])

    def _used_attributes(self, attributes: Attributes) -> dict[str, list[str]]:
        """Return the attributes that events of each type have: those of stages and of runs often differ."""
        used: dict[str, list[str]] = {"stage.wide": [], "pipeline.wide": []}
        counts = "".join(f", count({quoted(ATTRIBUTE + key)})" for key in attributes)
        found = self._database.execute(
            f"select type{counts} from events where type in ({text(*used)}) group by type"
        ).fetchall()
        for type, *of_type in found:
            used[type] = [key for key, count in zip(attributes, of_type, strict=True) if count]
        return used

    def _create_view(self, name: str, type: str, attributes: Iterable[str]) -> None:
        columns = [
            *columns_of(SCHEMAS[type]),
            *(ATTRIBUTE + key for key in attributes),
            FAILED,
            "sample_reason",
            "rest",
            "day",
            "segment",
        ]
        self._database.execute(
            f"create or replace view {name} as select {', '.join(map(quoted, columns))}"
            # A custom event of this name has no schema version.
            f" from events where type = {text(type)} and schema_version is not null"
        )

    def _create_item_view(self) -> None:
        """Create the view of the `stage.item` events, whose fields are in `rest`."""
        ids = [*CorrelationIds.__struct_fields__, *PipelineMetadata.__struct_fields__]
        self._database.execute(f"""
            create or replace view items as
            select {", ".join(ids)}, event_id, stage_name, attempt, rest->>'$.item' as item,
                try_cast(rest->>'$.item_attempt' as bigint) as item_attempt, rest->>'$.status' as status,
                {failed_status("rest->>'$.status'")} as {FAILED},
                try_cast(rest->>'$.duration_ms' as double) as duration_ms, rest->>'$.error' as error,
                rest->>'$.error_type' as error_type, rest->>'$.reason' as reason, emitted_at, day, segment
            from events where type = 'stage.item'""")


def is_missing_file(error: Exception) -> bool:
    """Return whether an error reports that a file does not exist."""
    return isinstance(error, FileNotFoundError) or (
        type(error).__name__ == "IOException"
        and any(part in str(error) for part in ("No files found", "No such file", "Cannot open file"))
    )
