"""The archive: a Delta Lake table of events, partitioned by day, on a disk or on object storage.

One commit carries the files that come, those that go, and how far each writer's segments are in the
table. So a segment is in it whole or not at all, and once, however many compactors try.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from msgspec import Struct

from ..errors import MissingExtraError
from ..journal.disk import sync, sync_directory
from .attributes import Attributes
from .columns import ATTRIBUTE

if TYPE_CHECKING:
    from deltalake import DeltaTable, Field

__all__ = ["COUNTS", "Archive", "ArchiveFile", "Conflict", "is_remote"]

_CONFIGURATION: dict[str, str | None] = {
    # What was replaced stays for readers that began before, and then goes.
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.logRetentionDuration": "interval 1 days",
    "delta.checkpointInterval": "20",
}

_DELTA_TYPES = {
    "VARCHAR": "string",
    "DOUBLE": "double",
    "BIGINT": "long",
    "BOOLEAN": "boolean",
    "TIMESTAMP WITH TIME ZONE": "timestamp",
    "DATE": "date",
}

_DUCKDB_TYPES = {delta: duckdb for duckdb, delta in _DELTA_TYPES.items()}


class Conflict(Exception):
    """Somebody else has committed since the table was read."""


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


COUNTS = "counts"
"""How the names of files begin that have counts and no events."""


def is_remote(address: str) -> bool:
    """Tell whether an address is one of object storage: "s3://bucket/events"."""
    return "://" in address


class Archive:
    """A version of the table, and what can be done to it.

    Args:
        address: A directory, or "s3://bucket/events" and its like.
        storage_options: How to get at object storage, as `deltalake` takes it; what is missing is
            taken from the environment (`AWS_ACCESS_KEY_ID`, ...).

    Attributes:
        version: Of the table as it was last read; -1 where there is none yet.
    """

    def __init__(self, address: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.address = address if is_remote(address) else os.path.abspath(address)
        self.storage_options = dict(storage_options or {})
        self._table: DeltaTable | None = None
        self._watermarks: dict[str, int] = {}
        self.version = -1

    def refresh(self) -> None:
        """Look at the table as it is now.

        Raises:
            MissingExtraError: `deltalake` is not installed.
            OSError: The table cannot be read.
        """
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import TableNotFoundError
        except ModuleNotFoundError as error:
            raise MissingExtraError("the archive", "store") from error
        try:
            if self._table is None:
                self._table = DeltaTable(self.address, storage_options=self.storage_options or None)
            else:
                self._table.update_incremental()
        except TableNotFoundError:
            self._forget()
            return
        if self._table.version() != self.version:
            self.version = self._table.version()
            self._watermarks = {}

    def _forget(self) -> None:
        self._table = None
        self._watermarks = {}
        self.version = -1

    # ------------------------------------------------------------ what is in it

    def watermark(self, writer: str) -> int:
        """Return the sequence up to which a writer's segments are in the table; 0 for none."""
        if self._table is None:
            return 0
        if writer not in self._watermarks:
            self._watermarks[writer] = self._table.transaction_version(writer) or 0
        return self._watermarks[writer]

    def attributes(self) -> Attributes:
        """Return the columns of attributes, and their types."""
        if self._table is None:
            return {}
        return {
            field.name.removeprefix(ATTRIBUTE): _DUCKDB_TYPES[field.type.type]
            for field in self._table.schema().fields
            if field.name.startswith(ATTRIBUTE)
        }

    def files(self) -> list[ArchiveFile]:
        """Return the files that make up this version."""
        if self._table is None:
            return []
        actions = self._table.get_add_actions(flatten=True)
        columns: dict[str, list[Any]] = {
            name: list(actions.column(name).to_pylist()) for name in actions.column_names
        }
        count = len(columns["path"])

        def of(name: str) -> list[Any]:
            return columns.get(name) or [None] * count

        return [
            ArchiveFile(unquote(path), size, rows or 0, str(day), first, last)
            for path, size, rows, day, first, last in zip(
                of("path"),
                of("size_bytes"),
                of("num_records"),
                of("partition.day"),
                of("min.event_id"),
                of("max.event_id"),
                strict=True,
            )
        ]

    # ------------------------------------------------------------ what can be done to it

    def prepare(self, columns: Mapping[str, str]) -> None:
        """Make the table where there is none, and see to it that it has these columns.

        Args:
            columns: Their types, in DuckDB's words, by name.

        Raises:
            Conflict: Somebody else did the same just now.
            OSError: The table cannot be written.
        """
        from deltalake import DeltaTable, Schema

        fields = [_field(name, type) for name, type in columns.items()]
        if self._table is None:
            _or_conflict(
                lambda: DeltaTable.create(
                    self.address,
                    schema=Schema(fields),
                    partition_by=["day"],
                    configuration=_CONFIGURATION,
                    storage_options=self.storage_options or None,
                )
            )
            self.refresh()
            self._sync(-1)
            return
        known = {field.name for field in self._table.schema().fields}
        if missing := [field for field in fields if field.name not in known]:
            table, before = self._table, self.version
            _or_conflict(lambda: table.alter.add_columns(missing))
            self.refresh()
            self._sync(before)

    def commit(
        self,
        added: Iterable[ArchiveFile],
        removed: Iterable[ArchiveFile] = (),
        watermarks: Mapping[str, int] | None = None,
    ) -> None:
        """Let files come and go at once, and write down how far their writers are in the table then.

        Args:
            added: What is there already, and in no version yet.
            removed: What is in this version; it stays on the disk for those who read it.
            watermarks: By writer.

        Raises:
            Conflict: Somebody else has committed since the table was read; nothing was changed.
            OSError: The table cannot be written.
        """
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction, RemoveAction

        table, before = self._table, self.version
        assert table is not None, "prepare() comes first"
        now_ms = time.time_ns() // 1_000_000
        actions = [
            AddAction(file.path, file.size, {"day": file.day}, now_ms, True, _stats(file)) for file in added
        ] + [RemoveAction(file.path, True, now_ms, file.size, {"day": file.day}) for file in removed]
        transactions = [Transaction(writer, number) for writer, number in (watermarks or {}).items()]
        _or_conflict(
            lambda: table.create_write_transaction(
                actions,
                "append",
                table.schema(),
                ["day"],
                # Not tried again by itself: what was found to be new may not be so any more.
                commit_properties=CommitProperties(max_commit_retries=0, app_transactions=transactions),
            )
        )
        self.refresh()
        self._sync(before)

    def remove_unused(self, hours: int = 1) -> int:
        """Delete files that no version of the last hours has, and return how many."""
        if self._table is None:
            return 0
        gone = self._table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
        self.refresh()
        return len(gone)

    # ------------------------------------------------------------ safe against a crash of the machine

    def _sync(self, before: int) -> None:
        """Have the disk keep what was committed since a version: the library leaves that to the kernel."""
        if is_remote(self.address):
            return
        log = os.path.join(self.address, "_delta_log")
        folders = {self.address, log}
        for version in range(before + 1, self.version + 1):
            commit = os.path.join(log, f"{version:020d}.json")
            with open(commit, encoding="utf-8") as file:
                added = [json.loads(line).get("add") for line in file]
            for path in (os.path.join(self.address, unquote(add["path"])) for add in added if add):
                folders.add(os.path.dirname(path))
                _sync_file(path)
            _sync_file(commit)
        for folder in folders:
            sync_directory(folder)


def _sync_file(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # replaced by another commit, and removed
        return
    try:
        sync(fd)
    finally:
        os.close(fd)


def _or_conflict(change: Callable[[], object]) -> None:
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        change()
    except CommitFailedError as error:
        raise Conflict(str(error)) from error
    except DeltaError as error:
        # Of two who make the table at once, the second is told so in words alone.
        if "already exists" not in str(error):
            raise
        raise Conflict(str(error)) from error


def _field(name: str, type: str) -> Field:
    from deltalake import Field
    from deltalake.schema import ArrayType, PrimitiveType

    of = PrimitiveType(_DELTA_TYPES[type.removesuffix("[]")])
    return Field(name, ArrayType(of) if type.endswith("[]") else of)


def _stats(file: ArchiveFile) -> str:
    stats: dict[str, Any] = {"numRecords": file.rows}
    if file.first_id is not None and file.last_id is not None:
        stats |= {"minValues": {"event_id": file.first_id}, "maxValues": {"event_id": file.last_id}}
    return json.dumps(stats)
