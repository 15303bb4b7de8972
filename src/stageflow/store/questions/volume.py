"""How much is stored: events and bytes by day, by type and by field."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from ..archive import ArchiveFile
from ..columns import quoted, text
from ..rows import as_pattern

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["Share", "Volume", "volume"]


class Share(Struct, frozen=True):
    """What a day, a type of events or a field takes of an archive.

    Attributes:
        name: The day, the type or the column.
        events: How many rows there are; of a field, in how many of them it has a value.
        happened: How many wide events there were before sampling; None where that is not counted.
        bytes: Compressed, on the disk. Of a type: what its values take of each column, shared out by
            their number.
    """

    name: str
    events: int
    happened: float | None
    bytes: int


class Volume(Struct, frozen=True):
    """What an archive holds; of the journal what is not archived yet, in bytes.

    Attributes:
        events: Rows of the archive.
        bytes: Of their files.
        count_bytes: Of the files of exact counts.
        journal_bytes: Of segments that are not in the archive, as lines of JSON.
        days: By day, the newest first.
        types: By type, the largest first.
        fields: By column, the largest first.
    """

    events: int
    bytes: int
    count_bytes: int
    journal_bytes: int
    days: list[Share]
    types: list[Share]
    fields: list[Share]


def volume(
    connection: DuckDBPyConnection, files: Sequence[ArchiveFile], paths: Sequence[str], journal_bytes: int
) -> Volume:
    """Return what these files hold.

    Args:
        connection: That has the views.
        files: All files of the archive.
        paths: Where those of them are that have events.
        journal_bytes: See `Volume`.
    """
    held = [file for file in files if file.has_events]
    happened = {
        str(day): count
        for day, count in connection.execute("select day, sum(count) from counts group by 1").fetchall()
    }
    days: dict[str, tuple[int, int]] = {}
    for file in held:
        rows, size = days.get(file.day, (0, 0))
        days[file.day] = (rows + file.rows, size + file.size)
    fields = _bytes_of_columns(connection, paths) if paths else {}
    by_type = _values_by_type(connection, paths, list(fields)) if paths else {}
    values = {name: sum(counts[name] for counts in by_type.values()) for name in fields}
    return Volume(
        sum(file.rows for file in held),
        sum(file.size for file in held),
        sum(file.size for file in files if not file.has_events),
        journal_bytes,
        [
            Share(day, rows, happened.get(day), size)
            for day, (rows, size) in sorted(days.items(), reverse=True)
        ],
        sorted(
            (
                Share(
                    type,
                    counts[""],
                    None,
                    round(sum(fields[name] * counts[name] / values[name] for name in fields if values[name])),
                )
                for type, counts in by_type.items()
            ),
            key=lambda share: -share.bytes,
        ),
        sorted(
            (Share(name, values[name], None, size) for name, size in fields.items()),
            key=lambda share: -share.bytes,
        ),
    )


def _bytes_of_columns(connection: DuckDBPyConnection, paths: Sequence[str]) -> dict[str, int]:
    found = connection.execute(f"""
        select split_part(path_in_schema, ', ', 1) as name, sum(total_compressed_size)::bigint
        from parquet_metadata([{text(*map(as_pattern, paths))}]) group by 1
    """).fetchall()
    return dict(found)


def _values_by_type(
    connection: DuckDBPyConnection, paths: Sequence[str], columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return, for each type, how many rows there are (under ""), and how many values in each column."""
    counted = ", ".join(f"count({quoted(name)})" for name in columns)
    rows = f"read_parquet([{text(*map(as_pattern, paths))}], union_by_name = true, hive_partitioning = false)"
    found = connection.execute(f"select type, count(*), {counted} from {rows} group by 1").fetchall()
    return {type: dict(zip(["", *columns], counts, strict=True)) for type, *counts in found}
