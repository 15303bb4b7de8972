"""`ExportRunner`: reads a journal through a cursor, and sends its events to a target in batches."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from msgspec import Struct
from msgspec.structs import replace

from .._files import absolute_path
from .._log import log_safely
from .._time import get_clock, rfc3339
from ..errors import (
    CursorInUseError,
    DamagedFileError,
    JournalNotFoundError,
    describe,
    invalid_argument,
)
from ..journal import JournalReader
from ._batch import Batch, ExportEvent
from ._dead_letters import DeadLetter, DeadLetters
from ._exporter import Exporter, NotSent, Sent, check_name, check_settle_seconds
from ._isolation import Isolation
from ._retries import ExportSettings, Retries
from ._sampled import EventReader, Read, SampledReader
from ._state import (
    Backfill,
    ExportCounters,
    ExportState,
    cursor_name,
    has_pin,
    has_state,
    load_state,
    rejected_directory,
    store_state,
)

if TYPE_CHECKING:
    from ..store import TailSampler

__all__ = ["ExportRunner", "attempt", "check_sent"]


log = logging.getLogger("stageflow.export")

_POLL_SECONDS = 0.1
"""Interval at which the runner checks for new events."""

_TAKEOVER_SECONDS = 1.0
"""Interval at which a runner checks whether the process that exports has ended."""

_IDLE_COMMIT_SECONDS = 10.0
"""Interval at which the position is stored while the journal receives only marks, such as heartbeats."""

_CLOSE_SECONDS = 1.0
"""Maximum duration of `Exporter.close`."""

Status = Literal["standby", "exporting", "stopped"]


class _Delivered(Struct):
    """The result of a batch: what the target accepted and rejected."""

    duplicates: int = 0
    rejected: list[tuple[ExportEvent, str]] = []
    rejected_unnamed: int = 0
    message: str = ""


class ExportRunner:
    """Exports the events of all writers of a journal to one target, until it is stopped.

    Several processes can run exporters with the same name for a journal: one exports, and the others wait. If
    that process exits or is killed, another one takes over within a few seconds. Each event is sent at least
    once; a receiver can detect duplicates by `id` and `revision`. Only one batch is held in memory: while the
    target is slow or unavailable, events remain in the journal.

    An error in the journal or the target is logged once, counted, and retried.

    Args:
        journal: Directory of the journal. It can be created later.
        exporter: The target.
        settings: Batches, retries and retention of rejected events; default `ExportSettings()`.
        at_end: Whether to skip the existing events in the journal when an exporter with this name first
            starts; default False.
        backfill: Whether to send the events in the archive of the journal first, when an exporter with this
            name first starts; default False. It requires `stageflow[store]`.
        sampler: Selects the runs to export; default None, for all. The decisions are recorded in the journal
            and also apply to its archive and its other exporters, if they have a sampler. It requires
            `stageflow[store]`.
        on_change: Called with the state after each attempt to send a batch, on the thread of the runner;
            default None.
        loop_factory: Creates the event loop on which the exporter runs; default None, for that of asyncio.
            The delays between attempts follow the clock of the loop.

    Attributes:
        status: "exporting"; "standby" while another process exports, which remains the status if the runner
            is stopped in that state; or "stopped".
        state: The counters, and the last error.

    Raises:
        InvalidArgumentError: The name of the exporter is invalid.

    Example:
        with ExportRunner("journal", HttpExporter("https://collector.example/events")):
            serve()
    """

    def __init__(
        self,
        journal: str | os.PathLike[str],
        exporter: Exporter,
        *,
        settings: ExportSettings | None = None,
        at_end: bool = False,
        backfill: bool = False,
        sampler: TailSampler | None = None,
        on_change: Callable[[ExportState], object] | None = None,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
    ) -> None:
        if not isinstance(exporter, Exporter):
            raise invalid_argument("ExportRunner", "exporter", exporter, "an Exporter")
        check_settle_seconds(exporter.settle_seconds)
        check_name(exporter.name)
        self.journal = absolute_path(journal)
        self.exporter = exporter
        self.settings = settings or ExportSettings()
        self.status: Status = "stopped"
        self.state = ExportState(target=exporter.target)
        self._at_end = at_end
        self._backfill = backfill
        self._sampler = sampler
        self._on_change = on_change
        self._loop_factory = loop_factory
        self._retries = Retries(self.settings)
        self._isolation = Isolation(others=1)  # not more, because a target in an outage needs few requests
        self._logged: set[str] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # `stop` sets these attributes in this order.
        self._stop_at: float | None = None
        self._draining = False
        self._stopping = threading.Event()
        self._wake = asyncio.Event()
        self._limit: asyncio.Timeout | None = None

    # ------------------------------------------------------------ start and stop

    def start(self) -> Self:
        """Export on a daemon thread. No effect if it was already started."""
        if self._thread is None:
            name = f"stageflow-export-{self.exporter.name}"
            self._thread = threading.Thread(target=self.run, name=name, daemon=True)
            self._thread.start()
        return self

    def stop(self, timeout: float = 10.0, *, drain: bool = False) -> bool:
        """Stop after the current batch, and wait for it. Blocks: do not call it on an event loop.

        A batch that was not sent within the time limit remains in the journal; the next runner sends it.

        Args:
            timeout: Maximum number of seconds; default 10.
            drain: Also send the events that are in the journal now, unless the target is unavailable; default
                False.

        Returns:
            False if the thread did not end within the time limit.
        """
        self.request_stop(timeout, drain=drain)
        return self.join()

    def request_stop(self, timeout: float = 10.0, *, drain: bool = False) -> None:
        """Stop as `stop` does, but do not wait. Signal handlers can call it.

        Args:
            timeout: See `stop`.
            drain: See `stop`.
        """
        self._stop_at = time.monotonic() + timeout
        self._draining = drain
        self._stopping.set()
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed in the meantime
                loop.call_soon_threadsafe(self._interrupt)

    def join(self) -> bool:
        """Wait for a runner that is stopping; return False if it did not end within the time limit."""
        thread = self._thread
        if thread is None or thread is threading.current_thread() or self._stop_at is None:
            return True
        thread.join(max(0.0, self._stop_at - time.monotonic()) + 2 * _CLOSE_SECONDS)
        return not thread.is_alive()

    def _interrupt(self) -> None:
        """End a pause immediately, and an attempt at the time limit. Called on the loop."""
        self._wake.set()
        if self._limit is not None and self._stop_at is not None:
            at = self._until(self._stop_at)
            self._limit.reschedule(min(at, self._limit.when() or at))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(self) -> None:
        """Export on the current thread until `stop` is called."""
        with asyncio.Runner(loop_factory=self._loop_factory) as runner:
            self._loop = runner.get_loop()
            try:
                self._run(runner)
            finally:
                if self.status == "exporting":
                    self.status = "stopped"
                runner.run(self._close())
                self._loop = None

    def _run(self, runner: asyncio.Runner) -> None:
        failures = Retries(self.settings)
        while not self._stopping.is_set() or self._draining:
            stopping = self._stopping.is_set()
            batches = self.state.counters.batches
            try:
                name = cursor_name(self.exporter.name)
                with (
                    JournalReader(self.journal, name, at_end=self._at_end) as reader,
                    self._event_reader(reader) as events,
                ):
                    self._export(runner, reader, events)
                    stopping = self._stopping.is_set()
            except CursorInUseError:
                self.status = "standby"
                runner.run(self._pause(_TAKEOVER_SECONDS))
            except JournalNotFoundError:
                runner.run(self._pause(_TAKEOVER_SECONDS))  # no process has written to it yet
            except Exception as error:
                self._log_once(f"cannot read or write the journal: {describe(error)}")
                if self.state.counters.batches != batches:
                    failures.succeeded()
                runner.run(self._pause(failures.failed()))
            # A runner that drains after a pause tries again, because the other process may have ended.
            if stopping:
                return

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.exporter.close()
        except (Exception, asyncio.CancelledError) as error:  # a custom exporter may raise anything
            if _is_cancelled():
                raise
            self._log_once(f"cannot close the exporter: {describe(error)}")

    # ------------------------------------------------------------ export

    def _event_reader(self, reader: JournalReader) -> EventReader:
        settle_seconds = self.exporter.settle_seconds
        if self._sampler is None:
            return EventReader(reader, settle_seconds)
        return SampledReader(reader, settle_seconds, self._sampler)

    def _export(self, runner: asyncio.Runner, reader: JournalReader, events: EventReader) -> None:
        """Export until the runner is stopped. This process holds the cursor."""
        self.status = "exporting"
        self.exporter.open(self.journal)
        letters = DeadLetters(rejected_directory(self.journal, self.exporter.name))
        letters.remove_from(reader.events)
        self._resume(events)
        self._expire(letters)
        if self.state.backfill is not None and not self._export_archive(runner, events, letters):
            return
        clock = runner.get_loop().time
        committed_at = clock()
        settled_at = math.inf  # all events that were written before the stop have settled by then
        drained = False
        while not self._stopping.is_set() or self._draining:
            first = reader.events
            stopping = self._stopping.is_set()
            if stopping:
                settled_at = min(settled_at, clock() + events.settling.seconds)
            drained = events.advance(now=stopping and not drained) and stopping
            read = self._read_batch(runner, events)
            if read.count:
                delivered = self._deliver(runner, read.events) if read.events else _Delivered()
                if delivered is None:
                    return
                self._store(events, letters, first, read, delivered)
                committed_at = clock()
            elif drained:
                left = min(self._seconds_left(), settled_at - clock())
                if events.settling.is_settled or left <= 0:
                    return
                runner.run(asyncio.sleep(min(_POLL_SECONDS, left)))
            elif not self._stopping.is_set():
                if clock() - committed_at > _IDLE_COMMIT_SECONDS:
                    reader.commit()  # otherwise retention would keep segments that contain only marks
                    committed_at = clock()
                runner.run(self._pause(_POLL_SECONDS))

    def _resume(self, events: EventReader) -> None:
        reader, journal, name = events.reader, self.journal, self.exporter.name
        has_known = has_state(journal, name)
        try:
            known = load_state(journal, name)
        except DamagedFileError as error:
            self._log_once(f"the counters restart at zero: {error}")
            known, has_known = ExportState(), False
        counters, backfill = known.counters_at(reader.events), known.backfill_at(reader.events)
        merged = known.merged_at(reader.events)
        events.settling.resume(merged)
        if not has_known and has_pin(journal, name) and reader.events:
            # The position in the archive is lost: send the archived events from the beginning.
            from ..store import pinned_archive

            pin = pinned_archive(journal, cursor_name(name))
            backfill = Backfill(total=pin.events) if pin is not None else None
        elif self._backfill and not has_known:
            from ..store import pin_archive

            pin = pin_archive(journal, cursor_name(name))
            backfill = Backfill(total=pin.events) if pin is not None else None
        self._set(
            replace(
                known,
                target=self.exporter.target,
                counters=counters,
                previous=counters,
                position=reader.events,
                previous_position=reader.events,
                skipped=reader.removed_events if backfill is None else 0,
                backfill=backfill,
                previous_backfill=backfill,
                settle_seconds=events.settling.seconds,
                merged=merged,
                previous_merged=merged,
                consecutive_failures=0,
                circuit="closed",
                retry_at=None,
            )
        )

    def _export_archive(self, runner: asyncio.Runner, events: EventReader, letters: DeadLetters) -> bool:
        """Export the pinned version of the archive; return False if the runner was stopped before its end."""
        from ..store import pinned_archive, unpin_archive

        reader, name, limits = events.reader, cursor_name(self.exporter.name), self.settings
        pin = pinned_archive(self.journal, name)
        if pin is None:
            return True
        reader.start_after(pin.start())
        at = self.state.backfill or Backfill()
        entries = pin.entries(at.day, at.rows)
        with contextlib.closing(entries):
            while True:
                first, found, size, read = reader.events, [], 0, 0
                for each in entries:
                    read += 1
                    at = Backfill(total=at.total, read=at.read + 1, day=each.day, rows=each.rows)
                    if each.entry is not None:
                        found.append(each.entry)
                        size += len(each.entry.json)
                    if read >= limits.batch_events or size >= limits.batch_bytes:
                        break
                if not read:
                    break
                selected = events.select(found)
                delivered = self._deliver(runner, selected.events) if selected.events else _Delivered()
                if delivered is None:
                    return False
                reader.count(read)
                self._store(events, letters, first, selected, delivered, at)
                if self._stopping.is_set() and not self._draining:
                    return False
        reader.commit()
        unpin_archive(self.journal, name)
        return True

    def _read_batch(self, runner: asyncio.Runner, events: EventReader) -> Read:
        limits, reader = self.settings, events.reader
        clock = runner.get_loop().time
        read = latest = events.read(limits.batch_events, limits.batch_bytes)
        until = clock() + limits.batch_seconds
        while read.count and not self._stopping.is_set():
            left = until - clock()
            count = limits.batch_events - len(read.events)
            size = limits.batch_bytes - sum(len(event.json) for event in read.events)
            if left <= 0 or count <= 0 or size <= 0 or (reader.has_more and not latest.sampled_out):
                break
            if not reader.has_more:
                runner.run(self._pause(min(_POLL_SECONDS, left)))
                events.advance()
            latest = events.read(count, size, larger_alone=False)
            read += latest
        return read

    def _deliver(self, runner: asyncio.Runner, events: list[ExportEvent]) -> _Delivered | None:
        """Send the events in order, and return the result.

        Returns:
            None if the runner was stopped before the end, or if the events should be read again because later
            events are necessary to find out whether the target is available.
        """
        delivered = _Delivered()
        parts = deque([Batch.of(events)])
        clock = runner.get_loop().time
        failed_since, failures = 0.0, 0
        while parts:
            batch = parts[0]
            seconds = min(self.settings.send_seconds, self._seconds_left())
            if seconds <= 0:
                return None
            outcome = runner.run(self._attempt(batch, seconds))
            if outcome is None:
                return None
            if isinstance(outcome, Sent):
                parts.popleft()
                delivered.duplicates += outcome.duplicates
                for rejected in outcome.rejected:
                    delivered.rejected.append((batch.events[rejected.index], rejected.reason))
                if len(batch.events) == 1 and outcome.rejected_unnamed and not outcome.rejected:
                    delivered.rejected.append((batch.events[0], outcome.message))
                else:
                    delivered.rejected_unnamed += outcome.rejected_unnamed
                    delivered.message = outcome.message or delivered.message
                self._isolation.accept(batch, outcome)
                self._succeeded()
            elif outcome.problem not in ("unavailable", "failed"):
                parts.popleft()
                if len(batch.events) > 1:
                    parts.extendleft(reversed(batch.halves()))
                else:
                    delivered.rejected += [(event, outcome.reason) for event in batch.events]
                self._succeeded()  # the target is available
            else:
                delay = self._failed(outcome)
                failed_since, failures = failed_since or clock(), failures + 1
                if self._stopping.is_set():
                    return None
                if (
                    outcome.problem == "failed"
                    and failures >= self.settings.isolate_attempts
                    and clock() - failed_since >= self.settings.isolate_seconds
                ):
                    if len(batch.events) > 1:
                        parts.popleft()
                        parts.extendleft(reversed(batch.halves()))
                    elif self._isolation.accepted is None and len(parts) == 1:
                        runner.run(self._pause(delay))
                        return None
                    elif self._isolation.fails_alone(
                        parts[0].events[0],
                        (event for part in itertools.islice(parts, 1, None) for event in part.events),
                        functools.partial(self._probe, runner, seconds),
                    ):
                        parts.popleft()
                        reason = f"{outcome.reason} ({failures} attempts, while another event was accepted)"
                        delivered.rejected += [(event, reason) for event in batch.events]
                        self._close_circuit()
                        continue
                runner.run(self._pause(delay))
                if self._stopping.is_set() and not self._draining:
                    return None
        return delivered

    def _probe(self, runner: asyncio.Runner, seconds: float, batch: Batch) -> Sent | NotSent | None:
        """Send a batch to find out whether the target accepts it, and count the attempt."""
        outcome = runner.run(self._attempt(batch, seconds))
        if isinstance(outcome, NotSent):
            self._failed(outcome)
        elif outcome is not None:
            self._succeeded()
        return outcome

    async def _attempt(self, batch: Batch, seconds: float) -> Sent | NotSent | None:
        """Send a batch once, and return the result; None if the time limit of `stop` interrupted it."""
        try:
            async with asyncio.timeout(None) as limit:
                self._limit = limit
                return await attempt(self.exporter, batch, seconds)
        except TimeoutError:
            return None
        finally:
            self._limit = None

    def _store(
        self,
        events: EventReader,
        letters: DeadLetters,
        first: int,
        read: Read,
        delivered: _Delivered,
        backfill: Backfill | None = None,
    ) -> None:
        """Store the rejected events, then the counters, then the position."""
        reader = events.reader
        if delivered.rejected:
            now = rfc3339(get_clock().wall_ns() // 1000)
            letters.write(first, [DeadLetter.of(event, reason, now) for event, reason in delivered.rejected])
            self._expire(letters)
        before, state = self.state.counters, self.state
        refused = len(delivered.rejected) + delivered.rejected_unnamed
        if delivered.rejected_unnamed:
            reason = delivered.message or "no reason given"
            state = replace(
                state,
                last_error=f"the target rejected {delivered.rejected_unnamed} unnamed events: {reason}",
                failed_at=_now(),
            )
        rejected_bytes = sum(len(event.json) for event, _ in delivered.rejected)
        self._set(
            replace(
                state,
                counters=ExportCounters(
                    read=before.read + read.count,
                    sent=before.sent + len(read.events) + read.merged - refused,
                    sampled_out=before.sampled_out + read.sampled_out,
                    duplicates=before.duplicates + delivered.duplicates,
                    rejected=before.rejected + refused,
                    batches=before.batches + bool(read.events),
                    bytes=before.bytes + sum(len(event.json) for event in read.events) - rejected_bytes,
                ),
                previous=before,
                position=reader.events,
                previous_position=self.state.position,
                backfill=backfill or state.backfill,
                previous_backfill=state.backfill,
                merged=events.settling.merged(),
                previous_merged=state.merged,
            )
        )
        reader.commit()

    def _expire(self, letters: DeadLetters) -> None:
        expired = letters.expire(self.settings.rejected_max_age, self.settings.rejected_max_bytes)
        if expired:
            self.state = replace(self.state, expired=self.state.expired + expired)

    # ------------------------------------------------------------ state

    def _succeeded(self) -> None:
        self._close_circuit()
        self.state = replace(self.state, attempts=self.state.attempts + 1, sent_at=_now())

    def _close_circuit(self) -> None:
        self._retries.succeeded()
        self.state = replace(self.state, consecutive_failures=0, circuit="closed", retry_at=None)

    def _failed(self, failure: NotSent) -> float:
        """Count a failed attempt, store the state, and return the delay before the next attempt."""
        delay = self._retries.failed(failure.retry_after)
        if self._retries.failures == 1:
            log_safely(
                log,
                "exporter %r cannot send to %s: %s (retried; further failures are not logged)",
                self.exporter.name,
                self.exporter.target,
                failure.reason,
            )
        now = _now()
        self._set(
            replace(
                self.state,
                attempts=self.state.attempts + 1,
                failures=self.state.failures + 1,
                consecutive_failures=self._retries.failures,
                circuit=self._retries.circuit,
                last_error=failure.reason,
                failed_at=now,
                retry_at=now + timedelta(seconds=delay),
            )
        )
        return delay

    def _set(self, state: ExportState) -> None:
        self.state = state
        store_state(self.journal, self.exporter.name, state)
        if self._on_change is not None:
            try:
                self._on_change(state)
            except Exception as error:
                self._log_once(f"on_change failed: {describe(error)}")

    def _log_once(self, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            log_safely(
                log, "exporter %r: %s (further occurrences are not logged)", self.exporter.name, message
            )

    # ------------------------------------------------------------ time

    async def _pause(self, seconds: float) -> None:
        """Wait until the time has elapsed, or until the runner is stopped."""
        if self._stopping.is_set():
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _seconds_left(self) -> float:
        """Return the time left until the limit of `stop`, in seconds; infinite if it was not called."""
        return math.inf if self._stop_at is None else self._stop_at - time.monotonic()

    @staticmethod
    def _until(monotonic: float) -> float:
        """Convert a time of `time.monotonic` to the clock of the running loop."""
        return asyncio.get_running_loop().time() + monotonic - time.monotonic()


async def attempt(exporter: Exporter, batch: Batch, seconds: float) -> Sent | NotSent:
    """Send a batch once, and return the result; exceptions of the exporter are returned, not raised.

    Args:
        exporter: The target.
        batch: The batch.
        seconds: Maximum duration.
    """
    try:
        async with asyncio.timeout(seconds):
            return check_sent(await exporter.send(batch), batch)
    except NotSent as failure:
        return failure
    except asyncio.CancelledError:
        if _is_cancelled():
            raise
        return NotSent("the exporter awaited a task that was cancelled", problem="failed")
    except TimeoutError:
        return NotSent(f"no response within {seconds:.3g} s")
    except Exception as error:  # a custom exporter may raise anything
        return NotSent(describe(error), problem="failed")


def _is_cancelled() -> bool:
    """Return whether the current task was cancelled, and not only a task that it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def check_sent(sent: object, batch: Batch) -> Sent:
    """Return the validated result of an exporter.

    Raises:
        NotSent: It is not a `Sent`, or refers to an event that is not in the batch.
    """
    if not isinstance(sent, Sent):
        raise NotSent(f"send() must return a Sent, got {type(sent).__name__}")
    indexes = [rejected.index for rejected in sent.rejected]
    unnamed = sent.rejected_unnamed
    if not 0 <= unnamed <= len(batch.events) - len(indexes):
        raise NotSent(f"the target rejected {unnamed} events of a batch of {len(batch.events)}")
    if len({*indexes}) != len(indexes) or not all(0 <= index < len(batch.events) for index in indexes):
        raise NotSent("the target rejected an event that is not in the batch")
    return sent


def _now() -> datetime:
    return datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
