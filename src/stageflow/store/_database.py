"""Opens in-memory DuckDB databases with fixed settings, and converts errors of the libraries."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from collections.abc import Generator
from typing import TYPE_CHECKING

from ..errors import MissingExtraError
from ._archive import is_remote
from ._columns import text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["InterruptibleDatabase", "as_os_errors", "duckdb_message", "interruptible", "open_database"]


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """Raise `KeyboardInterrupt` on Ctrl-C; DuckDB raises a `RuntimeError` while a statement runs."""
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":
            raise
        raise KeyboardInterrupt from None


@contextlib.contextmanager
def as_os_errors(address: str) -> Generator[None]:
    """Convert errors of DuckDB and delta-rs about files or tables to an `OSError` that names the archive."""
    try:
        with interruptible():
            yield
    except Exception as error:
        if is_remote(address) and _is_of_object_storage(error) and not str(error).startswith("archive "):
            raise OSError(
                f"archive {address} cannot be reached: {_on_one_line(error)}"
                "\n  hint: check its address, the network and the credentials in the environment"
            ) from error
        if not _is_of_libraries(error) or type(error).__name__ == "InterruptException":
            raise
        raise OSError(f"archive {address}: {duckdb_message(error)}") from error


def _is_of_object_storage(error: Exception) -> bool:
    """Return whether delta-rs or obstore raised an error; delta-rs mostly raises a plain `OSError`."""
    kinds = _kinds(error) & {("_internal", "DeltaError"), ("obstore", "BaseError")}
    return bool(kinds) or (type(error) is OSError and error.errno is None)


def _on_one_line(error: Exception) -> str:
    """Return the text of an error without the terminal colors, line breaks and debug output of delta-rs."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).partition("Debug source")[0].replace("\u21b3", "")
    return " ".join(text.split())


def _is_of_libraries(error: Exception) -> bool:
    """Return whether DuckDB or delta-rs raised an error; a damaged file can cause any of their errors."""
    return bool(_kinds(error) & {("_duckdb", "Error"), ("duckdb", "Error"), ("_internal", "DeltaError")})


def _kinds(error: Exception) -> set[tuple[str, str]]:
    return {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}


def duckdb_message(error: Exception) -> str:
    """Return the text of a DuckDB error, without its advice to change settings, which are locked."""
    message = str(error).strip()
    return message.partition("\n")[0] if type(error).__name__ == "OutOfMemoryException" else message


class InterruptibleDatabase:
    """Opens one database at a time, whose current statement another thread can interrupt."""

    def __init__(self) -> None:
        self._database: DuckDBPyConnection | None = None

    @contextlib.contextmanager
    def open(self) -> Generator[DuckDBPyConnection]:
        """Open a database, and close it when the block ends."""
        with open_database() as database:
            self._database = database
            try:
                yield database
            finally:
                self._database = None

    def interrupt(self) -> None:
        """Interrupt the current statement, if there is one."""
        import duckdb

        if (database := self._database) is not None:
            with contextlib.suppress(duckdb.ConnectionException):  # it was closed meanwhile
                database.interrupt()


def open_database(
    memory: str = "2GB", threads: int | None = None, *, disk: str | None = None
) -> DuckDBPyConnection:
    """Return a new in-memory database, which spills larger data to a temporary directory.

    Args:
        memory: Limit of DuckDB's memory, such as "2GB".
        threads: Number of threads; default one per processor.
        disk: Size limit of the temporary directory; None for DuckDB's default, 90% of the free space.

    Raises:
        MissingExtraError: `duckdb` is not installed.
    """
    try:
        import duckdb
        import pytz  # noqa: F401 - DuckDB requires it to return timestamps
    except ModuleNotFoundError as error:
        raise MissingExtraError("the store", "store") from error
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "memory_limit": memory,
        # Names in a query must never resolve to variables of the Python program.
        "python_enable_replacements": False,
        # The default is `.tmp` in the working directory, which several processes would share.
        "temp_directory": os.path.join(tempfile.gettempdir(), f"stageflow-{secrets.token_hex(8)}"),
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("set timezone = 'UTC'")
    # DuckDB prints a progress bar to standard output. In a notebook without ipywidgets, it is disabled, and
    # setting it raises an error.
    shows = connection.execute("select current_setting('enable_progress_bar')").fetchone()
    if shows is not None and shows[0]:
        connection.execute("set enable_progress_bar = false")
    if disk is not None:  # DuckDB 2.0.0 ignores it in `config`
        connection.execute(f"set max_temp_directory_size = {text(disk)}")
    connection.execute("set parquet_metadata_cache = true")  # a file of an archive never changes
    # A query that needs an order states it.
    connection.execute("set preserve_insertion_order = false")
    return connection
