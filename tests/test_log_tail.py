"""`log_tail`, `log_warnings` and `log_errors`: what a stage logged before it failed."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import logging.config
import re
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import structlog
from conftest import Program
from rich.console import Console
from typer.testing import CliRunner

import stageflow
from stageflow import Pipeline, PipelineContext, Retry, StageOutput
from stageflow.cli._app import app
from stageflow.errors import SettingsError
from stageflow.events import MemoryEventSink
from stageflow.integrations.structlog import log_tail
from stageflow.observability import Redact
from stageflow.render import draw_run
from stageflow.testing import run_stage

log = logging.getLogger("acme.db")
log.addHandler(logging.NullHandler())  # otherwise, tests without propagation would print to standard error


@pytest.fixture(autouse=True)
def events(sink: MemoryEventSink) -> Iterator[MemoryEventSink]:
    """Configure the sink of the test, and restore the state of `logging` and structlog."""
    factory = logging.getLogRecordFactory()
    stageflow.configure(sink=sink)
    log.setLevel(logging.DEBUG)
    yield sink
    log.setLevel(logging.NOTSET)
    log.propagate = True
    logging.setLogRecordFactory(factory)
    structlog.reset_defaults()


def wide(sink: MemoryEventSink, stage: str = "s", status: str = "") -> dict[str, Any]:
    """Return the only event of a stage, with a status if given."""
    (event,) = (
        event
        for event in sink.of_type("stage.wide")
        if event["stage_name"] == stage and status in ("", event["status"])
    )
    return event


def messages(event: dict[str, Any]) -> list[str]:
    """Return the lines of an event without their time."""
    for line in event["log_tail"]:
        assert re.match(r"\d\d:\d\d:\d\d\.\d\d\d ", line), line
    return [line.partition(" ")[2] for line in event["log_tail"]]


async def fail_after(*calls: Callable[[], object]) -> None:
    """Run a pipeline with a single stage that fails after calling functions."""

    async def stage(ctx: Any) -> None:
        for call in calls:
            call()
        raise ValueError("refused")

    await Pipeline("p").with_stage("s", stage).run()


# ------------------------------------------------------------ which attempts have lines


async def test_failed_stage_has_its_last_lines_and_counts(sink: MemoryEventSink) -> None:
    async def stage(ctx: Any) -> None:
        log.info("fetched page %d of %s", 3, "products")
        await asyncio.sleep(0)
        log.warning("pool exhausted")
        log.error("gave up")
        log.critical("bye")
        raise ValueError("refused")

    results = await Pipeline("p").with_stage("s", stage).run()
    event = wide(sink)
    assert messages(event) == [
        "INFO acme.db: fetched page 3 of products",
        "WARNING acme.db: pool exhausted",
        "ERROR acme.db: gave up",
        "CRITICAL acme.db: bye",
    ]
    assert (event["log_warnings"], event["log_errors"]) == (1, 2)
    logs = results["s"].logs
    assert logs is not None
    assert (logs.warnings, logs.errors, list(logs.tail)) == (1, 2, event["log_tail"])


@pytest.mark.parametrize("output", [None, StageOutput.skip("nothing to do"), StageOutput.stop("enough")])
async def test_stage_that_does_not_fail_has_only_counts(sink: MemoryEventSink, output: Any) -> None:
    async def stage(ctx: Any) -> Any:
        log.warning("slow")
        return output

    await Pipeline("p").with_stage("s", stage).run()
    event = wide(sink)
    assert (event["log_tail"], event["log_warnings"], event["log_errors"]) == ([], 1, 0)


async def test_stage_that_returns_a_failure_has_lines(sink: MemoryEventSink) -> None:
    async def stage(ctx: Any) -> StageOutput:
        log.info("checked")
        return StageOutput.fail("no credit")

    await Pipeline("p").with_stage("s", stage).run()
    assert messages(wide(sink)) == ["INFO acme.db: checked"]


async def test_each_attempt_has_its_own_lines(sink: MemoryEventSink) -> None:
    async def stage(ctx: Any) -> None:
        log.warning("attempt %d", ctx.attempt)
        if ctx.attempt < 3:
            raise ConnectionError("refused")

    await Pipeline("p").with_stage("s", stage, retry=Retry(attempts=3)).run()
    events = sink.of_type("stage.wide")
    assert [(event["status"], messages(event), event["log_warnings"]) for event in events] == [
        ("RETRY", ["WARNING acme.db: attempt 1"], 1),
        ("RETRY", ["WARNING acme.db: attempt 2"], 1),
        ("OK", [], 1),
    ]


@pytest.mark.parametrize("limits", [{"timeout": 0.01}, {"deadline": 0.01}], ids=["timeout", "deadline"])
async def test_stage_that_is_too_slow_has_lines(sink: MemoryEventSink, limits: dict[str, float]) -> None:
    async def stage(ctx: Any) -> None:
        log.info("waiting for the lock")
        try:
            await asyncio.Event().wait()
        finally:
            log.info("cleaned up")

    deadline = limits.pop("deadline", None)
    await Pipeline("p").with_stage("s", stage, **limits).build().run(deadline=deadline)
    assert messages(wide(sink)) == ["INFO acme.db: waiting for the lock", "INFO acme.db: cleaned up"]


async def test_abandoned_stage_has_the_lines_so_far(sink: MemoryEventSink) -> None:
    release = threading.Event()

    def stage(ctx: Any) -> None:
        log.info("waiting for the lock")
        release.wait(30)
        log.error("too late")

    await Pipeline("p").with_stage("s", stage, timeout=0.05).build(grace=0.05).run()
    event = wide(sink)
    release.set()
    assert event["abandoned"] is True
    assert messages(event) == ["INFO acme.db: waiting for the lock"]
    assert event["log_errors"] == 0


async def test_stage_that_is_cancelled_because_another_one_failed_has_lines(sink: MemoryEventSink) -> None:
    waiting = asyncio.Event()

    async def waits(ctx: Any) -> None:
        log.info("waiting")
        waiting.set()
        await asyncio.Event().wait()

    async def fails(ctx: Any) -> None:
        await waiting.wait()
        raise ValueError("refused")

    await Pipeline("p").with_stage("waits", waits).with_stage("fails", fails).run()
    assert (wide(sink, "waits")["status"], messages(wide(sink, "waits"))) == (
        "CANCEL",
        ["INFO acme.db: waiting"],
    )
    assert messages(wide(sink, "fails")) == []


async def test_condition_and_constructor_log_to_the_stage(sink: MemoryEventSink) -> None:
    class Search:
        def __init__(self) -> None:
            log.info("created")

        async def execute(self, ctx: Any) -> None:
            log.info("called")
            raise ValueError("refused")

    def condition(ctx: Any) -> bool:
        log.info("checked")
        return True

    await Pipeline("p").with_stage("s", Search, when=condition).run()
    assert messages(wide(sink)) == [f"INFO acme.db: {what}" for what in ("created", "checked", "called")]


# ------------------------------------------------------------ which stage a line belongs to


def test_synchronous_stage_logs_from_its_thread(sink: MemoryEventSink) -> None:
    def stage(ctx: Any) -> None:
        log.info("in %s", threading.current_thread() is not threading.main_thread())
        raise ValueError("refused")

    Pipeline("p").with_stage("s", stage).build().run_sync()
    assert messages(wide(sink)) == ["INFO acme.db: in True"]


async def test_threads_and_tasks_of_a_stage_log_to_it(sink: MemoryEventSink) -> None:
    async def child() -> None:
        log.info("task")

    async def stage(ctx: Any) -> None:
        await asyncio.to_thread(log.info, "thread")
        await asyncio.create_task(child())
        raise ValueError("refused")

    await Pipeline("p").with_stage("s", stage).run()
    assert messages(wide(sink)) == ["INFO acme.db: thread", "INFO acme.db: task"]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_items_of_a_map_log_to_their_stage(sink: MemoryEventSink, kind: str) -> None:
    async def fetch(item: int) -> int:
        log.warning("item %d", item)
        return 1 // (item - 3)

    def fetch_in_thread(item: int) -> int:
        log.warning("item %d", item)
        return 1 // (item - 3)

    async def numbers(ctx: Any) -> list[int]:
        return [1, 2, 3]

    function: Any = fetch if kind == "async" else fetch_in_thread
    await (
        Pipeline("p")
        .with_stage("numbers", numbers)
        .with_map("s", function, over="numbers", max_concurrency=1, retry=Retry(attempts=2))
        .run()
    )
    event = wide(sink)
    assert messages(event) == [f"WARNING acme.db: item {number}" for number in (1, 2, 3, 3)]
    assert event["log_warnings"] == 4


async def test_nested_run_logs_to_its_own_stages(sink: MemoryEventSink) -> None:
    async def inner(ctx: Any) -> None:
        log.info("inner")
        raise KeyError("inner")

    async def outer(ctx: Any) -> None:
        log.info("before")
        await Pipeline("child").with_stage("inner", inner).run()
        log.info("after")
        raise ValueError("outer")

    await Pipeline("parent").with_stage("outer", outer).run()
    assert messages(wide(sink, "inner")) == ["INFO acme.db: inner"]
    assert messages(wide(sink, "outer")) == ["INFO acme.db: before", "INFO acme.db: after"]


async def test_concurrent_runs_do_not_mix(sink: MemoryEventSink) -> None:
    async def stage(ctx: Any) -> None:
        for number in range(3):
            log.info("run %s line %d", ctx.run.data, number)
            await asyncio.sleep(0)
        await asyncio.to_thread(log.error, "run %s in a thread", ctx.run.data)
        raise ValueError("refused")

    graph = Pipeline("p").with_stage("s", stage).build()
    await asyncio.gather(*(graph.run(PipelineContext(data=str(n), user_id=str(n))) for n in range(20)))
    found = {event["correlation_ids"]["user_id"]: messages(event) for event in sink.of_type("stage.wide")}
    assert found == {
        str(n): [
            *(f"INFO acme.db: run {n} line {k}" for k in range(3)),
            f"ERROR acme.db: run {n} in a thread",
        ]
        for n in range(20)
    }


def test_lines_of_many_threads_are_counted(sink: MemoryEventSink) -> None:
    log.propagate = False  # handlers are slow
    interval = sys.getswitchinterval()

    async def stage(ctx: Any) -> None:
        def work() -> None:
            for _ in range(500):
                log.warning("slow")
                log.error("broken")

        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(4)))
        raise ValueError("refused")

    sys.setswitchinterval(1e-6)
    try:
        Pipeline("p").with_stage("s", stage).build().run_sync()
    finally:
        sys.setswitchinterval(interval)
    event = wide(sink)
    assert (event["log_warnings"], event["log_errors"], len(event["log_tail"])) == (2000, 2000, 20)


async def test_lines_outside_a_stage_belong_to_no_stage(sink: MemoryEventSink) -> None:
    async def stage(ctx: Any) -> None:
        raise ValueError("refused")

    log.error("before")
    results = await Pipeline("p").with_stage("s", stage).run()
    log.error("after")
    assert wide(sink)["log_tail"] == []
    assert results["s"].logs is None


async def test_lines_of_the_library_are_not_recorded(sink: MemoryEventSink) -> None:
    def log_as_the_library() -> None:
        for name in ("stageflow", "stageflow.pipeline", "stageflow_shop", "stageflowers"):
            logging.getLogger(name).error("from %s", name)

    await fail_after(log_as_the_library)
    event = wide(sink)
    assert messages(event) == [
        "ERROR stageflow_shop: from stageflow_shop",
        "ERROR stageflowers: from stageflowers",
    ]
    assert event["log_errors"] == 2


async def test_stage_under_test_has_its_lines() -> None:
    async def stage(ctx: Any) -> None:
        log.warning("slow")
        raise ValueError("refused")

    result = await run_stage(stage)
    assert result.logs is not None
    assert [line.partition(" ")[2] for line in result.logs.tail] == ["WARNING acme.db: slow"]


# ------------------------------------------------------------ loggers


async def test_disabled_level_is_not_recorded(sink: MemoryEventSink) -> None:
    log.setLevel(logging.WARNING)
    await fail_after(lambda: log.info("fetched"), lambda: log.warning("slow"))
    assert messages(wide(sink)) == ["WARNING acme.db: slow"]


async def test_logger_that_does_not_propagate_is_recorded(sink: MemoryEventSink) -> None:
    log.propagate = False
    await fail_after(lambda: log.info("fetched"))
    assert messages(wide(sink)) == ["INFO acme.db: fetched"]


def test_capture_does_not_affect_logging_configuration(program: Callable[[str], Program]) -> None:
    """`basicConfig` still adds its handler, and `dictConfig` does not remove the capture."""
    script = """
        import logging, logging.config, sys, stageflow
        from stageflow import Pipeline
        from stageflow.events import MemoryEventSink

        factory = logging.getLogRecordFactory()
        sink = MemoryEventSink()
        stageflow.configure(sink=sink)
        # Neither the import nor `configure` changes `logging`.
        assert logging.getLogRecordFactory() is factory

        async def stage(ctx):
            logging.getLogger("acme").warning("slow")
            raise ValueError("refused")

        graph = Pipeline("p").with_stage("s", stage).build()
        graph.run_sync()
        assert not logging.getLogger().handlers
        logging.basicConfig(stream=sys.stdout, format="basic %(message)s")
        graph.run_sync()
        logging.config.dictConfig({
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"short": {"format": "dict %(message)s"}},
            "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "short", "stream": sys.stdout}},
            "root": {"handlers": ["h"]},
        })
        graph.run_sync()
        logging.config.dictConfig({"version": 1})  # disables existing loggers
        graph.run_sync()
        print([[line[13:] for line in event["log_tail"]] for event in sink.of_type("stage.wide")])
    """
    status, out, err = program(script).ended()
    assert status == 0, err
    assert out.splitlines() == ["basic slow", "dict slow", str([["WARNING acme: slow"]] * 3 + [[]])]


async def test_records_and_handlers_of_the_application_are_unchanged(
    sink: MemoryEventSink, caplog: pytest.LogCaptureFixture
) -> None:
    marker = object()
    await fail_after(lambda: log.warning("found %s", marker, extra={"user": 7}))
    (record,) = caplog.records
    assert (record.msg, record.args, record.user) == ("found %s", (marker,), 7)  # type: ignore[attr-defined]
    assert type(record) is logging.LogRecord
    known = vars(logging.makeLogRecord({})).keys()
    assert vars(record).keys() - known == {"user", "message"}
    assert record.funcName == "<lambda>"


async def test_copy_of_a_record_is_not_another_line(sink: MemoryEventSink) -> None:
    await fail_after(lambda: logging.makeLogRecord(vars(logging.makeLogRecord({"msg": "copy", "name": "a"}))))
    assert wide(sink)["log_tail"] == []


# ------------------------------------------------------------ factories of the application


async def test_factory_that_calls_the_previous_one_is_kept(sink: MemoryEventSink) -> None:
    await fail_after(lambda: log.info("before"))
    before = logging.getLogRecordFactory()

    def tagged(*args: Any, **more: Any) -> logging.LogRecord:
        record = before(*args, **more)
        record.tag = "shop"
        return record

    logging.setLogRecordFactory(tagged)
    for _ in range(3):
        await fail_after(lambda: log.info("after"))
        assert logging.getLogRecordFactory() is tagged
    assert [messages(event) for event in sink.of_type("stage.wide")] == [
        ["INFO acme.db: before"],
        *[["INFO acme.db: after"]] * 3,
    ]


async def test_capture_continues_after_the_factory_is_replaced(
    sink: MemoryEventSink, caplog: pytest.LogCaptureFixture
) -> None:
    await fail_after(lambda: log.info("before"))

    class Tagged(logging.LogRecord):
        pass

    logging.setLogRecordFactory(Tagged)
    await fail_after(lambda: log.info("after"))
    await fail_after(lambda: log.info("again"))
    assert [messages(event) for event in sink.of_type("stage.wide")] == [
        [f"INFO acme.db: {what}"] for what in ("before", "after", "again")
    ]
    assert [type(record) for record in caplog.records] == [logging.LogRecord, Tagged, Tagged]


async def test_factory_that_accepts_no_empty_record_is_kept(sink: MemoryEventSink) -> None:
    def strict(name: str, *args: Any, **more: Any) -> logging.LogRecord:
        return logging.LogRecord(name.lower(), *args, **more)

    logging.setLogRecordFactory(strict)
    for _ in range(2):
        await fail_after(lambda: log.info("fetched"))
    assert [messages(event) for event in sink.of_type("stage.wide")] == [["INFO acme.db: fetched"]] * 2


@pytest.mark.parametrize(
    "attributes",
    [
        {"created": None},
        {"created": 1e300},
        {"levelname": None},
        {"args": None},
        {"name": 1},
    ],
    ids=lambda attributes: next(iter(attributes)),
)
async def test_invalid_record_of_a_factory_does_not_affect_the_stage(
    sink: MemoryEventSink, attributes: dict[str, Any]
) -> None:
    def invalid(*args: Any, **more: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **more)
        vars(record).update(attributes)
        return record

    log.propagate = False
    logging.setLogRecordFactory(invalid)
    await fail_after(lambda: log.info("fetched"))
    event = wide(sink)
    assert (event["status"], event["error"], event["reason"]) == ("FAIL", "ValueError: refused", None)
    assert [line[-7:] for line in event["log_tail"]] in ([], ["fetched"])


async def test_factory_that_returns_no_record_does_not_affect_the_stage(sink: MemoryEventSink) -> None:
    logging.setLogRecordFactory(lambda *args, **more: None)  # type: ignore[arg-type, return-value]
    log.addFilter(lambda record: False)
    try:
        await fail_after(lambda: log.info("fetched"))
    finally:
        log.filters.clear()
    assert wide(sink)["log_tail"] == []


def test_forked_child_continues_to_log(program: Callable[[str], Program]) -> None:
    script = """
        import logging, os, stageflow
        from stageflow import Pipeline
        from stageflow.events import MemoryEventSink

        sink = MemoryEventSink()
        stageflow.configure(sink=sink)
        log = logging.getLogger("acme")
        log.addHandler(logging.NullHandler())

        async def stage(ctx):
            log.warning("before the fork")
            if ctx.run.data and (pid := os.fork()):
                os.waitpid(pid, 0)
            elif ctx.run.data:
                for _ in range(100):
                    log.error("in the child")
                Pipeline("c").with_stage("s", stage).build()
                os._exit(0)
            raise ValueError("refused")

        from stageflow import PipelineContext
        graph = Pipeline("p").with_stage("s", stage).build()
        graph.run_sync(PipelineContext(data="fork"))
        (event,) = sink.of_type("stage.wide")
        print(event["log_errors"], [line[13:] for line in event["log_tail"]])
    """
    status, out, err = program(script).ended()
    assert (status, out) == (0, "0 ['WARNING acme: before the fork']\n"), err


# ------------------------------------------------------------ lines


async def test_last_twenty_lines_are_recorded(sink: MemoryEventSink) -> None:
    await fail_after(lambda: [log.warning("line %d", number) for number in range(50)])
    event = wide(sink)
    assert messages(event) == [f"WARNING acme.db: line {number}" for number in range(30, 50)]
    assert event["log_warnings"] == 50
    assert event["truncated"] == []


async def test_long_line_is_truncated(sink: MemoryEventSink) -> None:
    calls = (
        lambda: log.info("x" * 1_000_000),
        lambda: log.info("%s", "y" * 1_000_000),
        lambda: log.info("%s", ["z" * 1_000_000]),
        lambda: log.info("fits"),
    )
    await fail_after(*calls)
    event = wide(sink)
    assert [len(line) for line in event["log_tail"]] == [
        500,
        500,
        500,
        len("12:03:04.123 INFO acme.db: fits"),
    ]
    assert event["truncated"] == ["log_tail"]


async def test_secrets_are_redacted_and_counted(sink: MemoryEventSink) -> None:
    calls = (
        lambda: log.info("connect with password=hunter2"),
        lambda: log.info("connect with %s", {"api_key": "abc123def"}),
        lambda: log.info("token: %s", "abc123def456"),
    )
    await fail_after(*calls)
    event = wide(sink)
    assert messages(event) == [
        "INFO acme.db: connect with password=[redacted]",
        "INFO acme.db: connect with {'api_key': '[redacted]'}",
        "INFO acme.db: token: [redacted]",
    ]
    assert event["redacted"] == 3


async def test_secret_at_the_end_of_a_truncated_line_is_redacted(sink: MemoryEventSink) -> None:
    for length in range(440, 500):
        await fail_after(lambda length=length: log.info("%s password=hunter2hunter2", "x" * length))
    text = json.dumps([event["log_tail"] for event in sink.of_type("stage.wide")])
    assert "hun" not in text


async def test_redaction_settings_apply(sink: MemoryEventSink) -> None:
    stageflow.configure(sink=sink, redact=Redact(patterns={"order": r"ORD-\d+"}))
    await fail_after(lambda: log.info("order %s", "ORD-4711"))
    assert messages(wide(sink)) == ["INFO acme.db: order [redacted:order]"]


async def test_exception_of_a_line_is_recorded_as_its_last_line(sink: MemoryEventSink) -> None:
    def handled() -> None:
        try:
            raise LookupError("no such key")
        except LookupError:
            log.exception("query failed")
        log.error("also failed", exc_info=KeyError("other"))
        log.error("without an exception", exc_info=True)  # noqa: LOG014

    await fail_after(handled)
    assert messages(wide(sink)) == [
        "ERROR acme.db: query failed\nLookupError: no such key",
        "ERROR acme.db: also failed\nKeyError: 'other'",
        "ERROR acme.db: without an exception",
    ]


async def test_argument_that_changes_later_is_recorded_as_it_was(sink: MemoryEventSink) -> None:
    rows = [1]

    def change() -> None:
        log.info("rows: %s", rows)
        log.info("rows: %(rows)s", {"rows": rows})
        rows.append(2)

    await fail_after(change)
    assert messages(wide(sink)) == ["INFO acme.db: rows: [1]", "INFO acme.db: rows: [1]"]


async def test_line_keeps_no_object_of_the_application_alive(sink: MemoryEventSink) -> None:
    class Connection:
        pass

    alive = []

    async def stage(ctx: Any) -> None:
        connection = Connection()
        reference = weakref.ref(connection)
        log.info("using %s", connection, extra={"connection": connection})
        try:
            raise ValueError("refused")
        except ValueError:
            log.exception("failed")
        del connection
        alive.append(reference() is not None)

    log.propagate = False  # the handler of pytest keeps all records
    await Pipeline("p").with_stage("s", stage).run()
    assert alive == [False]


async def test_line_keeps_no_large_text_alive(sink: MemoryEventSink) -> None:
    counts = []

    async def stage(ctx: Any) -> None:
        text = str(ctx.run.data) * 10_000
        before = sys.getrefcount(text)
        log.info(text)
        log.info("%s", text)
        log.info("%s", [text])
        counts.append(sys.getrefcount(text) - before)

    log.propagate = False  # the handler of pytest keeps all records
    await Pipeline("p").with_stage("s", stage).run(PipelineContext(data="x"))
    assert counts == [0]


async def test_context_is_released_without_garbage_collection(sink: MemoryEventSink) -> None:
    contexts = []

    async def stage(ctx: Any) -> None:
        contexts.append(weakref.ref(ctx))
        try:
            raise ValueError("refused")
        except ValueError:
            log.exception("failed in %s", ctx, extra={"ctx": ctx})

    log.propagate = False
    gc.collect()
    gc.disable()
    try:
        results = await Pipeline("p").with_stage("s", stage).run()
        del results
        await asyncio.sleep(0)
        assert [reference() for reference in contexts] == [None]
    finally:
        gc.enable()


class Hostile:
    """An object whose `__str__` and `__repr__` raise."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __repr__(self) -> str:
        raise self.error


