"""Heartbeats: once per second, record the runs in progress, for crash recovery and live views.

One thread per process writes one mark to each sink that accepts marks (a journal). The thread exists only
while runs are in progress. It calls no application code, so it writes only attributes whose values are JSON.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from .._fork import reset_in_child
from .._log import log_safely
from .._time import get_clock, rfc3339
from ..context import StageContext
from ..errors import describe
from ..events import DirectSink
from ..schema import AttributesSoFar, Heartbeat, RunInProgress, StageInProgress
from ._recorder import RunRecorder
from ._resource import sample
from ._wide_events import sanitized_items
from .sanitize._sanitizer import new_sanitizer

__all__ = ["Heartbeats", "ObservedRun"]

log = logging.getLogger("stageflow.observability")

_EVERY_SECONDS = 1.0

_MAX_BYTES = 64 << 10
"""Maximum size of a line, in bytes."""

_MIN_ENTRY_BYTES = 64
"""Minimum size of an entry; a line with less free space counts as full."""

_MAX_MISSES = 8
"""Number of entries that did not fit after which a line counts as full."""

_MAX_DEPTH = 8
"""Maximum nesting of an attribute value."""

_MAX_WORK = _MAX_BYTES
"""Maximum number of values and characters that are copied per attempt; more do not fit in a line."""

_MAX_WORK_PER_LINE = 8 * _MAX_WORK

_MAX_CHARS = 4096
"""Maximum number of characters of one string that count as work, because long strings are truncated later."""

_encode = msgspec.json.Encoder().encode


class ObservedRun(Protocol):
    """A run in progress."""

    recorder: RunRecorder
    began: int

    def stages_in_progress(self) -> Iterable[tuple[str, int, int | None, StageContext | None]]:
        """Return name, attempt number, start (monotonic nanoseconds) and context of each running attempt.

        The start and the context are None for an attempt that has not awaited anything yet.
        """
        ...


class _Line:
    """The entries that fit in one line, and the number of omitted ones.

    Attributes:
        free_bytes: Free space in the line.
        first_omitted: Key of the first omitted entry that may fit in the next line.
    """

    def __init__(self, size: int) -> None:
        self._size = self.free_bytes = size
        self._misses = 0
        self.entries: list[bytes] = []
        self.omitted = 0
        self.first_omitted: Any = None

    @property
    def is_full(self) -> bool:
        """True if it is not worth encoding another entry."""
        return self.free_bytes <= _MIN_ENTRY_BYTES or self._misses == _MAX_MISSES

    def add(self, key: Any, entry: bytes) -> None:
        """Add an entry if it fits."""
        if len(entry) < self.free_bytes:
            self.entries.append(entry)
            self.free_bytes -= len(entry) + 1
        else:
            self._misses += 1
            self.omit(key, fits_in_another=len(entry) < self._size)

    def omit(self, key: Any, *, fits_in_another: bool = True) -> None:
        """Count an entry that is missing from this line, or incomplete."""
        self.omitted += 1
        if fits_in_another and self.first_omitted is None:
            self.first_omitted = key

    def as_json(self) -> Raw:
        return Raw(b"[" + b",".join(self.entries) + b"]")


class Heartbeats:
    """The thread that writes heartbeats.

    Args:
        runs: Returns the runs that are in progress in this process.
    """

    def __init__(self, runs: Callable[[], Iterable[ObservedRun]]) -> None:
        self._runs = runs
        self._reset()
        reset_in_child(self._reset)

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._next_run = ""
        self._next_attributes = ("", "")

    def run_started(self) -> None:
        """Start the thread if it is not running. Must be called after `runs` includes the run."""
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="stageflow-heartbeat", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread can be started; the next run tries again
                    return
                self._thread = thread

    def _work(self) -> None:
        wait = threading.Event().wait
        while True:
            wait(_EVERY_SECONDS)
            if self._beat():
                continue
            with self._lock:
                self._thread = None
            # A run that started before `_thread` was reset relies on this thread.
            if not any(run.recorder.marked_sink is not None for run in self._runs()):
                return
            with self._lock:
                if self._thread is not None:
                    return  # another thread has been started
                self._thread = threading.current_thread()

    def _beat(self) -> bool:
        """Write one heartbeat into each sink; return whether any run is in progress."""
        by_sink: dict[int, tuple[DirectSink, list[ObservedRun]]] = {}
        for run in self._runs():
            if (sink := run.recorder.marked_sink) is not None:
                by_sink.setdefault(id(sink), (sink, []))[1].append(run)
        for sink, runs in by_sink.values():
            try:
                sink.accept_mark(self._heartbeat(runs))
            except Exception as error:
                log_safely(log, "a heartbeat could not be written: %s", describe(error))
        return bool(by_sink)

    def _heartbeat(self, runs: list[ObservedRun]) -> Heartbeat:
        empty = Heartbeat(rfc3339(get_clock().wall_ns() // 1000), sample(), [], [], 0, 0)
        line = _Line(_MAX_BYTES - len(_encode(empty)) - 100)  # reserves space for the counts and the type
        attributes: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        by_id = {run.recorder.run_id: run for run in runs}
        for run_id in _from(sorted(by_id), self._next_run):
            run = by_id[run_id]
            stages = [*run.stages_in_progress()]
            if line.is_full:
                line.omit(run_id)
            else:
                line.add(run_id, _encode(_in_progress(run, stages)))
            for name, attempt, _, ctx in stages:
                if ctx is not None and (fields := ctx.attributes_so_far()):
                    attributes[run_id, name] = attempt, fields
            if fields := run.recorder.attributes_so_far():
                attributes[run_id, ""] = 0, fields
        rest, copier = _Line(line.free_bytes), _JsonCopier()
        for run_id, name in _from(sorted(attributes), self._next_attributes):
            attempt, fields = attributes[run_id, name]
            if rest.is_full or copier.is_exhausted:
                rest.omit((run_id, name))
                continue
            if fields := copier.copy(fields):
                known = AttributesSoFar(run_id, name or None, attempt, new_sanitizer().attributes(fields))
                rest.add((run_id, name), _encode(known))
            if copier.is_truncated:
                rest.omit((run_id, name), fits_in_another=False)
        self._next_run = line.first_omitted or ""
        self._next_attributes = rest.first_omitted or ("", "")
        return Heartbeat(empty.at, empty.process, line.as_json(), rest.as_json(), line.omitted, rest.omitted)


def _in_progress(run: ObservedRun, stages: Iterable[tuple[str, int, int | None, Any]]) -> RunInProgress:
    recorder, origin = run.recorder, run.recorder.origin_ns
    return RunInProgress(
        recorder.run_id,
        rfc3339((run.began + origin) // 1000),
        [
            StageInProgress(
                name,
                attempt,
                None if began is None else rfc3339((began + origin) // 1000),
                None if ctx is None or ctx.items is None else sanitized_items(ctx.items, new_sanitizer()),
                None if ctx is None or ctx._stream is None else ctx._stream.summary(began or run.began),
            )
            for name, attempt, began, ctx in stages
        ],
    )


def _from(ordered: list[Any], first: Any) -> Iterator[Any]:
    """Yield all items in circular order, starting at `first`."""
    yield from (item for item in ordered if item >= first)
    yield from (item for item in ordered if item < first)


_OMITTED = object()


class _JsonCopier:
    """Copies attributes at bounded cost, because a nested value may be infinite.

    Values that JSON cannot represent directly are omitted.

    Attributes:
        is_truncated: True if a value that does not fit in a line was omitted from the last copy.
    """

    def __init__(self) -> None:
        self._left_for_line = _MAX_WORK_PER_LINE
        self._left = 0
        self.is_truncated = False

    @property
    def is_exhausted(self) -> bool:
        """True if no further attributes should be copied for this line."""
        return self._left_for_line <= 0

    def copy(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the attributes of one attempt or run."""
        self._left, self.is_truncated = _MAX_WORK, False
        copied: dict[str, Any] = {}
        for name, value in fields.items():
            if type(name) is str and (copy := self._copy(value, _MAX_DEPTH)) is not _OMITTED:
                copied[name] = copy
            if self._left < 0:
                break
        self._left_for_line -= _MAX_WORK - self._left
        return copied

    def _copy(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self._left -= 1 + min(len(value), _MAX_CHARS) if kind is str else 1
        if self._left < 0:
            self.is_truncated = True
            return _OMITTED
        if kind in (str, int, float, bool, type(None)):
            return value
        if not depth or kind not in (dict, list, tuple):
            return _OMITTED
        if len(value) > self._left:
            self.is_truncated = True
            return _OMITTED
        if kind is dict:
            named: dict[str, Any] = {}
            for name, item in value.copy().items():
                if type(name) is str and (copy := self._copy(item, depth - 1)) is not _OMITTED:
                    named[name] = copy
                if self._left < 0:
                    return _OMITTED
            return named
        items = []
        for item in tuple(value):
            if (copy := self._copy(item, depth - 1)) is not _OMITTED:
                items.append(copy)
            if self._left < 0:
                return _OMITTED
        return items
