"""OpenTelemetry: attempts as active spans, and calls of instrumentations in the events of stages."""

from __future__ import annotations

import asyncio
import http.server
import json
import math
import os
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from stageflow import Pipeline, PipelineContext, Retry
from stageflow.budget import Budget
from stageflow.errors import InvalidArgumentError
from stageflow.integrations.opentelemetry import StageflowSpanProcessor
from stageflow.testing import capture_events


class Tracing:
    """A provider with the processor of the library, and the spans that ended."""

    def __init__(self) -> None:
        self.provider = TracerProvider()
        self.processor = StageflowSpanProcessor()
        self.provider.add_span_processor(self.processor)
        self.exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    def call(self, name: str = "GET", kind: SpanKind = SpanKind.CLIENT, **attributes: Any) -> Any:
        """Return a context manager for a span; `_` in names of attributes stands for a dot."""
        names = {key.replace("__", "."): value for key, value in attributes.items()}
        return self.tracer.start_as_current_span(name, kind=kind, attributes=names)

    def http(self, host: str = "api.example", **more: Any) -> Any:
        return self.call(http__request__method="GET", server__address=host, **more)

    def parents(self) -> list[str | None]:
        """Return the ids of the parents of the spans that ended."""
        return [
            None if span.parent is None else f"{span.parent.span_id:016x}"
            for span in self.exporter.get_finished_spans()
        ]


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    made = Tracing()
    yield made
    made.provider.shutdown()


def attributes_of(events: Any, type: str = "stage.wide") -> dict[str, Any]:
    (event,) = events.of_type(type)
    found: dict[str, Any] = event["attributes"]
    return found


def active_ids() -> tuple[str, str]:
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def ids_of(event: dict[str, Any]) -> tuple[str, str]:
    return event["trace"]["trace_id"], event["trace"]["span_id"]


# ------------------------------------------------------------ the active span


async def test_each_attempt_is_the_active_span_also_in_threads_and_tasks(tracing: Tracing) -> None:
    seen = []

    async def flaky(ctx: Any) -> None:
        seen.append(active_ids())
        await asyncio.sleep(0)
        seen.append(active_ids())
        seen.append(await asyncio.to_thread(active_ids))
        seen.append(await asyncio.create_task(asyncio.to_thread(active_ids)))
        if ctx.attempt == 1:
            raise ConnectionError("down")

    def plain(ctx: Any) -> None:
        seen.append(active_ids())

    pipeline = (
        Pipeline("p")
        .with_stage("flaky", flaky, retry=Retry(2, wait=0, on=ConnectionError))
        .with_stage("plain", plain, dependencies=("flaky",))
    )
    before = get_current()
    with capture_events() as events:
        await pipeline.run()
    assert get_current() is before
    first, second, last = (ids_of(event) for event in events.of_type("stage.wide"))
    assert seen == [first] * 4 + [second] * 4 + [last]


async def test_stage_that_never_suspends_does_not_change_the_context_of_its_caller(tracing: Tracing) -> None:
    async def work(ctx: Any) -> None: ...

    with tracing.tracer.start_as_current_span("request") as request:
        for _ in range(2):
            await Pipeline("p").with_stage("a", work).with_stage("b", work, dependencies=("a",)).run()
            assert trace.get_current_span() is request


async def test_spans_of_a_stage_are_children_of_its_attempt_and_the_run_of_the_active_span(
    tracing: Tracing,
) -> None:
    async def work(ctx: Any) -> None:
        with tracing.http():
            await asyncio.sleep(0)

    with capture_events() as events, tracing.tracer.start_as_current_span("request") as request:
        await Pipeline("p").with_stage("work", work).run()
    (stage,), (run,) = events.of_type("stage.wide"), events.of_type("pipeline.wide")
    assert tracing.parents() == [stage["trace"]["span_id"], None]
    assert stage["trace"]["parent_span_id"] == run["trace"]["span_id"]
    assert run["trace"]["parent_span_id"] == f"{request.get_span_context().span_id:016x}"
    traces = {span.context.trace_id for span in tracing.exporter.get_finished_spans() if span.context}
    assert {f"{each:032x}" for each in traces} == {run["trace"]["trace_id"]}


