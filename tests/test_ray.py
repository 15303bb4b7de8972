"""Stages that run on a Ray cluster: `make test-ray`. The tests share one local session of Ray with 2 CPUs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from oracle import check_record, of_type, recorded, stage_wide

from stageflow import Pipeline, PipelineContext, Retry, StageContext, StageOutput, annotate, record_llm
from stageflow.errors import (
    ClosedError,
    InvalidArgumentError,
    PipelineValidationError,
    SerializationError,
    StageTimeoutError,
    WorkerLostError,
)
from stageflow.events import MemoryEventSink
from stageflow.pipeline import Flow
from stageflow.stages import ItemFailure, StageStatus

if TYPE_CHECKING:
    from stageflow.executors import RayExecutor

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(120),  # the first test starts Ray
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason='Ray is not installed; the extra "ray" does not install it on Python 3.15, for which it has no'
        " wheels",
    ),
]

OK, SKIP, RETRY, FAIL, CANCEL = StageStatus

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init(num_cpus=2, resources={"scanner": 1}, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tasks(session: None) -> Iterator[RayExecutor]:
    from stageflow.executors import RayExecutor

    with RayExecutor(context_vars=(f"{__name__}:tenant",)) as executor:
        yield executor


@pytest.fixture
def actor(session: None) -> Iterator[RayExecutor]:
    from stageflow.executors import RayExecutor

    with RayExecutor(actors=1, context_vars=(f"{__name__}:tenant",)) as executor:
        yield executor


@pytest.fixture(params=["tasks", "actor"])
def executor(request: pytest.FixtureRequest) -> RayExecutor:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


async def eventually(path: Path, lines: int = 1) -> None:
    """Wait until a file of another process has this number of lines."""
    async with asyncio.timeout(30):
        while not path.exists() or len(path.read_text().splitlines()) < lines:
            await asyncio.sleep(0.01)


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


def read_tenant(ctx: StageContext) -> str:
    return tenant.get()


def returns_a_lock(ctx: StageContext) -> Any:
    return threading.Lock()


def loops_in_c(ctx: StageContext) -> int:
    Path(ctx.run.data["started"]).write_text("started\n")
    return sum(range(4 * 10**9))


def is_killed_once(ctx: StageContext) -> dict[str, Any]:
    with Path(ctx.run.data["log"]).open("a") as log:
        log.write(f"{ctx.attempt}\n")
    if ctx.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": ctx.attempt}


def exits(ctx: StageContext) -> None:
    os._exit(3)


def increase(item: int) -> int:
    return item + 1


def increase_small(item: int) -> int:
    if item > 2:
        raise ValueError(f"{item} is too large")
    return item + 1


def logged(path: str, item: int) -> int:
    with Path(path).open("a") as log:
        log.write(f"{item}\n")
    return item


def logged_or_killed(item: dict[str, Any]) -> int:
    logged(item["log"], item["n"])
    if item["n"] == 150 and not Path(item["log"] + ".killed").exists():
        Path(item["log"] + ".killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item["n"]


def hangs_on(item: int) -> int:
    return sum(range(4 * 10**9)) if item == 3 else item


def counts_to(ctx: StageContext) -> Iterator[int]:
    for number in range(ctx.run.data["n"]):
        with Path(ctx.run.data["log"]).open("a") as log:
            log.write(f"{number}\n")
        yield number


async def counts_async(ctx: StageContext) -> AsyncIterator[str]:
    for number in range(200):
        await asyncio.sleep(0)
        yield f"{number} "


async def sends(ctx: StageContext) -> None:
    for number in range(100):
        await ctx.send(number)


async def reads(ctx: StageContext) -> dict[str, Any]:
    return {"read": [value async for value in ctx.inputs.stream("sends")]}


def uses_scanner(ctx: StageContext) -> dict[str, Any]:
    import ray

    return ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-any-return]


class Model:
    """A stage that loads a model once."""

    def __init__(self) -> None:
        self.loaded_by = os.getpid()
        self.calls = 0

    async def execute(self, ctx: StageContext) -> dict[str, Any]:
        self.calls += 1
        return {"pid": os.getpid(), "loaded_by": self.loaded_by, "calls": self.calls}


# ---------------------------------------------------------------- values and records


async def test_values_of_dependencies_and_the_run_are_sent_and_returned(executor: RayExecutor) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("double", double, executor=executor)
        .with_stage("triple", triple, dependencies=("double",), executor=executor)
    )
    results = await pipeline.build().run(PipelineContext(data={"n": 7}))
    assert results.ok, results["double"].error
    assert results["double"].data["n"] == 14
    assert results["double"].data["pid"] != os.getpid()
    assert results["triple"].data == {"m": 42}


async def test_what_a_stage_records_is_in_its_event_with_its_worker(
    executor: RayExecutor, sink: MemoryEventSink
) -> None:
    pipeline = Pipeline("p").with_stage("work", with_records, executor=executor)
    results = await recorded(pipeline, sink).run(PipelineContext())
    assert results.ok
    run = check_record(sink.events, ["work"])
    event = stage_wide(sink.events, "work")
    assert event["attributes"]["model"] == "m"
    assert event["attributes"]["rows"] == 2
    assert event["attributes"]["pages"] == 5
    assert event["attributes"]["opaque"].startswith("<unlocked _thread.lock")
    assert run["attributes"]["customer"] == "gold"
    assert [data["page"] for data in of_type(sink.events, "page.read")] == [1]
    assert results["work"].artifacts[0].payload == b"pdf"
    assert event["worker"]["kind"] == "ray"
    assert event["worker"]["pid"] not in (None, os.getpid())
    assert event["worker"]["host"]
    assert event["worker"]["queue_ms"] >= 0


async def test_an_exception_keeps_its_cause_and_its_remote_traceback(executor: RayExecutor) -> None:
    results = await Pipeline("p").with_stage("work", fails, executor=executor).build().run(PipelineContext())
    error = results["work"].exception
    assert isinstance(error, ValueError)
    assert isinstance(error.__cause__, KeyError)
    text = "".join(traceback.format_exception(error))
    assert "in fails" in text
    assert "test_ray.py" in text


async def test_an_exception_that_cannot_be_restored_keeps_its_name_and_text(executor: RayExecutor) -> None:
    pipeline = Pipeline("p").with_stage("work", fails_with_own_class, executor=executor)
    results = await pipeline.build().run(PipelineContext())
    assert results["work"].error == "ParseError: page 3: no title"


async def test_named_context_variables_are_sent(executor: RayExecutor) -> None:
    tenant.set("acme")
    results = (
        await Pipeline("p").with_stage("work", read_tenant, executor=executor).build().run(PipelineContext())
    )
    assert results["work"].data["value"] == "acme"


async def test_a_value_that_cannot_be_pickled_names_its_type(tasks: RayExecutor) -> None:
    pipeline = Pipeline("p").with_stage("work", returns_a_lock, executor=tasks)
    results = await pipeline.build().run(PipelineContext())
    assert isinstance(results["work"].exception, SerializationError)
    assert "lock" in str(results["work"].error)


async def test_an_input_that_cannot_be_pickled_is_named(tasks: RayExecutor) -> None:
    pipeline = Pipeline("p").with_stage("work", double, executor=tasks)
    results = await pipeline.build().run(PipelineContext(data={"n": threading.Lock()}))
    assert isinstance(results["work"].exception, SerializationError)
    assert "`ctx.run.data`" in str(results["work"].error)


async def test_functions_without_an_import_path_are_sent_by_value(tasks: RayExecutor) -> None:
    offset = 5

    def nested(ctx: StageContext) -> dict[str, int]:
        return {"n": ctx.run.data["n"] + offset}

    pipeline = (
        Pipeline("p")
        .with_stage("nested", nested, executor=tasks)
        .with_stage("lambda", lambda ctx: {"n": offset}, executor=tasks)
    )
    results = await pipeline.build().run(PipelineContext(data={"n": 1}))
    assert results["nested"].data == {"n": 6}
    assert results["lambda"].data == {"n": 5}


def test_a_function_that_cannot_be_sent_is_reported_by_build(tasks: RayExecutor) -> None:
    lock = threading.Lock()

    def holds_a_lock(ctx: StageContext) -> None:
        lock.acquire()

    with pytest.raises(PipelineValidationError, match="holds_a_lock"):
        Pipeline("p").with_stage("work", holds_a_lock, executor=tasks).build()


async def test_values_of_ten_megabytes_are_sent_and_returned(executor: RayExecutor) -> None:
    flow = Flow("p")

    async def make() -> bytes:
        return bytes(10_000_000)

    value = flow.add(reversed_bytes, flow.add(make), executor=executor)
    results = await flow.build().run(PipelineContext())
    assert results.value(value) == bytes(10_000_000)


def reversed_bytes(data: bytes) -> bytes:
    return data[::-1]


# ---------------------------------------------------------------- cancellation and lost workers


async def test_a_timeout_ends_a_stage_in_a_c_function_within_a_second(
    executor: RayExecutor, tmp_path: Path
) -> None:
    pipeline = Pipeline("p").with_stage("work", loops_in_c, executor=executor, timeout=3)
    started = tmp_path / "started"
    run = asyncio.create_task(pipeline.build().run(PipelineContext(data={"started": str(started)})))
    await eventually(started)  # the timeout includes the import of this module
    began = time.monotonic()
    results = await run
    assert time.monotonic() - began < 4
    assert isinstance(results["work"].exception, StageTimeoutError)
    await one_cpu_after_another_is_free()


async def test_a_cancelled_run_ends_a_stage_in_a_c_function_within_a_second(
    executor: RayExecutor, tmp_path: Path, sink: MemoryEventSink
) -> None:
    started = tmp_path / "started"
    pipeline = Pipeline("p").with_stage("work", loops_in_c, executor=executor)
    run = asyncio.create_task(recorded(pipeline, sink).run(PipelineContext(data={"started": str(started)})))
    await eventually(started)
    began = time.monotonic()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert time.monotonic() - began < 1
    check_record(sink.events, ["work"])
    assert stage_wide(sink.events, "work")["status"] == "CANCEL"
    await one_cpu_after_another_is_free()


async def one_cpu_after_another_is_free() -> None:
    """Wait until Ray has both CPUs again: what was cancelled has ended in its worker, too."""
    import ray

    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU", 0) < 1 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert ray.available_resources().get("CPU", 0) >= 1


async def test_a_queued_call_is_cancelled(tmp_path: Path, tasks: RayExecutor) -> None:
    log = tmp_path / "log"
    pipeline = Pipeline("p")
    for number in range(3):
        pipeline = pipeline.with_stage(f"work{number}", logs_and_sleeps, executor=tasks)
    run = asyncio.create_task(pipeline.build().run(PipelineContext(data={"log": str(log)})))
    await eventually(log, 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    results = (
        await Pipeline("q").with_stage("work", read_tenant, executor=tasks).build().run(PipelineContext())
    )
    assert results.ok
    assert len(log.read_text().splitlines()) == 2


def logs_and_sleeps(ctx: StageContext) -> None:
    with Path(ctx.run.data["log"]).open("a") as log:
        log.write("started\n")
    time.sleep(60)


async def test_a_killed_worker_fails_the_attempt_and_the_policy_retries_it(
    executor: RayExecutor, tmp_path: Path, sink: MemoryEventSink
) -> None:
    log = tmp_path / "log"
    pipeline = Pipeline("p").with_stage(
        "work", is_killed_once, executor=executor, retry=Retry(attempts=2, on=(WorkerLostError,))
    )
    results = await recorded(pipeline, sink).run(PipelineContext(data={"log": str(log)}))
    assert results["work"].data == {"attempt": 2}
    check_record(sink.events, ["work"])
    assert log.read_text() == "1\n2\n"


async def test_ray_does_not_repeat_the_call_of_a_killed_worker(executor: RayExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    pipeline = Pipeline("p").with_stage("work", is_killed_once, executor=executor)
    results = await pipeline.build().run(PipelineContext(data={"log": str(log)}))
    assert isinstance(results["work"].exception, WorkerLostError)
    assert log.read_text() == "1\n"


async def test_a_worker_that_exits_fails_only_its_stage(executor: RayExecutor) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("exits", exits, executor=executor, optional=True)
        .with_stage("works", double, executor=executor)
    )
    results = await pipeline.build().run(PipelineContext(data={"n": 1}))
    assert isinstance(results["exits"].exception, WorkerLostError)
    assert results["works"].status is OK


async def test_a_worker_that_ray_or_the_function_ends_does_not_end_this_process(
    executor: RayExecutor,
) -> None:
    for function in (ends_its_worker, streams_and_ends_its_worker):
        pipeline = Pipeline("p").with_stage("work", function, executor=executor)
        results = await pipeline.build().run(PipelineContext())
        assert isinstance(results["work"].exception, WorkerLostError)


def ends_its_worker(ctx: StageContext) -> None:
    raise SystemExit(1)


def streams_and_ends_its_worker(ctx: StageContext) -> Iterator[int]:
    yield 1
    raise SystemExit(1)


async def test_a_stage_that_is_killed_while_it_streams_fails(executor: RayExecutor) -> None:
    pipeline = Pipeline("p").with_stage("work", streams_and_dies, executor=executor)
    results = await pipeline.build().run(PipelineContext())
    assert isinstance(results["work"].exception, WorkerLostError)


def streams_and_dies(ctx: StageContext) -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- maps


def mapped(function: Any, items: list[Any], executor: RayExecutor, **options: Any) -> Pipeline:
    async def source(ctx: StageContext) -> dict[str, Any]:
        return {"items": items}

    return (
        Pipeline("p")
        .with_stage("source", source)
        .with_map("map", function, over=("source", "items"), executor=executor, **options)
    )


async def test_a_map_sends_its_items_in_batches(executor: RayExecutor) -> None:
    items = list(range(2000))
    results = await mapped(increase, items, executor).build().run(PipelineContext())
    assert results["map"].data["items"] == [item + 1 for item in items]


async def test_items_fail_alone(executor: RayExecutor) -> None:
    pipeline = mapped(increase_small, list(range(5)), executor, on_item_failure="collect")
    results = await pipeline.build().run(PipelineContext())
    values = results["map"].data["items"]
    assert values[:3] == [1, 2, 3]
    assert [value.error for value in values[3:]] == [
        "ValueError: 3 is too large",
        "ValueError: 4 is too large",
    ]


async def test_items_of_a_lost_batch_do_not_run_again(
    executor: RayExecutor, tmp_path: Path, sink: MemoryEventSink
) -> None:
    log = str(tmp_path / "log")
    items = [{"log": log, "n": number} for number in range(300)]
    pipeline = mapped(logged_or_killed, items, executor, on_item_failure="collect")
    results = await recorded(pipeline, sink).run(PipelineContext())
    check_record(sink.events, ["source", "map"])
    values = results["map"].data["items"]
    assert len(values) == 300
    failed = [value for value in values if isinstance(value, ItemFailure)]
    assert 150 in [failure.index for failure in failed]
    assert all(isinstance(failure.exception, WorkerLostError) for failure in failed)
    runs = Counter((tmp_path / "log").read_text().split())
    assert max(runs.values()) == 1
    assert all(runs[str(value)] == 1 for value in values if not isinstance(value, ItemFailure))


async def test_items_of_a_lost_batch_are_retried_by_the_policy(executor: RayExecutor, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    items = [{"log": log, "n": number} for number in range(300)]
    pipeline = mapped(logged_or_killed, items, executor, retry=Retry(attempts=2, on=(WorkerLostError,)))
    results = await pipeline.build().run(PipelineContext())
    assert results["map"].data["items"] == list(range(300))


async def test_an_item_that_exceeds_its_timeout_fails_alone(executor: RayExecutor) -> None:
    pipeline = mapped(hangs_on, list(range(6)), executor, timeout=1, on_item_failure="collect")
    results = await pipeline.build().run(PipelineContext())
    values = results["map"].data["items"]
    assert isinstance(values[3], ItemFailure)
    assert isinstance(values[3].exception, StageTimeoutError)
    assert values[:3] + values[4:] == [0, 1, 2, 4, 5]


# ---------------------------------------------------------------- streams


async def test_a_generator_waits_for_its_reader(executor: RayExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    graph = Pipeline("p").with_stage("numbers", counts_to, executor=executor).build()
    ctx = PipelineContext(data={"n": 1000, "log": str(log)})
    async with graph.stream(ctx, stages=["numbers"]) as run:
        first = await anext(aiter(run))
        assert first.value == 0
        sent = 0
        while sent != (sent := len(log.read_text().splitlines())):
            await asyncio.sleep(0.5)
        assert sent < 300
        rest = [chunk.value async for chunk in run]
    assert rest == list(range(1, 1000))


async def test_an_asynchronous_generator_streams(executor: RayExecutor) -> None:
    results = (
        await Pipeline("p").with_stage("work", counts_async, executor=executor).build().run(PipelineContext())
    )
    assert results["work"].data["text"] == "".join(f"{number} " for number in range(200))


async def test_chunks_that_a_stage_sends_reach_the_stage_that_reads_them(executor: RayExecutor) -> None:
    pipeline = (
        Pipeline("p")
        .with_stage("sends", sends, executor=executor)
        .with_stage("reads", reads, streams=("sends",))
    )
    results = await pipeline.build().run(PipelineContext())
    assert results["reads"].data["read"] == list(range(100))


async def test_chunks_that_nobody_reads_are_collected(executor: RayExecutor) -> None:
    results = await Pipeline("p").with_stage("sends", sends, executor=executor).build().run(PipelineContext())
    assert results["sends"].data["chunks"] == list(range(100))


# ---------------------------------------------------------------- actors and resources


async def test_an_actor_loads_its_model_once(actor: RayExecutor) -> None:
    graph = Pipeline("p").with_stage("model", Model, executor=actor).build()
    found = [(await graph.run(PipelineContext()))["model"].data for _ in range(3)]
    assert [data["calls"] for data in found] == [1, 2, 3]
    assert len({data["loaded_by"] for data in found} | {data["pid"] for data in found}) == 1


async def test_a_lost_actor_is_replaced(actor: RayExecutor) -> None:
    lost = await Pipeline("p").with_stage("work", exits, executor=actor).build().run(PipelineContext())
    assert isinstance(lost["work"].exception, WorkerLostError)
    results = await Pipeline("p").with_stage("model", Model, executor=actor).build().run(PipelineContext())
    assert results["model"].data["calls"] == 1


async def test_close_ends_the_actors() -> None:
    import ray

    from stageflow.executors import RayExecutor

    async with RayExecutor(actors=2, num_cpus=0, resources={"scanner": 0.5}) as executor:
        pipeline = Pipeline("p").with_stage("a", read_tenant, executor=executor)
        assert (await pipeline.build().run(PipelineContext())).ok
        assert ray.available_resources().get("scanner", 0) < 1
    deadline = time.monotonic() + 10
    while ray.available_resources().get("scanner") != 1 and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    assert ray.available_resources().get("scanner") == 1
    results = await pipeline.build().run(PipelineContext())
    assert isinstance(results["a"].exception, ClosedError)


async def test_close_fails_running_calls(tmp_path: Path) -> None:
    from stageflow.executors import RayExecutor

    executor = RayExecutor()
    log = tmp_path / "log"
    graph = Pipeline("p").with_stage("work", logs_and_sleeps, executor=executor).build()
    run = asyncio.create_task(graph.run(PipelineContext(data={"log": str(log)})))
    await eventually(log)
    await executor.aclose()
    assert isinstance((await run)["work"].exception, WorkerLostError)


async def test_a_stage_reserves_its_resources() -> None:
    from stageflow.executors import RayExecutor

    executor = RayExecutor(num_cpus=0.5, resources={"scanner": 1})
    results = (
        await Pipeline("p").with_stage("work", uses_scanner, executor=executor).build().run(PipelineContext())
    )
    assert results["work"].data == {"CPU": 0.5, "scanner": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        {"actors": 0},
        {"max_calls": True},
        {"num_gpus": -1},
        {"resources": {"scanner": "1"}},
        {"options": {"max_retries": 3}},
        {"actors": 1, "options": {"max_restarts": 3}},
    ],
    ids=str,
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any]) -> None:
    from stageflow.executors import RayExecutor

    with pytest.raises(InvalidArgumentError):
        Pipeline("p").with_stage("work", double, executor=RayExecutor(**arguments)).build()


# ---------------------------------------------------------------- programs


def test_importing_stageflow_does_not_import_ray() -> None:
    code = "import sys, stageflow, stageflow.executors; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_script_with_its_own_session_survives_a_shutdown_of_ray(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, sys, time
            from dataclasses import dataclass
            from pathlib import Path

            from stageflow import Pipeline, PipelineContext
            from stageflow.executors import RayExecutor

            @dataclass
            class Page:
                number: int

            class NotFound(Exception):
                pass

            def turn(ctx):
                page = ctx.run.data["page"]
                return {"page": Page(page.number + 1)}

            def fails(ctx):
                raise NotFound("page 9")

            def sleeps(ctx):
                Path(sys.argv[1]).write_text("started")
                time.sleep(60)

            async def main():
                executor = RayExecutor()
                graph = (
                    Pipeline("p").with_stage("turn", turn, executor=executor)
                    .with_stage("fails", fails, executor=executor, optional=True).build()
                )
                results = await graph.run(PipelineContext(data={"page": Page(1)}))
                print(results["turn"].data["page"] == Page(2), type(results["fails"].exception) is NotFound)
                graph = Pipeline("p").with_stage("sleeps", sleeps, executor=executor).build()
                run = asyncio.create_task(graph.run(PipelineContext()))
                while not Path(sys.argv[1]).exists():
                    await asyncio.sleep(0.01)
                import ray
                await asyncio.to_thread(ray.shutdown)
                print((await run)["sleeps"].error)

            if __name__ == "__main__":
                sys.argv.append(str(Path(__file__).parent / "started"))
                asyncio.run(main())
            """
        ).replace("Path(sys.argv[1])", "Path(__file__).parent.joinpath('started')")
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    ended = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=False,
    )
    assert ended.stdout.splitlines()[-2:] == [
        "True True",
        "WorkerLostError: Ray was shut down while the stage was running",
    ], ended.stderr
