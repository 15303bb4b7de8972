"""The record guarantees, checked for random pipelines with random outcomes of stages and runs."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jsonschema
import pytest
from hypothesis import event, given, settings, strategies as st
from oracle import EPSILON, NS, Act, Broken, Entry, Model, Plan, Stage, check_record, of_type

from stageflow import (
    EventSink,
    Limits,
    Pipeline,
    PipelineContext,
    PipelineResults,
    Retry,
    RunFailedError,
    StageContext,
    StageGraph,
    StageKind,
    StageOutput,
    StageStatus,
)
from stageflow.events import FanoutEventSink, MemoryEventSink
from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide
from stageflow.pipeline import Proceed, StageCall
from stageflow.schema import json_schemas
from stageflow.testing import VirtualClock

T = TypeVar("T")

MAX_STAGES = 30
EXAMPLES = int(os.environ.get("GUARANTEE_EXAMPLES", "40"))
"""To check more: `GUARANTEE_EXAMPLES=2000 pytest tests/test_record_guarantees.py --timeout 0`."""
LARGE = (100, 200)
LARGE_EXAMPLES = max(EXAMPLES // 16, 1)

VALIDATORS = {
    type: jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for type, schema in json_schemas().items()
}

# ---------------------------------------------------------------- random descriptions

# Times must not coincide, because the order would be arbitrary: stages take whole seconds, timeouts are about
# 37 milliseconds longer, and external events occur in between.
TAKES = (None, None, None, 0.0, 1.0, 1.0, 2.0, 3.0, 5.0)
GOOD = ("ok", "ok", "mapping", "none", "skip")
BAD = ("fail", "boom", "nonsense", "cancelled", "cancel")
CANCELLED = ("pass on",) * 5 + ("ok", "skip", "fail", "boom", "flaky", "retry", "cancel", "nonsense")
CLEAN_UPS = (None, None, None, 0.0, 0.005, 1.0, 1.0, 10.0, 1000.0)
LABELS = ("left", "right")
ROUTES = ("route", "route left", "route right", "route left right", "route left right")

# A stage does something that can end the run with a probability of 1 in this number.
TEMPERS = {"calm": 150, "mixed": 25, "wild": 3}


def sample_values(make: Callable[[random.Random], T], count: int) -> list[T]:
    """Return `count` different values, simple ones first: drawing one is faster than drawing its parts."""
    chance = random.Random(count)
    values = [make(chance) for _ in range(count)]
    return sorted(dict.fromkeys(values), key=lambda value: len(repr(value)))


def random_act(chance: random.Random, ends: tuple[str, ...]) -> Act:
    return Act(
        takes=chance.choice(TAKES),
        end=chance.choice(ends),
        cancelled=chance.choice(CANCELLED),
        clean_up=chance.choice(CLEAN_UPS),
        notes=chance.choice((0, 0, 0, 1, 2)),
        annotates=chance.random() < 0.3,
    )


def random_stage(chance: random.Random, rarely: int) -> Stage:
    """Return a stage without its name, its position and its behavior."""
    retried = chance.random() < 0.3
    return Stage(
        name="",
        style=chance.choice(("function", "function", "class", "instance", "thread")),
        optional=chance.random() < 0.25,
        conditional=chance.random() < 0.25,
        when=chance.choice(("yes", "no", "async yes", "async no")) if chance.random() < 0.3 else None,
        timeout=chance.choice((1.0, 2.0, 4.0)) if not chance.randrange(rarely) else None,
        attempts=chance.randint(1, 3) if retried else None,
        wait=chance.choice((0.0, 0.0, 1.0, 2.0)) if retried else 0.0,
        covers=chance.choice(((), ("flaky",), ("flaky", "timed out"))) if retried else (),
    )


ENDS = {"good": GOOD, "bad": BAD, "retry": ("retry",), "flaky": ("flaky",), "route": ROUTES}
ACTS = {
    name: st.sampled_from(sample_values(functools.partial(random_act, ends=ends), 300))
    for name, ends in ENDS.items()
}
STAGES = {
    temper: st.sampled_from(sample_values(functools.partial(random_stage, rarely=max(3, rarely // 4)), 600))
    for temper, rarely in TEMPERS.items()
}


def one_in(count: int) -> st.SearchStrategy[bool]:
    return st.integers(1, count).map(lambda number: number == count)


@st.composite
def stages(
    draw: st.DrawFn, index: int, before: list[Stage], temper: str, threads: bool, limited: bool
) -> Stage:
    stage = draw(STAGES[temper])
    near = before[-10:]
    needs = draw(st.lists(st.sampled_from(near), max_size=3, unique=True)) if near else []
    routers = [other for other in needs if other.routes]
    routes = draw(one_in(5))
    bad = draw(one_in(TEMPERS[temper]))
    acts = [draw(ACTS["bad" if bad else "route" if routes else "good"])]
    if draw(one_in(4)) and (stage.attempts != 1 or draw(one_in(TEMPERS[temper]))):
        covered = "flaky" in stage.covers
        acts.insert(0, draw(ACTS["flaky" if covered or draw(one_in(TEMPERS[temper])) else "retry"]))
    if stage.style == "thread" and not threads:
        stage = replace(stage, style="function")
    if stage.style == "thread":
        # Its condition runs on the loop, and logs when the thread was started. It is evaluated once, so the
        # stage has one attempt.
        stage = replace(stage, timeout=None, when="yes", attempts=None, covers=())
        acts = acts[-1:]
    elif bad and not stage.when and draw(one_in(4)):
        stage = replace(stage, when="raises")
    return replace(
        stage,
        name=f"s{index}",
        needs=tuple(other.name for other in needs),
        acts=tuple(acts),
        routes=routes,
        route=draw(st.sampled_from(LABELS)) if routers and draw(st.booleans()) else None,
        timeout=stage.timeout and stage.timeout + 0.037 + index * 0.00001,
        limited=limited and draw(one_in(3)),
    )


@st.composite
def plans(
    draw: st.DrawFn, temper: str, threads: bool = False, least: int = 1, most: int = MAX_STAGES
) -> Plan:
    limited = draw(one_in(4))
    described: list[Stage] = []
    for index in range(draw(st.integers(least, most))):
        described.append(draw(stages(index, described, temper, threads, limited)))
    outside = draw(st.sampled_from((None,) * 6 + ("cancel", "cancel twice", "timeout", "turns")))
    at = draw(st.integers(0, 12))
    return Plan(
        # A stage can be declared before its dependencies.
        stages=tuple(reversed(described)) if draw(st.booleans()) else tuple(described),
        on_failure=draw(st.sampled_from(("cancel", "continue"))),
        max_concurrency=draw(st.sampled_from((None, None, None, 1, 2, 5))),
        places=draw(st.integers(1, 2)) if limited else 1,
        intercepted=draw(one_in(5)),
        grace=2.011 if threads else draw(st.sampled_from((0.011, 2.011, 2.011))),
        deadline=draw(st.integers(0, 12)) + 0.000257 if draw(one_in(5)) else None,
        outside=outside,
        outside_at=at if outside == "turns" else at + 0.000503,
        emitter=draw(st.sampled_from(("plain", "plain", "quiet", "raises before", "raises after"))),
        sinks=draw(st.sampled_from(("memory", "memory", "one raises", "one raises later"))),
    )


# ---------------------------------------------------------------- stages that log their actions


class Flaky(Exception):
    """An exception that is retried."""


class Boom(Exception):
    """An exception that is not retried."""


class World:
    """One run of a plan, its sink and the log of its stages."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = VirtualClock()
        self.sink = MemoryEventSink()
        self.limits = Limits(place=plan.places)
        self.log: list[Entry] = []
        self.notes: dict[tuple[str, int], int] = {}
        self.annotated: set[tuple[str, int]] = set()
        self.cancel_seen: int | None = None
        self.began = self.returned = 0
        self.results: PipelineResults | None = None
        self.raised: BaseException | None = None
        self.tasks_left = 0
        self.replaced: set[str] = set()

    def note(self, what: str, stage: Stage, attempt: int = 0, how: str = "") -> None:
        now = self.clock.monotonic_ns()
        self.log.append(Entry(what, stage.name, now, len(self.sink.events), attempt, how))

    def graph(self) -> StageGraph:
        pipeline = Pipeline("p")
        taken = {
            stage.name: {other.route for other in self.plan.stages if stage.name in other.needs}
            for stage in self.plan.stages
        }
        for number, stage in enumerate(self.plan.stages):
            interceptors: tuple[Any, ...] = ()
            runner = self.runner(stage, taken[stage.name])
            if self.plan.intercepted and stage.optional:
                interceptors = (passes_through,)
            elif self.plan.intercepted and number % 3 == 0 and inspect.iscoroutinefunction(runner):
                # An interceptor replaces the stage; nothing else may change.
                interceptors, runner = (replaces_stage(runner),), never_called
                self.replaced.add(stage.name)
            covers = {"flaky": Flaky, "timed out": TimeoutError}
            pipeline = pipeline.with_stage(
                stage.name,
                runner,
                StageKind.ROUTE if stage.routes else StageKind.WORK,
                stage.needs,
                optional=stage.optional,
                conditional=stage.conditional,
                when=self.condition(stage),
                route=stage.route,
                timeout=stage.timeout,
                retry=None
                if stage.attempts is None
                else Retry(stage.attempts, wait=stage.wait, on=tuple(covers[name] for name in stage.covers)),
                limit="place" if stage.limited else None,
                interceptors=interceptors,
            )
        return pipeline.build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=self.emitter(),
            on_failure=self.plan.on_failure,  # type: ignore[arg-type]
            max_concurrency=self.plan.max_concurrency,
            grace=self.plan.grace,
            limits=self.limits,
            interceptors=(passes_through, passes_through) if self.plan.intercepted else (),
        )

    def emitter(self) -> WideEventEmitter:
        extra = {"one raises": Raises, "one raises later": RaisesLater}.get(self.plan.sinks)
        sink = self.sink if extra is None else FanoutEventSink(extra(), self.sink, extra())
        kind = {"quiet": Quiet, "raises before": RaisesBefore, "raises after": RaisesAfter}
        return kind.get(self.plan.emitter, WideEventEmitter)(sink)

    # Stages and conditions.

    def condition(self, stage: Stage) -> Any:
        if stage.when is None:
            return None

        def plain(ctx: StageContext) -> bool:
            self.note("asked", stage)
            if stage.when == "raises":
                self.note("answer", stage, how="boom")
                raise Boom("the condition")
            self.note("answer", stage, how=stage.when or "")
            return stage.when == "yes"

        async def waits(ctx: StageContext) -> bool:
            self.note("asked", stage)
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                self.note("answer", stage, how="cancelled")
                raise
            self.note("answer", stage, how=stage.when or "")
            return stage.when == "async yes"

        return waits if stage.when.startswith("async") else plain

    def runner(self, stage: Stage, taken: set[str | None]) -> Any:
        world = self

        async def execute(ctx: StageContext) -> Any:
            act = stage.act(ctx.attempt)
            world.note("start", stage, ctx.attempt)
            world.speak(stage, ctx, act)
            end = act.end
            try:
                if act.takes is not None:
                    await asyncio.sleep(act.takes)
            except asyncio.CancelledError as error:
                await world.clean_up(act)
                end = act.cancelled
                if end == "pass on":
                    world.note("end", stage, ctx.attempt, "cancelled")
                    raise error from None
            return world.finish(stage, ctx, end, taken)

        def plain(ctx: StageContext) -> Any:
            act = stage.act(ctx.attempt)
            world.note("start", stage, ctx.attempt)
            world.speak(stage, ctx, act)
            return world.finish(stage, ctx, act.end, taken)

        class Made:
            async def execute(self, ctx: StageContext) -> Any:
                return await execute(ctx)

        return {"function": execute, "thread": plain, "class": Made, "instance": Made()}[stage.style]

    def speak(self, stage: Stage, ctx: StageContext, act: Act) -> None:
        for number in range(act.notes):
            ctx.emit_event("note", {"number": number})
        self.notes[stage.name, ctx.attempt] = act.notes
        if act.annotates:
            ctx.annotate(attempt=ctx.attempt, odd=object())
            self.annotated.add((stage.name, ctx.attempt))

    async def clean_up(self, act: Act) -> None:
        if act.clean_up is None:
            return
        until = asyncio.get_running_loop().time() + act.clean_up
        while True:
            try:
                await asyncio.sleep(until - asyncio.get_running_loop().time())
            except asyncio.CancelledError:
                continue
            return

    def finish(self, stage: Stage, ctx: StageContext, end: str, taken: set[str | None]) -> Any:
        if end.startswith("route"):
            labels = [label for label in end.split()[1:] if label in taken]
            end = " ".join(("route", *labels))
            self.note("end", stage, ctx.attempt, end)
            return StageOutput.route(*labels)
        self.note("end", stage, ctx.attempt, end)
        if end == "boom":
            raise Boom("no use")
        if end == "flaky":
            raise Flaky("try again")
        if end == "cancelled":
            raise asyncio.CancelledError
        return {
            "ok": StageOutput.ok(value=1),
            "mapping": {"value": 2},
            "none": None,
            "skip": StageOutput.skip("nothing to do"),
            "fail": StageOutput.fail("failed"),
            "nonsense": StageStatus.OK,  # a status is not an output
            "retry": StageOutput.retry("not yet", after=stage.wait),
            "cancel": StageOutput.stop("enough"),
        }[end]

    # The run.

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        plan, graph = self.plan, self.graph()
        self.began = self.clock.monotonic_ns()
        run = asyncio.create_task(self.caller(graph))
        at = self.began / NS + plan.outside_at
        if plan.outside in ("cancel", "cancel twice"):
            loop.call_at(at, run.cancel)
        if plan.outside == "cancel twice":
            loop.call_at(at + 0.5, run.cancel)
        if plan.outside == "turns":
            await asyncio.sleep(0)
            for _ in range(int(plan.outside_at)):
                await asyncio.sleep(0)
            self.cancel_seen = len(self.log)
            run.cancel()
        await asyncio.wait([run])
        self.returned = self.clock.monotonic_ns()
        self.tasks_left = len(asyncio.all_tasks()) - 1
        self.log_at_return = list(self.log)

    async def caller(self, graph: StageGraph) -> None:
        plan = self.plan
        limit = plan.outside_at if plan.outside == "timeout" else None
        try:
            async with asyncio.timeout(limit):
                self.results = await graph.run(PipelineContext(user_id="u"), deadline=plan.deadline)
        except (asyncio.CancelledError, TimeoutError) as error:
            self.raised = error


