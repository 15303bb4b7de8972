"""Stages that run in worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import zipapp
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from oracle import check_record, of_type, recorded, stage_wide

from stageflow import Pipeline, PipelineContext, Retry, StageContext, StageOutput, annotate, record_llm, stage
from stageflow.errors import (
    BudgetExceededError,
    ClosedError,
    InputError,
    InvalidArgumentError,
    PipelineValidationError,
    SerializationError,
    StageTimeoutError,
    WorkerLostError,
)
from stageflow.events import MemoryEventSink
from stageflow.executors import ProcessExecutor
from stageflow.pipeline import Budget, Flow
from stageflow.stages import ItemFailure, StageStatus
from stageflow.testing import VirtualClock

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

OK, SKIP, RETRY, FAIL, CANCEL = StageStatus

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessExecutor]:
    with ProcessExecutor(2, context_vars=(f"{__name__}:tenant",)) as executor:
        yield executor


# ---------------------------------------------------------------- functions of stages

# A worker imports them from this module.


def double(ctx: StageContext) -> dict[str, Any]:
    return {"n": ctx.run.data["n"] * 2, "pid": os.getpid()}


async def triple(ctx: StageContext, n: int) -> dict[str, Any]:
    await asyncio.sleep(0)
    return {"m": n * 3}


def with_records(ctx: StageContext) -> StageOutput:
    ctx.annotate(model="m", opaque=threading.Lock())
    annotate(rows=2)
    ctx.count("pages", 2)
    ctx.count("pages", 3)
    ctx.annotate_run(customer="gold")
    ctx.add_artifact("report", b"pdf")
    ctx.emit_event("page.read", {"page": 1})
    record_llm("m-large", input_tokens=10, output_tokens=5, cost_usd=0.001)
    with ctx.timer("db"):
        pass
    return StageOutput.ok(done=True)


class ParseError(Exception):
    def __init__(self, page: int, reason: str) -> None:  # cannot be restored from its `args`
        super().__init__(f"page {page}: {reason}")


def fails(ctx: StageContext) -> None:
    try:
        raise KeyError("title")
    except KeyError as error:
        raise ValueError("page 3 has no title") from error


def fails_with_own_class(ctx: StageContext) -> None:
    raise ParseError(3, "no title")


def returns_lock(ctx: StageContext) -> Any:
    return {"lock": threading.Lock()}


def exits(ctx: StageContext) -> None:
    os._exit(7)


def is_killed(ctx: StageContext) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def long_c_call(ctx: StageContext) -> int:
    Path(ctx.run.data["pid_file"]).write_text(str(os.getpid()))
    return sum(range(4 * 10**9))


def reads_tenant(ctx: StageContext) -> dict[str, Any]:
    return {"tenant": tenant.get()}


def reads_resources(ctx: StageContext) -> Any:
    return ctx.run.resources["db"]


def reads_inputs(ctx: StageContext) -> dict[str, Any]:
    found = {"n": ctx.inputs.get_from("double", "n"), "typo": ctx.inputs.get_from("double", "typo", 0)}
    return {**found, "status": ctx.inputs.result_from("double").status}


def reads_ancestor(ctx: StageContext) -> Any:
    return ctx.inputs.get_from("double", "n")


def reads_identity(ctx: StageContext) -> dict[str, Any]:
    return {
        "run": str(ctx.run.pipeline_run_id),
        "user": ctx.run.user_id,
        "stage": ctx.stage,
        "attempt": ctx.attempt,
        "traceparent": ctx.traceparent,
    }


def succeeds_later(ctx: StageContext) -> dict[str, Any]:
    if ctx.attempt < 3:
        os._exit(1)
    return {"attempt": ctx.attempt}


def words(ctx: StageContext) -> Iterator[Any]:
    yield "Hello "
    ctx.annotate(between=True)
    yield "world"


async def words_async(ctx: StageContext) -> AsyncIterator[Any]:
    yield "Hello "
    await asyncio.sleep(0)
    yield "world"
    yield StageOutput.ok(words=2)


async def sends(ctx: StageContext) -> None:
    for word in ("Hello ", "world"):
        await ctx.send(word)


def endless(ctx: StageContext) -> Iterator[int]:
    number = 0
    while True:
        Path(ctx.run.data["file"]).write_text(str(number))
        yield number
        number += 1


def fails_after_chunk(ctx: StageContext) -> Iterator[str]:
    yield "Hello"
    raise ConnectionError("the model stopped")


class Model:
    loaded = 0

    def __init__(self) -> None:
        Model.loaded += 1

    def execute(self, ctx: StageContext) -> dict[str, Any]:
        return {"loaded": Model.loaded, "pid": os.getpid()}


class NeverReady:
    def __init__(self) -> None:
        time.sleep(600)

    def execute(self, ctx: StageContext) -> None: ...


class LogsAndFails:
    def __init__(self) -> None:
        logging.getLogger("acme.model").warning("loading")
        raise MemoryError("no room for the model")

    def execute(self, ctx: StageContext) -> None: ...


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def execute(self, ctx: StageContext) -> dict[str, Any]:
        return {"n": ctx.run.data["n"] * self.factor}


def numbers() -> list[int]:
    return list(range(1000))


def few_numbers() -> list[int]:
    return list(range(100))


def square(number: int) -> int:
    return number * number


def square_or_fail(number: int) -> int:
    if number % 100 == 7:
        raise ValueError(f"bad number {number}")
    return number * number


def logs_execution(ctx: StageContext, number: int) -> int:
    """Append a line to a file, and die at some items."""
    with open(os.environ["STAGEFLOW_TEST_EXECUTIONS"], "a") as file:
        file.write(f"{number} {ctx.attempt}\n")
    ctx.count("calls")
    if number in (5, 50) and ctx.attempt == 1:
        os._exit(1)
    return number


def slow_at_three(number: int) -> int:
    if number == 3:
        sum(range(4 * 10**9))
    return number


def item_or_lock(number: int) -> Any:
    return number


def sleeps(ctx: StageContext) -> None:
    time.sleep(0.5)


def logs_and_exits(ctx: StageContext) -> None:
    log = logging.getLogger("acme.parser")
    log.setLevel(logging.INFO)
    log.info("page %d", 1)
    log.warning("page %d is empty", 2)
    os._exit(1)


def spends(ctx: StageContext) -> None:
    for _ in range(1000):
        ctx.record_llm("m", output_tokens=1, cost_usd=0.01)
        time.sleep(0.01)


def leaves_child_process(ctx: StageContext) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(ctx.run.data["pid_file"]).write_text(str(child.pid))
    time.sleep(600)


def leaves_task(ctx: StageContext) -> Any:
    async def forever(file: str) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            Path(file).write_text("cancelled")

    async def start() -> dict[str, Any]:
        task = asyncio.get_running_loop().create_task(forever(ctx.run.data["file"]))
        await asyncio.sleep(0)
        return {"name": task.get_name()}

    return start()


def leaves_thread(ctx: StageContext) -> None:
    def record() -> None:
        recorded_late.wait()
        ctx.annotate(late=True)
        ctx.record_llm("m", output_tokens=1, cost_usd=5.0)
        logging.getLogger("acme").error("late")

    threading.Thread(target=record, daemon=True).start()


recorded_late = threading.Event()


def releases_thread(ctx: StageContext) -> dict[str, Any]:
    recorded_late.set()
    time.sleep(0.1)
    raise ValueError("second")


def forks(ctx: StageContext) -> dict[str, Any]:
    child = os.fork()
    if child == 0:
        ctx.annotate(child=True)
        raise ValueError("in the child")
    os.waitpid(child, 0)
    return {"from": "parent"}


def leaves_forked_child(ctx: StageContext) -> None:
    if os.fork() == 0:
        time.sleep(600)
    os._exit(3)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise RuntimeError("no")


def exit_unless(pid: int) -> int:
    if os.getpid() != pid:
        sys.exit(4)
    return pid


class ExitsInParent:
    def __reduce__(self) -> Any:
        return exit_unless, (os.getpid(),)


def returns_unpicklable(ctx: StageContext) -> Any:
    ctx.annotate(value=Unpicklable())
    return {"value": Unpicklable()}


def returns_hostile(ctx: StageContext) -> Any:
    return {"value": ExitsInParent()}


class RowError(Exception):
    def __getattr__(self, name: str) -> Any:
        return {}[name]


def raises_row_error(ctx: StageContext) -> None:
    raise RowError("row 3")


async def sends_from_two_tasks(ctx: StageContext) -> None:
    async def send() -> None:
        for number in range(200):
            await ctx.send(number)

    await asyncio.gather(send(), send())


def fails_first(ctx: StageContext) -> None:
    time.sleep(1)
    if ctx.attempt == 1:
        raise ValueError("first")
    time.sleep(1)


class Noisy:
    def __str__(self) -> str:
        logging.getLogger("acme.noisy").warning("formatting %s", self)
        return "noisy"


def logs_noisy(ctx: StageContext) -> None:
    log = logging.getLogger("acme.noisy")
    log.propagate = False
    log.addHandler(logging.NullHandler())
    log.warning("%s", Noisy())
    raise ValueError("x")


def about_as_slow_as_the_timeout(number: int) -> int:
    with open(os.environ["STAGEFLOW_TEST_EXECUTIONS"], "a") as file:
        file.write(f"{number}\n")
    time.sleep(0.06 if number % 20 == 3 else 0.0005)
    return number


def with_context(ctx: StageContext, number: int) -> int:
    return number + ctx.attempt


async def numbers_one_by_one() -> AsyncIterator[int]:
    for number in range(50):
        yield number


@stage(name="renamed", timeout=30)
def described(ctx: StageContext) -> dict[str, Any]:
    return {"pid": os.getpid()}


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_ended(pid: int, seconds: float = 2.0) -> float:
    """Wait for the end of a process, and return how long it took."""
    began = time.monotonic()
    while is_running(pid):
        assert time.monotonic() - began < seconds, f"process {pid} is still running after {seconds} s"
        time.sleep(0.005)
    return time.monotonic() - began


# ---------------------------------------------------------------- values and records


async def test_stage_runs_in_another_process_and_its_value_is_returned(processes: ProcessExecutor) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("double", double, executor=processes)
        .with_stage("triple", triple, dependencies=("double",), executor=processes)
    )
    results = await pipeline.run(PipelineContext(data={"n": 7}))
    assert results.data("triple") == {"m": 42}
    assert results.data("double")["pid"] != os.getpid()


async def test_event_names_the_worker(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    graph = recorded(Pipeline("p").with_stage("double", double, executor=processes), sink)
    results = await graph.run(PipelineContext(data={"n": 7}))
    worker = stage_wide(sink.events, "double")["worker"]
    assert worker["kind"] == "process"
    assert worker["pid"] == results.data("double")["pid"]
    assert worker["host"]
    assert worker["queue_ms"] >= 0
    assert results["double"].worker.pid == worker["pid"]
    check_record(sink.events, ["double"])


async def test_records_of_the_function_are_in_the_event(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    graph = recorded(Pipeline("p").with_stage("s", with_records, executor=processes), sink)
    results = await graph.run()
    event = stage_wide(sink.events, "s")
    attributes = event["attributes"]
    assert attributes["model"] == "m"
    assert "lock" in attributes["opaque"]
    assert attributes["rows"] == 2
    assert attributes["pages"] == 5
    assert attributes["gen_ai.usage.input_tokens"] == 10
    assert attributes["db_count"] == 1
    assert event["artifacts_count"] == 1
    assert event["events_count"] == 1
    (custom,) = of_type(sink.events, "page.read")
    assert custom["page"] == 1
    run = of_type(sink.events, "pipeline.wide")[0]["attributes"]
    assert run["customer"] == "gold"
    assert run["pages"] == 5
    assert run["llm.cost_usd"] == 0.001
    assert results["s"].artifacts[0].payload == b"pdf"
    assert results.data("s") == {"done": True}


async def test_function_sees_the_ids_of_its_run(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", reads_identity, executor=processes).build()
    results = await graph.run(PipelineContext(user_id="u1"))
    data = results.data("s")
    assert data["run"] == str(results.context.pipeline_run_id)
    assert data["user"] == "u1"
    assert (data["stage"], data["attempt"]) == ("s", 1)
    assert data["traceparent"].startswith("00-")


async def test_inputs_are_those_of_the_dependencies(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    pipeline = (
        Pipeline("p")
        .with_stage("double", double)
        .with_stage("s", reads_inputs, dependencies=("double",), executor=processes)
        .with_stage("far", reads_ancestor, dependencies=("s",), executor=processes, optional=True)
    )
    results = await recorded(pipeline, sink).run(PipelineContext(data={"n": 7}))
    assert results.data("s") == {"n": 14, "typo": 0, "status": OK}
    assert stage_wide(sink.events, "s")["missing_inputs"] == ["double.typo"]
    error = results["far"].exception
    assert isinstance(error, InputError)
    assert "add 'double' to the dependencies of 'far'" in str(error)


async def test_resources_are_not_sent(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", reads_resources, executor=processes).build()
    results = await graph.run(PipelineContext(resources={"db": threading.Lock()}))
    assert "resources are not sent" in (results["s"].error or "")


async def test_context_variables_are_sent_by_name(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", reads_tenant, executor=processes).build()
    assert (await graph.run()).data("s") == {"tenant": "nobody"}
    token = tenant.set("acme")
    try:
        assert (await graph.run()).data("s") == {"tenant": "acme"}
    finally:
        tenant.reset(token)
    assert (await graph.run()).data("s") == {"tenant": "nobody"}  # the worker has not kept the value


async def test_class_is_instantiated_once_per_worker() -> None:
    async with ProcessExecutor(1) as executor:
        graph = Pipeline("p").with_stage("model", Model, executor=executor).build()
        first, second = await graph.run(), await graph.run()
    assert first.data("model") == second.data("model")
    assert first.data("model")["loaded"] == 1


async def test_instance_is_sent_by_value(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", Scale(3), executor=processes).build()
    assert (await graph.run(PipelineContext(data={"n": 7}))).data("s") == {"n": 21}


async def test_decorated_function_is_sent(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", stage(name="other")(described), executor=processes).build()
    assert (await graph.run()).data("s")["pid"] != os.getpid()


async def test_flow_passes_values_without_the_context(processes: ProcessExecutor) -> None:
    flow = Flow("f")
    given = flow.add(numbers, executor=processes)
    total = flow.add(sum, given, executor=processes, name="total")
    assert (await flow.build().run()).value(total) == sum(range(1000))


async def test_runs_of_several_loops_share_an_executor() -> None:
    async with ProcessExecutor(1) as executor:
        graph = Pipeline("p").with_stage("double", double, executor=executor).build()
        run = graph.run_sync
        pids = {
            (await asyncio.to_thread(run, PipelineContext(data={"n": n}))).data("double")["pid"]
            for n in range(3)
        }
    assert len(pids) == 1


async def test_log_lines_of_a_lost_worker_are_in_the_event(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    graph = recorded(Pipeline("p").with_stage("s", logs_and_exits, executor=processes), sink)
    await graph.run()
    event = stage_wide(sink.events, "s")
    assert [line.partition(" ")[2] for line in event["log_tail"]] == [
        "INFO acme.parser: page 1",
        "WARNING acme.parser: page 2 is empty",
    ]
    assert event["log_warnings"] == 1


async def test_usage_in_workers_counts_towards_the_budget(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    pipeline = Pipeline("p").with_stage(
        "s", spends, executor=processes, optional=True, retry=Retry(attempts=3)
    )
    results = await recorded(pipeline, sink, budget=Budget(usd=0.05)).run()
    assert results.outcome == "failed"
    assert isinstance(results["s"].exception, BudgetExceededError)
    assert results["s"].attributes["llm.cost_usd"] < 1
    check_record(sink.events, ["s"])


async def test_items_in_workers_count_as_attempts(processes: ProcessExecutor) -> None:
    flow = Flow("f")
    flow.map(square, flow.add(numbers), executor=processes)
    results = await flow.build(budget=Budget(attempts=20)).run()
    assert results.outcome == "failed"
    assert isinstance(results["square"].exception, BudgetExceededError)
    assert results["square"].items.ok <= 19


# ---------------------------------------------------------------- failures


async def test_exception_has_its_class_traceback_and_cause(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    graph = recorded(Pipeline("p").with_stage("s", fails, executor=processes), sink)
    results = await graph.run()
    error = results["s"].exception
    assert type(error) is ValueError
    assert type(error.__cause__) is KeyError
    text = "".join(traceback.format_exception(error))
    assert 'raise ValueError("page 3 has no title")' in text
    exception = stage_wide(sink.events, "s")["exception"]
    assert exception["stack"][-1].endswith("in fails")
    assert f"{Path(__file__)}:" in exception["stack"][-1]
    assert [link["type"] for link in exception["chain"]] == ["KeyError"]


async def test_exception_that_cannot_be_restored_keeps_its_name(processes: ProcessExecutor) -> None:
    sink = MemoryEventSink()
    graph = recorded(Pipeline("p").with_stage("s", fails_with_own_class, executor=processes), sink)
    await graph.run()
    event = stage_wide(sink.events, "s")
    assert event["error"] == "ParseError: page 3: no title"
    assert event["error_type"] == "ParseError"


async def test_value_that_cannot_be_returned_fails_the_stage(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", returns_lock, executor=processes).build()
    error = (await graph.run())["s"].exception
    assert isinstance(error, SerializationError)
    assert "the value that the stage returned" in str(error)


async def test_value_that_cannot_be_sent_is_named(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", double, executor=processes).build()
    error = (await graph.run(PipelineContext(data={"n": threading.Lock()})))["s"].exception
    assert isinstance(error, SerializationError)
    assert "`ctx.run.data` cannot be sent to a worker" in str(error)


@pytest.mark.parametrize(
    ("function", "how"), [(exits, "exited with code 7"), (is_killed, "killed by SIGKILL")]
)
async def test_end_of_a_worker_fails_only_its_call(
    processes: ProcessExecutor, function: Any, how: str
) -> None:
    sink = MemoryEventSink()
    pipeline = (
        Pipeline("p")
        .with_stage("lost", function, executor=processes, optional=True)
        .with_stage("double", double, executor=processes)
    )
    results = await recorded(pipeline, sink).run(PipelineContext(data={"n": 7}))
    error = results["lost"].exception
    assert isinstance(error, WorkerLostError)
    assert how in str(error)
    assert results.data("double")["n"] == 14
    check_record(sink.events, ["lost", "double"])


async def test_retry_policy_covers_the_loss_of_a_worker(processes: ProcessExecutor) -> None:
    retry = Retry(attempts=3, on=WorkerLostError, wait=0.001)
    graph = Pipeline("p").with_stage("s", succeeds_later, executor=processes, retry=retry).build()
    results = await graph.run()
    assert results.data("s") == {"attempt": 3}


async def test_worker_that_died_while_idle_is_replaced() -> None:
    async with ProcessExecutor(1) as executor:
        graph = Pipeline("p").with_stage("double", double, executor=executor).build()
        ctx = PipelineContext(data={"n": 1})
        for _ in range(3):
            pid = (await graph.run(ctx)).data("double")["pid"]
            os.kill(pid, signal.SIGKILL)
            results = await graph.run(ctx)
            assert results["double"].status is OK
            assert results["double"].attempts == 1
            assert results.data("double")["pid"] != pid


async def test_worker_is_replaced_after_max_tasks() -> None:
    async with ProcessExecutor(1, max_tasks_per_worker=2) as executor:
        graph = Pipeline("p").with_stage("double", double, executor=executor).build()
        pids = [(await graph.run(PipelineContext(data={"n": 1}))).data("double")["pid"] for _ in range(6)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert not any(map(is_running, pids))


async def test_records_of_a_thread_after_its_call_are_not_part_of_another_stage() -> None:
    sink = MemoryEventSink()
    async with ProcessExecutor(1) as executor:
        await Pipeline("first").with_stage("s", leaves_thread, executor=executor).run()
        second = Pipeline("second").with_stage("s", releases_thread, executor=executor)
        results = await recorded(second, sink, budget=Budget(usd=1)).run()
    assert results["s"].error == "ValueError: second"
    event = stage_wide(sink.events, "s")
    assert event["attributes"] == {}
    assert event["log_tail"] == []


async def test_outcome_of_a_forked_child_is_not_that_of_the_call() -> None:
    async with ProcessExecutor(1) as executor:
        results = await Pipeline("p").with_stage("s", forks, executor=executor).run()
        assert results.data("s") == {"from": "parent"}
        assert results["s"].attributes == {}
        after = (
            await Pipeline("q").with_stage("d", double, executor=executor).run(PipelineContext(data={"n": 1}))
        )
        assert after.data("d")["n"] == 2


async def test_worker_that_dies_is_noticed_although_a_forked_child_continues(
    processes: ProcessExecutor,
) -> None:
    results = await Pipeline("p").with_stage("s", leaves_forked_child, executor=processes).run(deadline=30)
    assert "exited with code 3" in (results["s"].error or "")


async def test_value_whose_pickling_raises_any_exception_fails_the_stage(processes: ProcessExecutor) -> None:
    results = await Pipeline("p").with_stage("s", returns_unpicklable, executor=processes).run()
    assert isinstance(results["s"].exception, SerializationError)
    assert "Unpicklable" in results["s"].attributes["value"]


async def test_value_that_ends_the_parent_process_fails_the_stage(processes: ProcessExecutor) -> None:
    results = await Pipeline("p").with_stage("s", returns_hostile, executor=processes).run()
    assert isinstance(results["s"].exception, SerializationError)
    after = (
        await Pipeline("q").with_stage("d", double, executor=processes).run(PipelineContext(data={"n": 1}))
    )
    assert after.data("d")["n"] == 2


async def test_exception_that_overrides_getattr_is_recorded(processes: ProcessExecutor) -> None:
    results = await Pipeline("p").with_stage("s", raises_row_error, executor=processes).run()
    assert results["s"].error == "RowError: row 3"


async def test_argument_of_a_log_line_that_logs_is_recorded_once(processes: ProcessExecutor) -> None:
    results = await Pipeline("p").with_stage("s", logs_noisy, executor=processes).run()
    assert results["s"].logs is not None
    assert results["s"].logs.tail[-1].endswith("WARNING acme.noisy: noisy")
    assert len(results["s"].logs.tail) == 1


# ---------------------------------------------------------------- timeouts and cancellation


async def started_pid(path: Path) -> int:
    while not (path.exists() and path.read_text()):
        await asyncio.sleep(0.005)
    return int(path.read_text())


async def test_timeout_kills_the_worker_in_a_c_call(processes: ProcessExecutor, tmp_path: Path) -> None:
    graph = Pipeline("p").with_stage("s", long_c_call, executor=processes, timeout=1.5).build()
    results = await graph.run(PipelineContext(data={"pid_file": str(tmp_path / "pid")}))
    assert isinstance(results["s"].exception, StageTimeoutError)
    assert results["s"].worker.pid == int((tmp_path / "pid").read_text())
    wait_until_ended(int((tmp_path / "pid").read_text()))


async def test_cancellation_kills_the_worker_in_a_c_call(processes: ProcessExecutor, tmp_path: Path) -> None:
    sink = MemoryEventSink()
    graph = recorded(Pipeline("p").with_stage("s", long_c_call, executor=processes), sink)
    run = asyncio.create_task(graph.run(PipelineContext(data={"pid_file": str(tmp_path / "pid")})))
    pid = await started_pid(tmp_path / "pid")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    wait_until_ended(pid)
    assert stage_wide(sink.events, "s")["status"] == "CANCEL"


async def test_timeout_of_an_attempt_does_not_apply_to_the_next_one(processes: ProcessExecutor) -> None:
    async def when(ctx: StageContext) -> bool:
        await asyncio.sleep(0.01)
        return True

    pipeline = Pipeline("p").with_stage(
        "s", fails_first, executor=processes, when=when, timeout=2.7, retry=Retry(attempts=2, wait=0.001)
    )
    result = (await pipeline.run())["s"]
    assert result.status is OK, (result.error, result.attempt, result.duration_ms, result.queue_ms)


def test_virtual_clock_waits_for_workers(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("double", double, executor=processes, timeout=5).build()
    results = VirtualClock().run(graph.run(PipelineContext(data={"n": 7}), deadline=60))
    assert results.outcome == "ok"


async def test_time_in_the_queue_does_not_count_towards_the_timeout(tmp_path: Path) -> None:
    async with ProcessExecutor(1) as executor:
        pipeline = Pipeline("p").with_stage("a", sleeps, executor=executor, timeout=1.9)
        for name in ("b", "c", "d"):
            pipeline = pipeline.with_stage(name, sleeps, executor=executor, timeout=1.9)
        results = await pipeline.run()
    assert results.outcome == "ok"
    last = max(results.values(), key=lambda result: result.ended_ns)
    assert last.queue_ms > 1400
    assert last.worker.queue_ms > 1400
    assert last.duration_ms < last.queue_ms


async def test_class_that_is_not_instantiated_in_time_fails_its_call() -> None:
    async with ProcessExecutor(1, start_timeout=3) as executor:
        pipeline = Pipeline("p").with_stage("s", NeverReady, executor=executor, optional=True)
        pipeline = pipeline.with_stage("after", double, dependencies=("s",), executor=executor)
        results = await pipeline.run(PipelineContext(data={"n": 1}))
    assert "within the start_timeout of 3 s" in str(results["s"].exception)
    assert isinstance(results["s"].exception, WorkerLostError)
    assert results["after"].status is OK


async def test_lines_that_a_class_logs_when_it_is_instantiated_belong_to_the_stage() -> None:
    sink = MemoryEventSink()
    async with ProcessExecutor(1) as executor:
        await recorded(Pipeline("p").with_stage("s", LogsAndFails, executor=executor), sink).run()
    (line,) = stage_wide(sink.events, "s")["log_tail"]
    assert line.endswith("WARNING acme.model: loading")


async def test_queued_call_is_cancelled_without_a_worker(tmp_path: Path) -> None:
    async with ProcessExecutor(1) as executor:
        graph = Pipeline("p").with_stage("s", long_c_call, executor=executor).build()
        first = asyncio.create_task(graph.run(PipelineContext(data={"pid_file": str(tmp_path / "1")})))
        await started_pid(tmp_path / "1")
        second = asyncio.create_task(graph.run(PipelineContext(data={"pid_file": str(tmp_path / "2")})))
        await asyncio.sleep(0.01)
        for run in (second, first):
            run.cancel()
            with pytest.raises(asyncio.CancelledError):
                await run
        graph = Pipeline("p").with_stage("double", double, executor=executor).build()
        assert (await graph.run(PipelineContext(data={"n": 1}))).outcome == "ok"
    assert not (tmp_path / "2").exists()


async def test_processes_started_by_the_function_end_with_it(
    processes: ProcessExecutor, tmp_path: Path
) -> None:
    graph = Pipeline("p").with_stage("s", leaves_child_process, executor=processes).build()
    run = asyncio.create_task(graph.run(PipelineContext(data={"pid_file": str(tmp_path / "pid")})))
    pid = await started_pid(tmp_path / "pid")
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    wait_until_ended(pid)


async def test_tasks_left_by_the_function_are_cancelled(processes: ProcessExecutor, tmp_path: Path) -> None:
    file = tmp_path / "task"
    graph = Pipeline("p").with_stage("s", leaves_task, executor=processes).build()
    assert (await graph.run(PipelineContext(data={"file": str(file)}))).outcome == "ok"
    assert file.read_text() == "cancelled"


async def test_closed_executor_stops_its_workers_and_rejects_calls() -> None:
    executor = ProcessExecutor(1)
    graph = Pipeline("p").with_stage("double", double, executor=executor).build()
    pid = (await graph.run(PipelineContext(data={"n": 1}))).data("double")["pid"]
    await executor.aclose()
    assert not is_running(pid)
    assert isinstance((await graph.run(PipelineContext(data={"n": 1})))["double"].exception, ClosedError)


async def test_close_fails_running_calls(tmp_path: Path) -> None:
    executor = ProcessExecutor(1)
    graph = Pipeline("p").with_stage("s", long_c_call, executor=executor).build()
    run = asyncio.create_task(graph.run(PipelineContext(data={"pid_file": str(tmp_path / "pid")})))
    pid = await started_pid(tmp_path / "pid")
    await executor.aclose()
    assert isinstance((await run)["s"].exception, WorkerLostError)
    assert not is_running(pid)


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("function", [words, words_async, sends])
async def test_chunks_are_streamed_from_a_worker(processes: ProcessExecutor, function: Any) -> None:
    graph = Pipeline("p").with_stage("s", function, executor=processes).build()
    async with graph.stream(stages="s") as run:
        received = [chunk.value async for chunk in run]
    results = await run.results()
    assert received == ["Hello ", "world"]
    assert results.data("s") == ({"words": 2} if function is words_async else {"text": "Hello world"})
    assert results["s"].stream.chunks == 2
    if function is words:
        assert results["s"].attributes["between"] is True


async def test_slow_reader_blocks_the_generator_in_its_worker(
    processes: ProcessExecutor, tmp_path: Path
) -> None:
    file = tmp_path / "number"
    graph = Pipeline("p").with_stage("s", endless, executor=processes).build()
    async with graph.stream(PipelineContext(data={"file": str(file)}), buffer=4) as run:
        chunks = aiter(run)
        for number in range(200):
            assert (await anext(chunks)).value == number
        last = -1
        while (number := int(file.read_text() or 0)) != last:  # until it waits
            last = number
            await asyncio.sleep(0.1)
        assert number < 300
    assert (await run.results())["s"].status is CANCEL


async def test_several_tasks_of_a_stage_send_to_a_slow_reader(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", sends_from_two_tasks, executor=processes).build()
    received = []
    async with graph.stream(stages="s", buffer=1) as run:
        async for chunk in run:
            received.append(chunk.value)
            await asyncio.sleep(0)
    assert sorted(received) == sorted([*range(200), *range(200)])


async def test_failure_after_a_chunk(processes: ProcessExecutor) -> None:
    graph = Pipeline("p").with_stage("s", fails_after_chunk, executor=processes).build()
    results = await graph.run()
    assert results["s"].error == "ConnectionError: the model stopped"
    assert results["s"].stream.chunks == 1


# ---------------------------------------------------------------- maps


async def test_items_are_mapped_in_batches(processes: ProcessExecutor) -> None:
    flow = Flow("f")
    squares = flow.map(square, flow.add(numbers), executor=processes)
    results = await flow.build().run()
    assert results.value(squares) == [number * number for number in range(1000)]
    items = results["square"].items
    assert (items.total, items.ok, items.failed) == (1000, 1000, 0)


async def test_failed_items_do_not_affect_their_batch(processes: ProcessExecutor) -> None:
    flow = Flow("f")
    squares = flow.map(square_or_fail, flow.add(numbers), executor=processes, on_item_failure="collect")
    results = await flow.build().run()
    values = results.value(squares)
    failed = [value.index for value in values if isinstance(value, ItemFailure)]
    assert failed == list(range(7, 1000, 100))
    assert sum(value == index * index for index, value in enumerate(values)) == 990
    assert results["square_or_fail"].items.failure_types == ["ValueError"]


async def test_lost_worker_fails_one_item_and_no_item_runs_twice(
    processes: ProcessExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "executions"
    monkeypatch.setenv("STAGEFLOW_TEST_EXECUTIONS", str(file))
    async with ProcessExecutor(2) as executor:
        flow = Flow("f")
        numbered = flow.add(numbers)
        values = flow.map(logs_execution, numbered, executor=executor, on_item_failure="collect")
        sink = MemoryEventSink()
        results = await recorded(flow.pipeline, sink).run()
    lost = [value for value in results.value(values) if isinstance(value, ItemFailure)]
    assert [failure.index for failure in lost] == [5, 50]
    assert all(isinstance(failure.exception, WorkerLostError) for failure in lost)
    assert sorted(file.read_text().split("\n")[:-1]) == sorted(f"{number} 1" for number in range(1000))
    assert results["logs_execution"].attributes["calls"] == 1000
    check_record(sink.events, ["numbers", "logs_execution"])


async def test_lost_items_are_retried_by_their_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "executions"
    monkeypatch.setenv("STAGEFLOW_TEST_EXECUTIONS", str(file))
    async with ProcessExecutor(2) as executor:
        flow = Flow("f")
        retry = Retry(attempts=2, on=WorkerLostError, wait=0.001)
        values = flow.map(logs_execution, flow.add(numbers), executor=executor, retry=retry)
        results = await flow.build().run()
    assert results.value(values) == list(range(1000))
    expected = [f"{number} 1" for number in range(1000)] + ["5 2", "50 2"]
    assert sorted(file.read_text().split("\n")[:-1]) == sorted(expected)


async def test_timeout_of_an_item_kills_its_worker_and_the_others_continue(
    processes: ProcessExecutor,
) -> None:
    flow = Flow("f")
    given = flow.add(numbers)
    values = flow.map(slow_at_three, given, executor=processes, timeout=0.5, on_item_failure="collect")
    results = await flow.build().run()
    failed = [value for value in results.value(values) if isinstance(value, ItemFailure)]
    assert [failure.index for failure in failed] == [3]
    assert isinstance(failed[0].exception, StageTimeoutError)


async def test_items_near_their_timeout_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "executions"
    monkeypatch.setenv("STAGEFLOW_TEST_EXECUTIONS", str(file))

    async def blocks(ctx: StageContext) -> None:
        for _ in range(3):
            await asyncio.sleep(0.2)
            time.sleep(0.2)

    async with ProcessExecutor(2) as executor:
        flow = Flow("f")
        flow.add(blocks)
        values = flow.map(
            about_as_slow_as_the_timeout,
            flow.add(few_numbers),
            executor=executor,
            timeout=0.06,
            on_item_failure="collect",
        )
        results = await flow.build().run()
    executions = [int(line) for line in file.read_text().split()]
    assert sorted(executions) == list(range(100))
    failed = {value.index for value in results.value(values) if isinstance(value, ItemFailure)}
    assert all(number % 20 == 3 for number in failed)


async def test_map_with_the_context_receives_its_items_only(processes: ProcessExecutor) -> None:
    flow = Flow("f")
    source = flow.add(numbers_one_by_one)
    pipeline = flow.pipeline.with_map("map", with_context, over=(source.name, "chunks"), executor=processes)
    results = await pipeline.run()
    assert results.value("map") == list(range(1, 51))


def mixed() -> list[Any]:
    return [threading.Lock() if number in (2, 30) else number for number in range(60)]


async def test_item_that_cannot_be_sent_fails_alone(processes: ProcessExecutor) -> None:
    flow = Flow("f")
    values = flow.map(item_or_lock, flow.add(mixed), executor=processes, on_item_failure="collect")
    results = await flow.build().run()
    failed = [value for value in results.value(values) if isinstance(value, ItemFailure)]
    assert [failure.index for failure in failed] == [2, 30]
    assert all(isinstance(failure.exception, SerializationError) for failure in failed)


# ---------------------------------------------------------------- definitions


def test_functions_that_cannot_be_sent_are_reported_by_build() -> None:
    executor = ProcessExecutor(1)

    def local(ctx: StageContext) -> None: ...

    pipeline = (
        Pipeline("p")
        .with_stage("lambda", lambda ctx: None, executor=executor)
        .with_stage("local", local, executor=executor)
        .with_stage("instance", Scale(threading.Lock()), executor=executor)  # type: ignore[arg-type]
        .with_stage("child", Pipeline("c").with_stage("s", double), executor=executor)
        .with_stage("words", words)
        .with_stage("reader", double, streams=("words",), executor=executor)
        .with_stage("wrong", double, executor="process")  # type: ignore[arg-type]
    )
    with pytest.raises(PipelineValidationError) as raised:
        pipeline.build()
    problems = "\n".join(raised.value.problems)
    assert len(raised.value.problems) == 6
    for stage_name in ("lambda", "local", "instance", "child", "reader", "wrong"):
        assert f"stage {stage_name!r}" in problems
    assert "at the top level of a module" in problems
    assert "got 'process'" in problems


@pytest.mark.parametrize(
    "options", [{"start_timeout": 0}, {"workers": 0}, {"workers": True}, {"max_tasks_per_worker": 1.5}]
)
def test_invalid_options_are_errors(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        ProcessExecutor(**options)


@pytest.mark.parametrize("path", ["tenant", "no_such_module:x", f"{__name__}:words", f"{__name__}:missing"])
def test_context_variable_that_does_not_exist_is_reported_by_build(path: str) -> None:
    executor = ProcessExecutor(1, context_vars=(path,))
    with pytest.raises(PipelineValidationError) as raised:
        Pipeline("p").with_stage("s", double, executor=executor).build()
    assert path in str(raised.value)


# ---------------------------------------------------------------- programs

SPIN = """
import asyncio, os, sys
from pathlib import Path
from stageflow import Pipeline
from stageflow.executors import ProcessExecutor

