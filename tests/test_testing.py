"""The tools for tests: captured events, running a single stage, and the fixtures for pytest."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from stageflow import (
    Pipeline,
    PipelineContext,
    Retry,
    StageContext,
    StageKind,
    StageOutput,
    StageStatus,
    configure,
    set_event_sink,
    stage,
)
from stageflow.errors import InvalidArgumentError, PipelineValidationError
from stageflow.events import MemoryEventSink, get_event_sink
from stageflow.observability import WideEventEmitter
from stageflow.observability._defaults import defaults
from stageflow.testing import CapturedEvents, VirtualClock, capture_events, run_stage, run_stage_sync

pytest_plugins = ["pytester"]

OK, SKIP, FAIL, CANCEL = StageStatus.OK, StageStatus.SKIP, StageStatus.FAIL, StageStatus.CANCEL


async def load(ctx: Any) -> dict[str, Any]:
    ctx.emit_event("cache.miss", {"key": "u1"})
    return {"words": ["to", "be"]}


async def answer(ctx: Any, words: list[str]) -> None:
    ctx.annotate({"gen_ai.request.model": "m"}, hits=len(words))
    if ctx.attempt == 1:
        raise ConnectionError("down")
    raise ValueError("no such model")


graph = (
    Pipeline("ask")
    .with_stage("load", load)
    .with_stage("answer", answer, dependencies=("load",), retry=Retry(2, wait=60, on=ConnectionError))
)
quick = Pipeline("quick").with_stage("load", load)


@pytest.fixture
def events(stageflow_events: CapturedEvents, virtual_clock: VirtualClock) -> CapturedEvents:
    """The events of one run of a pipeline whose second stage is retried, and fails."""
    virtual_clock.run(graph.run())
    return stageflow_events


def failure_message(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        call(*args, **kwargs)
    return "\n" + str(caught.value) + "\n"


# ---------------------------------------------------------------- capturing


def test_events_are_captured_only_in_the_block() -> None:
    before = get_event_sink(), defaults()
    with capture_events() as events:
        assert quick.build().run_sync().ok
        assert [type for type, _ in events.events] == ["cache.miss", "stage.wide", "pipeline.wide"]
        assert repr(events) == "<CapturedEvents: 1 cache.miss, 1 stage.wide, 1 pipeline.wide>"
    assert (get_event_sink(), defaults()) == before
    quick.build().run_sync()
    assert len(events.events) == 3


def test_previous_sink_is_restored_after_the_block() -> None:
    sink = MemoryEventSink()
    set_event_sink(sink)
    with pytest.raises(ZeroDivisionError), capture_events():
        quick.build().run_sync(PipelineContext(data={"x": 1 / 0}))
    assert sink.events == []
    assert get_event_sink() is sink
    assert not defaults().emit_wide_events


def test_configured_sink_receives_events_again_after_the_block(sink: MemoryEventSink) -> None:
    configure(sink=sink, service="shop")
    settings = defaults()
    with capture_events() as events:
        quick.build().run_sync()
        assert events.run()["pipeline_metadata"]["service"] == "shop"
        configure(sink=sink, service="shop")  # the same: it changes nothing
        quick.build().run_sync()
        assert len(events.runs) == 2
    assert sink.of_type("pipeline.wide") == []
    assert defaults() is settings
    quick.build().run_sync()
    assert len(sink.of_type("pipeline.wide")) == 1


def test_sink_or_settings_of_the_block_remain_in_effect_after_it(sink: MemoryEventSink) -> None:
    with capture_events() as events:
        configure(sink=sink, service="shop")
        quick.build().run_sync()
    assert events.events == []
    assert get_event_sink() is sink
    assert defaults().service == "shop"


def test_inner_capture_receives_the_events() -> None:
    with capture_events() as outer:
        quick.build().run_sync()
        with capture_events() as inner:
            quick.build().run_sync()
        quick.build().run_sync()
    assert (len(outer.runs), len(inner.runs)) == (2, 1)


def test_flags_of_a_graph_apply_inside_a_capture(stageflow_events: CapturedEvents) -> None:
    quick.build(emit_stage_wide_events=False).run_sync()
    assert [type for type, _ in stageflow_events.events] == ["cache.miss", "pipeline.wide"]
    sink = MemoryEventSink()
    quick.build(wide_event_emitter=WideEventEmitter(sink)).run_sync()
    assert len(stageflow_events.runs) == len(sink.of_type("pipeline.wide")) == 1


# ---------------------------------------------------------------- queries


def test_runs_stages_and_retries_are_the_data_of_their_events(events: CapturedEvents) -> None:
    assert [run["pipeline_name"] for run in events.runs] == ["ask"]
    assert [(event["stage_name"], event["status"]) for event in events.stages] == [
        ("load", "OK"),
        ("answer", "FAIL"),
    ]
    assert events.run() == events.of_type("pipeline.wide")[0]
    assert events.stage("answer")["error"] == "ValueError: no such model"
    (retried,) = events.retries("answer")
    assert (retried["status"], retried["retry_after_ms"]) == ("RETRY", 60_000)
    assert events.retries("load") == []
    assert events.of_type("cache.miss")[0]["key"] == "u1"


def test_amendments_are_merged_into_the_attributes(stageflow_events: CapturedEvents) -> None:
    kept: list[Any] = []

    async def leaves(ctx: Any) -> None:
        ctx.annotate(rows=1, early=True)
        kept.append(ctx)

    Pipeline("late").with_stage("s", leaves).build().run_sync()
    kept[0].annotate(rows=2)
    kept[0].annotate_run(tier="gold")
    stageflow_events.assert_attributes("s", rows=2, early=True)
    assert stageflow_events.run()["attributes"]["tier"] == "gold"
    # `events` contains them as they were emitted.
    assert stageflow_events.of_type("stage.wide")[0]["attributes"] == {"rows": 1, "early": True}
    assert stageflow_events.of_type("stage.wide.amend")[0]["attributes"] == {"rows": 2}


def test_event_emitted_twice_is_deduplicated(stageflow_events: CapturedEvents) -> None:
    class Twice(WideEventEmitter):
        def emit_pipeline_wide(self, results: Any, ctx: PipelineContext) -> None:
            super().emit_pipeline_wide(results, ctx)
            super().emit_pipeline_wide(results, ctx)

    quick.build(wide_event_emitter=Twice()).run_sync()
    assert len(stageflow_events.of_type("pipeline.wide")) == 2
    assert stageflow_events.run()["outcome"] == "ok"


def test_of_run_selects_a_run_by_results_or_id(stageflow_events: CapturedEvents) -> None:
    graph = quick.build()
    first = graph.run_sync()
    graph.run_sync()
    run_id = first.context.pipeline_run_id
    for run in (first, run_id, str(run_id)):
        assert run is not None
        assert stageflow_events.of_run(run).run()["event_id"] == str(run_id)
        assert stageflow_events.stage("load", run)["event_id"] == f"{run_id}/load/1"
    of_first = stageflow_events.of_run(first)
    assert [type for type, _ in of_first.events] == ["cache.miss", "stage.wide", "pipeline.wide"]
    of_first.assert_stages(load="OK")
    of_first.assert_outcome("ok")


# ---------------------------------------------------------------- failure messages


def test_run_fails_without_a_run_or_with_several(stageflow_events: CapturedEvents) -> None:
    hint = (
        "\n  hint: a graph that was built with emit_...=False, or with an emitter that has a separate sink,"
        " is not captured\n"
    )
    assert (
        failure_message(stageflow_events.run)
        == f"\nno run has ended: no pipeline.wide event was captured{hint}"
    )
    assert failure_message(stageflow_events.stage, "load") == (
        f"\nno stage 'load' has ended\n  stages that ended: nothing{hint}"
    )
    for run_id in ("r1", "r2"):
        quick.build().run_sync(PipelineContext(pipeline_run_id=run_id))
    runs = """
  r1  quick  ok  load=OK
  r2  quick  ok  load=OK
  hint: select one of them with of_run(results)
