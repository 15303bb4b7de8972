"""`PostgresExporter`: inserts each event into PostgreSQL exactly once."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from msgspec import Struct

from .._state_file import decoder
from ..errors import MissingExtraError, describe, invalid_argument
from ..journal import is_timestamp
from ._batch import Batch, ExportEvent
from ._exporter import Exporter, NotSent, Sent, check_name
from ._name import name_of_url
from ._postgres_schema import check_schema, fingerprint, mark_sql, partition_sql, table_sql, view_sql

if TYPE_CHECKING:
    from psycopg import AsyncConnection

__all__ = ["PostgresExporter", "day_of"]


_LOCK = 0x73746167  # "stag"
"""Key of the advisory lock for changes to the tables, which several exporters may attempt concurrently."""

_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")

_COPY = "copy stageflow_batch (day, event_id, revision, type, run_id, data) from stdin (format binary)"
_COPY_TYPES = ("date", "text", "int8", "text", "text", "text")

_TEMPORARY_TABLE = """create temporary table if not exists stageflow_batch (
    position int generated always as identity,
    day date, event_id text, revision bigint, type text, run_id text, data text
) on commit delete rows"""

_TOO_LARGE = "54"
"""Class of the errors for a value that exceeds a limit, such as an id that is too long for an index."""

_NO_PRIVILEGE = "42501"
_ROWS_IN_DEFAULT_PARTITION = "23514"
_DEPENDENT_OBJECTS = "2BP01"


class PostgresExporter(Exporter):
    """Inserts events into the `events` table, partitioned by day, which the `runs` and `stages` views read.

    An event that is already in the table is not inserted again, and counts as a duplicate. The tables and
    views are created and updated when the first batch is sent. A user without the privilege to create them
    can use the tables and views that `stageflow export sql postgres` creates.

    NUL characters, which PostgreSQL cannot store in text, are replaced with U+FFFD.

    Args:
        url: URL of the database: "postgresql://user:password@host/database". libpq's environment variables
            and password file provide what it omits.
        name: Name of the exporter; default one that is derived from the URL.
        schema: Name of the schema with the tables; default "stageflow".

    Raises:
        InvalidArgumentError: The URL, the name or the schema is invalid.
        MissingExtraError: The packages of the `postgres` extra are not installed.

    Example:
        PostgresExporter("postgresql://stageflow@db.example/shop")
    """

    def __init__(self, url: str, *, name: str | None = None, schema: str = "stageflow") -> None:
        if not isinstance(url, str) or urlsplit(url).scheme not in ("postgresql", "postgres"):
            shown = url.partition(":")[0] if isinstance(url, str) else url
            raise invalid_argument("PostgresExporter", "url", shown, "a URL that begins with postgresql://")
        self._psycopg = _psycopg()
        self._schema = check_schema(schema)
        self.name = f"{name_of_url(url)}-{schema}" if name is None else check_name(name)
        self._url = url
        self._connection: AsyncConnection[Any] | None = None
        self._partitions: set[date] = set()

    @property
    def target(self) -> str:
        parts = urlsplit(self._url)
        return f"postgresql://{parts.netloc.rpartition('@')[2]}{parts.path} ({self._schema})"

    async def send(self, batch: Batch) -> Sent:
        errors = self._psycopg
        try:
            connection = await self._connected()
            await self._create_partitions(connection, {day_of(event) for event in batch.events})
            return await self._insert(connection, batch)
        except errors.Error as error:
            if isinstance(error, errors.DataError) or (error.sqlstate or "").startswith(_TOO_LARGE):
                raise NotSent(_message(error), problem="rejected") from None
            await self.close()
            raise NotSent(_message(error)) from None
        except BaseException:  # the state of a connection is unknown after a cancellation
            await self.close()
            raise

    async def _connected(self) -> AsyncConnection[Any]:
        if (known := self._connection) is not None:
            return known
        connection: AsyncConnection[Any] = await self._psycopg.AsyncConnection.connect(
            self._url, connect_timeout=10, autocommit=True, application_name="stageflow-export"
        )
        self._connection = connection
        self._partitions.clear()
        await self._create_tables(connection)
        await connection.execute(_TEMPORARY_TABLE)
        return connection

    async def _create_tables(self, connection: AsyncConnection[Any]) -> None:
        """Create the tables, or update the views, unless they have the current version."""
        schema, current = self._schema, fingerprint(self._schema)
        query = "select to_regclass(%s) is not null, obj_description(to_regclass(%s), 'pg_class')"
        table = f"{schema}.events"
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
            row = await (await connection.execute(query, [table, table])).fetchone()
            exists, version = row or (False, None)
            if exists and version == current:
                return
            try:
                async with connection.transaction():
                    for statement in (*table_sql(schema), *view_sql(schema), mark_sql(schema)):
                        await connection.execute(statement.encode())
            except self._psycopg.Error as error:
                # Events can be inserted without the current views: the owner of the tables updates them.
                if not exists or error.sqlstate not in (_NO_PRIVILEGE, _DEPENDENT_OBJECTS):
                    raise

    async def _create_partitions(self, connection: AsyncConnection[Any], days: set[date]) -> None:
        for day in sorted(days - self._partitions):
            try:
                async with connection.transaction():
                    await connection.execute("select pg_advisory_xact_lock(%s)", [_LOCK])
                    await connection.execute(partition_sql(self._schema, day).encode())
            except self._psycopg.Error as error:
                # The default partition receives the events of this day.
                if error.sqlstate not in (_NO_PRIVILEGE, _ROWS_IN_DEFAULT_PARTITION):
                    raise
            self._partitions.add(day)

    async def _insert(self, connection: AsyncConnection[Any], batch: Batch) -> Sent:
        async with connection.transaction(), connection.cursor() as cursor:
            async with cursor.copy(_COPY) as copy:
                copy.set_types(_COPY_TYPES)
                for event in batch.events:
                    await copy.write_row(
                        (
                            day_of(event),
                            _without_nul(event.id),
                            event.revision,
                            _without_nul(event.type),
                            None if event.run_id is None else _without_nul(event.run_id),
                            _jsonb(event.json),
                        )
                    )
            insert = f"""insert into {self._schema}.events (day, event_id, revision, type, run_id, data)
                select day, event_id, revision, type, run_id, data::jsonb from stageflow_batch
                order by position on conflict do nothing"""
            await cursor.execute(insert.encode())
            return Sent(duplicates=len(batch.events) - cursor.rowcount)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class _Times(Struct, gc=False):
    started_at: object = None
    emitted_at: object = None
    amended_at: object = None


_decode_times = decoder(_Times)

_NO_DAY = date(1970, 1, 1)


def day_of(event: ExportEvent) -> date:
    """Return the day, in UTC, that determines the partition of an event. It is the same in every attempt.

    The day is that of the timestamp in the run id, otherwise of `started_at`, `emitted_at` or `amended_at`,
    otherwise 1970-01-01.
    """
    if (in_id := _day_in_id(event.id)) is not None:
        return in_id
    times = _decode_times(event.json) or _Times()
    for at in (times.started_at, times.emitted_at, times.amended_at):
        if isinstance(at, str) and is_timestamp(at):
            return date.fromisoformat(at[:10])
    return _NO_DAY


def _day_in_id(event_id: str) -> date | None:
    if len(event_id) < 36 or event_id[14] != "7":
        return None
    try:
        known = uuid.UUID(event_id[:36])
        return datetime.fromtimestamp((known.int >> 80) / 1000, UTC).date()
    except (ValueError, OverflowError, OSError):
        return None


def _jsonb(json: bytes) -> str:
    if b"\\u0000" in json:
        json = _NUL.sub(rb"\1\\ufffd", json)
    return json.decode()


def _without_nul(value: str) -> str:
    return value.replace("\0", "\ufffd")


def _message(error: Any) -> str:
    """Return the message of the server, or of the driver, in one line; never the statement or its values."""
    primary = error.diag.message_primary or describe(error)
    lines = str(primary).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:  # psycopg also raises ImportError if libpq is missing
        raise MissingExtraError("a PostgreSQL exporter", "postgres") from error
    return psycopg