async def test_streams_maps_conditions_and_nested_runs_have_the_span_of_their_attempt(
    tracing: Tracing,
) -> None:
    seen: dict[str, set[tuple[str, str]]] = {}

    def note(name: str) -> None:
        seen.setdefault(name, set()).add(active_ids())

    async def words(ctx: Any) -> Any:
        for word in "ab":
            note("words")
            yield word
            await asyncio.sleep(0)

    def threaded(ctx: Any) -> Any:
        for number in range(2):
            note("threaded")
            yield number

    async def item(value: str) -> str:
        note("each")
        return value

    def is_due(ctx: Any) -> bool:
        note("due")
        return True

    async def due(ctx: Any) -> None:
        note("due")

    async def inner(ctx: Any) -> None:
        note("inner")

    async def outer(ctx: Any) -> None:
        note("outer")
        given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        await Pipeline("other").with_stage("other", inner).run(PipelineContext(traceparent=given))
        await Pipeline("nested").with_stage("inner", inner).run()
        note("outer")

    async def items(ctx: Any) -> list[str]:
        return ["x", "y", "z"]

    with capture_events() as events:
        await (
            Pipeline("p")
            .with_stage("words", words)
            .with_stage("threaded", threaded)
            .with_stage("items", items)
            .with_map("each", item, over="items")
            .with_stage("due", due, when=is_due)
            .with_stage("outer", outer)
            .run()
        )
    by_name = {event["stage_name"]: event for event in events.of_type("stage.wide")}
    seen["other"] = {ids for ids in seen["inner"] if ids[0] == "4bf92f3577b34da6a3ce929d0e0e4736"}
    seen["inner"] -= seen["other"]
    assert seen == {name: {ids_of(by_name[name])} for name in by_name if name != "items"}
    runs = {event["pipeline_name"]: event["trace"] for event in events.of_type("pipeline.wide")}
    assert runs["nested"]["parent_span_id"] == by_name["outer"]["trace"]["span_id"]
    assert runs["other"]["parent_span_id"] == "00f067aa0ba902b7"


async def test_nothing_changes_without_a_processor_and_after_its_shutdown() -> None:
    seen = []

    async def work(ctx: Any) -> None:
        seen.append(trace.get_current_span().get_span_context().is_valid)

    async def run() -> None:
        await Pipeline("p").with_stage("work", work).run()

    await run()
    first, second = Tracing(), Tracing()
    first.provider.shutdown()
    first.provider.shutdown()
    await run()
    second.provider.shutdown()
    await run()
    assert seen == [False, True, False]


