"""Annotations of stages and runs: fields, counters, timers, model calls, and late fields.

Each `type: ignore` is for an argument that is invalid on purpose: a type checker and the library reject it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from oracle import pipeline_wide, recorded, stage_wide

import stageflow
from stageflow import (
    JournalSink,
    Pipeline,
    PipelineContext,
    Retry,
    StageContext,
    StageflowError,
    StageGraph,
)
from stageflow._genai import CONVENTION
from stageflow.errors import InvalidArgumentError
from stageflow.events import MemoryEventSink, stats
from stageflow.journal import Journal
from stageflow.testing import VirtualClock


def graph_of(sink: Any, *stages: Any, **options: Any) -> StageGraph:
    pipeline = Pipeline("p")
    for stage in stages:
        pipeline = pipeline.with_stage(stage.__name__, stage, **options)
    return recorded(pipeline, sink)


def attributes(sink: MemoryEventSink, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = stage_wide(sink.events, stage)["attributes"]
    return found


async def test_counters_add_up_in_the_stage_and_in_the_run(sink: MemoryEventSink) -> None:
    async def first(ctx: StageContext) -> None:
        ctx.count("cache.hit")
        ctx.count("cache.hit", 2)
        ctx.count("rows", 0.1)
        ctx.count("rows", 0.2)

    async def second(ctx: StageContext) -> None:
        ctx.count("cache.hit")

    await graph_of(sink, first, second).run()
    assert attributes(sink, "first") == {"cache.hit": 3, "rows": 0.3}
    assert attributes(sink, "second") == {"cache.hit": 1}
    assert pipeline_wide(sink.events)["attributes"] == {"cache.hit": 4, "rows": 0.3}


def test_timer_records_a_count_and_milliseconds(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> None:
        for seconds in (0.25, 0.5):
            with ctx.timer("db") as timer:
                await asyncio.sleep(seconds)
            assert timer.ms == seconds * 1000
        with pytest.raises(ValueError, match="in it"), ctx.timer("db"):
            raise ValueError("in it")

    VirtualClock().run(graph_of(sink, work).run())
    assert attributes(sink, "work") == {"db_count": 3, "db_ms": 750.0}
    assert pipeline_wide(sink.events)["attributes"] == {"db_count": 3, "db_ms": 750.0}


async def test_totals_of_the_run_have_the_attempts_that_were_retried(sink: MemoryEventSink) -> None:
    async def flaky(ctx: StageContext) -> None:
        ctx.count("calls")
        if ctx.attempt == 1:
            raise ConnectionError("once")

    await graph_of(sink, flaky, retry=Retry(attempts=2, wait=0)).run()
    assert attributes(sink, "flaky") == {"calls": 1}
    assert pipeline_wide(sink.events)["attributes"] == {"calls": 2}


async def test_annotate_accepts_names_with_dots_and_annotate_run_sets_fields_of_the_run(
    sink: MemoryEventSink,
) -> None:
    async def work(ctx: StageContext) -> None:
        ctx.annotate({"db.system": "postgresql"}, rows=3)
        ctx.annotate_run({"customer.tier": "gold"}, region="eu")

    await graph_of(sink, work).run()
    assert attributes(sink, "work") == {"db.system": "postgresql", "rows": 3}
    assert pipeline_wide(sink.events)["attributes"] == {"customer.tier": "gold", "region": "eu"}


async def test_module_functions_work_in_functions_called_by_a_stage(sink: MemoryEventSink) -> None:
    def deep() -> None:
        stageflow.annotate(deep=True)
        stageflow.annotate_run(run=True)
        stageflow.count("calls")
        with stageflow.timer("t"):
            pass

    async def work(ctx: StageContext) -> None:
        await asyncio.create_task(asyncio.to_thread(deep))
        own = threading.Thread(target=contextvars.copy_context().run, args=(deep,))
        own.start()
        own.join(10)

    def plain(ctx: StageContext) -> None:
        deep()

    await graph_of(sink, work, plain).run()
    assert attributes(sink, "work") == {
        "deep": True,
        "calls": 2,
        "t_count": 2,
        "t_ms": attributes(sink, "work")["t_ms"],
    }
    assert attributes(sink, "plain")["calls"] == 1
    assert pipeline_wide(sink.events)["attributes"]["run"] is True


def test_module_functions_do_nothing_outside_of_a_stage() -> None:
    stageflow.annotate(x=1)
    stageflow.annotate_run(x=1)
    stageflow.count("x")
    stageflow.record_llm("m")
    stageflow.record_embedding("m")
    stageflow.record_retrieval("i")
    with stageflow.timer("x") as timer:
        pass
    assert timer.ms >= 0


async def test_calls_of_models_are_summed(sink: MemoryEventSink) -> None:
    async def answer(ctx: StageContext) -> None:
        for cost in (0.1, 0.2):
            ctx.record_llm(
                "m-large",
                provider="acme",
                input_tokens=100,
                output_tokens=10,
                cached_tokens=60,
                cost_usd=cost,
                time_to_first_chunk=0.5,
                finish_reason="stop",
            )

    async def search(ctx: StageContext) -> None:
        ctx.record_embedding("e-small", input_tokens=7, vectors=2, dimensions=256)
        ctx.record_retrieval("handbook", documents=4, top_k=5, best_score=0.9)

    await graph_of(sink, answer, search).run()
    assert attributes(sink, "answer") == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "acme",
        "gen_ai.request.model": "m-large",
        "gen_ai.response.finish_reasons": ["stop"],
        "llm.calls": 2,
        "gen_ai.usage.input_tokens": 200,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 120,
        "gen_ai.response.time_to_first_chunk": 1.0,
        "llm.cost_usd": 0.3,
    }
    assert attributes(sink, "search") == {
        "gen_ai.operation.name": "retrieval",
        "gen_ai.request.model": "e-small",
        "gen_ai.embeddings.dimension.count": 256,
        "embedding.calls": 1,
        "embedding.vectors": 2,
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.data_source.id": "handbook",
        "gen_ai.request.top_k": 5,
        "retrieval.best_score": 0.9,
        "retrieval.calls": 1,
        "retrieval.documents": 4,
    }
    run = pipeline_wide(sink.events)["attributes"]
    assert run["gen_ai.usage.input_tokens"] == 207
    assert run["llm.cost_usd"] == 0.3
    assert run["llm.calls"] == 2
    assert CONVENTION == "gen-ai/1.42.0"


async def test_unknown_keyword_is_rejected(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> None:
        # What a type checker refuses, too, has to be refused by the call: not everybody has one.
        with pytest.raises(TypeError, match="tokens_in"):
            ctx.record_llm("m", tokens_in=1)  # type: ignore[call-arg]

    assert (await graph_of(sink, work).run()).ok


class Torn(Mapping[str, Any]):
    """Has names, and a value for none of them."""

    def __getitem__(self, name: str) -> Any:
        raise RuntimeError("torn")

    def __iter__(self) -> Iterator[str]:
        return iter(("a", "b"))

    def __len__(self) -> int:
        return 2

    def __repr__(self) -> str:
        return "<Torn>"


async def test_unreadable_mapping_loses_only_its_own_field(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> None:
        ctx.annotate(rows=1, torn=Torn(), nested={"deep": [Torn(), 2]})
        ctx.annotate(Torn(), more=1)
        ctx.annotate_run(Torn(), more=1)
        ctx.emit_event("note", Torn())
        ctx.emit_event("note", {"torn": Torn(), "n": 1})

    assert (await graph_of(sink, work).run()).ok
    assert attributes(sink, "work") == {
        "rows": 1,
        "torn": "<Torn>",
        "nested": {"deep": ["<Torn>", 2]},
        "fields": "<Torn>",
        "more": 1,
    }
    assert pipeline_wide(sink.events)["attributes"] == {"fields": "<Torn>", "more": 1}
    first, second = sink.of_type("note")
    assert first["payload"] == "<Torn>"
    assert (second["torn"], second["n"]) == ("<Torn>", 1)


async def test_amount_that_is_not_a_number_adds_nothing_and_fails_nothing(
    sink: MemoryEventSink, caplog: pytest.LogCaptureFixture
) -> None:
    nonsense: Any = ["x", None, "password=s3cr3tAb", math.nan, 1 << 5000]

    async def work(ctx: StageContext) -> None:
        for amount in [1, *nonsense, 2]:
            ctx.count("rows", amount)
        ctx.record_llm("m", input_tokens=nonsense[0], output_tokens=3, finish_reason=7)  # type: ignore[arg-type]
        ctx.record_llm("m", input_tokens=5)

    before = stats().coerced_values
    assert (await graph_of(sink, work).run()).ok
    found = attributes(sink, "work")
    assert found["gen_ai.usage.input_tokens"] == 5
    assert found["gen_ai.usage.output_tokens"] == 3
    assert found["gen_ai.response.finish_reasons"] == [7]
    assert stats().coerced_values - before >= 5
    assert "count('rows') ignored the amount 'x', which is not a number (further" in caplog.text
    assert "s3cr3tAb" not in caplog.text


async def test_argument_that_is_not_a_mapping_is_rejected(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> None:
        for wrong in (5, "text", [1]):
            with pytest.raises(InvalidArgumentError, match="fields must be a mapping, got"):
                ctx.annotate(wrong)  # type: ignore[arg-type]
            with pytest.raises(InvalidArgumentError, match="fields must be a mapping, got"):
                ctx.annotate_run(wrong)  # type: ignore[arg-type]

    assert (await graph_of(sink, work).run()).ok


WRONG_CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "annotate": (lambda ctx: ctx.annotate(3), 'write annotate(rows=17), or annotate({"db.rows": 17})'),
    "annotate_run": (lambda ctx: ctx.annotate_run("gold"), "write annotate_run(rows=17)"),
    "annotate outside": (lambda ctx: stageflow.annotate([("rows", 17)]), "write annotate(rows=17)"),
    "count": (lambda ctx: ctx.count(None), 'write count("cache.hit")'),
    "count unhashable": (lambda ctx: stageflow.count(["hits"]), 'write count("cache.hit")'),  # type: ignore[arg-type]
    "timer": (lambda ctx: ctx.timer(3), 'write timer("db")'),
    "emit_event": (lambda ctx: ctx.emit_event({"type": "x"}), 'write emit_event("chat.tokens"'),
    "add_artifact": (lambda ctx: ctx.add_artifact(None), 'write add_artifact("report", payload)'),
    "record_llm": (lambda ctx: ctx.record_llm("m", input_token=3), "did you mean 'input_tokens'?"),
    "record_embedding": (lambda ctx: ctx.record_embedding("m", vector=3), "did you mean 'vectors'?"),
    "record_retrieval": (lambda ctx: ctx.record_retrieval("s", document=3), "did you mean 'documents'?"),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
async def test_wrong_arguments_are_reported_with_what_to_write(sink: MemoryEventSink, call: str) -> None:
    function, remedy = WRONG_CALLS[call]

    async def work(ctx: StageContext) -> None:
        function(ctx)

    results = await graph_of(sink, work).run()
    error = results["work"].exception
    assert isinstance(error, StageflowError)
    assert isinstance(error, TypeError)
    assert remedy in str(error)
    assert "stage 'work'" in str(error)
    assert stage_wide(sink.events, "work")["error_type"] == "InvalidArgumentError"
    assert stage_wide(sink.events, "work")["attributes"] == {}


def test_nested_and_concurrent_timers_count_every_block(sink: MemoryEventSink) -> None:
    async def work(ctx: StageContext) -> None:
        timer = ctx.timer("db")

        async def query(starts: float, takes: float) -> None:
            await asyncio.sleep(starts)
            with timer:
                await asyncio.sleep(takes)
            assert timer.ms == takes * 1000

        with timer:
            await asyncio.sleep(1)
            with timer:
                await asyncio.sleep(2)
            assert timer.ms == 2000
        assert timer.ms == 3000
        await asyncio.gather(query(0, 4), query(1, 5), query(2, 1))
        with timer:
            await asyncio.create_task(asyncio.sleep(0))
        block = contextlib.ExitStack()
        block.enter_context(timer)
        await asyncio.create_task(asyncio.to_thread(block.close))

    VirtualClock().run(graph_of(sink, work).run())
    assert attributes(sink, "work") == {"db_count": 7, "db_ms": 15_000.0}


# ------------------------------------------------------------ too late


async def late(sink: Any, run_id: str) -> None:
    left: list[StageContext] = []

    async def step(ctx: StageContext) -> None:
        ctx.annotate(rows=1)
        ctx.count("calls")
        left.append(ctx)

    await graph_of(sink, step).run(PipelineContext(pipeline_run_id=run_id, user_id="u1"))
    (ctx,) = left
    ctx.annotate(rows=2, password="hunter2")
    ctx.count("calls")
    ctx.annotate_run(late=True)


async def test_fields_set_after_the_end_amend_the_event(sink: MemoryEventSink) -> None:
    await late(sink, "r")
    assert attributes(sink, "step") == {"rows": 1, "calls": 1}
    amendments = [(type, data or {}) for type, data in sink.events if type.endswith(".amend")]
    assert [(type, data["event_id"], data["attributes"], data["redacted"]) for type, data in amendments] == [
        ("stage.wide.amend", "r/step/1", {"rows": 2, "password": "[redacted]"}, 1),
        ("pipeline.wide.amend", "r", {"calls": 2}, 0),
        ("stage.wide.amend", "r/step/1", {"calls": 2}, 0),
        ("pipeline.wide.amend", "r", {"late": True}, 0),
    ]
    assert amendments[0][1]["correlation_ids"]["user_id"] == "u1"


async def test_journal_merges_amendments(tmp_path: Path) -> None:
    sink = JournalSink(tmp_path)
    await late(sink, "r")
    story = Journal(tmp_path).run("r")
    assert story.stages[0]["attributes"] == {"rows": 2, "calls": 2, "password": "[redacted]"}
    assert story.stages[0]["redacted"] == 1
    assert story.run["attributes"] == {"calls": 2, "late": True}
    assert story.events == []
    assert Journal(tmp_path).runs()[0]["attributes"] == {"calls": 2, "late": True}
    sink.close()


# ------------------------------------------------------------ trace context


async def test_calls_of_a_stage_continue_the_trace(sink: MemoryEventSink) -> None:
    headers: list[str] = []

    async def work(ctx: StageContext) -> None:
        headers.append(ctx.traceparent)

    given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
    await graph_of(sink, work).run(PipelineContext(traceparent=given))
    trace = stage_wide(sink.events, "work")["trace"]
    assert headers == [f"00-{trace['trace_id']}-{trace['span_id']}-00"]
    run = pipeline_wide(sink.events)["trace"]
    assert run["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert run["parent_span_id"] == "00f067aa0ba902b7"


async def test_active_opentelemetry_span_is_the_parent(sink: MemoryEventSink) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    async def work(ctx: StageContext) -> None: ...

    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        await graph_of(sink, work).run()
    context = span.get_span_context()
    trace = pipeline_wide(sink.events)["trace"]
    assert trace["trace_id"] == f"{context.trace_id:032x}"
    assert trace["parent_span_id"] == f"{context.span_id:016x}"
