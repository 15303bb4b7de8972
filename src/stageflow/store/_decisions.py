"""The sampling decisions of a journal: which runs are kept, and up to which position all runs are decided."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from .._decodable import decodable
from .._files import make_private_below
from ..errors import DamagedFileError
from ..journal import Position

__all__ = ["Decision", "Decisions", "SamplingCounts", "Undecided", "has_decisions"]


SAMPLING = "sampling"
"""Name of the directory in a journal."""

_FILE = "decisions.db"
_VERSION = 1
_BUSY_SECONDS = 5.0
"""Time to wait for another process that writes; shorter than the time that `export run` needs to stop."""

_MAX_VALUES = 10_000
"""Number of values in one statement."""

_LATE_SECONDS = 86_400.0
"""Time for which a decision is kept after the events of its run have left the journal."""

_REMEDY = (
    "delete the `sampling` directory of the journal; runs whose events are still in it are decided again"
)

_SCHEMA = """
create table decisions (run_id text primary key, kept int, rate real, reason text,
    writer text, segment int, decided_us int) without rowid;
create index decisions_of_segments on decisions (writer, segment);
create table undecided (run_id text primary key, root_id text, writer text, segment int, offset int,
    last_writer text, last_segment int, seen_us int, failed int, duration_ms real) without rowid;
create index undecided_of_roots on undecided (root_id);
create table elsewhere (run_id text, writer text, segment int, offset int,
    primary key (run_id, writer)) without rowid;
create table positions (writer text primary key, segment int, offset int) without rowid;
create table kinds (pipeline text, outcome text, version text,
    primary key (pipeline, outcome, version)) without rowid;