async def passes_through(call: StageCall, proceed: Proceed) -> Any:
    """An interceptor that changes nothing."""
    return await proceed()


async def never_called(ctx: StageContext) -> None:
    raise AssertionError(f"{ctx.stage}: its interceptor did not proceed")


def replaces_stage(execute: Any) -> Any:
    """Return an interceptor that does the work of a stage and does not proceed."""

    async def acts(call: StageCall, proceed: Proceed) -> Any:
        value = await execute(call.ctx)
        if value is None:
            return StageOutput.ok()
        # An invalid value would be an error of the interceptor, which raises an exception.
        return value if isinstance(value, StageOutput | Mapping) else StageOutput.fail("nonsense")

    return acts


class Quiet(WideEventEmitter):
    """Overrides both methods, and changes nothing."""

    def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
        super().emit_stage_wide(stage_name, result, ctx)

    def emit_pipeline_wide(self, results: Any, ctx: Any) -> None:
        super().emit_pipeline_wide(results, ctx)


class RaisesBefore(WideEventEmitter):
    """Raises before every second call of its parent."""

    calls = 0

    def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
        self.maybe_raise()
        super().emit_stage_wide(stage_name, result, ctx)

    def emit_pipeline_wide(self, results: Any, ctx: Any) -> None:
        self.maybe_raise()
        super().emit_pipeline_wide(results, ctx)

    def maybe_raise(self) -> None:
        self.calls += 1
        if self.calls % 4 == 1:
            raise RuntimeError("the emitter")
        if self.calls % 4 == 3:
            raise asyncio.CancelledError