class LogsItself:
    """An object whose `__str__` logs the object, twice."""

    def __str__(self) -> str:
        for _ in range(2):
            log.warning("formatting %s", self)
        return "formatted"


HOSTILE = {
    "too few arguments": lambda: log.warning("%d %d", 1),  # noqa: PLE1206
    "wrong type": lambda: log.warning("%d", "x"),
    "no argument expected": lambda: log.warning("done", 1),  # noqa: PLE1205
    "large integer": lambda: log.warning("%d", 10**10_000),
    "invalid format": lambda: log.warning("%", 1),
    "surrogates": lambda: log.warning("\ud800 %s", "\udfff"),
    "raises": lambda: log.warning("%s", Hostile(RuntimeError("no"))),
    "raises SystemExit": lambda: log.warning("%s", Hostile(SystemExit(3))),
    "message raises": lambda: log.warning(Hostile(RuntimeError("no"))),
    "logs itself": lambda: log.warning("%s", LogsItself()),
    "exception raises": lambda: log.warning("failed", exc_info=type("E", (Exception,), {"__str__": None})()),
    "mapping raises": lambda: log.warning("%(a)s", {"a": Hostile(RuntimeError("no"))}),
    "null characters": lambda: log.warning("\x00\x1b[2J %s", "\x00"),
}