def spin(ctx):
    Path(sys.argv[1], str(os.getpid())).touch()
    return sum(range(10**11))

async def main():
    executor = ProcessExecutor(2)
    pipeline = Pipeline("p").with_stage("a", spin, executor=executor).with_stage("b", spin, executor=executor)
    await pipeline.run()

if __name__ == "__main__":
    asyncio.run(main())
"""

WITHOUT_PDEATHSIG = """
import sys
sys.modules["ctypes"] = None
"""

WITHOUT_SIGNAL = (
    WITHOUT_PDEATHSIG
    + """
import fcntl
del fcntl.F_SETSIG
"""
)


@pytest.mark.parametrize("site", ["", WITHOUT_PDEATHSIG], ids=["all", "watchdog alone"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_parent(tmp_path: Path, site: str, number: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(site)
    (tmp_path / "program.py").write_text(SPIN)
    pids = tmp_path / "pids"
    pids.mkdir()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(pids)],
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(list(pids.iterdir())) < 2:
            assert program.poll() is None
            time.sleep(0.01)
        workers = [int(each.name) for each in pids.iterdir()]
        program.send_signal(number)
        program.wait(20)
        for worker in workers:
            wait_until_ended(worker)
    finally:
        program.kill()
        program.wait()
        for each in pids.iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(each.name), signal.SIGKILL)


UNGUARDED = """
import asyncio, os
from stageflow import Pipeline
from stageflow.executors import ProcessExecutor