class RaisesAfter(RaisesBefore):
    """Raises after every second call of its parent."""

    def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
        WideEventEmitter.emit_stage_wide(self, stage_name, result, ctx)
        self.maybe_raise()

    def emit_pipeline_wide(self, results: Any, ctx: Any) -> None:
        WideEventEmitter.emit_pipeline_wide(self, results, ctx)
        self.maybe_raise()


class Raises(EventSink):
    """A sink that raises during emission."""

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        raise OSError("the disk is full")


class RaisesLater(EventSink):
    """A sink that raises on the loop."""

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        await asyncio.sleep(0.5)
        raise ConnectionError("nobody there")


# ---------------------------------------------------------------- invariants


def effective(log: list[Entry], events: list[tuple[str, Any]], threads: set[str]) -> list[Entry]:
    """Move the end of each thread, which the thread logs, to the time at which the run processed it."""
    processed = {
        data["stage_name"]: index
        for index, (type, data) in enumerate(events)
        if type == "stage.wide" and data["stage_name"] in threads
    }
    places = []
    for index, entry in enumerate(log):
        place = index
        if entry.what == "end" and entry.stage in processed:
            after = processed[entry.stage]
            place = next((at for at in range(index, len(log)) if log[at].seen > after), len(log))
        places.append((place, place == index, index))
    return [log[index] for *_, index in sorted(places)]


