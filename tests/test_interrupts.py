"""Tests application code that raises arbitrary exceptions during recording, and real interrupts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from conftest import Program
from oracle import check_record, ends, of_type, pipeline_wide, stage_wide

from stageflow import EventSink, Pipeline, PipelineContext, Retry, StageKind, StageOutput
from stageflow.events import MemoryEventSink, stats
from stageflow.observability import WideEventEmitter
from stageflow.pipeline._run_state import RunState

RAISED = [
    SystemExit,
    GeneratorExit,
    asyncio.CancelledError,
    RecursionError,
    MemoryError,
    StopIteration,
    BaseException,
]


class Hostile:
    """Builds application values whose every operation raises one kind of exception."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

        def refuse(*_: Any, **__: Any) -> Any:
            raise kind(3)

        refusal = property(refuse)
        shown = {"__repr__": refuse, "__str__": refuse, "__format__": refuse}
        self.Value = type("Value", (), shown)
        self.Comparable = type("Comparable", (), {**shown, "__eq__": refuse, "__hash__": refuse})
        self.Disguised = type("Disguised", (), {**shown, "__class__": refusal})
        text = ("isascii", "encode", "__len__", "__getitem__", "__contains__", "__hash__", "__eq__")
        self.Text = type("Text", (str,), shown | dict.fromkeys(text, refuse))
        number = ("__int__", "__index__", "__ge__", "__le__", "__abs__", "__add__", "__float__", "__bool__")
        self.Whole = type("Whole", (int,), shown | dict.fromkeys(number, refuse))
        self.Real = type("Real", (float,), shown | dict.fromkeys(number, refuse))
        walked = {"__iter__": refuse, "__len__": refuse, "items": refuse, "keys": refuse}
        self.Items = type("Items", (dict,), shown | walked)
        self.Parts = type("Parts", (list,), shown | walked)
        mapped = dict.fromkeys(("__getitem__", "__iter__", "__len__"), refuse)
        self.Mapped = type("Mapped", (Mapping,), shown | mapped)
        attributes = ("__cause__", "__context__", "__traceback__", "__suppress_context__", "__class__")
        self.Error = type("Error", (Exception,), shown | dict.fromkeys(attributes, refusal))
        self.Group = type("Group", (ExceptionGroup,), {**shown, "exceptions": refusal})

    def error(self) -> Exception:
        group: Exception = self.Group("several", [ValueError(self.Value())])
        group.__cause__ = ValueError(self.Value())
        return group

    def wait(self, attempt: int) -> float:
        raise self.kind(3)

    def covers(self, error: BaseException) -> bool:
        raise self.kind(3)


Stage = Callable[[Any], Any]


def annotating(make: Callable[[Hostile], Any]) -> Callable[[Hostile], Stage]:
    def stage_of(hostile: Hostile) -> Stage:
        async def stage(ctx: Any) -> None:
            ctx.annotate(v=make(hostile), kept=1)
            ctx.annotate_run(v=make(hostile), kept=1)

        return stage

    return stage_of


def returning(make: Callable[[Hostile], Any]) -> Callable[[Hostile], Stage]:
    def stage_of(hostile: Hostile) -> Stage:
        async def stage(ctx: Any) -> Any:
            return make(hostile)

        return stage

    return stage_of


def keyed(make: Callable[[Hostile], Any]) -> Callable[[Hostile], Any]:
    return lambda hostile: {"v": make(hostile)}


def raising(make: Callable[[Hostile], BaseException]) -> Callable[[Hostile], Stage]:
    def stage_of(hostile: Hostile) -> Stage:
        async def stage(ctx: Any) -> None:
            await asyncio.sleep(0)
            raise make(hostile)

        return stage

    return stage_of


VALUES: dict[str, Callable[[Hostile], Any]] = {
    "value": lambda hostile: hostile.Value(),
    "class": lambda hostile: hostile.Disguised(),
    "nested": lambda hostile: {"a": [1, {"b": hostile.Value()}]},
    "key": lambda hostile: {hostile.Value(): 1},
    "text": lambda hostile: hostile.Text("words"),
    "text key": lambda hostile: {1: {hostile.Value(): hostile.Text("words")}},
    "int": lambda hostile: hostile.Whole(7),
    "float": lambda hostile: hostile.Real(0.5),
    "dict": lambda hostile: hostile.Items(a=1),
    "list": lambda hostile: hostile.Parts([1]),
    "mapping": lambda hostile: hostile.Mapped(),
    "set": lambda hostile: [{1, hostile.Value()}],
    "exception": lambda hostile: hostile.Error(),
}