def pid(ctx):
    return {"pid": os.getpid()}

async def main():
    with ProcessExecutor(1) as executor:
        results = await Pipeline("p").with_stage("s", pid, executor=executor).run()
        print(results["s"].error)

asyncio.run(main())
"""


def test_program_without_a_main_guard_gets_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.stdout.count("SerializationError: a worker cannot import the main module") == 1
    assert 'start it under `if __name__ == "__main__":`' in done.stdout


GUARDED = """
import asyncio, os
from dataclasses import dataclass
from stageflow import Pipeline
from stageflow.executors import ProcessExecutor

@dataclass
class Page:
    number: int

def read(ctx):
    return {"page": Page(3)}

def turn(ctx, page):
    return {"page": Page(page.number + 1), "other": os.getpid() != ctx.run.data["pid"]}

async def main():
    from stageflow import PipelineContext
    executor = ProcessExecutor(1)
    pipeline = Pipeline("p").with_stage("read", read, executor=executor)
    pipeline = pipeline.with_stage("turn", turn, dependencies=("read",), executor=executor)
    results = await pipeline.run(PipelineContext(data={"pid": os.getpid()}))
    print(results.data("turn"), isinstance(results.data("turn")["page"], Page))

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("arguments", [["program.py"], ["-m", "program"]])
def test_classes_of_the_main_module_are_sent_and_returned(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "program.py").write_text(GUARDED)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.stderr == ""
    assert done.stdout == "{'page': Page(number=4), 'other': True} True\n"