@pytest.mark.parametrize("call", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.filterwarnings("ignore")
async def test_hostile_line_does_not_affect_the_stage_nor_its_event(
    sink: MemoryEventSink, call: Callable[[], None]
) -> None:
    log.propagate = False  # handlers of `logging` fail for some of these lines
    await fail_after(call, lambda: log.info("last"))
    event = wide(sink)
    assert event["error"] == "ValueError: refused"
    assert event["reason"] is None
    assert messages(event)[-1] == "INFO acme.db: last"
    assert event["log_warnings"] >= 1
    assert len(messages(event)) == 2
    json.dumps(event).encode()


# ------------------------------------------------------------ structlog


async def test_structlog_without_logging_is_recorded_by_the_processor(sink: MemoryEventSink) -> None:
    out = io.StringIO()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            log_tail,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    logger = structlog.get_logger()

    def use() -> None:
        logger.debug("not enabled")
        logger.info("fetched", page=3, url="https://a.example/x y")
        logger.warning("login", password="hunter2", user="ann")
        try:
            raise LookupError("no such key")
        except LookupError:
            logger.exception("query failed", attempt=1)

    logger.error("outside a stage")
    await fail_after(use)
    event = wide(sink)
    assert messages(event) == [
        "INFO: fetched page=3 url='https://a.example/x y'",
        "WARNING: login password=[redacted] user=ann",
        "ERROR: query failed attempt=1\nLookupError: no such key",
    ]
    assert (event["log_warnings"], event["log_errors"]) == (1, 1)
    rendered = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["event"] for line in rendered] == ["outside a stage", "fetched", "login", "query failed"]
    assert rendered[1]["page"] == 3
    assert "Traceback" in rendered[3]["exception"]


