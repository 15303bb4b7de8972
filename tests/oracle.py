"""A check of the record guarantees for the events of a run, and a model of the outcomes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from stageflow import EventSink, Pipeline, StageGraph
from stageflow.observability import WideEventEmitter

__all__ = [
    "Act",
    "Attempt",
    "Entry",
    "Model",
    "Plan",
    "Stage",
    "Verdict",
    "check_record",
    "ends",
    "pipeline_wide",
    "recorded",
    "stage_wide",
]

Events = Sequence[tuple[str, dict[str, Any] | None]]


def recorded(pipeline: Pipeline, sink: EventSink, **options: Any) -> StageGraph:
    """Build a pipeline whose runs emit all events to a sink."""
    options.setdefault("wide_event_emitter", WideEventEmitter(sink))
    return pipeline.build(emit_stage_wide_events=True, emit_pipeline_wide_event=True, **options)


# ---------------------------------------------------------------- reading events


def of_type(events: Events, type: str) -> list[dict[str, Any]]:
    return [data or {} for event_type, data in events if event_type == type]


def pipeline_wide(events: Events) -> dict[str, Any]:
    """Return the one `pipeline.wide`."""
    (event,) = of_type(events, "pipeline.wide")
    return event


def stage_wide(events: Events, stage: str) -> dict[str, Any]:
    """Return the one terminal `stage.wide` of `stage`."""
    (event,) = (
        event
        for event in of_type(events, "stage.wide")
        if event["stage_name"] == stage and event["status"] != "RETRY"
    )
    return event


def ends(events: Events) -> dict[str, str]:
    """Return the terminal status of every stage, in the order of the events."""
    return {
        event["stage_name"]: event["status"]
        for event in of_type(events, "stage.wide")
        if event["status"] != "RETRY"
    }


# ---------------------------------------------------------------- the record guarantees


def check_record(events: Events, stages: Iterable[str], run_id: str | None = None) -> dict[str, Any]:
    """Assert the record guarantees 1 to 5 for the events of one run; return its `pipeline.wide`."""
    stages = list(stages)
    stage_events = of_type(events, "stage.wide")
    terminal = [event for event in stage_events if event["status"] != "RETRY"]
    retries = [event for event in stage_events if event["status"] == "RETRY"]

    # 1. exactly one `pipeline.wide`
    run = pipeline_wide(events)
    run_id = run_id or run["correlation_ids"]["pipeline_run_id"]

    # 2. exactly one terminal `stage.wide` for every stage of the graph
    assert Counter(event["stage_name"] for event in terminal) == Counter(stages)
    assert {event["status"] for event in terminal} <= {"OK", "SKIP", "FAIL", "CANCEL"}
    for event in terminal:
        if not event["attempts"]:
            # The stage never started: its duration is 0, and its `reason` is set, or its `error` if the
            # condition failed.
            assert event["duration_ms"] == 0
            assert event["reason"] if event["status"] in ("SKIP", "CANCEL") else event["error"]

    # 3. one `stage.wide` with status RETRY for each attempt that was retried
    for event in terminal:
        name, attempts = event["stage_name"], event["attempts"]
        retried = [other["attempts"] for other in retries if other["stage_name"] == name]
        assert retried == list(range(1, len(retried) + 1))
        # The last attempt is the terminal one, unless the run ended before it started.
        assert attempts in (len(retried), len(retried) + 1)

    # 4. the counts
    counts = Counter(event["status"] for event in terminal)
    counted = {
        "OK": run["stages_completed"],
        "FAIL": run["stages_failed"],
        "SKIP": run["stages_skipped"],
        "CANCEL": run["stages_cancelled"],
    }
    assert counted == {status: counts[status] for status in counted}
    assert run["stages_total"] == sum(counted.values()) == len(stages)

    # 5. a terminal event comes after its RETRY events, `pipeline.wide` last of the `*.wide` events
    wide = [(type, data or {}) for type, data in events if type.endswith(".wide")]
    assert wide[-1][0] == "pipeline.wide"
    seen: set[str] = set()
    for type, data in wide:
        if type == "stage.wide":
            assert data["stage_name"] not in seen
            if data["status"] != "RETRY":
                seen.add(data["stage_name"])

    # An event's id is RUN/STAGE/ATTEMPT or RUN, and no two events share one.
    ids = [event["event_id"] for event in (*stage_events, run)]
    assert run["event_id"] == run_id
    for event in stage_events:
        head, _, number = event["event_id"].rpartition("/")
        assert head == f"{run_id}/{event['stage_name']}"
        assert number == str(int(number))
    assert [event_id for event_id, count in Counter(ids).items() if count > 1] == []

    # The summaries, `status` and the names agree with the events.
    by_name = {event["stage_name"]: event for event in terminal}
    assert [summary["stage_name"] for summary in run["stage_summaries"]] == stages
    for summary in run["stage_summaries"]:
        event = by_name[summary["stage_name"]]
        assert summary == {key: event[key] for key in ("stage_name", "status", "duration_ms", "error")}
    assert run["status"] == ("OK" if run["outcome"] in ("ok", "degraded", "stopped") else "FAIL")
    assert run["stages_abandoned"] == sum(event["abandoned"] for event in terminal)

    for type, data in wide:
        assert json.loads(json.dumps(data, allow_nan=False)) == data
        check_times(type, data)
        assert data["correlation_ids"] == run["correlation_ids"]
        assert data["pipeline_metadata"] == run["pipeline_metadata"]
    return run


def check_times(type: str, data: dict[str, Any]) -> None:
    """Assert `ended_at = started_at + duration`, to the microsecond."""
    started, ended = moment(data["started_at"]), moment(data["ended_at"])
    assert ended - started == milliseconds(data["duration_ms"])
    assert data["duration_ms"] >= 0
    if type == "stage.wide":
        assert milliseconds(data["total_ms"]) == milliseconds(data["queue_ms"] + data["duration_ms"])
        assert data["queue_ms"] >= 0


def moment(text: str) -> datetime:
    assert text.endswith("Z")
    return datetime.fromisoformat(text.removesuffix("Z") + "+00:00")


def milliseconds(number: float) -> timedelta:
    return timedelta(microseconds=round(number * 1000))


# ---------------------------------------------------------------- a description, and a log of a run

NS = 1_000_000_000
EPSILON = 1_000
"""Nanoseconds by which a timer of the loop can be early or late, because floats are rounded."""


@dataclass(frozen=True)
class Act:
    """The behavior of one attempt.

    It takes `takes` seconds (None: it ends in its first step, 0: after one iteration of the loop) and ends
    with `end`. If it is cancelled, it takes another `clean_up` seconds and ends with `cancelled`.
    """

    takes: float | None = None
    end: str = "ok"
    cancelled: str = "pass on"
    clean_up: float | None = None
    notes: int = 0
    annotates: bool = False


@dataclass(frozen=True)
class Stage:
    """The description of a stage. `covers` are the ends that its retry policy covers."""

    name: str
    needs: tuple[str, ...] = ()
    acts: tuple[Act, ...] = (Act(),)
    style: str = "function"
    optional: bool = False
    conditional: bool = False
    when: str | None = None
    routes: bool = False
    route: str | None = None
    timeout: float | None = None
    attempts: int | None = None
    wait: float = 0.0
    covers: tuple[str, ...] = ()
    limited: bool = False

    def act(self, attempt: int) -> Act:
        return self.acts[min(attempt, len(self.acts)) - 1]


@dataclass(frozen=True)
class Plan:
    """A pipeline, and the external events during its run."""

    stages: tuple[Stage, ...]
    on_failure: str = "cancel"
    max_concurrency: int | None = None
    places: int = 1
    intercepted: bool = False
    grace: float = 2.0
    deadline: float | None = None
    outside: str | None = None
    outside_at: float = 0.0
    emitter: str = "plain"
    sinks: str = "memory"

    @property
    def has_threads(self) -> bool:
        return any(stage.style == "thread" for stage in self.stages)


@dataclass(frozen=True)
class Entry:
    """An action of a stage: `asked` and `answer` of its condition, `start` and `end` of an attempt.

    `seen` is the number of events that were emitted before.
    """

    what: str
    stage: str
    at: int
    seen: int
    attempt: int = 0
    how: str = ""


# ---------------------------------------------------------------- the model of outcomes


@dataclass
class Attempt:
    """An attempt in the log; number 0 is a condition that has not returned true."""

    stage: Stage
    number: int
    began: int
    ended: int | None = None
    how: str = ""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a stage according to the model."""

    status: str
    attempts: int
    abandoned: bool = False