MAIN_VARIABLE = """
import asyncio, logging
from contextvars import ContextVar
from stageflow import Pipeline
from stageflow.executors import ProcessExecutor

tenant = ContextVar("tenant", default="nobody")

def read(ctx):
    logging.getLogger("acme").info("for %s", tenant.get())
    raise ValueError(tenant.get())

async def main():
    logging.getLogger().setLevel(logging.INFO)
    executor = ProcessExecutor(1, context_vars=("program:tenant",))
    pipeline = Pipeline("p").with_stage("read", read, executor=executor)
    tenant.set("acme")
    result = (await pipeline.run())["read"]
    print(result.error, result.logs.tail[0].partition(" ")[2] if result.logs else None)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("arguments", [["program.py"], ["-m", "program"]])
def test_context_variable_of_the_main_module_is_sent_and_log_levels_apply(
    tmp_path: Path, arguments: list[str]
) -> None:
    """The module of a program has two names, and only the variable of `__main__` has the value."""
    (tmp_path / "program.py").write_text(MAIN_VARIABLE)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.stdout == "ValueError: acme INFO acme: for acme\n", done.stderr


@pytest.mark.parametrize("packed", [False, True])
def test_functions_of_a_program_in_a_directory_or_an_archive(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    (folder / "__main__.py").write_text(GUARDED)
    if packed:
        zipapp.create_archive(folder, tmp_path / "app.pyz")
    target = tmp_path / ("app.pyz" if packed else "app")
    done = subprocess.run([sys.executable, target], cwd=tmp_path, capture_output=True, text=True, timeout=50)
    assert done.stdout == "{'page': Page(number=4), 'other': True} True\n", done.stderr


def test_lost_worker_is_reported_although_the_program_ignores_its_children(tmp_path: Path) -> None:
    program = UNGUARDED.replace("asyncio.run(main())", 'if __name__ == "__main__":\n    asyncio.run(main())')
    program = program.replace("import asyncio, os", "import asyncio, os, signal")
    program = program.replace("    return {", "    os._exit(3)\n    return {")
    program = program.replace(
        "async def main():", "async def main():\n    signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.stdout == "WorkerLostError: the worker process ended while running the stage\n", done.stderr


def test_program_from_stdin_gets_a_clear_error() -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=MAIN_VARIABLE, capture_output=True, text=True, timeout=50
    )
    assert "is defined interactively, and a worker cannot import it" in done.stderr


def test_forked_child_starts_its_own_workers(tmp_path: Path) -> None:
    """A forked child must not use, keep open or end the workers of its parent."""
    (tmp_path / "program.py").write_text("""
import asyncio, os, sys
from stageflow import Pipeline
from stageflow.executors import ProcessExecutor

def pid(ctx):
    return {"pid": os.getpid()}

executor = ProcessExecutor(1)
graph = Pipeline("p").with_stage("s", pid, executor=executor).build()

if __name__ == "__main__":
    first = graph.run_sync().data("s")["pid"]
    child = os.fork()
    if child == 0:
        other = graph.run_sync().data("s")["pid"]
        executor.close()
        os._exit(0 if other != first else 1)
    _, status = os.waitpid(child, 0)
    again = graph.run_sync().data("s")["pid"]
    print(os.waitstatus_to_exitcode(status), again == first)
""")
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.stdout == "0 True\n", done.stderr
