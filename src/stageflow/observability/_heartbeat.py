"""Writes which runs are in progress, once per second, for the case that the process dies.

One thread per process writes one mark into each sink that keeps marks (a journal). The thread exists only
while runs are in progress. It calls no application code, so it writes only attributes that are plain JSON.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from .._fork import reset_in_child
from .._safe_log import log_safely
from ..clock import get_clock
from ..context import StageContext
from ..errors import describe
from ..events import DirectSink
from ..schema import AttributesSoFar, Heartbeat, RunInProgress, StageInProgress
from ..timestamps import rfc3339
from .process import sample
from .recorder import RunRecorder
from .shape import shaper

__all__ = ["Heartbeats", "ObservedRun"]

log = logging.getLogger("stageflow.observability")

_EVERY_SECONDS = 1.0

_MOST_BYTES = 64 << 10
"""Maximum size of a line."""

_LEAST_BYTES = 64
"""No attributes fit in less."""

_MOST_DEPTH = 8
"""Maximum nesting of an attribute value."""

_encode = msgspec.json.Encoder().encode


class ObservedRun(Protocol):
    """A run in progress."""

    recorder: RunRecorder
    began: int

    def stages_in_progress(self) -> Iterable[tuple[str, int, int | None, StageContext | None]]:
        """Return name, attempt, start (monotonic nanoseconds) and context of each running attempt.

        The start and the context are None for an attempt that has not waited yet.
        """
        ...


class _Line:
    """The entries that fit in one line, and the number of those that do not."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.entries: list[bytes] = []
        self.omitted = 0
        self.first_omitted: Any = None

    def add(self, key: Any, entry: bytes | None) -> None:
        """Add an entry if there is room; None for one that is known not to fit."""
        if entry is not None and len(entry) < self.room:
            self.entries.append(entry)
            self.room -= len(entry) + 1
            return
        self.omitted += 1
        if self.first_omitted is None:
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
        """Start the thread if it does not exist. To be called after the run is among `runs`."""
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
            # A run that started before the line above relied on this thread.
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
                sink.take_mark(self._heartbeat(runs))
            except Exception as error:
                log_safely(log, "a heartbeat could not be written: %s", describe(error))
        return bool(by_sink)

    def _heartbeat(self, runs: list[ObservedRun]) -> Heartbeat:
        empty = Heartbeat(rfc3339(get_clock().wall_ns() // 1000), sample(), [], [], 0, 0)
        line = _Line(_MOST_BYTES - len(_encode(empty)) - 100)  # room for the counts and the type of the line
        attributes: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
        by_id = {run.recorder.run_id: run for run in runs}
        for run_id in _from(sorted(by_id), self._next_run):
            recorder, origin = by_id[run_id].recorder, by_id[run_id].recorder.origin_ns
            stages = []
            for name, attempt, began, ctx in by_id[run_id].stages_in_progress():
                started = None if began is None else rfc3339((began + origin) // 1000)
                stages.append(StageInProgress(name, attempt, started))
                if ctx is not None and (fields := _plain(ctx.attributes_so_far())):
                    attributes[run_id, name] = attempt, fields
            started = rfc3339((by_id[run_id].began + origin) // 1000)
            line.add(run_id, _encode(RunInProgress(run_id, started, stages)))
            if fields := _plain(recorder.attributes_so_far()):
                attributes[run_id, ""] = 0, fields
        rest = _Line(line.room)
        for run_id, name in _from(sorted(attributes), self._next_attributes):
            attempt, fields = attributes[run_id, name]
            entry = None
            if rest.room > _LEAST_BYTES:
                entry = _encode(AttributesSoFar(run_id, name or None, attempt, shaper().attributes(fields)))
            rest.add((run_id, name), entry)
        self._next_run = line.first_omitted or ""
        self._next_attributes = rest.first_omitted or ("", "")
        return Heartbeat(empty.at, empty.process, line.as_json(), rest.as_json(), line.omitted, rest.omitted)


def _from(ordered: list[Any], first: Any) -> Iterator[Any]:
    """Yield all items in circular order, starting with the first one that is not less than `first`."""
    yield from (item for item in ordered if item >= first)
    yield from (item for item in ordered if item < first)


_OMITTED = object()


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes whose values are plain JSON."""
    copied = ((name, _copy(value, _MOST_DEPTH)) for name, value in fields.items())
    return {name: value for name, value in copied if type(name) is str and value is not _OMITTED}


def _copy(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind in (str, int, float, bool, type(None)):
        return value
    if depth and kind is dict:
        return {
            name: inner
            for name, of in value.copy().items()
            if type(name) is str and (inner := _copy(of, depth - 1)) is not _OMITTED
        }
    if depth and kind in (list, tuple):
        return [inner for of in tuple(value) if (inner := _copy(of, depth - 1)) is not _OMITTED]
    return _OMITTED
