"""What a reader sees at one moment: the archive, and of the journal what is not in it, each event once."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from ..journal import Journal
from ..journal.layout import Segment, list_writers
from .archive import Archive
from .columns import AMENDMENTS, ATTRIBUTE, TYPED, columns_of, quoted, text
from .counts import count_rows, summed
from .merge import merge
from .parquet import LocalFiles, select_rows
from .questions import Volume, volume
from .rows import load_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["RETRIES", "Snapshot", "gone"]

RETRIES = 20
"""How often a reader looks again when what it had listed is gone."""

_Seen = tuple[int, tuple[tuple[str, int], ...]]


class Snapshot:
    """The views `events`, `stages`, `runs` and `counts` of a database, and what they stand on.

    A segment is listed before the archive is looked at. So what went from the journal into the
    archive in between is in the archive's version, and is left out of the journal's part; what goes
    there later is in neither, and its file is still there, or the reader looks again.

    Args:
        database: Where the views are made.
        journal: Directory of the journal; None for the archive alone.
        archive: The archive.
        most_attributes: How many columns attributes may have.
        verify: Whether to verify the checksum of each archive file before reading it.
    """

    def __init__(
        self,
        database: DuckDBPyConnection,
        journal: str | None,
        archive: Archive,
        most_attributes: int,
        verify: bool = False,
    ) -> None:
        self._verify = verify
        self._database = database
        self._journal = journal
        self._archive = archive
        self._local = LocalFiles(archive)
        self._most_attributes = most_attributes
        self._seen: _Seen | None = None
        self.weighted = False

    @property
    def folders(self) -> list[str]:
        """The folders that the database has to read."""
        return [self._local.folder, *([self._journal] if self._journal is not None else [])]

    def refresh(self) -> None:
        """Look at everything as it is now.

        Raises:
            OSError: Something cannot be read.
        """
        for attempt in range(RETRIES):
            live = self._list_live()
            seen: _Seen = (self._archive.version, tuple((segment.path, size) for segment, size in live))
            if seen == self._seen:
                return
            self._seen = None
            try:
                self._load([segment for segment, _ in live])
            except Exception as error:
                if attempt == RETRIES - 1 or not gone(error):
                    raise
            else:
                self._seen = seen
                return

    def volume(self, cursor: DuckDBPyConnection) -> Volume:
        """Return how much there is of what was seen last."""
        _, live = self._seen or (0, ())
        files = self._archive.files()
        paths = self._local.paths(file for file in files if file.has_events)
        return volume(cursor, files, paths, sum(size for _, size in live))

    def must_be_intact(self) -> None:
        """Verify every file of the archive that is not yet known to be intact.

        Raises:
            ArchiveDamagedError: A file is damaged or missing.
        """
        self._local.forget()  # it may have been damaged since it was read first
        self._local.must_be_intact(self._archive.files())

    def forget(self) -> None:
        """Have the next look take nothing for known."""
        self._seen = None

    def _list_live(self) -> list[tuple[Segment, int]]:
        if self._journal is None:
            self._archive.refresh()
            return []
        with contextlib.suppress(OSError):
            # Who may read a journal but not write it sees it as it stands.
            Journal(self._journal).recover()
        writers = list_writers(self._journal)
        self._archive.refresh()
        found = []
        for writer, segments in writers.items():
            for segment in segments:
                if segment.sequence > self._archive.watermark(writer):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((segment, os.stat(segment.path).st_size))
        return found

    def _load(self, live: list[Segment]) -> None:
        database = self._database
        attributes = load_rows(database, "live", live, self._archive.attributes(), self._most_attributes)
        files = self._archive.files()
        if self._verify:
            self._local.must_be_intact(files)
        superseded = merge(database, "live", attributes, files, self._local).superseded
        archived = select_rows(self._local.paths(file for file in files if file.has_events))
        rows = "from live"
        if archived is not None:
            those = f" where {superseded.spares}" if superseded.count else ""
            rows = f"select * from {archived}{those} union all by name from live"
        database.execute(
            f"create or replace view events as select * from ({rows}) where type not in ({text(*AMENDMENTS)})"
        )
        counts = select_rows(self._local.paths(file for file in files if not file.has_events))
        counted = f"({count_rows('live', superseded)})" + (
            f" union all by name from {counts}" if counts else ""
        )
        database.execute(f"""
            create or replace view counts as
            select started_at as hour, topology, pipeline_name, stage_name, status, outcome, service_version,
                sample_rate as count, day
            from ({summed(counted)})""")
        self._make_view("stages", "stage.wide", attributes)
        self._make_view("runs", "pipeline.wide", attributes)
        found = database.execute("select coalesce(max(sample_rate), 1) > 1 from events").fetchone()
        self.weighted = found is not None and bool(found[0])

    def _make_view(self, name: str, type: str, attributes: dict[str, str]) -> None:
        columns = [
            *columns_of(TYPED[type]),
            *(ATTRIBUTE + key for key in attributes),
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