STAGES: dict[str, tuple[Callable[[Hostile], Stage], str]] = {
    **{f"annotate {name}": (annotating(make), "OK") for name, make in VALUES.items()},
    **{
        f"data {name}": (returning(lambda h, make=make: {"v": make(h)}), "OK")
        for name, make in VALUES.items()
    },
    "return value": (returning(lambda hostile: hostile.Value()), "OK"),
    "return class": (returning(lambda hostile: hostile.Disguised()), "FAIL"),
    "return mapping": (returning(lambda hostile: hostile.Mapped()), "FAIL"),
    "return data key": (returning(lambda hostile: {hostile.Value(): 1}), "OK"),
    "raise message": (raising(lambda hostile: ValueError(hostile.Value())), "FAIL"),
    "raise attributes": (raising(lambda hostile: hostile.Error()), "FAIL"),
    "raise group": (raising(lambda hostile: hostile.error()), "FAIL"),
    "fail": (returning(lambda hostile: StageOutput.fail(hostile.Value())), "FAIL"),
    "fail exception": (returning(lambda hostile: StageOutput.fail(hostile.Error())), "FAIL"),
    "fail text": (returning(lambda hostile: StageOutput.fail(hostile.Text("no"))), "FAIL"),
    "skip": (returning(lambda hostile: StageOutput.skip(hostile.Value())), "SKIP"),
    "cancel": (returning(lambda hostile: StageOutput.stop(hostile.Value())), "CANCEL"),
}


