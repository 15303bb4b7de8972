"""The archive: a Delta Lake table of Parquet files."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from msgspec import Struct

from .._files import absolute_path, sync_directory
from ..errors import ArchiveDamagedError, MissingExtraError, StageflowError
from ._columns import ATTRIBUTE, Attributes
from ._delta_log import (
    ACTIONS_CHECKSUM,
    DUCKDB_TYPES,
    DeltaLog,
    actions_checksum,
    delta_field,
    restore_hint,
    sync_file,
)

if TYPE_CHECKING:
    from deltalake import DeltaTable, PostCommitHookProperties

__all__ = ["COUNTS", "Archive", "ArchiveFile", "Conflict", "is_remote", "stats_of", "unreadable"]


_CHECKSUM = re.compile(r"\.crc32-([0-9a-f]{8})\.parquet$")


class ArchiveFile(Struct, frozen=True):
    """A file of the table.

    Attributes:
        path: Path relative to the table.
        size: Size in bytes.
        rows: Number of rows.
        day: The day of its events, such as "2026-11-24".
        first_id: The smallest `event_id` in the file; None if unknown.
        last_id: The largest `event_id` in the file; None if unknown.
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
"""Prefix of the names of files that contain counts instead of events."""


def stats_of(file: ArchiveFile) -> str:
    """Return the statistics of a file in the format of a commit: JSON."""
    stats: dict[str, Any] = {"numRecords": file.rows}
    if file.first_id is not None and file.last_id is not None:
        stats |= {"minValues": {"event_id": file.first_id}, "maxValues": {"event_id": file.last_id}}
    return json.dumps(stats)


_CONFIGURATION: dict[str, str | None] = {
    # Keep replaced files for readers that started earlier.
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.logRetentionDuration": "interval 1 days",
    "delta.checkpointInterval": "20",
}

_COMMITS_PER_CHECKPOINT = 20

_MAX_RETRIES = "4"
"""Maximum number of retries of a request to object storage: an outage is reported after about a second."""


class Conflict(Exception):
    """Another process has committed since the table was read."""


def unreadable(address: str, error: PermissionError) -> OSError:
    """Return the error for a file or directory of an archive that this user is not permitted to read."""
    return OSError(
        f"archive {address}: {error.filename} cannot be read: {error.strerror}"
        "\n  hint: grant this user read permission"
    )


def is_remote(address: str) -> bool:
    """Return whether an address refers to object storage: "s3://bucket/events"."""
    return "://" in address