def predictions(world: World) -> Iterator[Model | Broken]:
    """Yield the possible predictions. A cancellation between two loop iterations leaves several."""
    plan = world.plan
    log = world.log_at_return
    if plan.has_threads:
        log = effective(log, world.sink.events, {s.name for s in plan.stages if s.style == "thread"})

    def place(at: int) -> int:
        # Nothing else happens at this time: an entry with this time is the reaction to it.
        return next((index for index, entry in enumerate(log) if entry.at > at - EPSILON), len(log))

    cuts = []
    if plan.deadline is not None:
        at = world.began + round(plan.deadline * NS)
        cuts.append((at, place(at), "timeout"))
    if plan.outside in ("cancel", "cancel twice", "timeout"):
        at = world.began + round(plan.outside_at * NS)
        cuts.append((at, place(at), "cancelled"))
    choices: list[list[tuple[int, int, str]]] = [cuts]
    if world.cancel_seen is not None:
        # The run may process the end of a thread after the thread has logged it.
        first = max(0, world.cancel_seen - sum(stage.style == "thread" for stage in plan.stages))
        moments = [world.began, *(entry.at for entry in log)]
        choices = [
            *([*cuts, (moments[index], index, "cancelled")] for index in range(first, len(log) + 1)),
            cuts,  # the run had already ended
        ]
    for choice in choices:
        try:
            yield Model(plan, list(log), choice).replay(world.began)
        except Broken as broken:
            yield broken


