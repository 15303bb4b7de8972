"""The DuckDB in memory that does the work: UTC, no downloads, no more memory than it may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingExtraError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["open_database"]


def open_database(memory: str = "2GB", threads: int | None = None) -> DuckDBPyConnection:
    """Return a new database in memory. What does not fit is spilled to a temporary folder.

    Raises:
        MissingExtraError: `duckdb` is not installed.
    """
    try:
        import duckdb
        import pytz  # noqa: F401 - DuckDB asks for it when it hands out a moment
    except ModuleNotFoundError as error:
        raise MissingExtraError("the store", "store") from error
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "memory_limit": memory,
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    connection.execute("set timezone = 'UTC'")
    connection.execute("set parquet_metadata_cache = true")  # a file of an archive never changes
    # Rows of an answer that asked for no order may come in any.
    connection.execute("set preserve_insertion_order = false")
    return connection