def test_worker_processes_record_calls_if_their_module_installs_the_processor(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import asyncio

        from opentelemetry.sdk.trace import TracerProvider

        from stageflow import Pipeline
        from stageflow.executors import ProcessExecutor
        from stageflow.integrations.opentelemetry import StageflowSpanProcessor
        from stageflow.testing import capture_events

        provider = TracerProvider()
        provider.add_span_processor(StageflowSpanProcessor())

        def work(ctx):
            with provider.get_tracer("test").start_as_current_span(
                "SELECT", attributes={"db.system.name": "sqlite"}
            ) as span:
                return {"parent": f"{span.parent.span_id:016x}"}

        async def main():
            async with ProcessExecutor(workers=1) as executor:
                return await Pipeline("p").with_stage("work", work, executor=executor).run()

        if __name__ == "__main__":
            with capture_events() as events:
                results = asyncio.run(main())
            (stage,) = events.of_type("stage.wide")
            assert results["work"].data["parent"] == stage["trace"]["span_id"], stage
            assert stage["attributes"]["db.count"] == 1, stage
            assert stage["attributes"]["db.hosts"]["sqlite"]["count"] == 1, stage
        """)
    )
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------ calls


async def test_calls_are_counted_per_attempt_and_per_run(tracing: Tracing) -> None:
    async def flaky(ctx: Any) -> None:
        for _ in range(ctx.attempt):
            with tracing.http():
                pass
        if ctx.attempt == 1:
            raise ConnectionError("down")

    with capture_events() as events:
        await Pipeline("p").with_stage("flaky", flaky, retry=Retry(2, wait=0, on=ConnectionError)).run()
    counts = [event["attributes"]["http.client.count"] for event in events.of_type("stage.wide")]
    assert counts == [1, 2]
    assert attributes_of(events, "pipeline.wide")["http.client.count"] == 3


@pytest.mark.parametrize(
    ("prefix", "name", "span"),
    [
        ("http.client", "GET a.example", {"http.request.method": "GET", "server.address": "a.example"}),
        ("http.client", "GET b.example", {"http.method": "GET", "http.url": "https://b.example:8443/x?y"}),
        ("http.client", "GET", {"http.method": "GET", "http.url": "http://[::1"}),
        ("db", "GET db.example", {"db.system.name": "postgresql", "server.address": "db.example"}),
        ("db", "GET redis", {"db.system": "redis"}),
        ("db", "GET elasticsearch", {"db.system": "elasticsearch", "http.request.method": "GET"}),
        ("rpc.client", "GET grpc", {"rpc.system": "grpc"}),
        ("messaging", "GET kafka", {"messaging.system": "kafka"}),
        ("gen_ai.client", "GET openai", {"gen_ai.operation.name": "chat", "gen_ai.system": "openai"}),
        ("gen_ai.client", "GET", {"openinference.span.kind": "EMBEDDING"}),
    ],
)
async def test_conventions_of_several_versions(
    tracing: Tracing, prefix: str, name: str, span: dict[str, str]
) -> None:
    async def work(ctx: Any) -> None:
        for failed in (False, True):
            with tracing.tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes=span) as made:
                if failed:
                    made.set_status(Status(StatusCode.ERROR))

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    found = attributes_of(events)
    spans = tracing.exporter.get_finished_spans()
    ms = [((span.end_time or 0) - (span.start_time or 0)) // 1000 / 1000 for span in spans]
    assert (found[f"{prefix}.count"], found[f"{prefix}.errors"]) == (2, 1)
    assert found[f"{prefix}.ms"] == pytest.approx(sum(ms))
    assert (found[f"{prefix}.slowest"], found[f"{prefix}.slowest_ms"]) == (name, max(ms))
    host = name.partition(" ")[2]
    if host:
        expected = {"count": 2, "ms": pytest.approx(sum(ms)), "errors": 1}
        assert found[f"{prefix}.hosts"] == {host: expected}
    kinds = {key.rpartition(".")[0] for key in found if key.endswith(".count")}
    assert kinds == {prefix}


async def test_spans_of_other_kinds_are_not_calls(tracing: Tracing) -> None:
    async def work(ctx: Any) -> None:
        with tracing.http(), tracing.call("work", SpanKind.INTERNAL):
            with tracing.call("server", SpanKind.SERVER, http__request__method="GET"):
                pass
            with tracing.call("receive", SpanKind.CONSUMER, messaging__system="kafka"):
                pass
            with tracing.call("tool", SpanKind.INTERNAL, gen_ai__operation__name="execute_tool"):
                pass

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    found = attributes_of(events)
    assert {key: value for key, value in found.items() if key.endswith(".count")} == {"http.client.count": 1}


async def test_usage_of_a_model_is_recorded_like_record_llm(tracing: Tracing) -> None:
    usages: list[dict[str, Any]] = [
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "acme",
            "gen_ai.request.model": "m-large",
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.output_tokens": 10,
            "gen_ai.response.finish_reasons": ("stop",),
            "operation.cost": 0.25,
        },
        {"gen_ai.system": "acme", "gen_ai.usage.prompt_tokens": 20, "gen_ai.usage.completion_tokens": 2},
        {"openinference.span.kind": "LLM", "llm.token_count.prompt": 3, "llm.token_count.completion": 1},
        {"gen_ai.operation.name": "embeddings", "gen_ai.usage.input_tokens": 5},
    ]

    async def work(ctx: Any) -> None:
        for usage in usages:
            with tracing.tracer.start_as_current_span("chat", attributes=usage):
                pass

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    for type in ("stage.wide", "pipeline.wide"):
        found = attributes_of(events, type)
        assert (found["llm.calls"], found["embedding.calls"], found["llm.cost_usd"]) == (3, 1, 0.25)
        assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (128, 13)
    assert attributes_of(events)["gen_ai.provider.name"] == "acme"
    assert attributes_of(events)["gen_ai.response.finish_reasons"] == ["stop"]


class FakeModel(http.server.BaseHTTPRequestHandler):
    """Answers each request to a model with the same text and usage."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
        message = {"role": "assistant", "content": "hi"}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m-1", "usage": usage}
        body = json.dumps({**answer, "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def test_instrumentation_of_openai_records_the_usage_of_models(
    tracing: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def ask(ctx: Any) -> None:
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        with openai.OpenAI(api_key="none", base_url=url) as client:
            for _ in range(2):
                client.chat.completions.create(model="m", messages=[{"role": "user", "content": "?"}])

    instrumentor = OpenAIInstrumentor()
    instrumentor.instrument(tracer_provider=tracing.provider)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeModel) as server, capture_events() as events:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            asyncio.run(Pipeline("p").with_stage("ask", ask).run())
        finally:
            instrumentor.uninstrument()
            server.shutdown()
    found = attributes_of(events)
    assert (found["gen_ai.client.count"], found["llm.calls"], found["gen_ai.client.errors"]) == (2, 2, 0)
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == (24, 6)
    assert (found["gen_ai.provider.name"], found["gen_ai.response.model"]) == ("openai", "m-1")
    (stage,) = events.of_type("stage.wide")
    assert tracing.parents() == [stage["trace"]["span_id"]] * 2


async def test_tokens_of_spans_count_towards_the_budget(tracing: Tracing) -> None:
    async def work(ctx: Any) -> None:
        with tracing.tracer.start_as_current_span("chat", attributes={"gen_ai.usage.input_tokens": 100}):
            pass

    graph = Pipeline("p").with_stage("work", work).build(budget=Budget(tokens=50))
    results = await graph.run(PipelineContext())
    assert "BudgetExceededError" in (results["work"].error or "")


@pytest.mark.parametrize("between", [False, True])
async def test_nested_calls_of_one_kind_are_counted_once(tracing: Tracing, between: bool) -> None:
    async def work(ctx: Any) -> None:
        with tracing.call("chat", gen_ai__operation__name="chat"), tracing.http("outer"):
            for _ in range(2):
                if between:
                    with tracing.call("work", SpanKind.INTERNAL), tracing.http("inner"):
                        pass
                else:
                    with tracing.http("inner"):
                        pass

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    found = attributes_of(events)
    assert (found["gen_ai.client.count"], found["http.client.count"]) == (1, 2)
    assert list(found["http.client.hosts"]) == ["inner"]


async def test_call_that_ends_after_the_one_around_it_is_not_counted_again(tracing: Tracing) -> None:
    def spans(depth: int) -> Iterator[Any]:
        context = None
        for number in range(depth):
            kind = {} if number == 1 else {"http.method": "GET"}
            span = tracing.tracer.start_span("GET", context, SpanKind.CLIENT, attributes=kind)
            context = trace.set_span_in_context(span)
            yield span

    async def work(ctx: Any) -> None:
        for span in [*spans(3)]:
            span.end()

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    assert attributes_of(events)["http.client.count"] == 1


async def test_spans_that_never_end_need_limited_memory(tracing: Tracing) -> None:
    sizes = []

    async def work(ctx: Any) -> None:
        for count in (11_000, 5_000):
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(count):
                tracing.tracer.start_span("GET", kind=SpanKind.CLIENT)
            sizes.append(tracemalloc.get_traced_memory()[0] - before)

    tracemalloc.start()
    try:
        await Pipeline("p").with_stage("work", work).run()
    finally:
        tracemalloc.stop()
    assert sizes[0] > 500_000
    assert sizes[1] < 100_000


async def test_forked_child_does_not_wait_for_a_lock_of_its_parent(tracing: Tracing) -> None:
    statuses: list[int] = []

    async def work(ctx: Any) -> None:
        holding, release = threading.Event(), threading.Event()

        def hold() -> None:
            with tracing.processor._lock:
                holding.set()
                release.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait(20)
        pid = os.fork()
        if not pid:
            with tracing.http():
                pass
            os._exit(0)
        release.set()
        thread.join()
        statuses.append(os.waitpid(pid, 0)[1])

    await Pipeline("p").with_stage("work", work).run()
    assert statuses == [0]


async def test_cost_of_a_call_does_not_depend_on_the_number_of_spans_around_it(tracing: Tracing) -> None:
    """2,000 nested spans with one call each: the time would be quadratic in this number."""

    async def work(ctx: Any) -> None:
        opened: list[Any] = []
        context = None
        for _ in range(2_000):
            opened.append(tracing.tracer.start_span("step", context=context))
            context = trace.set_span_in_context(opened[-1])
            with tracing.tracer.start_as_current_span(
                "q", context=context, attributes={"db.system": "postgresql"}
            ):
                pass
        for span in reversed(opened):
            span.end()

    def profile(frame: Any, event: str, argument: object) -> None:
        nonlocal resumed
        resumed += event == "call" and frame.f_code.co_name == "around"

    resumed = 0
    with capture_events() as events:
        sys.setprofile(profile)
        try:
            await Pipeline("p").with_stage("work", work).run()
        finally:
            sys.setprofile(None)
    assert attributes_of(events)["db.count"] == 2_000
    assert resumed < 500_000


@pytest.mark.parametrize("end", [1, -(10**30), 10**30, 10**400, math.nan, math.inf])
async def test_spans_with_invalid_times_are_counted(tracing: Tracing, end: Any) -> None:
    async def work(ctx: Any) -> None:
        attributes = {"http.request.method": "GET", "server.address": "api.example"}
        span = tracing.tracer.start_span("GET", kind=SpanKind.CLIENT, attributes=attributes)
        span.end(end_time=end)

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    found = attributes_of(events)
    assert (found["http.client.count"], found["http.client.ms"]) == (1, 0)
    assert found["http.client.hosts"]["api.example"] == {"count": 1, "ms": 0, "errors": 0}


async def test_span_with_an_invalid_name_is_counted(tracing: Tracing) -> None:
    async def work(ctx: Any) -> None:
        for name in (5, None, "\ud800"):
            with tracing.http(name=name):
                pass

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    found = attributes_of(events)
    assert (found["http.client.count"], found["http.client.hosts"]["api.example"]["count"]) == (3, 3)


async def test_number_of_hosts_is_bounded(tracing: Tracing) -> None:
    async def work(ctx: Any) -> None:
        for number in range(30):
            with tracing.http(f"host-{number}" * 50):
                pass

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    hosts = attributes_of(events)["http.client.hosts"]
    assert len(hosts) == 11
    assert hosts["other"]["count"] == 20
    assert max(map(len, hosts)) <= 200


async def test_calls_of_threads_and_items_belong_to_their_stage(tracing: Tracing) -> None:
    def call(*_: Any) -> None:
        with tracing.http():
            pass

    async def items(ctx: Any) -> list[int]:
        return [1, 2, 3]

    async def gather(ctx: Any) -> None:
        await asyncio.gather(*(asyncio.to_thread(call) for _ in range(20)))

    with capture_events() as events:
        await (
            Pipeline("p")
            .with_stage("items", items)
            .with_map("each", call, over="items")
            .with_stage("gather", gather)
            .run()
        )
    counts = {
        event["stage_name"]: event["attributes"].get("http.client.count")
        for event in events.of_type("stage.wide")
    }
    assert counts == {"items": None, "each": 3, "gather": 20}


async def test_call_that_ends_after_its_stage_is_counted_by_the_processor_only(tracing: Tracing) -> None:
    ended = asyncio.Event()

    async def late() -> None:
        with tracing.http():
            await ended.wait()

    tasks = []

    async def work(ctx: Any) -> None:
        tasks.append(asyncio.create_task(late()))
        await asyncio.sleep(0)

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
        ended.set()
        await asyncio.gather(*tasks)
    assert "http.client.count" not in attributes_of(events)
    assert not events.of_type("stage.wide.amend")
    assert tracing.processor.late_spans == 1


async def test_late_span_of_an_attempt_is_not_added_to_the_next_one(tracing: Tracing) -> None:
    release, tasks = asyncio.Event(), []

    async def background() -> None:
        with tracing.http():
            await release.wait()

    async def flaky(ctx: Any) -> None:
        if ctx.attempt == 1:
            tasks.append(asyncio.create_task(background()))
            await asyncio.sleep(0)
            raise ConnectionError("down")
        release.set()
        await tasks[0]

    with capture_events() as events:
        await Pipeline("p").with_stage("flaky", flaky, retry=Retry(2, wait=0, on=ConnectionError)).run()
    assert ["http.client.count" in event["attributes"] for event in events.of_type("stage.wide")] == [
        False,
        False,
    ]
    assert tracing.processor.late_spans == 1


async def test_spans_outside_of_stages_are_ignored(tracing: Tracing) -> None:
    with tracing.http():
        pass
    assert tracing.processor.late_spans == 0


async def test_kinds_can_be_limited(tracing: Tracing) -> None:
    tracing.provider.shutdown()
    provider = TracerProvider()
    provider.add_span_processor(StageflowSpanProcessor(kinds=("db",)))
    tracing.tracer = provider.get_tracer("test")

    async def work(ctx: Any) -> None:
        with tracing.http(), tracing.call(db__system="sqlite"):
            pass

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    provider.shutdown()
    assert {key for key in attributes_of(events) if key.endswith(".count")} == {"db.count"}


def test_unknown_kind_raises() -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean 'http'"):
        StageflowSpanProcessor(kinds=("htp",))