def agrees(world: World, model: Model) -> list[str]:
    """Return the differences between the record and the model."""
    differences = []
    stage_events = of_type(world.sink.events, "stage.wide")
    retries = Counter(data["stage_name"] for data in stage_events if data["status"] == "RETRY")
    terminal = {
        data["stage_name"]: data
        for data in of_type(world.sink.events, "stage.wide")
        if data["status"] != "RETRY"
    }
    for name, verdict in model.verdicts.items():
        data = terminal[name]
        recorded = (data["status"], data["attempts"], data["abandoned"])
        if recorded != (verdict.status, verdict.attempts, verdict.abandoned):
            differences.append(f"{name}: {recorded} in the record, {verdict} in the model")
        if retries[name] != model.retried[name]:
            differences.append(f"{name}: retried {retries[name]} times, {model.retried[name]} in the model")
    (run,) = of_type(world.sink.events, "pipeline.wide")
    if run["outcome"] != model.outcome:
        differences.append(f"outcome {run['outcome']} in the record, {model.outcome} in the model")
    if run["first_failed_stage"] != model.first_failed:
        differences.append(f"first failed: {run['first_failed_stage']}, {model.first_failed} in the model")
    over_at = model.over_at or 0
    if not world.plan.has_threads and abs(world.returned - over_at) > EPSILON:
        differences.append(f"returned at {world.returned}, {over_at} in the model")
    return differences