@pytest.mark.parametrize("with_processor", [False, True])
async def test_structlog_through_logging_is_recorded_once(
    sink: MemoryEventSink, with_processor: bool
) -> None:
    """Also if `ProcessorFormatter` renders the event in a handler."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=structlog.processors.JSONRenderer()))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            *([log_tail] if with_processor else []),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    logger = structlog.get_logger("acme.db")
    log.addHandler(handler)
    log.propagate = False
    try:
        await fail_after(lambda: logger.warning("pool exhausted", size=3))
    finally:
        log.removeHandler(handler)
    event = wide(sink)
    assert messages(event) == ["WARNING acme.db: pool exhausted size=3"]
    assert event["log_warnings"] == 1
    assert json.loads(out.getvalue())["size"] == 3


async def test_structlog_rendered_before_logging_is_recorded_as_rendered(sink: MemoryEventSink) -> None:
    structlog.configure(
        processors=[structlog.stdlib.render_to_log_kwargs],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    await fail_after(lambda: structlog.get_logger("acme.db").error("pool exhausted", size=3))
    assert messages(wide(sink)) == ["ERROR acme.db: pool exhausted"]


async def test_hostile_value_does_not_affect_structlog(sink: MemoryEventSink) -> None:
    out = io.StringIO()
    structlog.configure(
        processors=[log_tail, lambda logger, name, event: event["event"]],
        logger_factory=structlog.PrintLoggerFactory(out),
    )
    await fail_after(lambda: structlog.get_logger().info("found", it=Hostile(RuntimeError("no"))))
    assert messages(wide(sink)) == ["INFO: found it='<str() of Hostile failed: RuntimeError>'"]
    assert out.getvalue() == "found\n"


# ------------------------------------------------------------ settings


@pytest.mark.parametrize("value", [False, 0])
async def test_lines_can_be_disabled(sink: MemoryEventSink, value: Any) -> None:
    await fail_after(lambda: log.error("recorded"))
    stageflow.configure(sink=sink, log_tail=value)
    structlog.configure(processors=[log_tail, structlog.dev.ConsoleRenderer()])
    await fail_after(lambda: log.error("not recorded"), lambda: structlog.get_logger().error("nor this"))
    stageflow.configure(sink=sink)
    await fail_after(lambda: log.error("recorded again"))
    found = [(messages(event), event["log_errors"]) for event in sink.of_type("stage.wide")]
    assert found == [(["ERROR acme.db: recorded"], 1), ([], 0), (["ERROR acme.db: recorded again"], 1)]


@pytest.mark.parametrize("reason", ["disabled", "no stage.wide", "no events"])
def test_capture_that_is_not_needed_does_not_replace_the_factory(sink: MemoryEventSink, reason: str) -> None:
    async def stage(ctx: Any) -> None: ...

    logging.setLogRecordFactory(logging.LogRecord)
    if reason == "disabled":
        stageflow.configure(sink=sink, log_tail=False)
    graph = (
        Pipeline("p")
        .with_stage("s", stage)
        .build(emit_stage_wide_events=reason == "disabled", emit_pipeline_wide_event=reason != "no events")
    )
    graph.run_sync()
    assert logging.getLogRecordFactory() is logging.LogRecord


async def test_number_of_lines_can_be_configured(
    sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEFLOW_LOG_TAIL", "3")
    assert stageflow.configure(sink=sink).log_tail == 3
    await fail_after(lambda: [log.info("line %d", number) for number in range(5)])
    assert messages(wide(sink)) == [f"INFO acme.db: line {number}" for number in (2, 3, 4)]


@pytest.mark.parametrize("value", [-1, 201, True, 2.0, "5", None])
def test_invalid_number_of_lines_is_an_error(value: Any) -> None:
    with pytest.raises(SettingsError, match="log_tail must be a number of lines up to 200, or False, got"):
        stageflow.configure(log_tail=value)


# ------------------------------------------------------------ cost


def calls_of(graph: Any) -> Counter[str]:
    """Return the functions of `logging` and of the modules that record lines that a run calls."""
    calls: Counter[str] = Counter()
    files = {logging.__file__, sys.modules["stageflow._log_tail"].__file__}

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and (
            frame.f_code.co_filename in files or frame.f_code.co_name in ("_log", "_logged", "_open_log_tail")
        ):
            calls[frame.f_code.co_qualname] += 1

    async def main() -> None:
        sys.setprofile(profile)
        try:
            await graph.run()
        finally:
            sys.setprofile(None)

    asyncio.run(main())
    return calls


def test_stage_that_logs_nothing_calls_and_allocates_nothing(sink: MemoryEventSink) -> None:
    contexts: list[Any] = []

    async def stage(ctx: Any) -> None:
        contexts.append(ctx)

    pipeline = Pipeline("p")
    for number in range(50):
        pipeline = pipeline.with_stage(f"s{number}", stage)
    graph = pipeline.build()
    graph.run_sync()  # replaces the factory of log records
    contexts.clear()
    assert calls_of(graph) == {"LogCapture.install": 1, "getLogRecordFactory": 1}  # once for the run
    assert len(contexts) == 50
    assert not any("_log_tail" in vars(ctx) for ctx in contexts)


# ------------------------------------------------------------ readers


async def failed_run(sink: MemoryEventSink, *calls: Callable[[], object]) -> str:
    """Return how a run with a failed stage is drawn in 80 columns."""
    await fail_after(*calls)
    console = Console(width=80, file=io.StringIO(), force_terminal=False)
    console.print(draw_run(sink.of_type("pipeline.wide")[-1], sink.of_type("stage.wide")[-1:]))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_view_of_a_run_shows_counts_and_last_lines(sink: MemoryEventSink) -> None:
    def use() -> None:
        for number in range(14):
            log.warning("line %d", number)
        log.error("gave up")

    shown = await failed_run(sink, use)
    assert "logged 14 warnings, 1 error" in shown
    assert "5 earlier log lines in log_tail" in shown
    assert [line.partition(": ")[2] for line in shown.splitlines() if "acme.db" in line] == [
        *(f"line {number}" for number in range(5, 14)),
        "gave up",
    ]


async def test_view_of_a_run_escapes_and_shortens_lines(sink: MemoryEventSink) -> None:
    calls = (
        lambda: log.info("\x1b[2J\x1b]0;title\x07 [red]not markup[/red] \u202egnitset"),
        lambda: log.info("first\nsecond\r\nthird"),
        lambda: log.info("word " * 90),
        lambda: log.info("x" * 450),
    )
    shown = await failed_run(sink, *calls)
    assert not set(shown) & set("\x1b\x07\r\u202e")
    assert "[red]not markup[/red]" in shown
    assert "first second\\x0d third" in " ".join(shown.split())
    assert shown.count("word") < 45
    assert shown.count("x" * 10) < 30
    assert max(map(len, shown.splitlines())) <= 80


def test_command_line_shows_and_queries_lines(tmp_path: Path) -> None:
    stageflow.configure(journal=str(tmp_path / "journal"))

    async def stage(ctx: Any) -> None:
        log.warning("pool exhausted")
        raise ValueError("refused")

    Pipeline("p").with_stage("s", stage).build().run_sync()
    shown = CliRunner().invoke(app, ["show", "last", "--journal", str(tmp_path / "journal")])
    assert "logged 1 warning" in shown.output
    assert "WARNING acme.db: pool exhausted" in shown.output
    query = "select log_warnings, log_errors, len(log_tail) lines, log_tail[1] line from stages"
    found = CliRunner().invoke(app, ["query", query, "--journal", str(tmp_path / "journal"), "--json"])
    assert found.exit_code == 0, found.output
    row = json.loads(found.output)
    assert (row["log_warnings"], row["log_errors"], row["lines"]) == (1, 0, 1)
    assert row["line"].endswith("WARNING acme.db: pool exhausted")
