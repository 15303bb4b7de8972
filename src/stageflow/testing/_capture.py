"""Captures the events of runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any
from uuid import UUID

import msgspec

from ..errors import did_you_mean
from ..events import MemoryEventSink, get_event_sink, set_event_sink
from ..journal import amend
from ..observability import defaults, use_defaults
from ..results import PipelineResults
from ..stages import StageStatus

__all__ = ["CapturedEvents", "Row", "aligned", "capture_events", "difference", "listed"]


Row = tuple[bool, str, str, str, str]
"""Whether it is as expected, its name, what was expected, what there is, and a note."""


def difference(title: str, rows: Iterable[Row]) -> str:
    """Return a table under a title, with a mark before each row that is not as expected.

    Example:
        >>> rows = [(True, "load", "OK", "OK", ""), (False, "answer", "OK", "FAIL", "ValueError: no")]
        >>> print(difference("the stages did not end as expected", rows))
        the stages did not end as expected
                  expected  actual
          load    OK        OK
        > answer  OK        FAIL    ValueError: no
    """
    lines: list[tuple[str, ...]] = [("  ", "", "expected", "actual", "")]
    lines += [("  " if good else "> ", *texts) for good, *texts in rows]
    return "\n".join([title, *aligned(lines)])


def aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return a line for each row, its first cell as it is, the others in columns.

    Example:
        >>> aligned([("- ", "a", "1"), ("- ", "bcd", "2")])
        ['- a    1', '- bcd  2']
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        (
            row[0] + "  ".join(cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        ).rstrip()
        for row in rows
    ]


def listed(names: Iterable[str]) -> str:
    """Return names for a sentence; "nothing" where there are none.

    Example:
        >>> listed(["load", "answer"]), listed([])
        ('load, answer', 'nothing')
    """
    return ", ".join(dict.fromkeys(names)) or "nothing"


_TERMINAL = [str(status) for status in StageStatus if status is not StageStatus.RETRY]
_ABOUT = ("event_id", "attempt", "emitted_at", "correlation_ids", "pipeline_metadata")
"""What the library puts into a stage's own event, beside the name of the stage."""
_WHY_NOTHING = (
    "\n  hint: what a graph built with emit_...=False, or with an emitter that has a sink of its own, emits"
    " is not captured"
)


@contextlib.contextmanager
def capture_events() -> Generator[CapturedEvents]:
    """Take every event of the runs in this block, instead of the global sink.

    Graphs emit their wide events in it, unless they were built with a flag that says otherwise; nothing
    has to be configured, and what is configured has its events again afterwards. It counts for the whole
    process: for all threads and all loops.

    An emitter with a sink of its own keeps that. Whoever sets a sink or configures the library inside
    the block has what was set from then on, also after it.

    Example:
        >>> with capture_events() as events:
        ...     results = Pipeline("greet").with_stage("hello", lambda ctx: {"text": "hi"}).build().run_sync()
        >>> events.assert_stages(hello="OK")
        >>> events.run()["outcome"]
        'ok'
    """
    sink = MemoryEventSink()
    sink_before = get_event_sink()
    # Without health events: they come when they please.
    ours = msgspec.structs.replace(defaults(), emits=True, health_seconds=None)
    set_event_sink(sink)
    defaults_before = use_defaults(ours)
    try:
        yield CapturedEvents(lambda: sink.events)
    finally:
        if defaults() is ours:
            use_defaults(defaults_before)
        if get_event_sink() is sink:
            set_event_sink(sink_before)


