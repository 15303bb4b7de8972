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


_CONFIGURATION: dict[str, str | None] = {
    # Keep replaced files for readers that started earlier.
    "delta.deletedFileRetentionDuration": "interval 1 hours",
    "delta.logRetentionDuration": "interval 1 days",
    "delta.checkpointInterval": "20",
}

_COMMITS_PER_CHECKPOINT = 20

_MAX_RETRIES = "4"
"""Of a request to object storage: with backoff, an outage is then reported after about a second."""


class Conflict(Exception):
    """Somebody else has committed since the table was read."""


def unreadable(address: str, error: PermissionError) -> OSError:
    """Return the error for a file or directory of an archive that this user may not read."""
    return OSError(
        f"archive {address}: {error.filename} cannot be read: {error.strerror}"
        "\n  hint: grant this user read permission"
    )


def is_remote(address: str) -> bool:
    """Tell whether an address is one of object storage: "s3://bucket/events"."""
    return "://" in address


class Archive:
    """A version of the table, and what can be done to it.

    Args:
        address: A directory, or "s3://bucket/events" and its like.
        storage_options: How to get at object storage, as `deltalake` takes it; what is missing is
            taken from the environment (`AWS_ACCESS_KEY_ID`, ...). `max_retries` is the number of retries of a
            failed request; default 4.

    Attributes:
        version: Of the table as it was last read; -1 where there is none yet.
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
        """Look at the table as it is now.

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
        _must_not_be_forked()
        if self.log is not None:
            if not self.log.exists() and not self._has_remains():
                self._forget()  # there is none, or somebody has removed it
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
            if self.log is not None and self._has_remains():
                raise self._lost_log() from None
            self._forget()
            return
        if self._table.version() != self.version:
            self.version = self._table.version()
            self._watermarks = {}

    @contextlib.contextmanager
    def _log_errors(self) -> Generator[None]:
        """Raise what delta-rs reports about an intact-looking log on a disk as damage of that log."""
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            yield
        except BaseException as error:
            # Values that it does not expect make it panic, which is no `Exception`.
            unexpected = isinstance(error, DeltaError | ValueError | LookupError | TypeError | AttributeError)
            unexpected = unexpected or type(error).__name__ == "PanicException"
            ours = isinstance(error, StageflowError | TableNotFoundError)
            if self.log is None or ours or not unexpected:
                raise
            self._forget()
            self.log.check()  # it may have been damaged just now
            said = str(error).partition("\n")[0]  # delta-rs adds a backtrace
            raise ArchiveDamagedError(
                f"archive {self.address}: a commit in {self.log.path}/ cannot be read: {said}",
                files=[self.log.path],
                hint=restore_hint(),
            ) from error

    def _forget(self) -> None:
        self._table = None
        self._watermarks = {}
        self.version = -1
        if self.log is not None:
            self.log.forget()

    def _has_remains(self) -> bool:
        """Return whether a local archive contains data files, regardless of its log."""
        try:
            return any(name.endswith(".parquet") for day in self.days() for name in os.listdir(day))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def days(self) -> list[str]:
        """Return the folders of a local archive that hold its files, one a day."""
        try:
            with os.scandir(self.address) as entries:
                return [entry.path for entry in entries if entry.name.startswith("day=")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _lost_log(self) -> ArchiveDamagedError:
        path = os.path.join(self.address, "_delta_log")
        return ArchiveDamagedError(
            f"archive {self.address}: its log {path} is missing or empty, but it contains data files",
            files=[path],
            hint=restore_hint(),
        )

    def recover(self, promised: Mapping[str, int], is_kept: Callable[[str, int, int], bool]) -> list[str]:
        """Move incomplete files at the end of the log, left by a crash of the machine, to `_stageflow`.

        Args:
            promised: Per writer, the last segment that is archived according to the journal.
            is_kept: Called with a writer and two sequences; returns whether the journal still has the
                segments after the first, up to the second.

        Returns:
            Paths of the moved files.

        Raises:
            ArchiveDamagedError: A durable file is damaged.
            OSError: The log cannot be changed.
        """
        if self.log is None:
            return []
        begins_anew = False

        def may_return_to(version: int, undone: Mapping[str, int]) -> bool:
            nonlocal begins_anew
            begins_anew = version < 0
            return self._may_return_to(version, undone, promised, is_kept)

        moved = self.log.recover(may_return_to)
        if moved:
            if (
                begins_anew
            ):  # no version has these files, and the next log shall not be taken for a rest of it
                moved += map(self.log.set_aside, self.days())
            self._forget()
        return moved

    def why_not_recoverable(
        self, promised: Mapping[str, int], is_kept: Callable[[str, int, int], bool]
    ) -> ArchiveDamagedError | None:
        """Return the error that `recover` would raise; None if it would succeed. Nothing is changed."""
        if self.log is None or not self.log.exists():
            return None
        return self.log.why_not_recoverable(
            lambda version, undone: self._may_return_to(version, undone, promised, is_kept)
        )

    def _may_return_to(
        self,
        version: int,
        undone: Mapping[str, int],
        promised: Mapping[str, int],
        is_kept: Callable[[str, int, int], bool],
    ) -> bool:
        """Return whether nothing is lost if a version is the last one again."""
        from deltalake import DeltaTable

        earlier = Archive(self.address)
        if version >= 0:
            earlier._table = DeltaTable(self.address, version=version)
        paths = [os.path.join(self.address, *file.path.split("/")) for file in earlier.files()]
        return (
            all(earlier.watermark(writer) >= number for writer, number in promised.items())
            and all(is_kept(writer, earlier.watermark(writer), number) for writer, number in undone.items())
            and all(map(os.path.exists, paths))
        )

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
            field.name.removeprefix(ATTRIBUTE): DUCKDB_TYPES[field.type.type]
            for field in self._table.schema().fields
            if field.name.startswith(ATTRIBUTE)
        }

    def columns(self) -> dict[str, str]:
        """Return the types of all columns, as DuckDB names them, by name."""
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

        fields = [delta_field(name, type) for name, type in columns.items()]
        if self._table is None:
            if not is_remote(self.address) and unquote(self.address) != self.address:
                raise OSError(f"an archive cannot be in a folder whose name looks encoded: {self.address}")
            if self.log is not None:
                self.log.make_directories()
            _or_conflict(
                lambda: DeltaTable.create(
                    self.address,
                    schema=Schema(fields),
                    partition_by=["day"],
                    configuration=_CONFIGURATION,
                    storage_options=self.storage_options or None,
                    post_commithook_properties=self._hooks(),
                )
            )
            self._committed()
            return
        known = {field.name for field in self._table.schema().fields}
        if missing := [field for field in fields if field.name not in known]:
            table = self._table
            _or_conflict(lambda: table.alter.add_columns(missing, post_commithook_properties=self._hooks()))
            self._committed()

    def _hooks(self) -> PostCommitHookProperties | None:
        """Return the post-commit hooks of delta-rs: none on a local disk, because delta-rs does not sync."""
        from deltalake import PostCommitHookProperties

        if self.log is None:
            return None
        return PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)

    def _committed(self) -> None:
        if self.log is not None:
            self.log.sync()  # the next commit builds on this one, and must not survive without it
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
        _or_conflict(
            lambda: table.create_write_transaction(
                actions,
                "append",
                table.schema(),
                ["day"],
                commit_properties=properties,
                post_commithook_properties=self._hooks(),
            )
        )
        self._committed()

    def remove_unused(self, hours: int = 1) -> int:
        """Delete files that no version of the last hours has, and return how many."""
        if self._table is None:
            return 0
        self.sync()  # a crash must not restore a version whose files are deleted
        gone = self._table.vacuum(
            hours,
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            post_commithook_properties=self._hooks(),
        )
        self._committed()
        return len(gone)

    def shorten_log(self) -> None:
        """Write and sync a checkpoint after every 20 commits, and then delete old commits.

        On object storage delta-rs does the same after a commit.

        Raises:
            OSError: The log cannot be changed.
        """
        if self._table is None or self.log is None:
            return
        with self.log.locked() as alone:
            if alone and self.log.is_checkpoint_due(self.version, _COMMITS_PER_CHECKPOINT):
                self._table.create_checkpoint()
                self.log.mark_durable()
                self.log.clean()

    # ------------------------------------------------------------ durability

    def sync(self) -> None:
        """Make this version durable, whichever process committed it; then segments may be deleted.

        Raises:
            OSError: The version cannot be made durable.
        """
        if self.log is not None and self._table is not None:
            self.log.mark_durable()

    def _sync_files(self, files: Iterable[ArchiveFile]) -> None:
        """Sync files before a commit names them."""
        if self.log is None:
            return
        paths = [os.path.join(self.address, *file.path.split("/")) for file in files]
        for path in paths:
            sync_file(path)
        for folder in {self.address, *map(os.path.dirname, paths)}:
            sync_directory(folder)


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
