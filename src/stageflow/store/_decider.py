"""`Decider`: decides which runs of a journal are kept, once, for the archive and all exporters."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import Struct

from .._files import absolute_path
from .._log import log_safely
from .._state_file import decoder
from .._time import epoch_us, get_clock, rfc3339
from ..journal import (
    SAMPLE_DECISION,
    Entry,
    JournalReader,
    JournalSink,
    SampleDecision,
    Segment,
    decode_sample_decision,
    find_lines,
    is_timestamp,
    is_well_formed,
    list_writers,
    new_writer,
    read_failures,
    reset_cursor,
    segment_name,
    writer_is_closed,
)
from ._columns import ATTRIBUTE, FAILED, quoted
from ._database import InterruptibleDatabase
from ._decisions import Decision, Decisions, Undecided
from ._merge import failed_column
from ._rows import load_rows
from ._sampling import TailSampler, columns_of, decide, match_rules

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["DECIDER", "Decider"]


log = logging.getLogger("stageflow.store")

DECIDER = "sampling"
"""Name of the cursor of the decider."""

_BATCH_EVENTS = 5_000
_BATCH_BYTES = 32 << 20
_MAX_UNDECIDED = 100_000
"""Maximum number of undecided runs; beyond it, the oldest are kept."""

_FORGET_EVERY = 1_000
"""Number of batches after which old decisions are deleted."""


class _Head(Struct, gc=False):
    """Fields of an event of any type; a custom event can contain any values."""

    correlation_ids: Any = None
    root_run_id: Any = None
    started_at: Any = None
    emitted_at: Any = None
    amended_at: Any = None
    status: Any = None
    outcome: Any = None
    stages_failed: Any = None
    duration_ms: Any = None
    pipeline_name: Any = None
    resource: Any = None


_decode_head = decoder(_Head)


class Decider:
    """Reads a journal, decides complete root runs, and records each decision as a `sample.decision` mark.

    One process at a time decides; the decisions of a killed process are found and kept by the next one. A
    decision applies to the root run and all of its child runs. Of two decisions about a run, which only a
    damaged journal can contain, the first wins.

    Args:
        journal: Directory of the journal.
        sampler: The rules.

    Raises:
        CursorInUseError: Another process decides.
        JournalNotFoundError: The directory does not exist.
        OSError: The journal cannot be read or written.

    Example:
        with Decider("journal", TailSampler(one_in=100)) as decider:
            decider.decide()
    """

    def __init__(self, journal: str | os.PathLike[str], sampler: TailSampler) -> None:
        self.journal = absolute_path(journal)
        self.sampler = sampler
        self._database = InterruptibleDatabase()
        self._batches = 0
        self._failed = False
        self._sink: JournalSink | None = None
        self._reader = JournalReader(self.journal, DECIDER)
        try:
            self._decisions = Decisions(self.journal)
            try:
                self._resume()
            except BaseException:
                self._decisions.close()
                raise
        except BaseException:
            self._reader.close()
            raise

    def _resume(self) -> None:
        known = self._decisions.positions()
        if any(at > known.get(writer, (0, 0)) for writer, at in self._reader.positions.items()):
            # The database is new, or an earlier copy: read everything in the journal again.
            reset_cursor(self.journal, DECIDER)
            self._reader.close()
            self._reader = JournalReader(self.journal, DECIDER)
        self._adopt_recorded()
        described = msgspec.json.encode(self.sampler).decode()
        if self._decisions.fact("sampler") not in (None, described):
            log_safely(log, "the sampler of journal %s has changed: new decisions follow it", self.journal)
        with self._decisions.transaction():
            self._decisions.store_fact("sampler", described)

    def _adopt_recorded(self) -> None:
        """Store the recorded decisions that a killed process did not store."""
        recorded: dict[str, Decision] = {}
        for writer, segments in list_writers(self.journal).items():
            first, _ = self._reader.positions.get(writer, (0, 0))
            for segment in segments:
                if segment.sequence >= first:
                    for line in find_lines(segment, SAMPLE_DECISION):
                        if (mark := decode_sample_decision(line)) is not None:
                            decision = Decision(mark.kept, mark.rate, mark.reason)
                            recorded.setdefault(mark.event_id, decision)
        self._store(recorded, self._decisions.undecided(recorded), {})

    def close(self) -> None:
        """Let another process decide."""
        try:
            if self._sink is not None:
                self._sink.close()
            if self._sink is not None and not self._failed:
                self._decide_batch(self._reader.read())  # so that its segments can be archived
        finally:
            self._reader.close()
            self._decisions.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def interrupt(self) -> None:
        """Interrupt `decide` in another thread: it raises an error, and the next call repeats the step."""
        self._database.interrupt()

    # ------------------------------------------------------------ decide

    def decide(self, seconds: float | None = None) -> bool:
        """Read the events that were written since the last call, and decide.

        After an error, close this object: a new one repeats the step.

        Args:
            seconds: Time after which to stop, even if there are more events; default None, for no limit.

        Returns:
            False if there are more events.

        Raises:
            QueryError: A rule of the sampler is invalid. No event is lost.
            OSError: The journal cannot be read or written.
        """
        self._failed = True
        until = None if seconds is None else time.monotonic() + seconds
        while True:
            entries = self._reader.read(_BATCH_EVENTS, max_bytes=_BATCH_BYTES)
            self._decide_batch(entries)
            if not entries and not self._reader.has_more:
                break
            if until is not None and time.monotonic() > until:
                self._failed = False
                return False
        self._decide_overdue()
        self._batches += 1
        if self._batches % _FORGET_EVERY == 1:
            self._forget()
        self._failed = False
        return True

    def _decide_batch(self, entries: Sequence[Entry]) -> None:
        heads = [(entry, head) for entry in entries if (head := _decode_head(entry.json)) is not None]
        heads = [(entry, head) for entry, head in heads if _run_of(head)]
        known = self._decisions.find({_run_of(head) for _, head in heads})
        undecided = self._decisions.undecided({_run_of(head) for _, head in heads} - known.keys())
        failures = read_failures(self.journal)
        ended: dict[str, bytes] = {}
        kept_children: dict[str, Decision] = {}
        kinds: list[tuple[str, str, str]] = []
        elsewhere: dict[tuple[str, str], tuple[int, int]] = {}
        late: dict[str, tuple[str, int]] = {}
        now_us = get_clock().wall_ns() // 1000
        for entry, head in heads:
            run = _run_of(head)
            is_end = entry.type == "pipeline.wide" and is_well_formed(entry.type, entry.json)
            if is_end:
                kinds.append(_kind_of(head))
            if run in known:
                late[run] = (entry.writer, entry.segment)
                if is_end and _root_of(head) != run and known[run].kept:
                    kept_children[_root_of(head)] = known[run]
                continue
            each = undecided.get(run)
            if each is None:
                seen_us = min(now_us, _time_of(head, now_us))
                place = (entry.writer, entry.segment)
                each = Undecided(None, *place, entry.offset, *place, seen_us)
                undecided[run] = each
            each.last_writer, each.last_segment = entry.writer, entry.segment
            if entry.writer != each.writer:
                elsewhere.setdefault((run, entry.writer), (entry.segment, entry.offset))
            if is_end:
                each.root_id = _root_of(head)
                outcome = _text(head.outcome) or ("failed" if head.status == "FAIL" else "ok")
                each.failed = failures.is_failure(outcome) or bool(head.stages_failed)
                each.duration_ms = _number(head.duration_ms)
                if each.root_id == run:
                    ended[run] = entry.json
        roots = self._decisions.find({each.root_id for each in undecided.values() if each.root_id})
        with self._decisions.transaction():
            self._decisions.remember(undecided, elsewhere)
            self._decisions.move(late)
        for root, decision in kept_children.items():
            if root not in roots and root not in self._decisions.find([root]):
                # A child run was kept because it was long, so its root run is longer.
                roots[root] = decision
        minutes: list[tuple[str, str, int]] = []
        if undecided_ends := {run: line for run, line in ended.items() if run not in roots}:
            found, minutes = self._apply_rules(undecided_ends)
            roots |= found
        of_roots = self._decisions.undecided_of_roots(roots)
        decided = {run: roots[str(each.root_id)] for run, each in of_roots.items()}
        decided |= {root: decision for root, decision in roots.items() if root in kept_children}
        self._record(decided, of_roots)
        self._store(decided, of_roots, dict(self._reader.positions), kinds=kinds, minutes=minutes)
        self._reader.commit()

    def _decide_overdue(self) -> None:
        """Keep the runs that are longer than `decide_after`, and those whose process ended without an end."""
        now_us = get_clock().wall_ns() // 1000
        found: dict[str, Undecided] = {}
        decided: dict[str, Decision] = {}
        for run, each in self._decisions.seen_before(now_us - int(self.sampler.decide_after * 1e6)).items():
            found[run], decided[run] = each, Decision(True, 1.0, "long" if each.root_id else "incomplete")
        beyond = self._decisions.oldest_undecided(_MAX_UNDECIDED)
        for run, each in beyond.items():
            found[run], decided[run] = each, Decision(True, 1.0, "too many undecided runs")
        without_end = self._decisions.without_root()
        if without_end:
            writers, elsewhere = list_writers(self.journal), self._decisions.writers_elsewhere()
            for run, each in without_end.items():
                of_run = (each.writer, *elsewhere.get(run, ()))
                if run not in decided and all(self._has_ended(writers.get(writer)) for writer in of_run):
                    found[run], decided[run] = each, Decision(True, 1.0, "incomplete")
        if not decided:
            return
        # The other runs of the same root are kept too.
        roots = {str(each.root_id): decided[run] for run, each in found.items() if each.root_id}
        related = self._decisions.undecided_of_roots(roots)
        known = self._decisions.find(roots)
        for run, each in related.items():
            decided.setdefault(run, roots[str(each.root_id)])
        for root, decision in roots.items():
            if root not in known:
                decided.setdefault(root, decision)
        found |= related
        self._record(decided, found)
        self._store(decided, found, dict(self._reader.positions))

    def _has_ended(self, segments: list[Segment] | None) -> bool:
        """Return whether a writer has ended, and everything that it wrote was read."""
        if not segments:
            return True
        at, offset = self._reader.positions.get(segments[-1].writer, (0, 0))
        with contextlib.suppress(OSError):
            size = os.stat(segments[-1].path).st_size
            return writer_is_closed(segments) and (
                segments[-1].pruned or (segments[-1].sequence, size) <= (at, offset)
            )
        return False

    def _apply_rules(
        self, ended: Mapping[str, bytes]
    ) -> tuple[dict[str, Decision], list[tuple[str, str, int]]]:
        """Return the decisions about root runs, and the number of runs by key and minute for the target."""
        children = [
            (run, each.root_id, each.failed, each.duration_ms)
            for run, each in self._decisions.undecided_of_roots(ended).items()
            if run != each.root_id
        ]
        failures = read_failures(self.journal)
        with self._database.open() as database, tempfile.TemporaryDirectory() as folder:
            self._load(database, folder, ended.values())
            sampler = match_rules(database, "ended", self.sampler)
            _create(
                database,
                "children",
                f"pipeline_run_id varchar, root_run_id varchar, {FAILED} boolean, duration_ms double",
                children,
            )
            _create(
                database,
                "kinds",
                "pipeline varchar, outcome varchar, version varchar",
                self._decisions.kinds() if self.sampler.first_of_a_kind else [],
            )
            _create(
                database,
                "minutes",
                "key varchar, minute varchar, runs bigint",
                self._decisions.minutes() if self.sampler.target_per_minute is not None else [],
            )
            runs = (
                f"select *, {failed_column(failures)} as {FAILED} from ended union all by name from children"
            )
            decide(database, "decided", sampler, runs, "from kinds", "from minutes")
            found = {
                root: Decision(kept, rate, reason)
                for root, kept, rate, reason in database.execute(
                    "select root, kept, rate, reason from decided"
                ).fetchall()
            }
            minutes = database.execute(
                "select key, minute, count(*) from decided where minute is not null group by all"
            ).fetchall()
        return {root: found[root] for root in ended if root in found}, minutes

    def _load(self, database: DuckDBPyConnection, folder: str, ended: Iterable[bytes]) -> None:
        """Create the `ended` table with the columns of `runs`, and `per_key`."""
        writer = new_writer()
        path = os.path.join(folder, segment_name(writer, 1))
        with open(path, "wb") as file:
            file.writelines(b'{"type":"pipeline.wide","data":%b}\n' % line for line in ended)
        load_rows(database, "ended", [Segment(path, writer, os.getpid(), 1, False)], {}, 1 << 20)
        key = self.sampler.per_key
        if key.startswith(ATTRIBUTE) and key not in columns_of(database, "ended"):
            database.execute(f"alter table ended add column {quoted(key)} varchar")

    # ------------------------------------------------------------ record

    def _record(self, decided: Mapping[str, Decision], undecided: Mapping[str, Undecided]) -> None:
        """Write the decisions to the journal, and sync them."""
        if not decided:
            return
        if self._sink is None:
            self._sink = JournalSink(self.journal, max_bytes=None)
        now = rfc3339(get_clock().wall_ns() // 1000)
        for run, decision in decided.items():
            each = undecided.get(run)
            root = (each.root_id if each is not None else None) or run
            self._sink.write_decision(
                SampleDecision(run, root, decision.kept, decision.rate, decision.reason, now)
            )
        self._sink.run_maintenance()

    def _store(
        self,
        decided: Mapping[str, Decision],
        undecided: Mapping[str, Undecided],
        positions: Mapping[str, tuple[int, int]],
        *,
        kinds: Iterable[tuple[str, str, str]] = (),
        minutes: Sequence[tuple[str, str, int]] = (),
    ) -> None:
        now_us = get_clock().wall_ns() // 1000
        with self._decisions.transaction():
            self._decisions.decide(decided, undecided, now_us)
            self._decisions.add_kinds(kinds)
            if minutes:
                newest = max(minute for _, minute, _ in minutes)
                oldest = rfc3339(epoch_us(f"{newest}:00Z") - _TARGET_MEMORY_US)[: len(newest)]
                self._decisions.add_minutes(minutes, oldest)
            if positions:
                self._decisions.store_positions(positions)

    def _forget(self) -> None:
        present = {
            (segment.writer, segment.sequence)
            for segments in list_writers(self.journal).values()
            for segment in segments
        }
        with self._decisions.transaction():
            self._decisions.forget(
                lambda writer, segment: (writer, segment) in present, get_clock().wall_ns() // 1000
            )


_TARGET_MEMORY_US = 3600 * 1_000_000
"""Time for which the number of runs per minute is kept."""


def _create(database: DuckDBPyConnection, table: str, columns: str, rows: Sequence[tuple[Any, ...]]) -> None:
    database.execute(f"create temp table {table} ({columns})")
    if rows:
        lists = [list(column) for column in zip(*rows, strict=True)]
        database.execute(f"insert into {table} select {', '.join('unnest(?)' for _ in lists)}", lists)


def _run_of(head: _Head) -> str:
    ids = head.correlation_ids
    return _text(ids.get("pipeline_run_id")) if isinstance(ids, dict) else ""


def _root_of(head: _Head) -> str:
    return _text(head.root_run_id) or _run_of(head)


def _kind_of(head: _Head) -> tuple[str, str, str]:
    resource = head.resource if isinstance(head.resource, dict) else {}
    return (_text(head.pipeline_name), _text(head.outcome), str(resource.get("service_version") or ""))


def _time_of(head: _Head, default: int) -> int:
    for at in (head.started_at, head.emitted_at, head.amended_at):
        if isinstance(at, str) and is_timestamp(at):
            return epoch_us(at)
    return default


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> float:
    try:
        return float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return math.inf
