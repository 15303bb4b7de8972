"""What a reader sees at one moment: the archive, and of the journal what is not in it, each event once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from .._failures import FailureOutcomes
from .._time import epoch_us, rfc3339
from ..journal import Journal, Segment, is_complete_since, list_writers
from ._archive import Archive, ArchiveFile
from ._columns import AMENDMENTS, ATTRIBUTE, FAILURE, TYPED, Attributes, columns_of, quoted, text
from ._merge import count_rows, failure_of, merge, summed
from ._parquet import LocalFiles, may_be_damage, select_rows
from ._rows import load_rows
from ._statistics import Volume, volume

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["EVERYTHING", "LONGEST_RUN", "RETRIES", "Scope", "Snapshot", "gone"]


LONGEST_RUN = timedelta(days=7)
"""A row is stored under the day on which it began: readers of recent rows skip files of earlier days."""

RETRIES = 20
"""How often a reader looks again when what it had listed is gone, and another listing is different."""

_JOURNAL_ALONE: Literal["journal"] = "journal"

_Seen = tuple[object, FailureOutcomes, tuple[tuple[str, int], ...]]


class Scope(Struct, frozen=True):
    """The rows that a question needs: where a part of the archive cannot be read, the rest may suffice.

    Attributes:
        since: RFC 3339: it needs only events that were written at or after this moment; empty for all.
        first_day: It needs only rows of this day and later ones, such as "2026-11-24"; empty for all.
        counts: Whether it reads the view `counts`.
    """

    since: str = ""
    first_day: str = ""
    counts: bool = True

    @classmethod
    def ended_since(cls, moment: datetime, *, counts: bool = False) -> Scope:
        """Return the scope of rows that ended at a moment or later."""
        first = (moment.astimezone(UTC) - LONGEST_RUN).date().isoformat()
        return cls(rfc3339(epoch_us(moment.isoformat())), first, counts)

    @classmethod
    def began_since(cls, since: str | None, *, counts: bool = False) -> Scope:
        """Return the scope of rows that began at a moment (RFC 3339) or later; None for all rows."""
        return cls(since or "", (since or "")[:10], counts)

    def needs(self, file: ArchiveFile) -> bool:
        """Return whether the rows of a file may be among them."""
        return file.day >= self.first_day and (self.counts or file.has_events)


EVERYTHING = Scope()


class Snapshot:
    """The views `events`, `stages`, `runs` and `counts` of a database, and what they stand on.

    A segment is listed before the archive is looked at. So what went from the journal into the
    archive in between is in the archive's version, and is left out of the journal's part; what goes
    there later is in neither, and its file is still there, or the reader looks again.

    Args:
        database: Where the views are made.
        journal: Directory of the journal; None for the archive alone.
        archive: The archive.
        failures: Called before each look: which outcomes count as failures.
        max_attributes: How many columns attributes may have.
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
        self._seen: _Seen | None = None
        self._files: list[ArchiveFile] = []
        self._damaged: set[str] = set()
        self.weighted = False

    @property
    def folders(self) -> list[str]:
        """The folders that the database has to read."""
        return [self._local.folder, *([self._journal] if self._journal is not None else [])]

    def refresh(self) -> None:
        """Look at everything as it is now.

        Raises:
            ArchiveDamagedError: A file of the archive is damaged or missing.
            OSError: Something cannot be read.
        """
        self._look(None)

    def refresh_within(self, scope: Scope) -> bool:
        """Look only at what a question needs, after `refresh` failed because of the archive.

        Returns:
            False if it also needs what cannot be read.

        Raises:
            OSError: The journal cannot be read.
        """
        can_read = self._archive.readable and self._archive.version >= 0
        if can_read and not any(map(scope.needs, self._damaged_files())):
            try:
                self._look(scope)
            except Exception as error:
                if not may_be_damage(error):
                    raise
            else:
                return True
        if self._journal is not None and is_complete_since(self._journal, scope.since):
            self._look(_JOURNAL_ALONE)
            return True
        return False

    def _look(self, part: Scope | Literal["journal"] | None) -> None:
        """Look at everything, at what is in a scope, or at the journal as if there was no archive."""
        lost: _Seen | None = None
        for attempt in range(RETRIES):
            live = self._list_live(alone=part == _JOURNAL_ALONE)
            files = [] if part == _JOURNAL_ALONE else self._archive.files()
            known = {} if part == _JOURNAL_ALONE else self._archive.attributes()
            if isinstance(part, Scope):
                files = list(filter(part.needs, files))
            elif part is None and (damaged := self._damaged_files()):
                raise self._local.error_of(damaged)
            seen: _Seen = (
                (self._archive.version, part),
                self._failures(),
                tuple((segment.path, size) for segment, size in live),
            )
            if seen == self._seen:
                return
            self._seen = None
            try:
                self._load([segment for segment, _ in live], files, known, seen[1])
            except Exception as error:
                # A file that is still listed was not replaced by another process: it is missing.
                if attempt == RETRIES - 1 or seen == lost or not gone(error):
                    raise
                lost = seen
            else:
                self._seen = seen
                return

    def volume(self, cursor: DuckDBPyConnection) -> Volume:
        """Return how much there is of what was seen last."""
        _, _, live = self._seen or (0, (), ())
        files = self._files
        paths = self._local.paths(file for file in files if file.has_events)
        return volume(cursor, files, paths, sum(size for _, size in live))

    def must_be_intact(self) -> None:
        """Verify every file of the archive that is not yet known to be intact.

        Raises:
            ArchiveDamagedError: A file is damaged or missing.
        """
        files = self._archive.files()
        self._local.forget()  # it may have been damaged since it was read first
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
    def seen(self) -> object:
        """What the last look listed; equal for two looks that listed the same files."""
        return self._seen

    def forget(self) -> None:
        """Have the next look take nothing for known."""
        self._seen = None

    def _list_live(self, *, alone: bool) -> list[tuple[Segment, int]]:
        """Return the segments that are not in the archive, or all of them, and their sizes."""
        if self._journal is None:
            self._archive.refresh()
            return []
        with contextlib.suppress(OSError):
            # Who may read a journal but not write it sees it as it stands.
            Journal(self._journal).recover()
        writers = list_writers(self._journal)
        if not alone:
            self._archive.refresh()
        found = []
        for writer, segments in writers.items():
            for segment in segments:
                if alone or segment.sequence > self._archive.watermark(writer):
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
            those = f" where {superseded.spares}" if superseded.count else ""
            rows = f"select * from {archived}{those} union all by name from live"
        database.execute(f"""
            create or replace view events as select *, {failure_of(failures)} as {FAILURE}
            from ({rows}) where type not in ({text(*AMENDMENTS)})""")
        counts = select_rows(self._local.paths(file for file in files if not file.has_events))
        counted = f"({count_rows('live', superseded)})" + (
            f" union all by name from {counts}" if counts else ""
        )
        database.execute(f"""
            create or replace view counts as
            select started_at as hour, topology, pipeline_name, stage_name, status, outcome, service_version,
                sample_rate as count, day,
                {failure_of(failures, is_run="stage_name is null")} as {FAILURE}
            from ({summed(counted)})""")
        self._make_view("stages", "stage.wide", attributes)
        self._make_view("runs", "pipeline.wide", attributes)
        found = database.execute("select coalesce(max(sample_rate), 1) > 1 from events").fetchone()
        self.weighted = found is not None and bool(found[0])

    def _make_view(self, name: str, type: str, attributes: dict[str, str]) -> None:
        columns = [
            *columns_of(TYPED[type]),
            *(ATTRIBUTE + key for key in attributes),
            FAILURE,
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


def gone(error: Exception) -> bool:
    """Tell whether an error says that a file is not there any more."""
    return isinstance(error, FileNotFoundError) or (
        type(error).__name__ == "IOException"
        and any(part in str(error) for part in ("No files found", "No such file", "Cannot open file"))
    )