"""
    assert failure_message(stageflow_events.run) == "\nexpected one run, but 2 have ended" + runs
    assert failure_message(stageflow_events.stage, "load") == (
        "\nexpected one run with stage 'load', but 2 runs contain it" + runs
    )
    assert failure_message(stageflow_events.assert_stages, load="OK") == (
        "\nexpected the stages of one run, but several runs have ended" + runs
    )


def test_stage_fails_for_an_unknown_stage(events: CapturedEvents) -> None:
    expected = """
no stage 'anwser' has ended; did you mean 'answer'?
  stages that ended: load, answer
"""
    assert failure_message(events.stage, "anwser") == expected
    assert failure_message(events.retries, "anwser") == expected
    assert failure_message(events.assert_attributes, "anwser", hits=2) == expected


def test_assert_stages_reports_other_statuses(events: CapturedEvents) -> None:
    events.assert_stages(answer=FAIL, load="OK")
    assert (
        failure_message(events.assert_stages, load="OK", answer="OK")
        == """
the stages did not end as expected
          expected  actual
  load    OK        OK
> answer  OK        FAIL    ValueError: no such model
"""
    )


def test_assert_stages_reports_missing_and_unexpected_stages(events: CapturedEvents) -> None:
    assert (
        failure_message(events.assert_stages, anwser="FAIL", rank="SKIP")
        == """
