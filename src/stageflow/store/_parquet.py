"""Local paths of an archive's files; files on object storage are downloaded to a cache."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._files import make_private, open_regular
from ..errors import ArchiveDamagedError, MissingExtraError, QueryError
from ._archive import Archive, ArchiveFile, Conflict, is_remote, unreadable
from ._columns import text
from ._delta_log import make_directory, mode_of
from ._rows import escape_glob

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["LocalFiles", "checksum_of", "may_be_damage", "select_rows"]


_ROW_GROUP_SIZE = 40_960
"""Number of rows that a reader reads or skips at a time."""


class LocalFiles:
    """Local paths of an archive's files.

    Files of the table never change, so a cached copy remains valid.

    Args:
        archive: The archive.
        folder: Directory of the cache; default `stageflow` in the cache directory of the user
            (`XDG_CACHE_HOME`).
        max_bytes: Maximum size of the cache; beyond it, the least recently used copies are deleted. Default
            10 GB.
    """

    def __init__(self, archive: Archive, folder: str | None = None, max_bytes: int = 10_000_000_000) -> None:
        self._archive = archive
        self._max_bytes = max_bytes
        self._verified: set[str] = set()
        self.folder = archive.address
        if is_remote(archive.address):
            caches = os.environ.get("XDG_CACHE_HOME", "")
            if not os.path.isabs(caches):  # the XDG specification ignores relative paths
                caches = os.path.join(Path.home(), ".cache")
            own = hashlib.sha256(archive.address.encode()).hexdigest()[:16]
            self.folder = os.path.join(folder or os.path.join(caches, "stageflow"), own)

    def paths(self, files: Iterable[ArchiveFile]) -> list[str]:
        """Return the local paths of files, after downloading missing copies.

        Raises:
            FileNotFoundError: A file was removed.
            ArchiveDamagedError: The size of a file differs from the size recorded in the commit.
            OSError: A file cannot be downloaded.
        """
        files = list(files)
        paths = self.paths_of(files)
        if self._archive.log is not None:
            for file, path in zip(files, paths, strict=True):
                if os.stat(path).st_size != file.size:
                    raise self.error_of([file])
        if is_remote(self._archive.address):
            missing = [
                (file, path)
                for file, path in zip(files, paths, strict=True)
                if not _has_full_size(path, file)
            ]
            if missing:
                self._copy(missing)
                self._evict(set(paths))
        return paths

    def paths_of(self, files: Iterable[ArchiveFile]) -> list[str]:
        """Return the local paths of files, whether they exist or not."""
        return [os.path.join(self.folder, *file.path.split("/")) for file in files]

    def write(self, connection: DuckDBPyConnection, rows: str, prefix: str = "part") -> list[ArchiveFile]:
        """Write rows to new files, which belong to the table once they are committed.

        Args:
            connection: The connection that contains the rows.
            rows: SQL query for the rows.
            prefix: Prefix of the file names.

        Raises:
            OSError: The files cannot be written.
        """
        files = []
        connection.execute(f"create or replace temp view written as {rows}")
        days = connection.execute("select distinct day from written order by day").fetchall()
        # Write one day at a time: DuckDB's partitioned write takes 1.5 times as long.
        for (day,) in days:
            folder = os.path.join(self.folder, f"day={day}")
            name = f"{prefix}-{uuid.uuid4()}"
            path = os.path.join(folder, f"{name}.parquet")
            self._make_directory(folder)
            ((_, count, size, _, columns, *_),) = connection.execute(f"""
                copy (select * exclude (day) from written where day = '{day}' order by type, event_id)
                to {text(path)} (
                    format parquet, compression zstd, row_group_size {_ROW_GROUP_SIZE}, return_stats
                )""").fetchall()
            # The checksum is part of the name, which commits, checkpoints and all readers preserve.
            name += f".crc32-{checksum_of(path):08x}.parquet"
            os.chmod(path, self._file_mode())
            os.rename(path, os.path.join(folder, name))
            files.append(ArchiveFile(f"day={day}/{name}", size, count, str(day), *_ids(columns)))
        if is_remote(self._archive.address):
            remote = _open_store(self._archive.address, self._archive.storage_options)
            for file, path in zip(files, self.paths_of(files), strict=True):
                remote.put(file.path, Path(path))
        return files

    def _make_directory(self, path: str) -> None:
        if self._archive.log is not None:
            make_directory(self._archive.address, path)
        else:
            make_private(path)

    def _file_mode(self) -> int:
        return 0o600 if self._archive.log is None else mode_of(self._archive.address).file

    def add_copies(self, files: Iterable[ArchiveFile], sources: Iterable[str]) -> None:
        """Copy files of another archive to the same paths in this one.

        Raises:
            OSError: The files cannot be read or written.
        """
        files = list(files)
        remote = None
        if is_remote(self._archive.address):
            remote = _open_store(self._archive.address, self._archive.storage_options)
        for file, path, source in zip(files, self.paths_of(files), sources, strict=True):
            if remote is not None:
                remote.put(file.path, Path(source))
                continue
            self._make_directory(os.path.dirname(path))
            shutil.copyfile(source, path)
            os.chmod(path, self._file_mode())

    # ------------------------------------------------------------ damage

    def damage_of(self, file: ArchiveFile) -> str | None:
        """Read a file in full, and return a description of its damage, or None if it is intact.

        A file that is intact is read only once.

        Raises:
            OSError: This user is not permitted to read it.
        """
        (path,) = self.paths_of([file])
        if is_remote(self._archive.address):
            with contextlib.suppress(FileNotFoundError):
                self.paths([file])
        if path in self._verified:
            return None
        try:
            size = os.path.getsize(path)
            if size != file.size:
                return f"has {size:,} bytes instead of {file.size:,}"
            if file.checksum is not None and checksum_of(path) != file.checksum:
                return "does not match its checksum"
        except FileNotFoundError:
            return "is missing"
        except PermissionError as error:  # a repair must not treat it as damaged
            raise unreadable(self._archive.address, error) from error
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if file.checksum is not None:
            self._verified.add(path)
        return None

    def invalidate(self) -> None:
        """Verify every file again."""
        self._verified = set()

    def verify(self, files: Iterable[ArchiveFile]) -> None:
        """Read these files in full and verify their checksums.

        Raises:
            ArchiveDamagedError: A file is damaged or missing.
        """
        if damaged := self.damaged_in(files):
            raise self.error_of(damaged)

    def damaged_in(self, files: Iterable[ArchiveFile]) -> list[ArchiveFile]:
        """Read these files in full, and return those that are damaged or missing."""
        return [file for file in files if self.damage_of(file) is not None]

    def error_of(self, files: list[ArchiveFile]) -> ArchiveDamagedError:
        """Return the error that lists damaged files."""
        paths = self.paths_of(files)
        others = f" (and {len(files) - 1} other files)" if len(files) > 1 else ""
        return ArchiveDamagedError(
            f"archive {self._archive.address}: {files[0].path} {self.damage_of(files[0])}{others}",
            files=paths,
            hint="restore it from a backup, or run `stageflow doctor --repair` to remove it from the archive"
            f" ({sum(file.rows for file in files):,} rows)",
        )

    @contextlib.contextmanager
    def deleted_on_failure(self, files: Iterable[ArchiveFile]) -> Generator[None]:
        """Delete files on this disk that were written in vain, because another write or the commit failed.

        Files are kept if it is unknown whether they were committed.
        """
        import duckdb

        try:
            yield
        except (Conflict, QueryError, duckdb.Error):
            for path in self.paths_of(files):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            raise

    def _copy(self, missing: Iterable[tuple[ArchiveFile, str]]) -> None:
        store = _open_store(self._archive.address, self._archive.storage_options)
        for file, path in missing:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd, temporary = tempfile.mkstemp(prefix=".new-", dir=os.path.dirname(path))
            try:
                with open(fd, "wb") as copy:
                    for chunk in store.get(file.path).stream():
                        copy.write(chunk)
                if not _has_full_size(temporary, file):
                    raise OSError(
                        f"{file.path} of archive {self._archive.address} was downloaded incompletely"
                    )
                os.rename(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise

    def _evict(self, needed: set[str]) -> None:
        copies = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError):
                    found = os.stat(path)
                    copies.append((found.st_atime, found.st_size, path))
        size = sum(each for _, each, _ in copies)
        for _, each, path in sorted(copies):
            if size <= self._max_bytes:
                break
            if path not in needed:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
                size -= each


def _ids(columns: Mapping[str, Mapping[str, str]]) -> tuple[str | None, str | None]:
    """Return the smallest and the largest `event_id` of a file, if DuckDB reports exact values."""
    ids = columns.get('"event_id"', {})
    exact = ids.get("min_is_exact") == ids.get("max_is_exact") == "true"
    return (ids["min"], ids["max"]) if exact else (None, None)


def checksum_of(path: str) -> int:
    """Return the CRC-32 of a file, which detects every single flipped bit, at 1.9 GB/s.

    Raises:
        OSError: The file cannot be read.
    """
    checksum = 0
    with open(open_regular(path), "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _has_full_size(path: str, file: ArchiveFile) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.getsize(path) == file.size
    return False


def _open_store(address: str, options: Mapping[str, str]) -> Any:
    try:
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise MissingExtraError("an archive on object storage", "store") from error
    # Both libraries use the same Rust crate, but obstore has separate arguments for two of the options.
    rest: dict[str, Any] = {key: value for key, value in options.items() if key.upper() != "AWS_ALLOW_HTTP"}
    allow_http = options.get("AWS_ALLOW_HTTP") or os.environ.get("AWS_ALLOW_HTTP") or ""
    return from_url(
        address,
        client_options={"allow_http": allow_http.lower() in ("1", "true")},
        retry_config={"max_retries": int(rest.pop("max_retries"))},
        **rest,
    )


def select_rows(paths: Iterable[str]) -> str | None:
    """Return an SQL expression for all rows of files; None for no files."""
    paths = list(paths)
    if not paths:
        return None
    listed = text(*map(escape_glob, paths))
    if "=" not in os.path.dirname(os.path.dirname(paths[0])):
        return (
            f"read_parquet([{listed}], union_by_name = true, hive_partitioning = true,"
            " hive_types = {'day': DATE})"
        )
    # DuckDB interprets every parent directory of the form `a=b` as a column, even one such as `service=api`
    # above the archive. Derive the day from the path then; a condition on it prunes no files.
    return f"""(select *, regexp_extract(filename, '/day=([^/]*)/[^/]*$', 1)::date as day
        from read_parquet([{listed}], union_by_name = true, hive_partitioning = false))"""


def may_be_damage(error: Exception) -> bool:
    """Return whether a damaged file, rather than the query, may have caused an error."""
    return isinstance(error, FileNotFoundError) or (
        type(error).__module__.partition(".")[0] in ("duckdb", "_duckdb")
        and type(error).__name__
        not in (
            "BinderException",
            "CatalogException",
            "InterruptException",
            "ParserException",
            "SyntaxException",
        )
    )
