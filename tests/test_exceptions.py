"""The record of exceptions: notes, groups and the message of a cancellation."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any

import pytest
from oracle import stage_wide

from stageflow import Pipeline, Retry, StageContext, StageKind, StageOutput, StageStatus, configure
from stageflow.events import MemoryEventSink
from stageflow.pipeline import CircuitBreaker, Proceed, StageCall
from stageflow.render._run import draw_exception
from stageflow.testing import VirtualClock, capture_events, run_stage


def with_notes(error: BaseException, *notes: str) -> BaseException:
    for note in notes:
        error.add_note(note)
    return error


async def recorded(stage: Any, **options: Any) -> dict[str, Any]:
    with capture_events() as events:
        await Pipeline("p").with_stage("s", stage, **options).run()
    return events.stage("s")


# ------------------------------------------------------------ notes


async def test_notes_of_an_exception_and_of_its_cause_are_recorded_and_drawn() -> None:
    async def fails(ctx: Any) -> None:
        try:
            raise with_notes(ConnectionError("reset"), "host db-1")
        except ConnectionError as error:
            raise with_notes(ValueError("bad row"), "row 17 of orders.csv", "batch 3") from error

    exception = (await recorded(fails))["exception"]
    assert exception["notes"] == ["row 17 of orders.csv", "batch 3"]
    assert [link["notes"] for link in exception["chain"]] == [["host db-1"]]
    drawn = draw_exception(exception).plain.splitlines()
    assert drawn[:3] == ["ValueError: bad row", "  note: row 17 of orders.csv", "  note: batch 3"]


async def test_notes_of_an_exception_that_a_stage_returns_are_recorded() -> None:
    async def fails(ctx: Any) -> StageOutput:
        return StageOutput.fail(with_notes(ValueError("bad row"), "row 17"))

    assert (await recorded(fails))["exception"]["notes"] == ["row 17"]


async def test_notes_are_redacted_truncated_and_limited() -> None:
    async def fails(ctx: Any) -> None:
        raise with_notes(ValueError("bad"), "password=hunter2", "x" * 5000, *map(str, range(20)))

    event = await recorded(fails)
    notes = event["exception"]["notes"]
    assert "hunter2" not in json.dumps(event)
    assert event["redacted"] == 1
    assert (len(notes), len(notes[1])) == (10, 2000)
    assert event["truncated"] == ["exception"]


class NotesRaise(ValueError):
    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes")


class NotesAreAText(ValueError):
    __notes__ = "a text"  # type: ignore[assignment]


@pytest.mark.parametrize(("error", "notes"), [(NotesRaise("x"), []), (NotesAreAText("x"), ["a text"])])
async def test_unusual_notes_do_not_break_the_record(error: ValueError, notes: list[str]) -> None:
    async def fails(ctx: Any) -> None:
        raise error

    event = await recorded(fails)
    assert (event["exception"]["message"], event["exception"]["notes"]) == ("x", notes)


# ------------------------------------------------------------ the message of a cancellation


async def waits(ctx: Any) -> None:
    await asyncio.Event().wait()


async def test_message_of_an_external_cancellation_is_recorded_and_reaches_the_caller() -> None:
    caught: list[Any] = []

    async def stage(ctx: Any) -> None:
        await waits(ctx)

    with capture_events() as events:
        task = asyncio.ensure_future(Pipeline("p").with_stage("s", stage).run())
        await asyncio.sleep(0.01)
        task.cancel("client went away")
        try:
            await task
        except asyncio.CancelledError as error:
            caught.append(error.args)
    assert caught == [("client went away",)]
    assert events.run()["outcome"] == "cancelled"
    assert events.run()["reason"] == events.run()["error"] == "cancelled externally: client went away"
    assert events.stage("s")["reason"] == "cancelled: cancelled externally: client went away"


async def test_message_of_a_cancellation_is_redacted() -> None:
    configure(sink=(sink := MemoryEventSink()))
    task = asyncio.ensure_future(Pipeline("p").with_stage("s", waits).run())
    await asyncio.sleep(0.01)
    task.cancel("closed by password=hunter2")
    await asyncio.wait([task])
    assert "hunter2" not in json.dumps(sink.events, default=str)
    assert "cancelled externally: closed by" in sink.of_type("pipeline.wide")[0]["reason"]


async def test_message_of_the_cancellation_of_a_task_of_the_run_is_recorded() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def stage(ctx: Any) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        await waits(ctx)

    with capture_events() as events:
        task = asyncio.ensure_future(Pipeline("p").with_stage("s", stage).run())
        await asyncio.sleep(0.01)
        tasks[0].cancel("worker shut down")
        await task
    assert events.run()["reason"] == "a task of the run was cancelled externally: worker shut down"


async def test_message_of_the_cancellation_of_what_a_stage_awaits_is_recorded() -> None:
    async def stage(ctx: Any) -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        await asyncio.sleep(0)
        task.cancel("pool closed")
        await task

    event = await recorded(stage)
    assert event["error"] == (
        "CancelledError: something the stage awaited was cancelled, not the stage itself: pool closed"
    )


# ------------------------------------------------------------ groups


async def fails_with(*errors: Exception) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async with asyncio.TaskGroup() as tasks:
        for error in errors:
            tasks.create_task(fail(error))


async def test_group_is_recorded_by_its_leaves() -> None:
    async def fails(ctx: Any) -> None:
        await fails_with(ConnectionError("refused"), ValueError("bad row"), KeyError("id"))

    event = await recorded(fails)
    assert event["error"] == "ConnectionError: refused (and 2 others)"
    assert event["error_type"] == "ConnectionError and 2 others"
    assert event["exception"]["type"] == "ExceptionGroup"
    assert [(link["type"], link["relation"]) for link in event["exception"]["chain"]] == [
        ("ConnectionError", "group"),
        ("ValueError", "group"),
        ("KeyError", "group"),
    ]


async def test_group_of_one_leaf_is_recorded_like_the_leaf() -> None:
    async def fails(ctx: Any) -> None:
        await fails_with(ConnectionError("refused"))

    with capture_events() as events:
        results = await Pipeline("p").with_stage("s", fails).run()
    event = events.stage("s")
    assert (event["error"], event["error_type"]) == ("ConnectionError: refused", "ConnectionError")
    assert (events.run()["error_type"], results.error) == (
        "ConnectionError",
        "stage 's' failed: ConnectionError: refused",
    )


async def test_nested_groups_are_flattened_and_each_leaf_is_followed_by_its_cause() -> None:
    async def fails(ctx: Any) -> None:
        cause = OSError("disk")
        first = ValueError("a")
        first.__cause__ = cause
        inner = ExceptionGroup("inner", [first, ExceptionGroup("innermost", [KeyError("b")])])
        raise ExceptionGroup("outer", [inner, TypeError("c"), inner])

    chain = (await recorded(fails))["exception"]["chain"]
    assert [(link["type"], link["relation"]) for link in chain] == [
        ("ValueError", "group"),
        ("OSError", "cause"),
        ("KeyError", "group"),
        ("TypeError", "group"),
    ]


async def test_all_leaves_of_a_large_group_are_recorded_up_to_a_limit() -> None:
    def failing(count: int) -> Any:
        async def fails(ctx: Any) -> None:
            raise ExceptionGroup("many", [ValueError(str(n)) for n in range(count)])

        return fails

    event = await recorded(failing(50))
    assert [link["message"] for link in event["exception"]["chain"]] == [str(n) for n in range(50)]
    assert event["truncated"] == []
    event = await recorded(failing(1000))
    assert event["error"] == "ValueError: 0 (and 999 others)"
    assert len(event["exception"]["chain"]) == 100
    assert event["truncated"] == ["exception"]


async def test_deeply_nested_group_needs_no_recursion() -> None:
    async def fails(ctx: Any) -> None:
        error: Exception = ValueError("deep")
        for _ in range(5000):
            error = ExceptionGroup("g", [error])
        raise error

    event = await recorded(fails, retry=Retry(1, on=ValueError))
    assert event["error"] == "ValueError: deep"


class Hides(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> Any:
        raise RuntimeError("hidden")


async def test_group_that_overrides_its_members_is_recorded() -> None:
    async def fails(ctx: Any) -> None:
        raise Hides("several", [ConnectionError("refused")])

    result = await run_stage(fails, retry=Retry(2, wait=0, on=ConnectionError))
    assert (result.error, result.attempts) == ("ConnectionError: refused", 2)


async def test_returned_group_is_recorded_by_its_leaves() -> None:
    group = ExceptionGroup("several", [ConnectionError("refused"), ValueError("bad")])

    async def fails(ctx: Any) -> StageOutput:
        return StageOutput.fail(group)

    event = await recorded(fails)
    assert (event["error"], event["error_type"]) == (
        "ConnectionError: refused (and 1 other)",
        "ConnectionError and 1 other",
    )


NETWORK = (ConnectionError, TimeoutError)


@pytest.mark.parametrize(
    ("on", "errors", "attempts"),
    [
        (ConnectionError, [ConnectionError()], 3),
        (ConnectionError, [ConnectionError(), ConnectionResetError()], 3),
        (ConnectionError, [ConnectionError(), ValueError()], 1),
        (NETWORK, [TimeoutError(), ConnectionError()], 3),
        (lambda error: isinstance(error, OSError), [TimeoutError(), ConnectionError()], 3),
        (lambda error: not isinstance(error, ValueError), [TimeoutError(), ValueError()], 1),
        (ExceptionGroup, [ConnectionError(), ValueError()], 3),
        (Exception, [ConnectionError(), ValueError()], 3),
    ],
)
async def test_retry_policy_covers_a_group_if_it_covers_every_leaf(
    on: Any, errors: list[Exception], attempts: int
) -> None:
    async def fails(ctx: Any) -> None:
        raise ExceptionGroup("outer", [ExceptionGroup("inner", errors)])

    result = await run_stage(fails, retry=Retry(3, wait=0, on=on))
    assert (result.status, result.attempts) == (StageStatus.FAIL, attempts)


@pytest.mark.parametrize("end", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_retry_policy_never_covers_a_group_with_the_end_of_the_process(end: type[BaseException]) -> None:
    assert not Retry(on=BaseException).covers(BaseExceptionGroup("g", [ValueError(), end()]))


def test_circuit_breaker_counts_a_group_if_it_counts_every_leaf() -> None:
    async def fails(ctx: Any) -> None:
        await fails_with(ConnectionError("refused"))

    breaker = CircuitBreaker(failures=1, on=ConnectionError)
    graph = Pipeline("p").with_stage("s", fails, interceptors=(breaker,)).build()
    VirtualClock().run(graph.run())
    assert breaker.state("p", "s") == "open"


# ------------------------------------------------------------ a router that chose nothing


async def ok(ctx: Any) -> None: ...


async def skips(ctx: Any) -> StageOutput:
    return StageOutput.skip("nothing to do")


async def raises(ctx: Any) -> StageOutput:
    raise ValueError("no")


async def chooses_nothing(ctx: Any) -> StageOutput:
    return StageOutput.route()


@pytest.mark.parametrize(
    ("router", "options", "choice"),
    [
        (ok, {"dependencies": ("s",), "conditional": True}, "was skipped: every one of its dependencies"),
        (ok, {"when": lambda ctx: False}, "was skipped: when= returned "),
        (skips, {}, "was skipped: nothing to do"),
        (raises, {"optional": True}, "failed"),
        (chooses_nothing, {}, "chose no route"),
    ],
)
async def test_reason_of_a_routed_stage_states_the_outcome_of_the_router(
    router: Any, options: dict[str, Any], choice: str, sink: MemoryEventSink
) -> None:
    configure(sink=sink)
    pipeline = (
        Pipeline("p")
        .with_stage("s", skips)
        .with_stage("r", router, StageKind.ROUTE, **options)
        .with_stage("x", ok, dependencies=("r",), route="x")
    )
    await pipeline.run()
    event = stage_wide(sink.events, "x")
    assert event["status"] == "SKIP"
    assert event["reason"].startswith(f"route 'x' was not chosen: 'r' {choice}")


# ------------------------------------------------------------ StageOutput.ok


@pytest.mark.parametrize("value", [[], [1], 0, 1, "", "text", None, (), set(), b"", False])
async def test_ok_rejects_every_value_that_is_not_a_mapping(value: Any) -> None:
    async def gives(ctx: Any) -> StageOutput:
        return StageOutput.ok(value)

    result = await run_stage(gives)
    assert result.status is StageStatus.FAIL
    assert result.error == f"InvalidArgumentError: StageOutput.ok(): data must be a mapping, got {value!r}"
    assert "pass the value under a name, as in StageOutput.ok(items=[...])" in str(result.exception)


class Falsy(dict[str, int]):
    def __bool__(self) -> bool:
        raise RuntimeError("ambiguous")


async def test_ok_accepts_every_mapping() -> None:
    class Row:
        """As sqlite3.Row: `keys` and `[]`, but not a registered mapping."""

        def keys(self) -> list[str]:
            return ["a"]

        def __getitem__(self, key: str) -> int:
            return 1

    assert StageOutput.ok({}).data == {}
    assert StageOutput.ok(Falsy(a=1), b=2).data == {"a": 1, "b": 2}
    assert StageOutput.ok(Row()).data == {"a": 1}  # type: ignore[arg-type]


async def passes(call: StageCall, proceed: Proceed) -> StageOutput:
    return await proceed()


def raises_at_once(ctx: StageContext) -> None:
    raise ValueError("raised")


async def raises_after_a_wait(ctx: StageContext) -> None:
    await asyncio.sleep(0)
    raise ValueError("raised")


async def raises_when_cancelled(ctx: StageContext) -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        raise ValueError("raised") from None


@pytest.mark.parametrize("interceptors", [[], [passes, passes]], ids=["direct", "intercepted"])
@pytest.mark.parametrize("stage", [raises_at_once, raises_after_a_wait, raises_when_cancelled])
async def test_stack_has_no_frames_of_the_engine(stage: Any, interceptors: list[Any]) -> None:
    timeout = 0.05 if stage is raises_when_cancelled else None
    with capture_events() as events:
        graph = Pipeline("p").with_stage("s", stage, timeout=timeout).build(interceptors=interceptors)
        results = await graph.run()
    error = results["s"].exception
    assert error is not None
    exception = events.stage("s")["exception"]
    if stage is raises_when_cancelled:  # the timeout has the stage's own exception as its cause
        (exception,) = exception["chain"]
        error = error.__cause__
        assert error is not None
    assert exception["message"] == "raised"
    engine = [frame for frame in exception["stack"] if f"{os.sep}stageflow{os.sep}" in frame]
    assert engine == []
    assert exception["stack"][-1].endswith(f"in {stage.__name__}")
    assert error.__traceback__ is not None
    assert error.__traceback__.tb_frame.f_code.co_name == ("passes" if interceptors else stage.__name__)