def graph_of(stage: Any, sink: Any, emitter: WideEventEmitter | None = None, **options: Any) -> Any:
    async def passes(ctx: Any) -> dict[str, int]:
        return {"n": 1}

    return (
        Pipeline("p")
        .with_stage("before", passes)
        .with_stage("s", stage, dependencies=("before",), **options)
        .with_stage("after", passes, dependencies=("s",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=emitter or WideEventEmitter(sink),
        )
    )


STAGE_NAMES = ("before", "s", "after")


@pytest.mark.parametrize("case", STAGES)
@pytest.mark.parametrize("kind", RAISED)
def test_record_is_complete_whatever_a_recorded_value_raises(
    sink: MemoryEventSink, kind: type[BaseException], case: str
) -> None:
    stage_of, status = STAGES[case]
    results = asyncio.run(graph_of(stage_of(Hostile(kind)), sink).run(deadline=10))
    check_record(sink.events, STAGE_NAMES)
    assert ends(sink.events)["s"] == results["s"].status == status
    event = stage_wide(sink.events, "s")
    if case.startswith("annotate"):
        assert event["attributes"]["kept"] == pipeline_wide(sink.events)["attributes"]["kept"] == 1
    if case == "annotate nested":
        assert event["attributes"]["v"] == {"a": [1, {"b": f"<repr() of Value failed: {kind.__name__}>"}]}
    if case in ("annotate text", "annotate int", "annotate float"):
        assert event["attributes"]["v"] in ("words", 7, 0.5)
    if case in ("skip", "cancel"):
        assert event["reason"] == f"<str() of Value failed: {kind.__name__}>"
    if case == "raise message":
        assert event["error"] == f"ValueError: <str() of ValueError failed: {kind.__name__}>"


@pytest.mark.parametrize("kind", RAISED)
def test_failed_repr_is_counted(sink: MemoryEventSink, kind: type[BaseException]) -> None:
    before = stats().coerced_values
    asyncio.run(graph_of(returning(lambda hostile: {hostile.Value(): 1})(Hostile(kind)), sink).run())
    assert stats().coerced_values > before


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("policy", ["wait", "covers"])
def test_retry_policy_that_raises_fails_its_stage(
    sink: MemoryEventSink, kind: type[BaseException], policy: str
) -> None:
    hostile = Hostile(kind)
    if policy == "wait":
        retry = Retry(attempts=3, wait=hostile.wait)
    else:
        retry = Retry(attempts=3, wait=0, on=hostile.covers)
    stage = raising(lambda hostile: ValueError("no"))(hostile)
    asyncio.run(graph_of(stage, sink, retry=retry).run(deadline=10))
    check_record(sink.events, STAGE_NAMES)
    assert f"policy raised {kind.__name__}" in stage_wide(sink.events, "s")["reason"]


@pytest.mark.parametrize("kind", RAISED)
def test_retry_event_is_emitted_whatever_its_error_raises(
    sink: MemoryEventSink, kind: type[BaseException]
) -> None:
    hostile = Hostile(kind)

    async def stage(ctx: Any) -> StageOutput:
        if ctx.attempt == 1:
            return StageOutput.retry(hostile.Value(), after=0)
        return StageOutput.ok()

    results = asyncio.run(graph_of(stage, sink).run(deadline=10))
    check_record(sink.events, STAGE_NAMES)
    assert (results["s"].status, results["s"].attempts) == ("OK", 2)


@pytest.mark.parametrize("kind", RAISED)
def test_ids_and_route_labels_that_raise_are_replaced(
    sink: MemoryEventSink, kind: type[BaseException]
) -> None:
    hostile = Hostile(kind)

    async def routes(ctx: Any) -> StageOutput:
        return StageOutput.route(hostile.Comparable())

    context = PipelineContext(
        request_id=hostile.Value(),
        user_id=hostile.Text("u"),
        service=hostile.Value(),
        topology=hostile.Value(),
    )
    asyncio.run(graph_of(routes, sink, kind=StageKind.ROUTE).run(context, deadline=10))
    check_record(sink.events, STAGE_NAMES)
    assert stage_wide(sink.events, "s")["status"] == "FAIL"
    ids = pipeline_wide(sink.events)["correlation_ids"]
    assert ids["request_id"] == f"<str() of Value failed: {kind.__name__}>"


@pytest.mark.parametrize("kind", RAISED)
def test_custom_events_and_amendments_are_sent_whatever_they_contain(
    sink: MemoryEventSink, kind: type[BaseException]
) -> None:
    hostile, late = Hostile(kind), []

    async def stage(ctx: Any) -> None:
        for name, make in VALUES.items():
            ctx.emit_event("note", {"name": name, "v": make(hostile)})
        ctx.emit_event("note", make(hostile))
        ctx.count("hits", hostile.Disguised())
        late.append(ctx)

    asyncio.run(graph_of(stage, sink).run(deadline=10))
    check_record([event for event in sink.events if event[0] != "note"], STAGE_NAMES)
    assert ends(sink.events)["s"] == "OK"
    assert [event["name"] for event in of_type(sink.events, "note")[:-1]] == list(VALUES)
    late[0].annotate(v=hostile.Value())
    late[0].annotate_run(v=hostile.Value())
    placeholder = f"<repr() of Value failed: {kind.__name__}>"
    for type in ("stage.wide.amend", "pipeline.wide.amend"):
        (amendment,) = of_type(sink.events, type)
        assert amendment["attributes"] == {"v": placeholder}


@pytest.mark.parametrize("kind", [SystemExit, BaseException])
def test_log_handler_that_raises_does_not_lose_events(
    sink: MemoryEventSink, kind: type[BaseException]
) -> None:
    class Raises(WideEventEmitter):
        def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
            raise ValueError("before the event is emitted")

    class Refuses(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise kind(3)

    async def stage(ctx: Any) -> None: ...

    log, refuses = logging.getLogger("stageflow.observability"), Refuses()
    log.addFilter(refuses)
    try:
        asyncio.run(graph_of(stage, sink, Raises(sink)).run(deadline=10))
    finally:
        log.removeFilter(refuses)
    check_record(sink.events, STAGE_NAMES)


# ---------------------------------------------------------------- interrupts that reach the application


@pytest.mark.parametrize("case", [case for case in STAGES if not case.startswith("data")])
def test_keyboard_interrupt_propagates_after_the_record(sink: MemoryEventSink, case: str) -> None:
    """In the main thread, a `KeyboardInterrupt` may be a Ctrl-C, so it must always propagate."""
    stage_of, _ = STAGES[case]
    graph = graph_of(stage_of(Hostile(KeyboardInterrupt)), sink)
    # Recording these calls no method.
    unread = ("annotate text", "annotate int", "annotate float", "return value")
    if case in unread:
        asyncio.run(graph.run())
    else:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(graph.run())
    check_record(sink.events, STAGE_NAMES)


def test_keyboard_interrupt_in_a_thread_is_not_treated_as_an_interrupt(sink: MemoryEventSink) -> None:
    """Only the main thread receives signals."""
    hostile = Hostile(KeyboardInterrupt)

    def stage(ctx: Any) -> None:
        ctx.emit_event("note", {"v": hostile.Value()})

    assert asyncio.run(graph_of(stage, sink).run()).ok
    (note,) = of_type(sink.events, "note")
    assert note["v"] == "<repr() of Value failed: KeyboardInterrupt>"


def test_interrupt_during_a_retry_ends_the_run(sink: MemoryEventSink) -> None:
    async def stage(ctx: Any) -> StageOutput:
        ctx.annotate(v=Hostile(KeyboardInterrupt).Value())
        return StageOutput.retry("again", after=3600)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(graph_of(stage, sink).run())
    check_record(sink.events, STAGE_NAMES)
    assert ends(sink.events) == {"before": "OK", "s": "CANCEL", "after": "CANCEL"}


def test_sink_interrupted_once_receives_each_event_once() -> None:
    class Interrupted(EventSink):
        def __init__(self) -> None:
            self.events: list[tuple[str, Any]] = []

        def try_emit(self, *, type: str, data: Any) -> None:
            self.events.append((type, data))
            if len(self.events) in (1, 3):
                raise SystemExit(4)

    async def stage(ctx: Any) -> None: ...

    sink = Interrupted()
    with pytest.raises(SystemExit):
        asyncio.run(graph_of(stage, sink).run())
    check_record(sink.events, STAGE_NAMES)
    assert stats().of("Interrupted").dropped == {"sink_error": 2}


SETUP = """
    import asyncio, functools, os, signal, sys
    from stageflow import *
    from stageflow.observability import WideEventEmitter

    class Slow:
        number = None
        def __repr__(self):
            if self.number is not None:  # the signal arrives while the record is written
                os.kill(os.getpid(), self.number)
                for _ in range(1000):
                    pass
            return "slow"

    async def passes(ctx): ...

    async def stage(ctx):
        ctx.annotate(kept=1, v=Slow())

    graph = (
        Pipeline("p").with_stage("before", passes).with_stage("s", stage, dependencies=("before",))
        .with_stage("after", passes, dependencies=("s",))
        .build(emit_stage_wide_events=True, emit_pipeline_wide_event=True,
               wide_event_emitter=WideEventEmitter(JournalSink(sys.argv[1])))
    )

    def run_until_complete():
        # Without `asyncio.run`, Ctrl-C raises in the middle of whatever runs.
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(graph.run())
        finally:
            loop.close()

    class Handler:
        def method(self, *_):
            sys.exit(7)
        def __call__(self, *_):
            sys.exit(7)
"""

INTERRUPTIONS = {
    "ctrl-c": "Slow.number = signal.SIGINT",
    "function": "Slow.number = signal.SIGTERM; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))",
    "method": "Slow.number = signal.SIGTERM; signal.signal(signal.SIGTERM, Handler().method)",
    "callable": "Slow.number = signal.SIGTERM; signal.signal(signal.SIGTERM, Handler())",
    "partial": "Slow.number = signal.SIGALRM; signal.signal(signal.SIGALRM, functools.partial(Handler(), 1))",
}


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_signal_during_the_record_ends_the_process_after_it(
    program: Callable[[str], Program], interruption: str
) -> None:
    started = program(
        SETUP
        + f"""
    {INTERRUPTIONS[interruption]}
    try:
        run_until_complete()
    except KeyboardInterrupt:
        sys.exit(7)
    """
    )
    status, _, err = started.ended()
    assert status == 7, err
    events = started.events()
    check_record(events, STAGE_NAMES)
    event = stage_wide(events, "s")
    assert event["attributes"] == {
        "kept": 1,
        "v": "<repr() of Slow failed: "
        + ("KeyboardInterrupt>" if interruption == "ctrl-c" else "SystemExit>"),
    }


# ---------------------------------------------------------------- interrupts of the engine itself


@pytest.mark.parametrize(
    "method", ["take", "_outcome", "_result", "_apply_result", "_release_dependents", "_finish"]
)
@pytest.mark.parametrize("failing", [False, True])
def test_interrupt_inside_the_engine_ends_the_run_with_a_complete_record(
    sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch, method: str, failing: bool
) -> None:
    """A second Ctrl-C, or a SIGTERM handler that calls `sys.exit`, may arrive at any statement."""
    real, fired = getattr(RunState, method), []

    def interrupted(self: RunState, *args: Any) -> Any:
        if not fired:
            fired.append(method)
            raise SystemExit(7)
        return real(self, *args)

    monkeypatch.setattr(RunState, method, interrupted)

    async def stage(ctx: Any) -> None:
        await asyncio.sleep(0)
        if failing:
            raise ValueError("no")

    async def main() -> None:
        await asyncio.wait_for(graph_of(stage, sink, retry=Retry(2, wait=0)).run(), 20)

    if method == "_outcome" and not failing:
        asyncio.run(main())  # it is called only for attempts that do not end well
        assert not fired
    else:
        with pytest.raises(SystemExit):
            asyncio.run(main())
    check_record(sink.events, STAGE_NAMES)


def test_ctrl_c_during_a_manual_emit_is_raised_there(program: Callable[[str], Program]) -> None:
    ended = program(
        """
        import os, signal
        from stageflow import *
        from stageflow.events import MemoryEventSink
        from stageflow.observability import emit_pipeline_wide, emit_stage_wide

        class Row:
            def __repr__(self):
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000):
                    pass
                return "row"

        sink = MemoryEventSink()
        for emit in (
            lambda: emit_stage_wide("s", StageResult("s", StageStatus.OK, attributes={"a": Row()}),
                                    PipelineContext(), sink),
            lambda: emit_pipeline_wide({"s": StageResult("s", StageStatus.FAIL, error=Row())},
                                       PipelineContext(), sink),
        ):
            try:
                emit()
            except KeyboardInterrupt:
                print("interrupted")
        print([type for type, _ in sink.events])
        """
    ).ended()
    assert ended == (0, "interrupted\ninterrupted\n['stage.wide', 'pipeline.wide']\n", "")