class Broken(AssertionError):
    """The log contradicts the model."""


@dataclass
class Model:
    """Derives the outcomes of all stages and of the run from the description and the log.

    `cuts` are the external ends of the run: the time, the position in the log before which it took effect,
    and the outcome.
    """

    plan: Plan
    log: list[Entry]
    cuts: list[tuple[int, int, str]]
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    retried: Counter[str] = field(default_factory=Counter)
    ready: dict[str, int] = field(default_factory=dict)
    attempts: dict[str, Attempt] = field(default_factory=dict)
    routed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ending: str | None = None
    ended_at: int = 0
    first_failed: str | None = None
    over_at: int | None = None

    def __post_init__(self) -> None:
        self.stages = {stage.name: stage for stage in self.plan.stages}
        self.grace = round(self.plan.grace * NS)

    # Replay of the log.

    def replay(self, began: int) -> Model:
        """Replay the log; raise `Broken` for the first entry that contradicts the model."""
        for stage in self.plan.stages:
            if not stage.needs:
                self.ready[stage.name] = began
        cuts = sorted(self.cuts, key=lambda cut: (cut[1], cut[0]))
        for index, entry in enumerate(self.log):
            while cuts and cuts[0][1] <= index:
                self.advance(cuts[0][0])
                self.cut(*cuts.pop(0))
            self.advance(entry.at)
            if self.over_at is not None:
                break
            self.take(entry)
        for cut in cuts:
            if self.over_at is None:
                self.advance(cut[0])
                self.cut(*cut)
        self.advance(None)
        if self.over_at is None:
            raise Broken(f"the run never ended: {sorted(self.stages.keys() - self.verdicts.keys())}")
        return self

    def advance(self, now: int | None) -> None:
        """Advance the time, and abandon the attempts whose grace period ends by then."""
        while self.over_at is None:
            due = [
                (limit, name)
                for name, attempt in self.attempts.items()
                if (limit := self.limit(attempt)) is not None and (now is None or limit <= now + EPSILON)
            ]
            if not due:
                return
            limit, name = min(due)
            self.abandon(self.attempts.pop(name), limit)

    def cancelled_at(self, attempt: Attempt) -> tuple[int, str] | None:
        """Return when and why a running attempt is cancelled, or None if no cancellation is known yet."""
        reasons = []
        if attempt.stage.timeout is not None:
            reasons.append((attempt.began + round(attempt.stage.timeout * NS), "timeout"))
        if self.ending is not None:
            reasons.append((self.ended_at, "ending"))
        return min(reasons, default=None)

    def limit(self, attempt: Attempt) -> int | None:
        cancelled = self.cancelled_at(attempt)
        return None if cancelled is None else cancelled[0] + self.grace

    def cut(self, at: int, _: int, outcome: str) -> None:
        if self.ending is None and self.over_at is None:
            self.end(outcome, at)

    def take(self, entry: Entry) -> None:
        stage = self.stages[entry.stage]
        if stage.name in self.verdicts and self.verdicts[stage.name].abandoned and entry.what != "start":
            return  # the run no longer waits for it
        attempt = self.attempts.get(stage.name)
        if entry.what in ("asked", "start"):
            if entry.what == "start" and entry.attempt == 1 and stage.when is not None:
                if attempt is None or attempt.how not in ("yes", "async yes"):
                    raise Broken(f"{stage.name} started although its condition did not return true")
                return
            self.check_start(stage, entry)
            number = entry.attempt if entry.what == "start" else 0
            self.attempts[stage.name] = Attempt(stage, number, entry.at)
        elif attempt is None:
            raise Broken(f"{stage.name} logged an action although it is not running: {entry}")
        elif entry.what == "answer":
            attempt.how = entry.how
            if entry.how in ("yes", "async yes"):
                attempt.number = 1  # its timeout includes the condition
            else:
                self.attempt_ended(self.attempts.pop(stage.name), entry)
        else:
            if attempt.number != entry.attempt:
                raise Broken(f"{stage.name} ended an attempt that is not the running one: {entry}")
            attempt.how = entry.how
            self.attempt_ended(self.attempts.pop(stage.name), entry)

    def check_start(self, stage: Stage, entry: Entry) -> None:
        name = stage.name
        if name in self.attempts or name in self.verdicts:
            raise Broken(f"{name} started again: {entry}")
        if name not in self.ready:
            raise Broken(f"{name} started before all of its dependencies ended")
        if self.ending is not None:
            raise Broken(f"{name} started after the run ended ({self.ending})")
        if entry.what == "start" and entry.attempt != self.retried[name] + 1:
            raise Broken(f"{name}: attempt {entry.attempt} started after {self.retried[name]} others")
        limit = self.plan.max_concurrency
        if limit is not None and len(self.attempts) >= limit:
            raise Broken(f"{name} started as number {len(self.attempts) + 1} at once; {limit} are allowed")
        limited = sum(attempt.stage.limited for attempt in self.attempts.values())
        if stage.limited and limited >= self.plan.places:
            raise Broken(f"{name} started without a permit: {limited} of {self.plan.places} are taken")
        if not self.can_wait(stage) and abs(entry.at - self.ready[name]) > EPSILON:
            raise Broken(f"{name} was ready at {self.ready[name]} but started at {entry.at}")

    def can_wait(self, stage: Stage) -> bool:
        """Return whether a ready stage may have to wait for a permit or slot, or for a thread."""
        return self.plan.max_concurrency is not None or stage.limited or self.plan.has_threads

    # The end of an attempt.

    def attempt_ended(self, attempt: Attempt, entry: Entry) -> None:
        stage, how, number = attempt.stage, attempt.how, attempt.number
        cancelled = self.cancelled_at(attempt)
        late = cancelled is not None and cancelled[1] == "timeout" and cancelled[0] <= entry.at + EPSILON
        if late:
            how = "timed out"
        status = self.status_of(stage, how)
        if not number:  # `execute` was never called
            if self.ending is not None and not late and how != "no":
                status = "CANCEL"
        elif self.ending is not None:
            if late:
                status = "FAIL"
            elif how in ("boom", "flaky", "cancelled", "retry"):
                status = "CANCEL"
        elif how in ("boom", "flaky", "timed out", "cancelled", "retry"):
            allowed = 3 if stage.attempts is None else stage.attempts
            if (how == "retry" or how in stage.covers) and number < allowed:
                self.retried[stage.name] += 1
                self.ready[stage.name] = entry.at + round(stage.wait * NS)
                return
        if stage.routes:
            self.routed[stage.name] = tuple(how.split()[1:]) if how.startswith("route") else ()
        self.settle(stage, Verdict(status, number), entry.at)

    def status_of(self, stage: Stage, how: str) -> str:
        if how.startswith("route"):
            return "OK" if stage.routes else "FAIL"
        if how in ("ok", "mapping", "none") and stage.routes:
            # A router whose dependents have routes must choose one, or none of them explicitly.
            taken = any(other.route for other in self.plan.stages if stage.name in other.needs)
            return "FAIL" if taken else "OK"
        return {
            "ok": "OK",
            "mapping": "OK",
            "none": "OK",
            "skip": "SKIP",
            "no": "SKIP",
            "async no": "SKIP",
            "fail": "FAIL",
            "boom": "FAIL",
            "flaky": "FAIL",
            "cancelled": "FAIL",  # something it awaited was cancelled, not the stage itself
            "nonsense": "FAIL",
            "retry": "FAIL",
            "timed out": "FAIL",
            "cancel": "CANCEL",
        }[how]

    def abandon(self, attempt: Attempt, at: int) -> None:
        cancelled = self.cancelled_at(attempt)
        assert cancelled is not None
        status = "FAIL" if cancelled[1] == "timeout" else "CANCEL"
        if attempt.stage.routes:
            self.routed[attempt.stage.name] = ()
        self.settle(attempt.stage, Verdict(status, attempt.number, abandoned=True), at)

    def settle(self, stage: Stage, verdict: Verdict, at: int) -> None:
        self.verdicts[stage.name] = verdict
        if self.ending is None:
            if verdict.status == "CANCEL":
                self.end("stopped", at)
            elif verdict.status == "FAIL" and not stage.optional:
                self.first_failed = self.first_failed or stage.name
                if self.plan.on_failure == "cancel":
                    self.end("failed", at)
                else:
                    self.cancel_downstream(stage.name)
            else:
                self.release(at)
        self.finish(at)

    def release(self, at: int) -> None:
        """Make stages ready, or skip them, whose dependencies have all ended."""
        changed = True
        while changed:
            changed = False
            for stage in self.plan.stages:
                if stage.name in self.ready or stage.name in self.verdicts:
                    continue
                needs = [self.verdicts.get(name) for name in stage.needs]
                if any(need is None or need.status == "CANCEL" for need in needs):
                    continue
                if any(
                    need is not None and need.status == "FAIL" and not self.stages[name].optional
                    for name, need in zip(stage.needs, needs, strict=True)
                ):
                    continue
                if self.skips(stage):
                    self.verdicts[stage.name] = Verdict("SKIP", 0)
                    changed = True
                else:
                    self.ready[stage.name] = at

    def skips(self, stage: Stage) -> bool:
        if stage.route is not None:
            labels = [label for name in stage.needs for label in self.routed.get(name, ())]
            if stage.route not in labels:
                return True
        if stage.conditional and stage.needs:
            # For its dependents, a failed optional stage is the same as a skipped one.
            return all(self.verdicts[name].status in ("SKIP", "FAIL") for name in stage.needs)
        return False

    def cancel_downstream(self, name: str) -> None:
        for stage in self.plan.stages:
            if name in stage.needs and stage.name not in self.verdicts:
                self.verdicts[stage.name] = Verdict("CANCEL", 0)
                self.cancel_downstream(stage.name)

    # The end of the run.

    def end(self, outcome: str, at: int) -> None:
        """End the run. Check that every stage that could have started earlier has done so."""
        for name, ready in self.ready.items():
            waiting = name not in self.verdicts and name not in self.attempts
            if waiting and ready < at - EPSILON and not self.can_wait(self.stages[name]):
                raise Broken(f"{name} was ready at {ready}, but had not started when the run ended at {at}")
        self.ending, self.ended_at = outcome, at
        self.finish(at)

    def finish(self, at: int) -> None:
        if self.over_at is not None or self.attempts:
            return
        if self.ending is not None:
            for stage in self.plan.stages:
                if stage.name not in self.verdicts:
                    self.verdicts[stage.name] = Verdict("CANCEL", self.retried[stage.name])
        if len(self.verdicts) == len(self.stages):
            self.over_at = at

    @property
    def outcome(self) -> str:
        if self.first_failed is not None and self.ending in (None, "stopped"):
            return "failed"
        if self.ending is not None:
            return self.ending
        return "degraded" if any(verdict.status == "FAIL" for verdict in self.verdicts.values()) else "ok"

    @property
    def abandoned(self) -> tuple[str, ...]:
        return tuple(stage.name for stage in self.plan.stages if self.verdicts[stage.name].abandoned)
