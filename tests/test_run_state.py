"""Explores every reachable state of `RunState`, and compares each step with a model written for clarity.

The state machine has no loop and no clock, so a run is a sequence of events, and every state that any
sequence can reach is visited once: two sequences that lead to the same state, with the same emitted events,
continue in the same way.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from stageflow import Limits, Pipeline, PipelineContext, Retry, StageContext, StageKind, StageOutput
from stageflow.errors import BudgetExceededError, LimitDeadlockError, PipelineValidationError
from stageflow.pipeline import _run_state
from stageflow.pipeline._run_state import PHASES, RunState
from stageflow.pipeline._stream_state import StreamState

MOST_STAGES = int(os.environ.get("RUN_STATE_STAGES", "4"))
"""For every DAG of up to 5 stages: `RUN_STATE_STAGES=5 pytest tests/test_run_state.py`."""

EVERY_FAMILY = "RUN_STATE_STAGES" in os.environ

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0 if EVERY_FAMILY else 300),
]  # the long form takes as long as it takes

GOOD = ("OK", "SKIP")


@dataclass(frozen=True)
class Kind:
    """A kind of stage: its policies, and the possible outcomes of its attempts."""

    ends: tuple[str, ...] = ("ok",)
    attempts: int = 1
    timeout: bool = False
    limited: bool = False
    refused: bool = False
    optional: bool = False
    conditional: bool = False
    condition: bool = False
    routes: bool = False
    route: str | None = None
    restart: bool = False


@dataclass(frozen=True)
class Case:
    """A pipeline and the possible events of its run."""

    name: str
    edges: frozenset[tuple[int, int]]
    kinds: tuple[Kind, ...]
    on_failure: str = "cancel"
    max_concurrency: int | None = None
    permits: int = 1
    cancelled: bool = False
    budget: bool = False
    streams: frozenset[tuple[int, int]] = frozenset()

    def dependencies(self, index: int) -> tuple[int, ...]:
        return tuple(before for before, after in sorted(self.edges) if after == index)

    def plan(self) -> Any:
        pipeline = Pipeline("p")
        for index, kind in enumerate(self.kinds):

            async def never_called(ctx: StageContext) -> None:
                raise AssertionError("the state machine calls no stage")

            routers = any(self.kinds[before].routes for before in self.dependencies(index))
            pipeline = pipeline.with_stage(
                f"s{index}",
                never_called,
                StageKind.ROUTE if kind.routes else StageKind.WORK,
                tuple(
                    f"s{before}" for before in self.dependencies(index) if (before, index) not in self.streams
                ),
                streams=tuple(f"s{before}" for before, after in sorted(self.streams) if after == index),
                restart=kind.restart,
                optional=kind.optional,
                conditional=kind.conditional,
                when=(lambda ctx: True) if kind.condition else None,
                timeout=1.0 if kind.timeout else None,
                retry=Retry(kind.attempts, wait=0, on=(ConnectionError, TimeoutError))
                if kind.attempts > 1
                else None,
                limit="permit" if kind.limited else None,
                route=kind.route if routers else None,
            )
        graph = pipeline.build(
            on_failure=self.on_failure,  # type: ignore[arg-type]
            max_concurrency=self.max_concurrency,
            limits=Limits(permit=self.permits),
        )
        return graph._plan


# ---------------------------------------------------------------- the model


@dataclass
class Model:
    """The expected result of a run, by definition: computed from all events so far.

    `verdicts` has the terminal status of each stage, in the order in which they were reached.
    """

    case: Case
    verdicts: dict[int, tuple[str, int]] = field(default_factory=dict)
    abandoned: set[int] = field(default_factory=set)
    running: dict[int, int] = field(default_factory=dict)
    timed_out: set[int] = field(default_factory=set)
    backoff: set[int] = field(default_factory=set)
    failed_attempts: Counter[int] = field(default_factory=Counter)
    labels: dict[int, tuple[str, ...]] = field(default_factory=dict)
    first_failed: int | None = None
    ending: str | None = None
    over_budget: int | None = None

    def copy(self) -> Model:
        return Model(
            self.case,
            dict(self.verdicts),
            set(self.abandoned),
            dict(self.running),
            set(self.timed_out),
            set(self.backoff),
            Counter(self.failed_attempts),
            dict(self.labels),
            self.first_failed,
            self.ending,
            self.over_budget,
        )

    def may_start(self) -> set[int]:
        """Return the stages that may run now, if there is a permit for them."""
        if self.ending is not None:
            return set()
        return {
            index
            for index in range(len(self.case.kinds))
            if index not in self.verdicts
            and index not in self.running
            and index not in self.backoff
            and all(before in self.verdicts for before in self.case.dependencies(index))
        }

    def start(self, index: int) -> None:
        assert index in self.may_start()
        assert self.case.max_concurrency is None or len(self.running) < self.case.max_concurrency
        asks = self.case.kinds[index].condition and not self.failed_attempts[index]
        self.running[index] = 0 if asks else self.failed_attempts[index] + 1
        if self.case.kinds[index].limited:
            held = sum(self.case.kinds[other].limited for other in self.running)
            assert held <= self.case.permits

    def end(self, index: int, how: str) -> None:
        kind = self.case.kinds[index]
        number = self.running.pop(index)
        late = index in self.timed_out
        self.timed_out.discard(index)
        if kind.routes:
            self.labels[index] = (how[6:],) if how.startswith("route ") and not late else ()
        status = {"ok": "OK", "skip": "SKIP", "no": "SKIP", "stop": "CANCEL"}.get(how, "FAIL")
        if how.startswith("route "):
            status = "OK"
        if index == self.over_budget:
            status = "FAIL"
        elif late:
            status, how = "FAIL", "late"
        elif self.ending is not None and how in ("boom", "flaky", "cancelled"):
            status = "CANCEL"
        if self.ending is None and how in ("flaky", "late") and 0 < number < kind.attempts:
            self.failed_attempts[index] += 1
            self.backoff.add(index)
            return
        self.settle(index, status, number)

    def abandon(self, index: int) -> None:
        number = self.running.pop(index)
        status = "FAIL" if index in self.timed_out or index == self.over_budget else "CANCEL"
        if self.case.kinds[index].routes:
            self.labels[index] = ()
        self.timed_out.discard(index)
        self.abandoned.add(index)
        self.settle(index, status, number)

    def refuse(self, index: int) -> None:
        self.settle(index, "FAIL", self.failed_attempts[index])

    def settle(self, index: int, status: str, number: int) -> None:
        self.verdicts[index] = (status, number)
        if index == self.over_budget and self.first_failed is None:
            self.first_failed = index
        if self.ending is None:
            if status == "CANCEL":
                self.ending = "stopped"
            elif status == "FAIL" and not self.case.kinds[index].optional:
                if self.first_failed is None:
                    self.first_failed = index
                if self.case.on_failure == "cancel":
                    self.ending = "failed"
            self.spread()
        self.finish()

    def spread(self) -> None:
        """Apply the skips and cancellations that follow from the verdicts, until nothing changes."""
        before = -1
        while before != len(self.verdicts):
            before = len(self.verdicts)
            for index, kind in enumerate(self.case.kinds):
                if index in self.verdicts or index in self.running or index in self.backoff:
                    continue
                known = [self.verdicts.get(other) for other in self.case.dependencies(index)]
                dependencies = self.case.dependencies(index)
                if any(
                    verdict is not None
                    and (
                        verdict[0] == "CANCEL"
                        or (verdict[0] == "FAIL" and not self.case.kinds[other].optional)
                    )
                    for other, verdict in zip(dependencies, known, strict=True)
                ):
                    if self.ending is None:
                        self.verdicts[index] = ("CANCEL", 0)
                elif self.ending is None and dependencies and None not in known:
                    statuses = [verdict[0] for verdict in known if verdict is not None]
                    routers = [other for other in dependencies if self.case.kinds[other].routes]
                    chosen = [label for other in routers for label in self.labels[other]]
                    skipped = kind.conditional and all(status != "OK" for status in statuses)
                    if skipped or (routers and kind.route is not None and kind.route not in chosen):
                        self.verdicts[index] = ("SKIP", 0)

    def cut(self, outcome: str) -> None:
        if self.ending is None:
            self.ending = outcome
        self.finish()

    def exceed(self, index: int) -> None:
        """The usage of a stage, or an attempt that would start, exceeds the budget of the run."""
        if self.ending is None and index not in self.verdicts:
            self.over_budget = index
        self.cut("failed")

    def finish(self) -> None:
        if self.ending is not None and not self.running:
            if self.over_budget is not None and self.over_budget not in self.verdicts:
                self.verdicts[self.over_budget] = ("FAIL", self.failed_attempts[self.over_budget])
                if self.first_failed is None:
                    self.first_failed = self.over_budget
            for index in range(len(self.case.kinds)):
                self.verdicts.setdefault(index, ("CANCEL", self.failed_attempts[index]))
            self.backoff.clear()

    @property
    def done(self) -> bool:
        return len(self.verdicts) == len(self.case.kinds)

    @property
    def outcome(self) -> str:
        if self.first_failed is not None and self.ending in (None, "stopped"):
            return "failed"
        if self.ending is not None:
            return self.ending
        return "degraded" if any(status == "FAIL" for status, _ in self.verdicts.values()) else "ok"


# ---------------------------------------------------------------- the machine


CONTAINERS = (
    *("_cancelling", "_deferred", "_first_began", "_permits", "_ready_at", "_reserved", "_routes"),
    *("_waiting", "acquires", "effects", "emits", "phases", "ready", "results", "retried"),
)
STREAMS = ("_consumed", "_detached", "blocked", "started")


class World:
    """A `RunState` between two events, what it has emitted, and the permits that it holds."""

    __slots__ = ("deferred", "emitted", "held", "model", "numbers", "plan", "state")

    def __init__(self, case: Case, plan: Any) -> None:
        self.plan = plan
        self.state = RunState(plan, "r", 0, 0)
        self.model = Model(case)
        self.emitted: tuple[tuple[str, str, int, bool], ...] = ()
        self.held: frozenset[int] = frozenset()
        self.deferred: frozenset[int] = frozenset()
        self.numbers: dict[int, int] = {}
        self.state.started()
        self.drain()

    def copy(self) -> World:
        new = type(self).__new__(type(self))
        new.plan, new.emitted, new.held = self.plan, self.emitted, self.held
        new.deferred = self.deferred
        new.model, new.numbers = self.model.copy(), dict(self.numbers)
        new.state = RunState.__new__(RunState)
        for name in RunState.__slots__:
            setattr(new.state, name, getattr(self.state, name))
        for name in CONTAINERS:
            setattr(new.state, name, getattr(self.state, name).copy())
        new.state.streams = StreamState(self.plan.nodes)
        for name in STREAMS:
            setattr(new.state.streams, name, getattr(self.state.streams, name).copy())
        new.state.streams._consumed = {
            sender: readers.copy() for sender, readers in self.state.streams._consumed.items()
        }
        return new

    def key(self) -> Any:
        """Return all state that determines how this run continues."""
        state = self.state
        return (
            tuple(state.phases),
            tuple(state.ready),
            self.emitted,
            self.held,
            self.deferred,
            frozenset(state._reserved),
            state.ending and (state.ending.outcome, state.ending.over_budget),
            state.first_failed and state.first_failed.name,
            tuple(sorted(self.numbers.items())),
            state.done,
        )

    def drain(self) -> None:
        """Execute the effects as the scheduler does."""
        state = self.state
        for result in state.emits:
            self.emitted += ((result.name, result.status.value, result.attempt, result.abandoned),)
        state.emits.clear()
        for effect, index, _ in state.effects:
            if effect == "release":
                self.held -= {index}
            elif effect == "defer":
                assert index in self.held
                self.held -= {index}
                self.deferred |= {index}
            elif effect == "resume":
                assert index in self.deferred
                self.deferred -= {index}
        state.effects.clear()
        state.pending = False

    def events(self) -> Iterator[tuple[Any, ...]]:
        """Yield each event that may come next."""
        state, case = self.state, self.model.case
        if state.done:
            return
        if state.startable > 0 and state.ending is None:
            yield ("take",)
        free = case.permits - len(self.held)
        for index, phase in enumerate(state.phases):
            name, kind = PHASES[phase], case.kinds[index]
            if name == "queued" and state.ending is None and index not in self.deferred:
                if free > 0:
                    yield ("permit", index)
                if kind.refused:
                    yield ("refuse", index)
            elif name == "backoff" and state.ending is None:
                yield ("retry", index)
            elif name == "running":
                if not self.numbers[index]:
                    yield ("yes", index)
                for how in kind.ends if self.numbers[index] else ("no", "boom"):
                    yield ("end", index, how)
                if kind.timeout:
                    yield ("timeout", index)
            elif name in ("timed_out", "cancelling"):
                yield ("end", index, "cancelled")
                yield ("end", index, kind.ends[0] if self.numbers[index] else "no")
                yield ("grace", index)
        if case.cancelled and state.ending is None:
            yield ("cancel",)
        if case.budget and state.ending is None:
            for index, phase in enumerate(state.phases):
                # An earlier attempt can report usage in any phase, and a stage even after its end.
                if PHASES[phase] != "waiting":
                    yield ("exceed", index)
            if state.startable > 0:
                yield ("deny",)

    def apply(self, event: tuple[Any, ...]) -> None:
        what, *rest = event
        state, model = self.state, self.model
        index = rest[0] if rest else -1
        if what == "take":
            taken = state.take()
            if taken >= 0:
                self.numbers[taken] = state.attempt_number(taken)
                model.start(taken)
            else:
                assert state.acquires
            state.acquires.clear()
        elif what == "permit":
            self.held |= {index}
            state.permit_granted(index)
        elif what == "refuse":
            error = LimitDeadlockError("x", limit="permit", holders=())
            state.permit_refused(index, error, 0)
            model.refuse(index)
        elif what == "retry":
            state.retry_due(index)
            model.backoff.discard(index)
        elif what == "yes":
            self.numbers[index] = model.running[index] = 1
        elif what == "timeout":
            state.attempt_timed_out(index)
            model.timed_out.add(index)
        elif what == "grace":
            state.grace_over(index, self.context(index), 0, 0)
            model.abandon(index)
        elif what == "cancel":
            state.cancelled("cancelled", 0)
            model.cut("cancelled")
        elif what == "exceed":
            state.budget_exceeded(index, exceeded(), 0)
            model.exceed(index)
        elif what == "deny":
            if (denied := self.deny()) >= 0:
                model.exceed(denied)
        else:
            self.end(index, rest[1])
            model.end(index, rest[1])
        self.drain()

    def deny(self) -> int:
        """Start the next stage as the scheduler does if the budget does not allow its attempt."""
        state = self.state
        index = state.take()
        state.acquires.clear()
        if index >= 0:
            state.budget_exceeded(index, exceeded(), 0)
            state.attempt_withdrawn(index, 0)
        return index

    def context(self, index: int) -> StageContext:
        """Return the context of the running attempt of a stage."""
        node = self.state.nodes[index]
        number = self.numbers.pop(index)
        return StageContext(PipelineContext(), node.name, node.kind, number, index, self.state, None)  # type: ignore[arg-type]

    def end(self, index: int, how: str) -> None:
        ctx = self.context(index)
        raised: BaseException | None = None
        if how in ("boom", "flaky", "cancelled"):
            kinds = {"boom": ValueError, "flaky": ConnectionError, "cancelled": asyncio.CancelledError}
            raised = kinds[how]("x")
            output = StageOutput.fail(raised)
        elif how.startswith("route "):
            output = StageOutput.route(how[6:])
        else:
            output = {
                "ok": StageOutput.ok(),
                "skip": StageOutput.skip("s"),
                "no": StageOutput.skip("when"),
                "fail": StageOutput.fail("f"),
                "stop": StageOutput.stop("enough"),
            }[how]
        self.state.attempt_ended(index, ctx, output, raised, 0, 0)

    def check(self) -> None:
        """Compare with the model, and check the record guarantees for what has been emitted so far."""
        state, model, case = self.state, self.model, self.model.case
        size = len(case.kinds)
        terminal = {}
        retried: Counter[str] = Counter()
        for name, status, attempt, abandoned in self.emitted:
            assert name not in terminal, "an event after the terminal one"
            if status == "RETRY":
                retried[name] += 1
                assert attempt == retried[name]
            else:
                terminal[name] = (status, abandoned)
        expected = {
            f"s{index}": (status, index in model.abandoned) for index, (status, _) in model.verdicts.items()
        }
        assert terminal == expected
        assert retried == +Counter({f"s{i}": count for i, count in model.failed_attempts.items()})
        running = [index for index, phase in enumerate(state.phases) if PHASES[phase] in ACTIVE]
        assert state.running == len(running) == len(model.running)
        assert set(running) == set(model.running)
        assert state.left == size - len(terminal)
        assert state.done == model.done
        assert (state.ending.outcome if state.ending else None) == model.ending
        if state.ending is None and not state.done:
            may_start = {i for i, phase in enumerate(state.phases) if PHASES[phase] in ("ready", "queued")}
            assert may_start == model.may_start()
        assert len(self.held) <= case.permits
        if state.ending is None and case.max_concurrency is not None:
            # Only a stage that is running or starts next holds a permit.
            assert len({*running, *self.held}) <= case.max_concurrency
        if state.done:
            assert not self.held
            results = state.conclude(PipelineContext(), 0)
            assert results.outcome == model.outcome
            assert results.first_failed_stage == (
                None if model.first_failed is None else f"s{model.first_failed}"
            )
            for index, (status, attempts) in model.verdicts.items():
                assert (results[f"s{index}"].status, results[f"s{index}"].attempts) == (status, attempts)
        else:
            assert next(self.events(), None) is not None, "nothing can happen, and the run is not over"


def exceeded() -> BudgetExceededError:
    return BudgetExceededError("x", unit="usd", limit=1, spent=2, budget_run_id="r")


ACTIVE = ("running", "timed_out", "cancelling")

METHODS = {
    "take": "take()",
    "permit": "permit_granted()",
    "refuse": "permit_refused()",
    "retry": "retry_due()",
    "timeout": "attempt_timed_out()",
    "grace": "grace_over()",
    "end": "attempt_ended()",
}


def explore(
    case: Case, transitions: set[tuple[str, str, str]], first: World | None = None
) -> tuple[int, int]:
    """Visit every reachable state; return the number of states and of steps between them."""
    first = first or World(case, case.plan())
    first.check()
    seen = {first.key()}
    following = [first]
    steps = 0
    while following:
        world = following.pop()
        for event in world.events():
            after = world.copy()
            after.apply(event)
            steps += 1
            for index, (old, new) in enumerate(zip(world.state.phases, after.state.phases, strict=True)):
                if old != new:
                    own = (event[1:2] == (index,) and event[0] in METHODS) or (
                        event[0] == "take" and PHASES[old] == "ready"
                    )
                    transitions.add((PHASES[old], METHODS[event[0]] if own else "", PHASES[new]))
            key = after.key()
            if key not in seen:
                try:
                    after.check()
                except AssertionError as error:
                    raise AssertionError(f"{case.name}: after {event}: {error}") from error
                seen.add(key)
                following.append(after)
    return len(seen), steps


def graphs(size: int) -> Iterator[frozenset[tuple[int, int]]]:
    """Yield every DAG with a number of stages, in topological order."""
    edges = list(combinations(range(size), 2))
    for count in range(len(edges) + 1):
        for chosen in combinations(edges, count):
            yield frozenset(chosen)


FLAKY = Kind(ends=("ok", "boom", "flaky"), attempts=2)
SLOW = Kind(ends=("ok",), timeout=True, attempts=2)
LIMITED = Kind(ends=("ok", "skip"), limited=True)
REFUSED = Kind(ends=("ok", "flaky"), attempts=2, limited=True, refused=True)
OPTIONAL = Kind(ends=("ok", "fail"), optional=True)
STOPS = Kind(ends=("ok", "stop"), conditional=True)
ASKS = Kind(ends=("ok", "boom"), condition=True)
ROUTER = Kind(ends=("route left", "route right", "boom"), routes=True)
LEFT = Kind(ends=("ok",), route="left", conditional=True)


def cases(size: int) -> Iterator[Case]:
    """Yield every DAG of a size, with several kinds of stages and of runs."""
    for number, edges in enumerate(graphs(size)):
        families: dict[str, tuple[tuple[Kind, ...], dict[str, Any]]] = {
            "retries": ((FLAKY, Kind(("ok", "boom")), OPTIONAL, SLOW, FLAKY), {}),
            "timeouts": ((SLOW, OPTIONAL, FLAKY, Kind(("ok",)), SLOW), {"cancelled": True}),
            "permits": ((LIMITED, LIMITED, STOPS, LIMITED, FLAKY), {"max_concurrency": 2}),
            "one slot": ((LIMITED, OPTIONAL, LIMITED, STOPS, LIMITED), {"max_concurrency": 1, "permits": 2}),
            "refusals": ((REFUSED, OPTIONAL, REFUSED, STOPS, REFUSED), {"max_concurrency": 2}),
            "budgets": ((SLOW, FLAKY, LIMITED, OPTIONAL, ASKS), {"on_failure": "continue", "budget": True}),
            "skips": ((ASKS, STOPS, OPTIONAL, STOPS, LIMITED), {"on_failure": "continue"}),
        }
        takers = {after for before, after in edges if before == 0}
        if takers:
            kinds = (ROUTER, *(LEFT if index in takers else STOPS for index in range(1, 5)))
            families["routes"] = (kinds, {"on_failure": "continue"})
        if size > 3 and not EVERY_FAMILY:
            # Every graph, with two families in turn: each family gets every kind of graph.
            chosen_families = [list(families)[(number + step) % len(families)] for step in (0, 2)]
            families = {name: families[name] for name in chosen_families}
        for name, (kinds, options) in families.items():
            # A different stage is the first of the graph each time.
            turn = 0 if name == "routes" else number % size
            chosen = (kinds[turn:size] + kinds[:turn]) if name != "routes" else kinds[:size]
            yield Case(f"{name}, edges {sorted(edges)}", edges, chosen, **options)


def every_case() -> Iterable[Case]:
    return (case for size in range(1, MOST_STAGES + 1) for case in cases(size))


@pytest.fixture(scope="module")
def transitions() -> set[tuple[str, str, str]]:
    """Every phase transition in all cases: old phase, event of that instance (or ""), new phase."""
    found = {("waiting", "", "ready")}  # started()
    states = 0
    for case in every_case():
        states += explore(case, found)[0]
    assert states > 1_000
    return found


def test_every_reachable_state_agrees_with_the_model(transitions: set[tuple[str, str, str]]) -> None:
    # The fixture has compared each state with the model; this test checks that every phase occurs.
    assert {phase for old, _, new in transitions for phase in (old, new)} == set(PHASES)


def test_state_diagram_in_the_docstring_has_exactly_the_reachable_transitions(
    transitions: set[tuple[str, str, str]],
    stream_transitions: set[tuple[str, str, str]],
) -> None:
    transitions = transitions | stream_transitions
    drawn: dict[tuple[str, str], str] = {}
    for line in (_run_state.__doc__ or "").splitlines():
        if match := re.fullmatch(r"    ([a-z_, ]+?) -+ (.+?) -*> (\w+)", line):
            olds, label, new = match.groups()
            for old in olds.split(", "):
                drawn[old, new] = drawn.get((old, new), "") + label
    assert set(drawn) == {(old, new) for old, _, new in transitions}
    for old, method, new in transitions:
        assert method in drawn[old, new], f"{old} -> {new} by {method}"


def test_state_diagram_in_the_docs_has_exactly_the_reachable_transitions(
    transitions: set[tuple[str, str, str]],
    stream_transitions: set[tuple[str, str, str]],
) -> None:
    transitions = transitions | stream_transitions
    page = (Path(__file__).parents[1] / "docs" / "semantics.md").read_text()
    diagram = page.partition("stateDiagram-v2")[2].partition("```")[0]
    drawn = set(re.findall(r"^ +(\w+) --> (\w+):", diagram, re.MULTILINE))
    assert drawn == {(old, new) for old, _, new in transitions}


def test_exploration_copies_every_container_of_the_state() -> None:
    state = World(Case("one", frozenset(), (FLAKY,)), Case("one", frozenset(), (FLAKY,)).plan()).state
    held = {
        name
        for name in RunState.__slots__
        if isinstance(getattr(state, name), list | dict | set | deque | bytearray)
    }
    assert held == set(CONTAINERS)
    assert {name for name in StreamState.__slots__ if name != "_nodes"} == set(STREAMS)


# ---------------------------------------------------------------- streams


class StreamWorld(World):
    """A `RunState` whose stages stream. Invariants replace the model."""

    __slots__ = ()

    def key(self) -> Any:
        state, reading = self.state, self.state.streams
        return (
            tuple(state.phases),
            tuple(state.ready),
            frozenset(self.emitted),
            state.ending and (state.ending.outcome, state.ending.over_budget),
            state.first_failed and state.first_failed.name,
            tuple(sorted(self.numbers.items())),
            state.done,
            frozenset(reading.started),
            frozenset((sender, *sorted(readers)) for sender, readers in reading._consumed.items()),
            frozenset(reading._detached),
            frozenset(reading.blocked),
            frozenset(state._cancelling.items()),
        )

    def events(self) -> Iterator[tuple[Any, ...]]:
        yield from super().events()
        state, reading = self.state, self.state.streams
        if state.done:
            return
        for sender, reader in sorted(self.model.case.streams):
            if PHASES[state.phases[sender]] == "running" and sender not in reading.started:
                yield ("send", sender)
            reads = PHASES[state.phases[reader]] == "running" and (sender, reader) not in reading._detached
            if reads and (sender in reading.started):
                if reader not in reading._consumed.get(sender, ()):
                    yield ("read", sender, reader)
                if self.model.case.kinds[reader].attempts == 1:
                    yield ("leave", sender, reader)
            if self.model.case.max_concurrency is not None and PHASES[state.phases[sender]] == "running":
                yield ("unblock" if sender in reading.blocked else "block", sender)

    def apply(self, event: tuple[Any, ...]) -> None:
        what, *rest = event
        state = self.state
        if what == "take":
            taken = state.take()
            if taken >= 0:
                self.numbers[taken] = state.attempt_number(taken)
            state.acquires.clear()
        elif what == "send":
            state.stream_started(rest[0], 0)
        elif what == "read":
            state.streams.chunk_read(rest[0], rest[1])
        elif what == "leave":
            state.streams.detach(rest[0], rest[1])
        elif what == "block":
            state.streams.blocked[rest[0]] = None
            state.resume_deferred()
        elif what == "unblock":
            del state.streams.blocked[rest[0]]
        elif what == "retry":
            state.retry_due(rest[0])
        elif what == "timeout":
            state.attempt_timed_out(rest[0])
        elif what == "grace":
            state.grace_over(rest[0], self.context(rest[0]), 0, 0)
        elif what == "cancel":
            state.cancelled("cancelled", 0)
        elif what == "exceed":
            state.budget_exceeded(rest[0], exceeded(), 0)
        elif what == "deny":
            self.deny()
        else:
            self.end(rest[0], rest[1])
        if what in ("end", "grace"):
            state.streams.blocked.pop(rest[0], None)
        self.drain()

    def check(self) -> None:
        state, case = self.state, self.model.case
        terminal: dict[str, str] = {}
        retried: Counter[str] = Counter()
        for name, status, attempt, _ in self.emitted:
            assert name not in terminal, "an event after the terminal one"
            if status == "RETRY":
                retried[name] += 1
                assert attempt == retried[name]
            else:
                terminal[name] = status
        phases = [PHASES[phase] for phase in state.phases]
        assert state.running == sum(phase in ACTIVE for phase in phases)
        assert state.left == len(phases) - len(terminal)
        for index, phase in enumerate(phases):
            if phase in ("waiting", "done"):
                continue
            for before in case.dependencies(index):
                ended = terminal.get(f"s{before}")
                optional = ended == "FAIL" and case.kinds[before].optional
                if (before, index) not in case.streams:
                    assert ended in GOOD or optional, "it started before the end of a dependency"
                    continue
                started = before in state.streams.started
                assert started or ended in GOOD or optional, "it started before the first chunk"
                if ended == "FAIL" and started and phase == "running":
                    detached = (before, index) in state.streams._detached
                    assert detached or state.ending is not None, "it reads a stream that has failed"
        if state.ending is None and case.max_concurrency is not None:
            counted = [
                index
                for index, phase in enumerate(phases)
                if phase in ACTIVE
                and not any(reader == index for _, reader in case.streams)
                and index not in state.streams.blocked
            ]
            # A sender that continues after it waited for a reader does not wait for a slot.
            assert len(counted) <= case.max_concurrency + len({sender for sender, _ in case.streams})
        if not state.done:
            assert next(self.events(), None) is not None, "nothing can happen, and the run is not over"
            return
        assert len(terminal) == len(phases)
        results = state.conclude(PipelineContext(), 0)
        failed = [name for name, status in terminal.items() if status == "FAIL"]
        if state.ending is not None and state.ending.over_budget >= 0:
            over = f"s{state.ending.over_budget}"
            assert (results.outcome, terminal[over]) == ("failed", "FAIL")
            assert isinstance(results[over].exception, BudgetExceededError)
            assert results.exception is results[over].exception
            return
        required = [name for name in failed if not case.kinds[int(name[1:])].optional]
        if results.outcome in ("ok", "degraded"):
            assert not required
            assert (results.outcome == "degraded") == bool(failed)
        if required and results.outcome not in ("cancelled", "timeout"):
            assert results.outcome == "failed"


SENDS = Kind(ends=("ok", "flaky"), attempts=2)
RESTARTS = Kind(ends=("ok", "flaky", "boom"), attempts=2, restart=True)
READS = Kind(ends=("ok", "flaky"), attempts=2)
LEAVES = Kind(ends=("ok", "boom"))
LOSES = Kind(ends=("ok", "fail"), optional=True)


def stream_cases() -> Iterator[Case]:
    """Yield every DAG of up to three stages, with every choice of the edges that are streams."""
    families = {
        "restarts": (RESTARTS, READS, LEAVES),
        "chain of restarts": (RESTARTS, RESTARTS, LEAVES),
        "no restart": (SENDS, SENDS, LEAVES),
        "optional": (LOSES, READS, STOPS),
        "timeouts": (SLOW, LEAVES, READS),
    }
    every_option: tuple[dict[str, Any], ...] = (
        {"on_failure": "continue"},
        {"on_failure": "cancel", "cancelled": True},
        {"on_failure": "continue", "max_concurrency": 1},
        {"on_failure": "continue", "budget": True},
    )
    chosen = [(name, options) for options in every_option for name in families]
    number = 0
    for size in (2, 3):
        for edges in graphs(size):
            for count in range(1, len(edges) + 1):
                for streams in combinations(sorted(edges), count):
                    # Of graphs with three stages, each gets three of the combinations in turn.
                    some = [chosen[(number * 4 + step * 7) % len(chosen)] for step in range(3)]
                    number += 1
                    for name, options in chosen if size == 2 or EVERY_FAMILY else some:
                        text = f"{name}, edges {sorted(edges)}, streams {streams}, {options}"
                        kinds = families[name][:size]
                        yield Case(text, edges, kinds, streams=frozenset(streams), **options)


@pytest.fixture(scope="module")
def stream_transitions() -> set[tuple[str, str, str]]:
    found: set[tuple[str, str, str]] = set()
    states = explored = 0
    for case in stream_cases():
        try:
            plan = case.plan()
        except PipelineValidationError:
            continue  # its stages could wait for each other
        explored += 1
        states += explore(case, found, StreamWorld(case, plan))[0]
    assert explored > 50
    assert states > 10_000
    return found


def test_every_reachable_state_of_streams_satisfies_the_invariants(
    stream_transitions: set[tuple[str, str, str]],
) -> None:
    """The fixture checks each state; a failed or restarted stream cancels its readers."""
    assert ("running", "", "cancelling") in stream_transitions
    assert ("cancelling", "attempt_ended()", "backoff") in stream_transitions
