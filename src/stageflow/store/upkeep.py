"""Order in the archive: small files merged into large ones, what is too old or too much dropped."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby

from msgspec import Struct

from .archive import COUNTS, Archive, ArchiveFile, Conflict
from .counts import summed
from .database import Workplace
from .parquet import LocalFiles, select_rows

__all__ = ["Upkeep"]

_MANY = 8
"""From so many small files of one day on they are merged."""


class Upkeep(Struct, frozen=True, kw_only=True):
    """What is done to an archive after rows came in.

    Attributes:
        archive: The archive.
        workplace: Where files are merged.
        local: Its files.
        max_age: Seconds after which events are dropped, by whole days; None for never.
        max_bytes: Of events; beyond it the oldest days are dropped; None for no bound.
        counts_max_age: Seconds after which exact counts are dropped; None for never.
        target_bytes: Small files are merged until they have about this size.
    """

    archive: Archive
    workplace: Workplace
    local: LocalFiles
    max_age: float | None
    max_bytes: int | None
    counts_max_age: float | None
    target_bytes: int

    def keep_up(self) -> tuple[int, int]:
        """Merge and drop what is due; return how many small files were merged, and how many rows dropped.

        Raises:
            OSError: The archive cannot be written.
        """
        merged = self._merge_small_files()
        dropped = self._drop_old()
        if merged or dropped:
            self.archive.remove_unused()
        self.archive.shorten_log()
        return merged, dropped

    def _merge_small_files(self) -> int:
        merged = 0
        for _, files in groupby(sorted(self.archive.files(), key=_shelf), key=_shelf):
            small = [file for file in files if file.size < self.target_bytes // 2]
            if len(small) >= _MANY:
                with contextlib.suppress(Conflict, FileNotFoundError):  # another time
                    merged += self._merge(small)
        return merged

    def _merge(self, small: Sequence[ArchiveFile]) -> int:
        # Do not rewrite a damaged file: the new checksum would hide the damage.
        small = [file for file in small if self.local.damage_of(file) is None]
        if len(small) < _MANY:
            return 0
        rows = f"from {select_rows(self.local.paths(small))}"
        with self.workplace.open() as database:
            if small[0].has_events:
                written = self.local.write(database, rows)
            else:
                written = self.local.write(database, summed(rows), COUNTS)
        with self.local.taken_back(written):
            self.archive.commit(written, small)
        return len(small)

    def _drop_old(self) -> int:
        events = sorted((file for file in self.archive.files() if file.has_events), key=_shelf)
        size = sum(file.size for file in events)
        oldest = _day_of(self.max_age)
        gone: list[ArchiveFile] = []
        for (_, day), of_day in groupby(events, key=_shelf):
            too_much = self.max_bytes is not None and size > self.max_bytes
            if day >= oldest and not too_much:
                break
            of_this_day = list(of_day)
            gone += of_this_day
            size -= sum(file.size for file in of_this_day)
        oldest = _day_of(self.counts_max_age)
        old_counts = [file for file in self.archive.files() if not file.has_events and file.day < oldest]
        if gone or old_counts:
            try:
                self.archive.commit([], gone + old_counts)
            except Conflict:  # another time
                return 0
        return sum(file.rows for file in gone)


def _shelf(file: ArchiveFile) -> tuple[bool, str]:
    """Return which files may be merged with each other."""
    return file.has_events, file.day


def _day_of(age: float | None) -> str:
    """Return the oldest day that is kept."""
    return "" if age is None else str((datetime.now(UTC) - timedelta(seconds=age)).date())