class Archive:
    """A version of the table, and operations on the table.

    Args:
        address: A directory, or a URL such as "s3://bucket/events".
        storage_options: Options for object storage, as `deltalake` accepts them; missing options are read
            from the environment (`AWS_ACCESS_KEY_ID`, ...). `max_retries` is the number of retries of a
            failed request; default 4.

    Attributes:
        version: The version of the table that was read last; -1 if there is no table.
        readable: Whether the last `refresh` succeeded.
    """

    def __init__(self, address: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.address = address if is_remote(address) else absolute_path(address)
        self.storage_options = dict(storage_options or {})
        if is_remote(self.address):
            self.storage_options.setdefault("max_retries", _MAX_RETRIES)
        self._table: DeltaTable | None = None
        self._watermarks: dict[str, int] = {}
        self.log = None if is_remote(self.address) else DeltaLog(self.address)
        self.version = -1
        self.readable = False

    def refresh(self) -> None:
        """Read the current version of the table.

        Raises:
            MissingExtraError: `deltalake` is not installed.
            ArchiveDamagedError: A file of its log is damaged or missing.
            OSError: The table cannot be read.
        """
        self.readable = False
        try:
            self._refresh()
        except PermissionError as error:
            raise unreadable(self.address, error) from error
        self.readable = True

    def _refresh(self) -> None:
        try:
            from deltalake import DeltaTable
            from deltalake.exceptions import TableNotFoundError
        except ModuleNotFoundError as error:
            raise MissingExtraError("the archive", "store") from error
        _check_not_forked()
        if self.log is not None:
            if not self.log.exists() and not self._has_data_files():
                self._forget()  # there is no archive, or it was deleted
                return
            self.log.check()
        try:
            with self._log_errors():
                if self._table is None:
                    self._table = DeltaTable(self.address, storage_options=self.storage_options or None)
                else:
                    self._table.update_incremental()
                if self._table.version() != self.version:
                    self.attributes()  # the schema may be damaged as well
        except TableNotFoundError:
            if self.log is not None and self._has_data_files():
                raise self._lost_log_error() from None
            self._forget()
            return
        if self._table.version() != self.version:
            self.version = self._table.version()
            self._watermarks = {}

    @contextlib.contextmanager
    def _log_errors(self) -> Generator[None]:
        """Convert errors that delta-rs raises while reading a local log to `ArchiveDamagedError`."""
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            yield
        except BaseException as error:
            # Unexpected values make delta-rs panic, which raises a `BaseException`.
            unexpected = isinstance(error, DeltaError | ValueError | LookupError | TypeError | AttributeError)
            unexpected = unexpected or type(error).__name__ == "PanicException"
            ours = isinstance(error, StageflowError | TableNotFoundError)
            if self.log is None or ours or not unexpected:
                raise
            self._forget()
            self.log.check()  # it may have been damaged meanwhile
            message = str(error).partition("\n")[0]  # delta-rs adds a backtrace
            raise ArchiveDamagedError(
                f"archive {self.address}: a commit in {self.log.path}/ cannot be read: {message}",
                files=[self.log.path],
                hint=restore_hint(),
            ) from error

    def _forget(self) -> None:
        self._table = None
        self._watermarks = {}
        self.version = -1
        if self.log is not None:
            self.log.invalidate()

    def _has_data_files(self) -> bool:
        """Return whether a local archive has data files, regardless of its log."""
        try:
            return any(name.endswith(".parquet") for day in self.days() for name in os.listdir(day))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def days(self) -> list[str]:
        """Return the directories of a local archive that contain its files, one per day."""
        try:
            with os.scandir(self.address) as entries:
                return [entry.path for entry in entries if entry.name.startswith("day=")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _lost_log_error(self) -> ArchiveDamagedError:
        path = os.path.join(self.address, "_delta_log")
        return ArchiveDamagedError(
            f"archive {self.address}: the log {path} is missing or empty,"
            " but the archive contains data files",
            files=[path],
            hint=restore_hint(),
        )

    def recover(
        self, archived: Mapping[str, int], has_segments: Callable[[str, int, int], bool]
    ) -> list[str]:
        """Move incomplete files at the end of the log, left by a machine crash, to `_stageflow`.

        Args:
            archived: The last archived sequence of each writer, according to the journal.
            has_segments: Called with a writer and two sequences; returns whether the journal still has the
                segments after the first, up to the second.

        Returns:
            Paths of the moved files.

        Raises:
            ArchiveDamagedError: A durable file is damaged.
            OSError: The log cannot be changed.
        """
        if self.log is None:
            return []
        is_empty = False

        def can_return_to(version: int, undone: Mapping[str, int]) -> bool:
            nonlocal is_empty
            is_empty = version < 0
            return self._can_return_to(version, undone, archived, has_segments)

        moved = self.log.recover(can_return_to)
        if moved:
            if is_empty:
                # No version refers to the data files: move them too, before a new log is created.
                moved += map(self.log.quarantine, self.days())
            self._forget()
        return moved

    def recovery_error(
        self, archived: Mapping[str, int], has_segments: Callable[[str, int, int], bool]
    ) -> ArchiveDamagedError | None:
        """Return the error that `recover` would raise; None if it would succeed. Nothing is changed."""
        if self.log is None or not self.log.exists():
            return None
        return self.log.recovery_error(
            lambda version, undone: self._can_return_to(version, undone, archived, has_segments)
        )

    def _can_return_to(
        self,
        version: int,
        undone: Mapping[str, int],
        archived: Mapping[str, int],
        has_segments: Callable[[str, int, int], bool],
    ) -> bool:
        """Return whether no event is lost if an earlier version becomes the last one."""
        from deltalake import DeltaTable

        earlier = Archive(self.address)
        if version >= 0:
            earlier._table = DeltaTable(self.address, version=version)
        paths = [os.path.join(self.address, *file.path.split("/")) for file in earlier.files()]
        return (
            all(earlier.watermark(writer) >= number for writer, number in archived.items())
            and all(
                has_segments(writer, earlier.watermark(writer), number) for writer, number in undone.items()
            )
            and all(map(os.path.exists, paths))
        )

    # ------------------------------------------------------------ content

    def watermark(self, writer: str) -> int:
        """Return the sequence of a writer's last archived segment; 0 for none."""
        if self._table is None:
            return 0
        if writer not in self._watermarks:
            self._watermarks[writer] = self._table.transaction_version(writer) or 0
        return self._watermarks[writer]

    def attributes(self) -> Attributes:
        """Return the attribute columns and their types."""
        if self._table is None:
            return {}
        return {
            field.name.removeprefix(ATTRIBUTE): DUCKDB_TYPES[field.type.type]
            for field in self._table.schema().fields
            if field.name.startswith(ATTRIBUTE)
        }

    def columns(self) -> dict[str, str]:
        """Return the DuckDB types of all columns, by name."""
        from deltalake.schema import ArrayType

        if self._table is None:
            return {}
        types = {}
        for field in self._table.schema().fields:
            of: Any = field.type
            is_list = isinstance(of, ArrayType)
            types[field.name] = DUCKDB_TYPES[(of.element_type if is_list else of).type] + "[]" * is_list
        return types

    def files(self) -> list[ArchiveFile]:
        """Return the files that make up this version."""
        if self._table is None:
            return []
        with self._log_errors():
            actions = self._table.get_add_actions(flatten=True)
        columns: dict[str, list[Any]] = {
            name: list(actions.column(name).to_pylist()) for name in actions.column_names
        }
        count = len(columns["path"])

        def values(name: str) -> list[Any]:
            return columns.get(name) or [None] * count

        return [
            ArchiveFile(unquote(path), size, rows or 0, str(day), first, last)
            for path, size, rows, day, first, last in zip(
                values("path"),
                values("size_bytes"),
                values("num_records"),
                values("partition.day"),
                values("min.event_id"),
                values("max.event_id"),
                strict=True,
            )
        ]

    # ------------------------------------------------------------ changes

    def prepare(self, columns: Mapping[str, str]) -> None:
        """Create the table if it does not exist, and add missing columns.

        Args:
            columns: DuckDB types of the columns, by name.

        Raises:
            Conflict: Another process did the same meanwhile.
            OSError: The table cannot be written.
        """
        from deltalake import DeltaTable, Schema

        fields = [delta_field(name, type) for name, type in columns.items()]
        if self._table is None:
            if not is_remote(self.address) and unquote(self.address) != self.address:
                raise OSError(
                    f"an archive cannot be in a directory whose name looks percent-encoded: {self.address}"
                )
            if self.log is not None:
                self.log.make_directories()
            _raise_conflict(
                lambda: DeltaTable.create(
                    self.address,
                    schema=Schema(fields),
                    partition_by=["day"],
                    configuration=_CONFIGURATION,
                    storage_options=self.storage_options or None,
                    post_commithook_properties=self._hooks(),
                )
            )
            self._after_commit()
            return
        known = {field.name for field in self._table.schema().fields}
        if missing := [field for field in fields if field.name not in known]:
            table = self._table
            _raise_conflict(
                lambda: table.alter.add_columns(missing, post_commithook_properties=self._hooks())
            )
            self._after_commit()

    def _hooks(self) -> PostCommitHookProperties | None:
        """Return the post-commit hooks of delta-rs: none on a local disk, because delta-rs does not sync."""
        from deltalake import PostCommitHookProperties

        if self.log is None:
            return None
        return PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

    def _after_commit(self) -> None:
        if self.log is not None:
            self.log.sync()  # the next commit builds on this one, and must not survive without it
        self.refresh()

    def commit(
        self,
        added: Iterable[ArchiveFile],
        removed: Iterable[ArchiveFile] = (),
        watermarks: Mapping[str, int] | None = None,
    ) -> None:
        """Add and remove files and set the watermarks of writers, in one commit.

        Args:
            added: Existing files that are not in any version.
            removed: Files of this version. They stay on the disk for processes that are reading them.
            watermarks: The last archived sequence, by writer.

        Raises:
            Conflict: Another process has committed since the table was read; nothing was changed.
            OSError: The table cannot be written.
        """
        from deltalake import CommitProperties, Transaction
        from deltalake.transaction import AddAction, RemoveAction

        table = self._table
        assert table is not None, "call prepare() first"
        added, removed, watermarks = list(added), list(removed), dict(watermarks or {})
        self._sync_files(added)
        now_ms = time.time_ns() // 1_000_000
        actions = [
            AddAction(file.path, file.size, {"day": file.day}, now_ms, True, stats_of(file)) for file in added
        ] + [RemoveAction(file.path, True, now_ms, file.size, {"day": file.day}) for file in removed]
        checksum = actions_checksum(
            [(file.path, file.size) for file in added], [file.path for file in removed], watermarks
        )
        properties = CommitProperties(
            # delta-rs must not retry the commit: rows that were new may no longer be new.
            max_commit_retries=0,
            app_transactions=[Transaction(writer, number) for writer, number in watermarks.items()],
            custom_metadata={ACTIONS_CHECKSUM: checksum},
        )
        _raise_conflict(
            lambda: table.create_write_transaction(
                actions,
                "append",
                table.schema(),
                ["day"],
                commit_properties=properties,
                post_commithook_properties=self._hooks(),
            )
        )
        self._after_commit()

    def remove_unused(self, hours: int = 1) -> int:
        """Delete files that no version of the last `hours` hours contains, and return their number."""
        if self._table is None:
            return 0
        self.sync()  # a crash must not restore a version whose files are deleted
        deleted = self._table.vacuum(
            hours,
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            post_commithook_properties=self._hooks(),
        )
        self._after_commit()
        return len(deleted)

    def shorten_log(self) -> None:
        """Write and sync a checkpoint every 20 commits, and then delete old commits.

        On object storage, delta-rs does this after a commit.

        Raises:
            OSError: The log cannot be changed.
        """
        if self._table is None or self.log is None:
            return
        with self.log.locked() as locked:
            if locked and self.log.is_checkpoint_due(self.version, _COMMITS_PER_CHECKPOINT):
                self._table.create_checkpoint()
                self.log.mark_durable()
                self.log.clean()

    # ------------------------------------------------------------ durability

    def sync(self) -> None:
        """Make this version durable, whichever process committed it; afterwards, segments can be deleted.

        Raises:
            OSError: The version cannot be made durable.
        """
        if self.log is not None and self._table is not None:
            self.log.mark_durable()

    def _sync_files(self, files: Iterable[ArchiveFile]) -> None:
        """Sync files before a commit refers to them."""
        if self.log is None:
            return
        paths = [os.path.join(self.address, *file.path.split("/")) for file in files]
        for path in paths:
            sync_file(path)
        for folder in {self.address, *map(os.path.dirname, paths)}:
            sync_directory(folder)


_process_id: int | None = None
"""The process that first used `deltalake`, whose threads do not survive a fork."""


def _check_not_forked() -> None:
    global _process_id
    if _process_id is None:
        _process_id = os.getpid()
    elif _process_id != os.getpid():
        raise OSError(
            f"process {_process_id} used an archive before it was forked, so this process cannot use one"
            "\n  hint: start it with `spawn`, or open the archive only in the child"
        )


def _raise_conflict(change: Callable[[], object]) -> None:
    from deltalake.exceptions import CommitFailedError, DeltaError

    try:
        change()
    except CommitFailedError as error:
        raise Conflict(str(error)) from error
    except DeltaError as error:
        # If two processes create the table at the same time, only the message of the error identifies the
        # conflict.
        if "already exists" not in str(error):
            raise
        raise Conflict(str(error)) from error
