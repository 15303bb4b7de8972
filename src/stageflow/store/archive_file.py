"""One file of an archive, as its commit describes it."""

from __future__ import annotations

import json
import re
from typing import Any

from msgspec import Struct

__all__ = ["COUNTS", "ArchiveFile", "stats_of"]

_CHECKSUM = re.compile(r"\.crc32-([0-9a-f]{8})\.parquet$")


class ArchiveFile(Struct, frozen=True):
    """One file of the table.

    Attributes:
        path: Relative to the table.
        size: Bytes.
        rows: How many rows it has.
        day: Of its events, as "2026-11-24".
        first_id: The smallest `event_id` in it; None where it is not known.
        last_id: The largest.
    """

    path: str
    size: int
    rows: int
    day: str
    first_id: str | None
    last_id: str | None

    @property
    def has_events(self) -> bool:
        """False for a file of counts."""
        return not self.path.rpartition("/")[2].startswith(COUNTS)

    @property
    def checksum(self) -> int | None:
        """CRC-32 of its content, recorded in its name and thereby in the commit; None if not recorded."""
        found = _CHECKSUM.search(self.path)
        return int(found[1], 16) if found else None


COUNTS = "counts"
"""How the names of files begin that have counts and no events."""


def stats_of(file: ArchiveFile) -> str:
    """Return the statistics of a file in the format of a commit: JSON."""
    stats: dict[str, Any] = {"numRecords": file.rows}
    if file.first_id is not None and file.last_id is not None:
        stats |= {"minValues": {"event_id": file.first_id}, "maxValues": {"event_id": file.last_id}}
    return json.dumps(stats)