the stages did not end as expected
          expected  actual
> anwser  FAIL      -       no such stage; did you mean 'answer'?
> rank    SKIP      -       no such stage
> load    -         OK
> answer  -         FAIL    ValueError: no such model
"""
    )


def test_assert_stages_rejects_an_invalid_status(events: CapturedEvents) -> None:
    with pytest.raises(
        ValueError,
        match=r"^assert_stages\(\): load must be one of OK, .*, got 'Ok'; did you mean 'OK'\?",
    ):
        events.assert_stages(load="Ok")


def test_assert_outcome_reports_another_outcome(events: CapturedEvents) -> None:
    events.assert_outcome("failed")
    assert (
        failure_message(events.assert_outcome, "degraded")
        == """
the run did not end as expected
       expected  actual
> ask  degraded  failed  stage 'answer' failed: ValueError: no such model
"""
    )


def test_assert_attributes_reports_other_attributes(events: CapturedEvents) -> None:
    events.assert_attributes("answer", hits=2)
    events.assert_attributes("answer", {"gen_ai.request.model": "m"}, hits=pytest.approx(2))
    assert (
        failure_message(events.assert_attributes, "answer", {"gen_ai.request.model": "n"}, hits=2, hit=2, x=1)
        == """
the attributes of stage 'answer' are not as expected
                        expected  actual
> gen_ai.request.model  'n'       'm'
  hits                  2         2
> hit                   2         -       missing; did you mean 'hits'?
> x                     1         -       missing; the stage has gen_ai.request.model, hits
"""
    )


def test_assert_no_event_reports_the_events(events: CapturedEvents) -> None:
    events.assert_no_event("cache.hit")
    assert (
        failure_message(events.assert_no_event, "cache.miss")
        == """
expected no cache.miss event, but 1 was emitted
  {'key': 'u1', 'stage_name': 'load'}
"""
    )
    assert (
        failure_message(events.assert_no_event, "stage.wide")
        == """
expected no stage.wide event, but 3 were emitted
  load OK
  answer RETRY: ConnectionError: down
  answer FAIL: ValueError: no such model
