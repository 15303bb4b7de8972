"""The archive: a Delta Lake table of events, partitioned by day, on a disk or on object storage.

One commit carries the files that come, those that go, and how far each writer's segments are in the
table. So a segment is in it whole or not at all, and once, however many compactors try.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from msgspec import Struct

from ..errors import MissingExtraError
from ..journal.disk import sync, sync_directory
from .attributes import Attributes
from .columns import ATTRIBUTE

if TYPE_CHECKING:
    from deltalake import DeltaTable, Field

__all__ = ["COUNTS", "Archive", "ArchiveFile", "Conflict", "as_os_errors", "is_remote"]

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
        self._synced = -1
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
        _must_not_be_forked()
        if not is_remote(self.address) and not _is_there(self._log):
            self._forget()  # there is none, or somebody has removed it
            return
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
        self._synced = self.version = -1

    @property
    def _log(self) -> str:
        return os.path.join(self.address, "_delta_log")

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
            if not is_remote(self.address) and unquote(self.address) != self.address:
                raise OSError(f"an archive cannot be in a folder whose name looks encoded: {self.address}")
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
            return
        known = {field.name for field in self._table.schema().fields}
        if missing := [field for field in fields if field.name not in known]:
            table = self._table
            _or_conflict(lambda: table.alter.add_columns(missing))
            self.refresh()

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

        table = self._table
        assert table is not None, "prepare() comes first"
        added = list(added)
        self._sync_files(added)
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

    def remove_unused(self, hours: int = 1) -> int:
        """Delete files that no version of the last hours has, and return how many."""
        if self._table is None:
            return 0
        gone = self._table.vacuum(hours, dry_run=False, enforce_retention_duration=False, full=True)
        self.refresh()
        return len(gone)

    # ------------------------------------------------------------ safe against a crash of the machine

    def sync(self) -> None:
        """Return when the disk keeps what this version says, whoever committed it; then segments may go.

        The library leaves that to the kernel, and whoever committed may have died just then.
        """
        if is_remote(self.address) or self._synced == self.version:
            return
        for name in os.listdir(self._log):
            number = name.partition(".")[0]
            if not number.isdecimal() or int(number) > self._synced:
                _sync_file(os.path.join(self._log, name))
        for folder in (self._log, self.address, os.path.dirname(self.address)):
            sync_directory(folder)
        self._synced = self.version

    def _sync_files(self, files: Iterable[ArchiveFile]) -> None:
        """Have the disk keep files before anything says that they are there."""
        if is_remote(self.address):
            return
        paths = [os.path.join(self.address, *file.path.split("/")) for file in files]
        for path in paths:
            _sync_file(path)
        for folder in {self.address, *map(os.path.dirname, paths)}:
            sync_directory(folder)


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _sync_file(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # of a version that is old enough to be cleaned up
        return
    try:
        sync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def as_os_errors(address: str) -> Generator[None]:
    """Tell what the libraries say of a disk, or of a table, as an `OSError` that names the archive."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ not in ("IOException", "OutOfMemoryException", "DeltaError"):
            raise
        raise OSError(f"archive {address}: {str(error).strip()}") from error


_used_by: int | None = None
"""The process in which `deltalake` has begun to work: its threads do not outlive a fork."""


def _must_not_be_forked() -> None:
    global _used_by
    if _used_by is None:
        _used_by = os.getpid()
    elif _used_by != os.getpid():
        raise OSError(
            f"process {_used_by} had used an archive when it was forked: this one cannot"
            "\n  hint: start it with `spawn`, or open the archive in the child alone"
        )


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