class CapturedEvents:
    """The events that were captured so far, and questions to them.

    A method that is asked for one thing, or told what to expect, raises `AssertionError` where it is
    not so, and says what there is. What came late, as an amendment, is in the attributes of `runs` and
    `stages` and of all that is made of them. `events` holds the amendments as they were emitted.
    """

    def __init__(self, source: Callable[[], list[tuple[str, dict[str, Any] | None]]]) -> None:
        self._source = source

    @property
    def events(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Type and data of every event, in order, as a sink had them."""
        return list(self._source())

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """Return the data of all events of this type, as a sink had them."""
        return [data or {} for event_type, data in self.events if event_type == type]

    def of_run(self, run: PipelineResults | str | UUID) -> CapturedEvents:
        """Return the events of one run alone: by its results, or its `pipeline_run_id`.

        Example:
            events.of_run(results).assert_outcome("ok")
        """
        run_id = str(run.context.pipeline_run_id if isinstance(run, PipelineResults) else run)
        return CapturedEvents(lambda: [event for event in self.events if _run_id(event[1]) == run_id])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The data of the `pipeline.wide` of each run that has ended, in order."""
        return self._amended("pipeline.wide")

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The data of the terminal `stage.wide` events, in order; for the others see `retries`."""
        return [event for event in self._amended("stage.wide") if event["status"] != "RETRY"]

    def run(self) -> dict[str, Any]:
        """Return the `pipeline.wide` of the only run that has ended.

        Raises:
            AssertionError: None has, or several have.
        """
        __tracebackhide__ = True
        runs = self.runs
        if len(runs) == 1:
            return runs[0]
        if not runs:
            raise AssertionError(f"no run has ended: there is no pipeline.wide{_WHY_NOTHING}")
        raise AssertionError(f"{len(runs)} runs have ended, not one{_shown(runs)}")

    def stage(self, name: str, run: PipelineResults | str | UUID | None = None) -> dict[str, Any]:
        """Return the terminal `stage.wide` of a stage.

        Args:
            name: Name of the stage.
            run: Where several runs had it: which one, by its results or its `pipeline_run_id`.

        Raises:
            AssertionError: No such stage has ended, or several have.
        """
        __tracebackhide__ = True
        stages = (self if run is None else self.of_run(run)).stages
        found = [event for event in stages if event["stage_name"] == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise AssertionError(f"stage {name!r} has ended in {len(found)} runs, not one{_shown(self.runs)}")
        raise AssertionError(_no_stage(name, stages))

    def retries(self, name: str) -> list[dict[str, Any]]:
        """Return the `stage.wide` of each attempt of a stage that was retried, in order.

        Raises:
            AssertionError: There is no event of such a stage.
        """
        __tracebackhide__ = True
        events = self._amended("stage.wide")
        found = [event for event in events if event["stage_name"] == name]
        if not found:
            raise AssertionError(_no_stage(name, events))
        return [event for event in found if event["status"] == "RETRY"]

    def assert_stages(self, /, **statuses: str) -> None:
        """Hold that the stages of the only run are these, and that they ended so.

        Raises:
            AssertionError: A stage ended otherwise, is missing, or is one too many.
            ValueError: A status is none that a stage can end with.

        Example:
            events.assert_stages(load="OK", answer="FAIL")
        """
        __tracebackhide__ = True
        for name, status in statuses.items():
            if status not in _TERMINAL:
                near = did_you_mean(str(status).upper(), _TERMINAL)
                raise ValueError(f"{name}={status!r}: a stage ends with {', '.join(_TERMINAL)}{near}")
        stages = self.stages
        if len({_run_id(event) for event in stages}) > 1:
            raise AssertionError(f"these are the stages of several runs, not of one{_shown(self.runs)}")
        ended = {event["stage_name"]: event for event in stages}
        rows = [_stage_row(name, statuses.get(name), ended, statuses) for name in {**statuses, **ended}]
        if not all(good for good, *_ in rows):
            raise AssertionError(difference("the stages did not end as expected", rows))

    def assert_outcome(self, outcome: str) -> None:
        """Hold that the only run ended with this outcome: "ok", "degraded", "failed", ...

        Raises:
            AssertionError: It ended otherwise, or there is not one run.
        """
        __tracebackhide__ = True
        run = self.run()
        if run["outcome"] != outcome:
            why = run["error"] or run["reason"] or ""
            row = (False, run["pipeline_name"], outcome, run["outcome"], why)
            raise AssertionError(difference("the run did not end as expected", [row]))

    def assert_attributes(self, stage: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Hold that a stage has these attributes; it may have others.

        Args:
            stage: Name of the stage.
            fields: Names with dots, `{"gen_ai.request.model": "m"}`.
            more: Names without.

        Raises:
            AssertionError: One has another value or is missing, or no such stage has ended.

        Example:
            events.assert_attributes("answer", hits=2)
        """
        __tracebackhide__ = True
        actual = self.stage(stage)["attributes"]
        rows: list[Row] = []
        for name, value in {**(fields or {}), **more}.items():
            if name in actual:
                good = bool(actual[name] == value)
                rows.append((good, name, repr(value), repr(actual[name]), ""))
            else:
                note = f"not there{did_you_mean(name, actual) or f'; there is {listed(actual)}'}"
                rows.append((False, name, repr(value), "-", note))
        if not all(good for good, *_ in rows):
            title = f"the attributes of stage {stage!r} are not as expected"
            raise AssertionError(difference(title, rows))

    def assert_no_event(self, type: str) -> None:
        """Hold that there is no event of this type.

        Raises:
            AssertionError: There is one.
        """
        __tracebackhide__ = True
        found = self.of_type(type)
        if found:
            there = "there is 1 event" if len(found) == 1 else f"there are {len(found)} events"
            shown = "".join(f"\n  {_line(type, data)}" for data in found[:5])
            more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
            raise AssertionError(f"there should be no {type}, and {there}{shown}{more}")

    def _amended(self, type: str) -> list[dict[str, Any]]:
        """Return the events of a type, each once, with what came later in their attributes."""
        by_id: dict[str, dict[str, Any]] = {}
        amendments = []
        for event_type, data in self.events:
            if data is None or "event_id" not in data:
                continue  # the application's own, under a name of ours
            if event_type == type:
                by_id.setdefault(data["event_id"], data.copy())
            elif event_type == f"{type}.amend":
                amendments.append(data)
        for amendment in amendments:
            amend(by_id, amendment)
        return list(by_id.values())

    def __repr__(self) -> str:
        counts: dict[str, int] = {}
        for type, _ in self.events:
            counts[type] = counts.get(type, 0) + 1
        return f"<CapturedEvents: {', '.join(f'{n} {type}' for type, n in counts.items()) or 'none'}>"


def _stage_row(
    name: str, expected: str | None, ended: Mapping[str, dict[str, Any]], statuses: Mapping[str, str]
) -> Row:
    event = ended.get(name)
    if event is None:
        # Only those that nobody asked for: another one that is there is no misspelling of this.
        near = did_you_mean(name, [known for known in ended if known not in statuses])
        return False, name, str(expected), "-", f"no such stage{near}"
    actual = event["status"]
    good = actual == expected
    note = "" if good else event["error"] or event["reason"] or ""
    return good, name, "-" if expected is None else str(expected), actual, note


def _no_stage(name: str, events: list[dict[str, Any]]) -> str:
    names = [event["stage_name"] for event in events]
    hint = "" if names else _WHY_NOTHING
    return f"no stage {name!r} has ended{did_you_mean(name, names)}\n  there is {listed(names)}{hint}"


def _shown(runs: list[dict[str, Any]]) -> str:
    rows = [
        (
            "\n  ",
            run["event_id"],
            run["pipeline_name"],
            run["outcome"],
            " ".join(f"{stage['stage_name']}={stage['status']}" for stage in run["stage_summaries"]),
        )
        for run in runs[:10]
    ]
    more = f"\n  and {len(runs) - 10} more" if len(runs) > 10 else ""
    return "".join(aligned(rows)) + more + "\n  hint: take one of them by of_run(results)"


def _run_id(data: dict[str, Any] | None) -> str | None:
    ids = (data or {}).get("correlation_ids")
    return ids.get("pipeline_run_id") if isinstance(ids, dict) else None


def _line(type: str, data: Mapping[str, Any]) -> str:
    """Return an event on a line: of a wide one what ended how, of a stage's own its fields."""
    if type in ("stage.wide", "pipeline.wide"):
        why = data["error"] or data["reason"]
        name = data.get("stage_name", data.get("pipeline_name"))
        text = f"{name} {data['status']}" + (f": {why}" if why else "")
    else:
        text = repr({key: value for key, value in data.items() if key not in _ABOUT})
    return text if len(text) <= 100 else text[:99] + "…"
