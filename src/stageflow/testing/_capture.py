"""Captures the events of runs, and compares them with what a test expects."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any
from uuid import UUID

import msgspec

from ..errors import did_you_mean, invalid_argument
from ..events import MemoryEventSink, get_event_sink, set_event_sink
from ..journal import amend
from ..observability import defaults, use_defaults
from ..results import PipelineResults
from ..stages import StageStatus

__all__ = ["CapturedEvents", "Row", "aligned", "capture_events", "difference", "listed"]


Row = tuple[bool, str, str, str, str]
"""Whether the actual value is as expected, name, expected value, actual value, and a note."""

_TERMINAL = [str(status) for status in StageStatus if status is not StageStatus.RETRY]
_ENVELOPE = ("event_id", "attempt", "emitted_at", "correlation_ids", "pipeline_metadata")
"""The keys that the library adds to a custom event, except the name of the stage."""
_NOT_CAPTURED_HINT = (
    "\n  hint: a graph that was built with emit_...=False, or with an emitter that has a separate sink,"
    " is not captured"
)


def difference(title: str, rows: Iterable[Row]) -> str:
    """Return a table with a title, in which each row that is not as expected is marked.

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
    """Return a line for each row: the first cell unchanged, the others aligned in columns.

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
    """Return names as a list for a sentence, or "nothing" if there are none.

    Example:
        >>> listed(["load", "answer"]), listed([])
        ('load, answer', 'nothing')
    """
    return ", ".join(dict.fromkeys(names)) or "nothing"


@contextlib.contextmanager
def capture_events() -> Generator[CapturedEvents]:
    """Capture all events of the runs in this block, instead of passing them to the global sink.

    In the block, graphs emit their wide events even if the library is not configured, unless they were built
    with a flag that disables them. Afterwards, the previous sink and configuration are in effect again. This
    applies to the whole process: to all threads and all event loops.

    The events of an emitter with a separate sink are not captured. If code in the block sets a sink or
    configures the library, that takes effect immediately, and remains in effect after the block.

    Example:
        >>> with capture_events() as events:
        ...     results = Pipeline("greet").with_stage("hello", lambda ctx: {"text": "hi"}).build().run_sync()
        >>> events.assert_stages(hello="OK")
        >>> events.run()["outcome"]
        'ok'
    """
    sink = MemoryEventSink()
    sink_before = get_event_sink()
    # Without health events, which are emitted at arbitrary times.
    capturing = msgspec.structs.replace(defaults(), emit_wide_events=True, health_seconds=None)
    set_event_sink(sink)
    defaults_before = use_defaults(capturing)
    try:
        yield CapturedEvents(lambda: sink.events)
    finally:
        if defaults() is capturing:
            use_defaults(defaults_before)
        if get_event_sink() is sink:
            set_event_sink(sink_before)


class CapturedEvents:
    """The events captured so far, with methods to query and check them.

    A method that returns a single event, or checks an expectation, raises an `AssertionError` if that fails;
    the message describes the actual events. Amendments are merged into the attributes of `runs` and
    `stages`, and of everything that is derived from them. `events` contains the amendments as they were
    emitted.
    """

    def __init__(self, source: Callable[[], list[tuple[str, dict[str, Any] | None]]]) -> None:
        self._source = source

    @property
    def events(self) -> list[tuple[str, dict[str, Any] | None]]:
        """Type and data of every event, in order, as a sink receives them."""
        return list(self._source())

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """Return the data of all events of this type, as a sink receives them."""
        return [data or {} for event_type, data in self.events if event_type == type]

    def of_run(self, run: PipelineResults | str | UUID) -> CapturedEvents:
        """Return the events of one run, identified by its results or its `pipeline_run_id`.

        Example:
            events.of_run(results).assert_outcome("ok")
        """
        run_id = str(run.context.pipeline_run_id if isinstance(run, PipelineResults) else run)
        return CapturedEvents(lambda: [event for event in self.events if _run_id(event[1]) == run_id])

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The data of the `pipeline.wide` event of each run that has ended, in order."""
        return self._amended("pipeline.wide")

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The data of the terminal `stage.wide` events, in order; see `retries` for the others."""
        return [event for event in self._amended("stage.wide") if event["status"] != "RETRY"]

    def run(self) -> dict[str, Any]:
        """Return the `pipeline.wide` event of the only run that has ended.

        Raises:
            AssertionError: No run has ended, or several have.
        """
        __tracebackhide__ = True
        runs = self.runs
        if len(runs) == 1:
            return runs[0]
        if not runs:
            raise AssertionError(f"no run has ended: no pipeline.wide event was captured{_NOT_CAPTURED_HINT}")
        raise AssertionError(f"expected one run, but {len(runs)} have ended{_listing(runs)}")

    def stage(self, name: str, run: PipelineResults | str | UUID | None = None) -> dict[str, Any]:
        """Return the terminal `stage.wide` event of a stage.

        Args:
            name: Name of the stage.
            run: The run of the stage if there are several, as its results or its `pipeline_run_id`.

        Raises:
            AssertionError: No such stage has ended, or several have.
        """
        __tracebackhide__ = True
        stages = (self if run is None else self.of_run(run)).stages
        found = [event for event in stages if event["stage_name"] == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise AssertionError(
                f"expected one run with stage {name!r}, but {len(found)} runs contain it{_listing(self.runs)}"
            )
        raise AssertionError(_no_stage(name, stages))

    def retries(self, name: str) -> list[dict[str, Any]]:
        """Return the `stage.wide` event of each attempt of a stage that was retried, in order.

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
        """Assert that the only run has exactly these stages, and that they ended with these statuses.

        Raises:
            AssertionError: A stage ended with another status, is missing, or is unexpected.
            InvalidArgumentError: A status is not a terminal status of a stage.

        Example:
            events.assert_stages(load="OK", answer="FAIL")
        """
        __tracebackhide__ = True
        for name, status in statuses.items():
            if status not in _TERMINAL:
                raise invalid_argument(
                    "assert_stages()", name, status, f"one of {', '.join(_TERMINAL)}", known=_TERMINAL
                )
        stages = self.stages
        if len({_run_id(event) for event in stages}) > 1:
            raise AssertionError(
                f"expected the stages of one run, but several runs have ended{_listing(self.runs)}"
            )
        ended = {event["stage_name"]: event for event in stages}
        rows = [_stage_row(name, statuses.get(name), ended, statuses) for name in {**statuses, **ended}]
        if not all(good for good, *_ in rows):
            raise AssertionError(difference("the stages did not end as expected", rows))

    def assert_outcome(self, outcome: str) -> None:
        """Assert that the only run ended with this outcome: "ok", "degraded", "failed", ...

        Raises:
            AssertionError: It ended with another outcome, no run has ended, or several have.
        """
        __tracebackhide__ = True
        run = self.run()
        if run["outcome"] != outcome:
            why = run["error"] or run["reason"] or ""
            row = (False, run["pipeline_name"], outcome, run["outcome"], why)
            raise AssertionError(difference("the run did not end as expected", [row]))

    def assert_attributes(self, stage: str, fields: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Assert that a stage has these attributes; it may have others.

        Args:
            stage: Name of the stage.
            fields: Attributes whose names contain dots: `{"gen_ai.request.model": "m"}`.
            more: Attributes whose names are identifiers.

        Raises:
            AssertionError: An attribute has another value or is missing, or no such stage has ended.

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
                note = f"missing{did_you_mean(name, actual) or f'; the stage has {listed(actual)}'}"
                rows.append((False, name, repr(value), "-", note))
        if not all(good for good, *_ in rows):
            title = f"the attributes of stage {stage!r} are not as expected"
            raise AssertionError(difference(title, rows))

    def assert_no_event(self, type: str) -> None:
        """Assert that no event of this type was emitted.

        Raises:
            AssertionError: There is such an event.
        """
        __tracebackhide__ = True
        found = self.of_type(type)
        if found:
            count = "1 was" if len(found) == 1 else f"{len(found)} were"
            shown = "".join(f"\n  {_line(type, data)}" for data in found[:5])
            more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
            raise AssertionError(f"expected no {type} event, but {count} emitted{shown}{more}")

    def _amended(self, type: str) -> list[dict[str, Any]]:
        """Return the events of a type, deduplicated, with their amendments merged."""
        by_id: dict[str, dict[str, Any]] = {}
        amendments = []
        for event_type, data in self.events:
            if data is None or "event_id" not in data:
                continue  # emitted by the application with a type of the library
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
        # Only unexpected stages: `name` cannot be a misspelling of a stage that is also expected.
        near = did_you_mean(name, [known for known in ended if known not in statuses])
        return False, name, str(expected), "-", f"no such stage{near}"
    actual = event["status"]
    good = actual == expected
    note = "" if good else event["error"] or event["reason"] or ""
    return good, name, "-" if expected is None else str(expected), actual, note


def _no_stage(name: str, events: list[dict[str, Any]]) -> str:
    names = [event["stage_name"] for event in events]
    hint = "" if names else _NOT_CAPTURED_HINT
    return (
        f"no stage {name!r} has ended{did_you_mean(name, names)}\n  stages that ended: {listed(names)}{hint}"
    )


def _listing(runs: list[dict[str, Any]]) -> str:
    """Return one line for each of the first ten runs, and a hint how to select one."""
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
    return "".join(aligned(rows)) + more + "\n  hint: select one of them with of_run(results)"


def _run_id(data: dict[str, Any] | None) -> str | None:
    ids = (data or {}).get("correlation_ids")
    return ids.get("pipeline_run_id") if isinstance(ids, dict) else None


def _line(type: str, data: Mapping[str, Any]) -> str:
    """Return an event as one line: the name and status of a wide event, the fields of a custom event."""
    if type in ("stage.wide", "pipeline.wide"):
        why = data["error"] or data["reason"]
        name = data.get("stage_name", data.get("pipeline_name"))
        text = f"{name} {data['status']}" + (f": {why}" if why else "")
    else:
        text = repr({key: value for key, value in data.items() if key not in _ENVELOPE})
    return text if len(text) <= 100 else text[:99] + "…"
