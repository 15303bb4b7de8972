"""Runs a query in a separate process, which is killed when it exceeds its limits.

DuckDB checks for interrupts only between batches of rows. A single function call over a large value (a
regular expression, `list_sort`, `repeat`) does not check, and `memory_limit` does not cover all of its
memory. A process can be killed at any time, and the kernel limits its memory.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

import msgspec
from msgspec import Struct

from .._decodable import decodable
from ..errors import QueryError, StageflowError
from ._queries import Rows, check_timeout
from ._selection import check_encodable

__all__ = ["MEMORY", "query_in_subprocess"]


MEMORY = 2_000_000_000
"""Bytes that DuckDB may use by default."""

_OVERHEAD = 1_000_000_000
"""Bytes that the process may use in addition: the interpreter, rows, memory that DuckDB does not track."""

_MAX_RESULT = 1_000_000_000
"""Maximum size of a result in bytes."""

_READING, _ARCHIVING, _DONE = b"R", b"A", b"D"


class _Request(Struct, frozen=True):
    journal: str | None
    archive: str | None
    sql: str
    limit: int | None
    timeout: float
    memory: int
    disk: str
    verify: bool


def query_in_subprocess(
    journal: str | None,
    archive: str | None,
    sql: str,
    *,
    limit: int | None = 10_000,
    timeout: float = 60.0,
    memory: int = MEMORY,
    disk: str = "10GB",
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Rows:
    """Run one query over a journal and its archive in a separate process with enforced limits.

    Args:
        journal: Directory of the journal; None for the archive alone.
        archive: Address of the archive; None for the archive of the journal.
        sql: The query; see `EventStore.sql`.
        limit: Maximum number of rows; None for all.
        timeout: Seconds for everything except archiving a backlog. This includes about half a second to start
            the process; with a shorter timeout, half of it remains for the query.
        memory: Bytes for DuckDB. The process can use 1 GB more; the kernel enforces this on Linux.
        disk: Size limit of DuckDB's temporary directory, which is always deleted.
        verify: Verify the checksums of archive files before reading them.
        progress: Called with the bytes archived so far and the total, while a backlog is archived.

    Raises:
        QueryError: The query is invalid, or exceeds a limit.
        StageflowError: The journal or the archive cannot be read.
    """
    check_encodable(sql)
    request = _Request(journal, archive, sql, limit, check_timeout(timeout), memory, disk, verify)
    folder = tempfile.mkdtemp(prefix="stageflow-query-")
    try:
        errors = os.path.join(folder, "stderr")
        with open(errors, "wb") as stderr:  # not a pipe: a full pipe would block the child
            child = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "TMPDIR": folder},
            )
        try:
            assert child.stdin is not None
            with contextlib.suppress(BrokenPipeError), child.stdin:
                child.stdin.write(msgspec.json.encode(request))
            result = _receive(child, request, progress, errors)
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if isinstance(result, BaseException):
        raise result
    return result


def _receive(
    child: subprocess.Popen[bytes],
    request: _Request,
    progress: Callable[[int, int], None] | None,
    errors: str,
) -> Rows | BaseException:
    assert child.stdout is not None
    received = _Received(child.stdout)
    started = time.monotonic()
    archiving_since: float | None = None
    deadline: float | None = None
    while True:
        kind = received.read(1, deadline)
        now = time.monotonic()
        if kind == _READING:
            started += now - archiving_since if archiving_since is not None else 0.0
            deadline = max(started + request.timeout, now + request.timeout / 2)
        elif kind == _ARCHIVING:
            archiving_since = now if archiving_since is None else archiving_since
            numbers = received.read(16, None)
            if progress is not None:
                progress(int.from_bytes(numbers[:8], "big"), int.from_bytes(numbers[8:], "big"))
        elif kind == _DONE:
            size = int.from_bytes(received.read(8, None), "big")
            result: Rows | BaseException = pickle.loads(received.read(size, None))
            return result
        elif received.ended:
            return _died(child, request, errors)
        else:
            return QueryError(
                f"no result within {request.timeout:g} s: {request.sql}",
                sql=request.sql,
                hint="narrow the query (day >= '2026-11-24'), or allow more time:"
                " --timeout on the command line, timeout= in a program",
            )


class _Received:
    """Reads from a pipe until a deadline."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._fd = pipe.fileno()
        self.ended = False

    def read(self, size: int, deadline: float | None) -> bytes:
        """Return `size` bytes, or fewer if the pipe is closed or the deadline has passed."""
        chunks = bytearray()
        while len(chunks) < size:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._fd], [], [], left)[0]:
                return b""
            chunk = os.read(self._fd, min(size - len(chunks), 1 << 20))
            if not chunk:
                self.ended = True
                return b""
            chunks += chunk
        return bytes(chunks)


def _died(child: subprocess.Popen[bytes], request: _Request, errors: str) -> QueryError:
    status = child.wait()
    with open(errors, encoding="utf-8", errors="replace") as file:
        lines = file.read().strip().splitlines()
    if status < 0:
        limit = (request.memory + _OVERHEAD) / 1e9
        cause = f"{signal.Signals(-status).name}; its memory is limited to {limit:g} GB"
    else:
        cause = lines[-1] if lines else f"exit code {status}"
    return QueryError(
        f"the query process died ({cause}): {request.sql}",
        sql=request.sql,
        hint="narrow the query, or aggregate before sorting and collecting values",
    )


# ------------------------------------------------------------ in the child


def _serve() -> None:
    # Ctrl-C reaches the whole process group; the parent reports it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=decodable(_Request))
    _limit_memory(request.memory + _OVERHEAD)
    result: Rows | BaseException
    try:
        result = _query(request, out)
    except MemoryError:
        result = QueryError(f"the result does not fit into memory: {request.sql}", sql=request.sql)
    except (StageflowError, OSError, ValueError) as error:
        error.__traceback__ = error.__cause__ = error.__context__ = None
        result = error
    content = pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
    if len(content) > _MAX_RESULT:
        too_large = QueryError(
            f"the result is larger than {_MAX_RESULT / 1e9:g} GB: {request.sql}",
            sql=request.sql,
            hint="limit the rows, or aggregate them",
        )
        content = pickle.dumps(too_large, pickle.HIGHEST_PROTOCOL)
    _write(out, _DONE + len(content).to_bytes(8, "big"))
    _write(out, content)
    os._exit(0)  # the parent has the whole result; do not wait for threads of DuckDB


def _query(request: _Request, out: IO[bytes]) -> Rows:
    from ._event_store import EventStore

    def archiving(done: int, total: int) -> None:
        _write(out, _ARCHIVING + done.to_bytes(8, "big") + total.to_bytes(8, "big"))

    with EventStore(
        request.journal,
        request.archive,
        memory=f"{request.memory}B",
        disk=request.disk,
        timeout=request.timeout + 60.0,  # the parent kills this process earlier
        progress=archiving,
        verify=request.verify,
    ) as store:
        store.maintain()
        _write(out, _READING)
        return store.sql(request.sql, limit=request.limit)


def _write(out: IO[bytes], content: bytes) -> None:
    remaining = memoryview(content)
    while remaining:
        remaining = remaining[out.write(remaining) :]


def _limit_memory(size: int) -> None:
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


if __name__ == "__main__":
    _serve()
