"""The user's page works as printed: each of its blocks runs, taken from the file as it stands.

The page is kept beside the project, not in it. Where it is not there, nothing here is collected.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import dis
import inspect
import json
import re
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import stageflow
from stageflow import (
    EventSink,
    Pipeline,
    PipelineContext,
    StageKind,
    StageOutput,
    StageResult,
    StageStatus,
    set_event_sink,
)
from stageflow.events import MemoryEventSink, clear_event_sink
from stageflow.observability import WideEventEmitter, emit_pipeline_wide, emit_stage_wide
from stageflow.schema import json_schemas

REFERENCE = Path(__file__).parents[1].parent / "shared" / "reference"
PAGES = sorted(REFERENCE.glob("*.txt"))


def blocks(language: str) -> list[str]:
    return [
        block
        for page in PAGES
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


def is_signature(block: str) -> bool:
    if block.startswith("WideEventEmitter(event_sink: "):
        return True
    return block.startswith("def ") and block.rstrip().endswith(") -> None")


PYTHON = blocks("python")
RUNNABLE = [block for block in PYTHON if not is_signature(block)]
SIGNATURES = [block for block in PYTHON if is_signature(block)]


class Stage1:
    async def execute(self, ctx: Any) -> StageOutput:
        return StageOutput.ok(done=True)


def names_to_add(block: str) -> set[str]:
    """Return the names that a block uses and does not define."""
    code = compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    used, defined, inner = set(), set(), [code]
    while inner:
        at = inner.pop()
        inner += [constant for constant in at.co_consts if inspect.iscode(constant)]
        for step in dis.get_instructions(at):
            if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
                used.add(step.argval)
            elif step.opname == "STORE_NAME":
                defined.add(step.argval)
    return used - defined - set(dir(builtins)) - {"__name__"}


def offered() -> dict[str, Any]:
    result = StageResult("llm_stage", StageStatus.OK, {"response": "hi"})
    pipeline = Pipeline().with_stage("stage1", Stage1, StageKind.TRANSFORM)
    return {
        "Any": Any,
        "Pipeline": Pipeline,
        "StageKind": StageKind,
        "StageOutput": StageOutput,
        "StageStatus": StageStatus,
        "Stage1": Stage1,
        "WideEventEmitter": WideEventEmitter,
        "EventSink": EventSink,
        "ctx": PipelineContext(user_id="u1"),
        "emitter": WideEventEmitter(),
        "graph": pipeline.build(),
        "json": json,
        "pipeline": pipeline,
        "result": result,
        "results": {"llm_stage": result},
        "time": time,
    }


async def run_block(block: str, **more: Any) -> dict[str, Any]:
    pool = {**offered(), **more}
    missing = names_to_add(block)
    assert missing <= pool.keys(), f"the block uses {missing - pool.keys()}"
    namespace = {"__name__": "page", **{name: pool[name] for name in missing}}
    # A block may await at its top level.
    code = compile(block, "page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = eval(code, namespace)
    if inspect.isawaitable(outcome):
        await outcome
    return namespace


def block_with(text: str) -> str:
    (found,) = [block for block in RUNNABLE if text in block]
    return found


if PAGES:

    @pytest.mark.parametrize("block", RUNNABLE, ids=range(len(RUNNABLE)))
    async def test_code_block_of_the_page_runs(block: str) -> None:
        await run_block(block)

    def test_documented_signatures_are_compatible() -> None:
        assert len(SIGNATURES) == 3
        parameters = inspect.signature(WideEventEmitter).parameters
        assert list(parameters) == ["event_sink"]
        assert parameters["event_sink"].default is None
        for block in SIGNATURES:
            if not block.startswith("def "):
                continue
            (printed,) = ast.parse(block.rstrip() + ": ...").body
            assert isinstance(printed, ast.FunctionDef)
            ours = inspect.signature(getattr(stageflow.observability, printed.name))
            assert list(ours.parameters) == [arg.arg for arg in printed.args.args]
            assert ours.parameters["event_sink"].default is None

    async def test_basic_setup_emits_to_the_configured_sink() -> None:
        sink = MemoryEventSink()
        set_event_sink(sink)
        try:
            page = await run_block(block_with("class InputStage:"))
        finally:
            clear_event_sink()
        assert page["results"].data("llm") == {"response": "LLM response to: processed input"}
        assert [event["stage_name"] for event in sink.of_type("stage.wide")] == ["input", "llm"]
        assert len(sink.of_type("pipeline.wide")) == 1

    async def test_custom_emitter_prints_failures(capsys: pytest.CaptureFixture[str]) -> None:
        def broken(ctx: Any) -> StageOutput:
            return StageOutput.fail("no model")

        pipeline = Pipeline().with_stage("llm", broken)
        page = await run_block(block_with("class CustomWideEventEmitter"), pipeline=pipeline)
        await page["graph"].run()
        assert capsys.readouterr().out == "Stage llm failed: no model\n"

    async def test_analytics_sink_prints_each_event(capsys: pytest.CaptureFixture[str]) -> None:
        page = await run_block(block_with("class AnalyticsEventSink"))
        await page["graph"].run()
        assert await stageflow.flush()
        printed = capsys.readouterr().out.split("Analytics: ")[1:]
        assert [text.split(" - ")[0] for text in printed] == ["stage.wide", "pipeline.wide"]
        assert json.loads(printed[0].split(" - ", 1)[1])["stage_name"] == "stage1"

    async def test_monitor_prints_slow_stages(capsys: pytest.CaptureFixture[str]) -> None:
        page = await run_block(block_with("class PerformanceMonitoringEmitter"))
        slow = StageResult("llm", StageStatus.OK, started_ns=10**9, ended_ns=4 * 10**9)
        page["monitor"].emit_stage_wide("llm", slow, PipelineContext())
        assert capsys.readouterr().out == ("ALERT: Stage llm took 3000.0ms (threshold: 2000ms)\n")

    async def test_tracker_counts_errors(capsys: pytest.CaptureFixture[str]) -> None:
        def broken(ctx: Any) -> None:
            raise ValueError("boom")

        pipeline = Pipeline().with_stage("llm", broken)
        page = await run_block(block_with("class ErrorTrackingEmitter"), pipeline=pipeline)
        summary = page["error_summary"]
        assert summary["total_errors"] == 1
        assert summary["errors_by_stage"] == {"llm": 1}
        (recent,) = summary["recent_errors"]
        assert (recent["stage"], recent["error"]) == ("llm", "ValueError: boom")
        assert recent["run_id"] == page["results"].context.pipeline_run_id
        assert capsys.readouterr().out.startswith("Errors: {'total_errors': 1")

    async def test_database_sink_receives_every_event() -> None:
        class Database:
            def __init__(self) -> None:
                self.rows: list[dict[str, Any]] = []

            async def insert(self, table: str, row: dict[str, Any]) -> None:
                self.rows.append(row)

        page = await run_block(block_with("class DatabaseEventSink"))
        sink = page["DatabaseEventSink"]()
        sink.db = Database()
        graph = (
            Pipeline()
            .with_stage("stage1", Stage1)
            .build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(event_sink=sink),
            )
        )
        await graph.run()
        assert await stageflow.flush()
        assert [row["type"] for row in sink.db.rows] == ["stage.wide", "pipeline.wide"]

    def shape(value: Any) -> Any:
        """Return the names, nesting and JSON types of a value."""
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shape(value[0])] if value else []
        return "number" if isinstance(value, (int, float)) else type(value).__name__

    @pytest.mark.parametrize("event_type", ["stage.wide", "pipeline.wide"])
    def test_event_has_the_top_level_keys_of_the_page(event_type: str) -> None:
        examples = [json.loads(block) for block in blocks("json") if '"OK|' not in block]
        (example,) = [
            example for example in examples if ("stage_name" in example) == (event_type == "stage.wide")
        ]
        sink = MemoryEventSink()
        context = PipelineContext(
            **{
                **dict.fromkeys(example["correlation_ids"], "x"),
                **example["pipeline_metadata"],
            }
        )
        stage = StageResult("llm_stage", StageStatus.OK, {"response": 1}, ended_ns=10**9)
        emit_stage_wide("llm_stage", stage, context, sink)
        emit_pipeline_wide({"llm_stage": stage}, context, sink)
        (event,) = sink.of_type(event_type)
        assert shape({key: event[key] for key in example}) == shape(example)
        # The page's own examples are valid where they speak; the rest of our keys are additive.
        schema = json_schemas()[event_type]
        definition = schema["$defs"]["StageWide" if event_type == "stage.wide" else "PipelineWide"]
        for key, value in example.items():
            jsonschema.validate(value, {**definition["properties"][key], "$defs": schema["$defs"]})
        jsonschema.validate(event, schema)


def test_manual_emission_does_not_require_an_event_loop() -> None:
    sink = MemoryEventSink()
    emit_stage_wide("s", StageResult("s", StageStatus.OK), PipelineContext(), sink)
    assert asyncio._get_running_loop() is None
    assert len(sink.events) == 1