create table minutes (key text, minute text, runs int, primary key (key, minute)) without rowid;
create table facts (name text primary key, value) without rowid;
"""


def has_decisions(journal: str) -> bool:
    """Return whether a journal has been sampled."""
    return os.path.exists(os.path.join(journal, SAMPLING, _FILE))


class Decision(Struct, frozen=True, gc=False):
    """Whether a run is kept.

    Attributes:
        kept: Whether its events are archived and exported.
        rate: The number of runs that it represents if it is kept.
        reason: Why: the same as `SamplingResult.reason`, or "long" or "incomplete".
    """

    kept: bool
    rate: float = 1.0
    reason: str = ""


class Undecided(Struct, gc=False):
    """A run with events in the journal that has not been decided yet.

    Attributes:
        root_id: Id of its root run; None while its `pipeline.wide` has not been read.
        writer: Name of the writer of its first event.
        segment: Sequence number of the segment with its first event.
        offset: Offset of its first event.
        last_writer: Name of the writer of its last event.
        last_segment: Sequence number of the segment with its last event.
        seen_us: Time of its first event, in microseconds since the epoch.
        failed: Whether it ended as a failure.
        duration_ms: Its duration, if it has ended.
    """

    root_id: str | None
    writer: str
    segment: int
    offset: int
    last_writer: str
    last_segment: int
    seen_us: int
    failed: bool = False
    duration_ms: float = 0.0


class SamplingCounts(Struct, frozen=True):
    """The number of runs that were decided since the sampling of a journal began.

    Attributes:
        kept: Number of runs that are kept, including child runs.
        sampled_out: Number of runs that are not kept.
        undecided: Number of runs that have not been decided yet.
    """

    kept: int = 0
    sampled_out: int = 0
    undecided: int = 0


class Decisions:
    """The index of the decisions of a journal, in a database in its directory.

    One process at a time decides and writes. Any number of processes read. A commit is atomic and durable, so
    the decisions, the undecided runs and the positions up to which the journal was read always match.

    Args:
        journal: Directory of the journal.

    Raises:
        DamagedFileError: The database is damaged. After it is deleted, undecided events are decided again.
        OSError: The database cannot be opened.
    """

    def __init__(self, journal: str) -> None:
        directory = os.path.join(journal, SAMPLING)
        make_private_below(directory)
        self._path = os.path.join(directory, _FILE)
        with self._errors():
            self._database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                self._file = os.stat(self._path)
                self._create()
            except BaseException:
                self._database.close()
                raise

    def _create(self) -> None:
        self._database.execute("pragma synchronous = full")
        if self._version() == _VERSION:
            return  # without a write, for which another process may have to end first
        self._database.execute("pragma journal_mode = wal")
        with self.transaction():
            version = self._version()
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._database.execute(statement)
                self._database.execute(f"pragma user_version = {_VERSION}")
            elif version != _VERSION:
                raise DamagedFileError(self._path, f"version {version} is not supported", hint=_REMEDY)

    def _version(self) -> int:
        ((version,),) = self._database.execute("pragma user_version").fetchall()
        return int(version)

    def _check_file(self) -> None:
        """Raise an error if the database was deleted or replaced: other processes do not see this one."""
        if not os.path.samestat(os.stat(self._path), self._file):
            raise FileNotFoundError(errno.ENOENT, "the sampling decisions were replaced", self._path)

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, unwritable, or the disk is full
            raise OSError(f"sampling decisions {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise DamagedFileError(self._path, str(error), hint=_REMEDY) from error

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """Commit all changes in the block atomically; discard them if it raises."""
        self._check_file()
        with self._errors():
            self._database.execute("begin immediate")
            try:
                yield
                self._database.execute("commit")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._database.execute("rollback")
                raise

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ read

    def _rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with self._errors():
            return self._database.execute(sql, values).fetchall()

    def find(self, runs: Iterable[str]) -> dict[str, Decision]:
        """Return the decisions for these runs; runs without a decision are omitted."""
        return {
            run: Decision(bool(kept), rate, reason)
            for values in _chunks(runs)
            for run, kept, rate, reason in self._rows(
                f"select run_id, kept, rate, reason from decisions where run_id in ({_marks(values)})",
                *values,
            )
        }

    def decided_until(self) -> dict[str, Position]:
        """Return the position in the segments of each writer before which all runs are decided."""
        self._check_file()
        found = self._rows("""
            select writer, segment, offset, 0 as is_read from undecided
            union all select writer, segment, offset, 0 from elsewhere
            union all select writer, segment, offset, 1 from positions
        """)
        read: dict[str, Position] = {}
        waiting: dict[str, Position] = {}
        for writer, segment, offset, is_read in found:
            of_kind, at = (read if is_read else waiting), (segment, offset)
            of_kind[writer] = min(at, of_kind.get(writer, at))
        return {writer: min(at, waiting.get(writer, at)) for writer, at in read.items()}

    def positions(self) -> dict[str, Position]:
        """Return up to which position the journal was read."""
        found = self._rows("select writer, segment, offset from positions")
        return {str(writer): (segment, offset) for writer, segment, offset in found}

    def counts(self) -> SamplingCounts:
        """Return the number of decided and undecided runs."""
        ((undecided,),) = self._rows("select count(*) from undecided")
        return SamplingCounts(self._count("kept"), self._count("sampled_out"), undecided)

    def _count(self, name: str) -> int:
        found = self.fact(name)
        return int(found) if found else 0

    def fact(self, name: str) -> str | None:
        """Return a stored value, or None."""
        found = self._rows("select value from facts where name = ?", name)
        return str(found[0][0]) if found else None

    def undecided(self, runs: Iterable[str]) -> dict[str, Undecided]:
        """Return those of the given runs that are known and undecided."""
        return self._undecided_with("run_id", runs)

    def undecided_of_roots(self, roots: Iterable[str]) -> dict[str, Undecided]:
        """Return the undecided runs with these root runs."""
        return self._undecided_with("root_id", roots)

    def seen_before(self, seen_us: int) -> dict[str, Undecided]:
        """Return the undecided runs whose first event is older than a time."""
        return self._undecided("seen_us <= ?", seen_us)

    def without_root(self) -> dict[str, Undecided]:
        """Return the undecided runs whose `pipeline.wide` has not been read."""
        return self._undecided("root_id is null")

    def oldest_undecided(self, beyond: int) -> dict[str, Undecided]:
        """Return the undecided runs that exceed a number, oldest first."""
        return self._undecided("true order by seen_us desc limit -1 offset ?", beyond)

    def writers_elsewhere(self) -> dict[str, list[str]]:
        """Return, for each undecided run with events of several writers, the writers after the first one."""
        found: dict[str, list[str]] = {}
        for run, writer in self._rows("select run_id, writer from elsewhere"):
            found.setdefault(str(run), []).append(str(writer))
        return found

    def _undecided_with(self, column: str, values: Iterable[str]) -> dict[str, Undecided]:
        found: dict[str, Undecided] = {}
        for chunk in _chunks(values):
            found |= self._undecided(f"{column} in ({_marks(chunk)})", *chunk)
        return found

    def _undecided(self, condition: str, *values: object) -> dict[str, Undecided]:
        found = self._rows(
            f"select run_id, {', '.join(Undecided.__struct_fields__)} from undecided where {condition}",
            *values,
        )
        names = Undecided.__struct_fields__
        rows = {str(run): dict(zip(names, values, strict=True)) for run, *values in found}
        return msgspec.convert(rows, decodable(dict[str, Undecided]), strict=False)

    def kinds(self) -> list[tuple[Any, ...]]:
        """Return the known kinds of runs: pipeline, outcome and version."""
        return self._rows("select pipeline, outcome, version from kinds")

    def minutes(self) -> list[tuple[Any, ...]]:
        """Return how many runs were subject to the target rate, by key and minute."""
        return self._rows("select key, minute, runs from minutes")

    # ------------------------------------------------------------ write

    def remember(
        self, undecided: Mapping[str, Undecided], elsewhere: Mapping[tuple[str, str], Position]
    ) -> None:
        """Store undecided runs.

        Args:
            undecided: The runs; they replace known ones.
            elsewhere: For runs with events of several writers, the first position by run and further writer.
        """
        self._database.executemany(
            f"insert or replace into undecided values (?, {_marks(Undecided.__struct_fields__)})",
            [(run, *msgspec.structs.astuple(each)) for run, each in undecided.items()],
        )
        self._database.executemany(
            "insert or ignore into elsewhere values (?, ?, ?, ?)",
            [(run, writer, *position) for (run, writer), position in elsewhere.items()],
        )

    def move(self, places: Mapping[str, tuple[str, int]]) -> None:
        """Store the writer and the segment of the last event of decided runs."""
        self._database.executemany(
            "update decisions set writer = ?1, segment = ?2"
            " where run_id = ?3 and (writer, segment) is not (?1, ?2)",
            [(writer, segment, run) for run, (writer, segment) in places.items()],
        )

    def decide(self, decided: Mapping[str, Decision], at: Mapping[str, Undecided], now_us: int) -> None:
        """Store decisions. The first decision about a run wins.

        Args:
            decided: The decisions by run.
            at: Where the events of these runs are; a run that is not included has none.
            now_us: The time, in microseconds since the epoch.
        """
        for kept, count in ((True, "kept"), (False, "sampled_out")):
            rows = []
            for run, each in decided.items():
                if each.kept is kept:
                    found = at.get(run)
                    place = (found.last_writer, found.last_segment) if found is not None else ("", 0)
                    rows.append((run, int(kept), each.rate, each.reason, *place, now_us))
            before = self._database.total_changes
            self._database.executemany("insert or ignore into decisions values (?, ?, ?, ?, ?, ?, ?)", rows)
            self.store_fact(count, str(self._count(count) + self._database.total_changes - before))
        for table in ("undecided", "elsewhere"):
            self._database.executemany(f"delete from {table} where run_id = ?", [(run,) for run in decided])

    def store_fact(self, name: str, value: str | None) -> None:
        """Store a value, or delete it."""
        with self._errors():
            if value is None:
                self._database.execute("delete from facts where name = ?", (name,))
            else:
                self._database.execute("insert or replace into facts values (?, ?)", (name, value))

    def add_kinds(self, kinds: Iterable[tuple[str, str, str]]) -> None:
        """Add kinds of runs."""
        self._database.executemany("insert or ignore into kinds values (?, ?, ?)", list(kinds))

    def add_minutes(self, counts: Iterable[tuple[str, str, int]], oldest: str) -> None:
        """Add the number of runs by key and minute, and forget the minutes before `oldest`."""
        self._database.executemany(
            "insert into minutes values (?, ?, ?) on conflict do update set runs = runs + excluded.runs",
            list(counts),
        )
        self._database.execute("delete from minutes where minute < ?", (oldest,))

    def store_positions(self, positions: Mapping[str, Position]) -> None:
        """Store up to which position the journal was read."""
        known = dict(self._database.execute("select writer, segment || ':' || offset from positions"))
        self._database.executemany(
            "insert or replace into positions values (?, ?, ?)",
            [
                (writer, segment, offset)
                for writer, (segment, offset) in positions.items()
                if known.get(writer) != f"{segment}:{offset}"
            ],
        )
        gone = known.keys() - positions.keys()
        self._database.executemany("delete from positions where writer = ?", [(writer,) for writer in gone])

    def forget(self, has_segment: Callable[[str, int], bool], now_us: int) -> None:
        """Delete decisions about runs whose events have left the journal, a day after the decision."""
        until = now_us - int(_LATE_SECONDS * 1e6)
        places = self._database.execute(
            "select distinct writer, segment from decisions where decided_us < ?", (until,)
        ).fetchall()
        gone = [(writer, segment, until) for writer, segment in places if not has_segment(writer, segment)]
        self._database.executemany(
            "delete from decisions where writer = ? and segment = ? and decided_us < ?", gone
        )


def _chunks(values: Iterable[str]) -> Iterable[list[str]]:
    found = sorted(values)
    return (found[at : at + _MAX_VALUES] for at in range(0, len(found), _MAX_VALUES))


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)