"""
    )


def test_assert_no_event_reports_the_first_of_many_events(stageflow_events: CapturedEvents) -> None:
    async def emits(ctx: Any) -> None:
        for n in range(7):
            ctx.emit_event("note", {"n": n, "text": "x" * 200})

    run_stage_sync(emits)
    lines = failure_message(stageflow_events.assert_no_event, "note").splitlines()
    assert len(lines) == 8
    assert all(len(line) <= 102 for line in lines)
    assert lines[-1] == "  and 2 more"


# ---------------------------------------------------------------- running a single stage


class Counts:
    def __init__(self) -> None:
        self.calls = 0

    async def execute(self, ctx: Any) -> dict[str, Any]:
        self.calls += 1
        ctx.annotate(calls=self.calls)
        return {"count": len(ctx.inputs.require_from("load", "words"))}


@pytest.mark.parametrize(
    ("runner", "name"), [(Counts, "Counts"), (Counts(), "Counts"), (Counts().execute, "execute")]
)
async def test_run_stage_accepts_a_class_an_instance_or_a_method(runner: Any, name: str) -> None:
    result = await run_stage(runner, {"load": {"words": ["to", "be"]}})
    assert (result.name, result.status, result.data) == (name, OK, {"count": 2})
    assert result.attributes == {"calls": 1}
    assert result.dependencies == ("load",)


async def test_run_stage_passes_parameters_by_name() -> None:
    def joins(ctx: Any, words: list[str], end: str = ".") -> dict[str, Any]:
        return {"text": " ".join(words) + end + ctx.run.data["tail"]}

    result = await run_stage(joins, {"load": {"words": ["to", "be"]}, "end": None}, data={"tail": "!"})
    assert result.data == {"text": "to be.!"}
    assert (await run_stage(lambda ctx: {"who": ctx.stage})).data == {"who": "stage"}
    assert (await run_stage(lambda ctx: {"who": ctx.stage}, name="other")).data == {"who": "other"}


async def test_run_stage_returns_the_exception_of_a_failure() -> None:
    error = ValueError("boom")

    async def breaks(ctx: Any) -> None:
        raise error

    result = await run_stage(breaks)
    assert (result.status, result.error) == (FAIL, "ValueError: boom")
    assert result.exception is error


async def test_missing_input_is_reported_with_the_available_ones() -> None:
    result = await run_stage(Counts, {"load": {"wrds": []}})
    assert result.missing_inputs == ("load.words",)
    assert "did you mean 'wrds'?" in str(result.error)


async def test_inputs_can_be_skipped_or_failed_outputs() -> None:
    async def reads(ctx: Any) -> dict[str, Any]:
        return {name: str(ctx.inputs.result_from(name).status) for name in ("a", "b", "c")}

    before = {
        "a": StageOutput.skip("no index"),
        "b": StageOutput.fail("down"),
        "c": StageOutput.route("x", n=1),
    }
    result = await run_stage(reads, before)
    assert result.data == {"a": "SKIP", "b": "FAIL", "c": "OK"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["a"],
            (
                "run_stage(): inputs['load'] must be a mapping, or a StageOutput such as "
                "StageOutput.skip(\"...\"), got ['a']"
                "\n  hint: to pass the chunks of a stream, declare it: @stage(streams=('load',))"
            ),
        ),
        (
            StageOutput.stop("no"),
            "inputs['load'] has the status CANCEL, after which no stage starts; use ok, skip or fail",
        ),
    ],
)
async def test_invalid_inputs_are_rejected(given: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        await run_stage(Counts, {"load": given})
    assert str(caught.value) == message


@stage(
    name="rank",
    kind=StageKind.WORK,
    dependencies=("search",),
    retry=Retry(3, wait=3600, on=ConnectionError),
    when=lambda ctx: ctx.run.data.get("rank", True),
    route="question",
    limit="gpu",
)
async def rank(ctx: Any, documents: list[str]) -> dict[str, Any]:
    if ctx.attempt < 3:
        raise ConnectionError("down")
    return {"best": documents[0], "attempt": ctx.attempt, "lang": ctx.inputs.get_from("load", "lang")}


def test_options_of_the_decorator_apply_to_run_stage(virtual_clock: VirtualClock) -> None:
    given = {"search": {"documents": ["a"]}, "load": {"lang": "en"}}
    result = virtual_clock.run(run_stage(rank, given))
    assert (result.name, result.kind, result.dependencies) == ("rank", StageKind.WORK, ("search",))
    assert result.data == {"best": "a", "attempt": 3, "lang": "en"}
    assert result.total_ms == 7_200_000
    assert run_stage_sync(rank, given, data={"rank": False}).status is SKIP


def test_dependency_without_an_input_is_rejected() -> None:
    with pytest.raises(ValueError) as caught:
        run_stage_sync(rank, {"serach": {"documents": []}})
    assert str(caught.value) == (
        "stage 'rank' depends on 'search', but inputs does not contain its output; did you mean 'serach'?"
        "\n  hint: inputs={'search': {...}}"
    )


def test_run_stage_starts_with_the_requested_attempt(stageflow_events: CapturedEvents) -> None:
    given = {"search": {"documents": ["a"]}, "load": {}}
    result = run_stage_sync(rank, given, attempt=3)
    assert (result.status, result.attempt, result.attempts) == (OK, 3, 3)
    assert result.outcome_by is None
    assert [event["retry_after_ms"] for event in stageflow_events.retries("rank")] == [0, 0]
    assert stageflow_events.retries("rank")[0]["error"] == "skipped: the test starts with attempt 3"
    # The last attempt of a policy that overrides the one of the stage.
    last = run_stage_sync(rank, given, attempt=2, retry=Retry(2, on=ConnectionError))
    assert (last.status, last.reason) == (FAIL, "no attempts left (2 of 2)")
    # Without a policy, there are as many attempts as necessary.
    assert run_stage_sync(lambda ctx: {"n": ctx.attempt}, attempt=7).data == {"n": 7}
    for wrong in (0, "2"):
        with pytest.raises(ValueError, match=r"attempt must be a positive integer, got "):
            run_stage_sync(load, attempt=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"attempt must be at most 3, the number of .* 'rank', got 4$"):
        run_stage_sync(rank, given, attempt=4)


def test_timeout_expires_on_a_virtual_clock(virtual_clock: VirtualClock) -> None:
    async def slow(ctx: Any) -> None:
        await asyncio.sleep(3600)

    result = virtual_clock.run(run_stage(slow, timeout=60))
    assert (result.status, result.duration_ms) == (FAIL, 60_000)


def test_virtual_clock_cannot_go_back(virtual_clock: VirtualClock) -> None:
    for wrong in (-1, math.nan):
        with pytest.raises(ValueError, match="must be 0 or more seconds, got "):
            virtual_clock.advance(wrong)


async def test_inputs_without_names_are_rejected() -> None:
    wrong: Any = [{"documents": []}]
    with pytest.raises(
        TypeError, match="inputs must be a mapping from the name of each dependency to its output"
    ):
        await run_stage(nothing_given, wrong)


async def nothing_given(ctx: Any) -> None: ...


async def test_run_stage_passes_the_context() -> None:
    async def who(ctx: Any) -> dict[str, Any]:
        return {"user": ctx.run.user_id, "data": ctx.run.data, "client": ctx.run.resources["client"]}

    context = PipelineContext(user_id="u1", data={"a": 1}, resources={"client": "c"})
    assert (await run_stage(who, context=context)).data == {"user": "u1", "data": {"a": 1}, "client": "c"}
    other = await run_stage(who, context=context, data={"b": 2})
    assert other.data == {"user": "u1", "data": {"b": 2}, "client": "c"}
    assert context.data == {"a": 1}


def test_run_stage_reports_the_routes_that_a_router_chose() -> None:
    @stage(kind=StageKind.ROUTE)
    def classify(ctx: Any) -> StageOutput:
        return StageOutput.route(ctx.run.data, sure=True)

    result = run_stage_sync(classify, data="refund", routes=("refund", "question"))
    assert (result.status, result.data, result.attributes["routes"]) == (OK, {"sure": True}, ["refund"])
    result = run_stage_sync(classify, data="refnd", routes="refund")
    assert "no dependent has the route 'refnd'; did you mean 'refund'?" in str(result.error)


def test_run_stage_rejects_an_invalid_stage() -> None:
    with pytest.raises(PipelineValidationError, match="has no method `execute"):
        run_stage_sync(object())


async def test_run_stage_sync_does_not_block_a_loop() -> None:
    with pytest.raises(RuntimeError, match=r"await run_stage\(\.\.\.\)"):
        run_stage_sync(load)


def test_run_stage_emits_a_complete_record(stageflow_events: CapturedEvents) -> None:
    run_stage_sync(Counts, {"load": {"words": []}}, name="count")
    stageflow_events.assert_stages(load="OK", count="OK")
    assert stageflow_events.run()["pipeline_name"] == "count"


# ---------------------------------------------------------------- the plugin

A_TEST = """
    import asyncio
    from stageflow import Pipeline
    from stageflow.events import get_event_sink, NoOpEventSink

    async def slow(ctx):
        await asyncio.sleep(3600)

    graph = Pipeline("p").with_stage("slow", slow, timeout=60).build()

    def test_events(stageflow_events, virtual_clock):
        results = virtual_clock.run(graph.run())
        assert results["slow"].duration_ms == 60_000
        stageflow_events.assert_stages(slow="FAIL")

    def test_no_events():
        assert type(get_event_sink()) is NoOpEventSink

    def test_fails(stageflow_events, virtual_clock):
        virtual_clock.run(graph.run())
        stageflow_events.assert_outcome("ok")