def holds(world: World) -> None:
    plan, events = world.plan, world.sink.events
    names = [stage.name for stage in plan.stages]
    run = check_record(events, names)

    # The outcomes of all stages and of the run match the model.
    verdicts = []
    model: Model | None = None
    for prediction in predictions(world):
        differences = [str(prediction)] if isinstance(prediction, Broken) else agrees(world, prediction)
        if not differences and isinstance(prediction, Model):
            model = prediction
            break
        verdicts.append(differences)
    assert model is not None, verdicts[0]
    event(run["outcome"])

    # `run()` returns within `grace` after the deadline or the cancellation.
    if model.ending is not None and not plan.has_threads:
        assert world.returned <= model.ended_at + round(plan.grace * NS) + EPSILON

    # Only the tasks of abandoned stages are left.
    assert world.tasks_left <= len(model.abandoned)
    if not plan.has_threads:
        assert world.tasks_left == sum(is_running(world.log_at_return, name) for name in model.abandoned)

    # All permits were released.
    assert (world.limits["place"].taken, world.limits["place"].waiting) == (0, 0)

    # An external cancellation propagates; for all other outcomes, `run()` returns results.
    if run["outcome"] == "cancelled":
        assert world.raised is not None
    if world.raised is None:
        agrees_with_results(world, run)

    # Annotations and custom events of stages are recorded.
    abandoned = set(model.abandoned)
    for data in of_type(events, "stage.wide"):
        key = (data["stage_name"], data["attempts"])
        waited = data["event_id"].rpartition("/")[2] != str(data["attempts"])
        if key in world.notes and data["stage_name"] not in abandoned and not waited:
            assert data["events_count"] == world.notes[key]
            assert set(data["attributes"]) == ({"attempt", "odd"} if key in world.annotated else set())
    ids = [data["event_id"] for type, data in events if data is not None]
    assert len(ids) == len(set(ids))
    json.dumps(events, allow_nan=False)

    # Validate a sample against the published schemas.
    sample = {data["status"]: data for data in of_type(events, "stage.wide")}
    for data in sample.values():
        VALIDATORS["stage.wide"].validate(data)
    VALIDATORS["pipeline.wide"].validate(run)


def is_running(log: list[Entry], name: str) -> bool:
    last = [entry for entry in log if entry.stage == name][-1]
    return last.what in ("start", "asked") or (last.what == "answer" and last.how.endswith("yes"))


def agrees_with_results(world: World, run: dict[str, Any]) -> None:
    """Assert that the results match the events, and that a manual `emit_*` produces the same events."""
    results = world.results
    assert results is not None
    assert list(results) == [stage.name for stage in world.plan.stages]
    assert results.outcome == run["outcome"]
    assert results.status == run["status"]
    assert results.ok == (run["status"] == "OK")
    assert results.error == run["error"]
    assert results.first_failed_stage == run["first_failed_stage"]
    assert str(results.context.pipeline_run_id) == run["event_id"]
    assert len(results.abandoned) == run["stages_abandoned"]
    if results.ok:
        assert results.raise_on_failure() is results
    else:
        with pytest.raises(RunFailedError) as failed:
            results.raise_on_failure()
        assert failed.value.results is results

    manual = MemoryEventSink()
    for name, result in results.items():
        emit_stage_wide(name, result, results.context, manual)
        assert results.data(name) == dict(result.data)
    emit_pipeline_wide(results, results.context, manual)
    own = {
        data["stage_name"]: data
        for data in of_type(world.sink.events, "stage.wide")
        if data["status"] != "RETRY"
    }
    for data in of_type(manual.events, "stage.wide"):
        assert without_addresses(data) == without_addresses(own[data["stage_name"]])
    assert of_type(manual.events, "pipeline.wide") == [run]


def without_addresses(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "attributes": sorted(data["attributes"])}


@pytest.fixture(autouse=True)
def _no_warnings_are_logged() -> Iterator[None]:
    # Emitters and sinks that raise would log thousands of warnings.
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def holds_for_any_run(plans: st.SearchStrategy[Plan], examples: int = EXAMPLES) -> None:
    @settings(max_examples=examples)
    @given(plan=plans)
    def for_any_run(plan: Plan) -> None:
        world = World(plan)
        world.clock.run(world.run())
        holds(world)

    for_any_run()


@pytest.mark.parametrize("temper", TEMPERS)
def test_record_invariants_and_outcomes_hold_for_any_run(temper: str) -> None:
    holds_for_any_run(plans(temper))


def test_record_invariants_and_outcomes_hold_for_any_run_with_threads() -> None:
    holds_for_any_run(plans("mixed", threads=True))


def test_record_invariants_and_outcomes_hold_for_large_graphs() -> None:
    least, most = LARGE
    holds_for_any_run(plans("mixed", least=least, most=most), LARGE_EXAMPLES)