"""


def test_pytest_loads_the_fixtures_automatically(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(A_TEST)
    done = pytester.runpytest_subprocess("-W", "error", "-p", "no:asyncio")
    done.assert_outcomes(passed=2, failed=1)
    # The failure refers to the line of the test, not to a line of the library.
    done.stdout.fnmatch_lines(
        [
            '>*stageflow_events.assert_outcome("ok")',
            "E *AssertionError: the run did not end as expected",
            "E *     expected  actual",
            "E * > p  ok        failed  stage 'slow' failed: StageTimeoutError*",
            "test_pytest_loads_the_fixtures_automatically.py:*: AssertionError",
        ]
    )


def test_example_test_in_the_docs_passes(pytester: pytest.Pytester) -> None:
    page = (Path(__file__).parents[1] / "docs" / "testing.md").read_text(encoding="utf-8")
    first = page.split("```python\n", 1)[1].split("```", 1)[0]
    tests = [block.split("```", 1)[0] for block in page.split("```py\n")[1:]]
    pytester.makepyfile("\n".join([first, *tests]))
    pytester.runpytest_subprocess("-W", "error", "-p", "no:asyncio").assert_outcomes(passed=1)


def test_plugin_can_be_disabled(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(A_TEST)
    done = pytester.runpytest_subprocess("-p", "no:stageflow")
    done.assert_outcomes(passed=1, errors=2)


def test_only_the_plugin_imports_pytest() -> None:
    script = "import sys; sys.modules['pytest'] = None; import stageflow.testing; print('fine')"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_run_stage_passes_chunks_to_a_stage_that_reads_a_stream() -> None:
    @stage(streams=("write",), dependencies=("tone",))
    async def shout(ctx: StageContext, tone: str) -> AsyncIterator[str]:
        async for word in ctx.inputs.stream("write"):
            yield word.upper() + tone

    for chunks, expected in ((["a", "b"], "A!B!"), ([], []), (StageOutput.skip("off"), [])):
        result = run_stage_sync(shout, {"write": chunks, "tone": {"tone": "!"}})
        assert (result.status, result.value) == (StageStatus.OK, expected)
    for invalid in ({"text": "ab"}, "ab", None):
        with pytest.raises(InvalidArgumentError, match="the list of the chunks of the stream"):
            run_stage_sync(shout, {"write": invalid, "tone": {"tone": "!"}})
