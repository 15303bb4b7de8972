"""Tests the schema of the events: the field roles, and the field order that readers and builders need."""

from __future__ import annotations

import inspect
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from stageflow import Pipeline, _wide
from stageflow._wide import build_pipeline_wide, build_stage_wide
from stageflow.events import MemoryEventSink
from stageflow.journal._format import line_start
from stageflow.observability import WideEventEmitter
from stageflow.schema import (
    CUSTOM_EVENT_KEYS,
    CorrelationIds,
    ExceptionInfo,
    Items,
    PipelineMetadata,
    PipelineWide,
    ProcessSample,
    Resource,
    RunIdentity,
    RunOpen,
    StageSummary,
    StageWide,
    Stream,
    Trace,
    Worker,
    roles,
    span_id,
)

RUN = RunIdentity(
    event_id="run",
    pipeline_name="pipeline",
    correlation_ids=CorrelationIds("run", "request", "session", "user", "org"),
    pipeline_metadata=PipelineMetadata("service", "topology", "mode"),
    parent_run_id="parent",
    root_run_id="root",
    resource=Resource("1.0", "host", 7, "python"),
    trace=Trace("a" * 32, "b" * 16, None),
)


def leaves(shape: type[Struct]) -> set[str]:
    """The fields of an event, with the fields of an object in its place if the store has columns for them."""
    found = set()
    for name in shape.__struct_fields__:
        nested = {
            "correlation_ids": CorrelationIds,
            "pipeline_metadata": PipelineMetadata,
            "resource": Resource,
            "trace": Trace,
            "items": Items,
            "stream": Stream,
            "worker": Worker,
        }.get(name)
        prefix = f"{name}_" if nested in (Items, Stream, Worker) else ""
        found |= {name} if nested is None else {prefix + part for part in nested.__struct_fields__}
    return found


@pytest.mark.parametrize("shape", [StageWide, PipelineWide])
def test_each_field_of_a_wide_event_has_a_role(shape: type[Struct]) -> None:
    assert leaves(shape) - {"process"} <= roles(shape).keys()


def test_each_field_of_a_stage_event_gets_its_own_value() -> None:
    """Events are built by position, and a type checker cannot detect two swapped fields."""
    values: dict[str, Any] = {
        "stage_name": "stage",
        "status": "FAIL",
        "started_us": 2_000_000,
        "ended_us": 5_000_000,
        "ready_us": 1_000_000,
        "sequence": 3,
        "attempt": 4,
        "attempts": 5,
        "kind": "work",
        "dependencies": ("dependency",),
        "error": "error",
        "reason": "reason",
        "error_type": "error type",
        "exception": ExceptionInfo("type", "message", [], []),
        "data_keys": ["key"],
        "artifacts_count": 6,
        "events_count": 7,
        "missing_inputs": ["missing"],
        "retry_after_ms": 8.0,
        "abandoned": True,
        "outcome_by": "interceptor",
        "attributes": {"attribute": 1},
        "redacted": 9,
        "truncated": ["truncated"],
        "loop_blocked_ms": 10.0,
        "items": Items(total=11, ok=12, failed=13, skipped=14, retried=15),
        "child_runs": ["child_runs"],
        "child_runs_total": 16,
        "stream": Stream(chunks=17, bytes=18, first_chunk_ms=19.0, blocked_ms=20.0, abandoned=True),
        "worker": Worker("host", 21, "process", 22.0),
        "log_tail": ["log_tail"],
        "log_warnings": 23,
        "log_errors": 24,
        "error_fingerprint": "1:ab",
    }
    assert [*values] == list(inspect.signature(build_stage_wide).parameters)[2:]
    event = msgspec.to_builtins(build_stage_wide(RUN, 11, *values.values()))
    times = {"started_us", "ended_us", "ready_us", "sequence", "dependencies"}
    assert {name: event[name] for name in values if name not in times} == {
        name: msgspec.to_builtins(value) for name, value in values.items() if name not in times
    }
    derived = {name: value for name, value in event.items() if name not in values}
    assert derived == {
        "duration_ms": 3000.0,
        "started_at": "1970-01-01T00:00:02.000000Z",
        "ended_at": "1970-01-01T00:00:05.000000Z",
        "queue_ms": 1000.0,
        "total_ms": 4000.0,
        "correlation_ids": msgspec.to_builtins(RUN.correlation_ids),
        "pipeline_metadata": msgspec.to_builtins(RUN.pipeline_metadata),
        "resource": msgspec.to_builtins(RUN.resource),
        "trace": {
            "trace_id": "a" * 32,
            "span_id": span_id(11, 3, 4),
            "parent_span_id": "b" * 16,
        },
        "schema_version": 1,
        "event_id": "run/stage/4",
        "sample_rate": 1,
    }
    assert event["dependencies"] == ["dependency"]


def test_each_field_of_a_pipeline_event_gets_its_own_value() -> None:
    summaries = [
        StageSummary("a", "OK", 1.0, None),
        *[StageSummary("b", "FAIL", 1.0, None)] * 2,
        *[StageSummary("c", "SKIP", 1.0, None)] * 3,
        *[StageSummary("d", "CANCEL", 1.0, None)] * 4,
    ]
    values: dict[str, Any] = {
        "error": "error",
        "reason": "reason",
        "error_type": "error type",
        "exception": ExceptionInfo("type", "message", [], []),
        "first_failed_stage": "b",
        "critical_path": ["path"],
        "critical_path_ms": 5.0,
        "stages_abandoned": 6,
        "attributes": {"attribute": 1},
        "redacted": 7,
        "truncated": ["truncated"],
        "process": ProcessSample(8.0, 9, 10.0, 11.0),
        "error_fingerprint": "1:ab",
    }
    assert [*values] == list(inspect.signature(build_pipeline_wide).parameters)[5:]
    event = msgspec.to_builtins(
        build_pipeline_wide(RUN, "timeout", 2_000_000, 5_000_000, summaries, **values)
    )
    assert event == {
        **msgspec.to_builtins(values),
        "status": "FAIL",
        "duration_ms": 3000.0,
        "started_at": "1970-01-01T00:00:02.000000Z",
        "ended_at": "1970-01-01T00:00:05.000000Z",
        "stages_total": 10,
        "stages_completed": 1,
        "stages_failed": 2,
        "stages_skipped": 3,
        "stages_cancelled": 4,
        "stage_summaries": msgspec.to_builtins(summaries),
        "correlation_ids": msgspec.to_builtins(RUN.correlation_ids),
        "pipeline_metadata": msgspec.to_builtins(RUN.pipeline_metadata),
        "schema_version": 1,
        "event_id": "run",
        "pipeline_name": "pipeline",
        "outcome": "timeout",
        "parent_run_id": "parent",
        "root_run_id": "root",
        "resource": msgspec.to_builtins(RUN.resource),
        "trace": msgspec.to_builtins(RUN.trace),
        "sample_rate": 1,
    }


def test_start_mark_begins_with_the_identity_of_the_run() -> None:
    identity, mark = RunIdentity.__struct_fields__, RunOpen.__struct_fields__
    assert mark == (*identity, "started_at", "emits_stages", "emits_pipeline", "stages")


def test_timestamps_of_an_event_that_crosses_a_second_agree_with_its_duration() -> None:
    event = build_stage_wide(RUN, 1, "s", "OK", 1_999_999, 2_000_001, 1_999_999, 0, 1, 1, None, ())
    assert (event.started_at, event.ended_at) == (
        "1970-01-01T00:00:01.999999Z",
        "1970-01-01T00:00:02.000001Z",
    )
    assert event.duration_ms == 0.002


def test_counts_of_a_pipeline_event_are_those_of_its_summaries() -> None:
    statuses = ("OK", "OK", "SKIP", "FAIL", "FAIL", "FAIL", "CANCEL")
    summaries = [StageSummary(f"s{i}", status, 1.0, None) for i, status in enumerate(statuses)]  # type: ignore[arg-type]
    event = build_pipeline_wide(RUN, "failed", 0, 1000, summaries)
    counts = (event.stages_completed, event.stages_skipped, event.stages_failed, event.stages_cancelled)
    assert (event.stages_total, *counts) == (7, 2, 1, 3, 1)
    assert event.status == "FAIL"
    assert set(_wide.GOOD_OUTCOMES) == {"ok", "degraded", "stopped"}


def test_failed_run_is_recognized_by_the_prefix_of_its_line() -> None:
    assert PipelineWide.__struct_fields__[:3] == ("status", "duration_ms", "started_at")


def test_span_ids_are_never_all_zero_and_differ_between_attempts() -> None:
    assert span_id(0) == "0" * 15 + "1" == span_id(1 << 64)
    assert len({span_id(7, stage, attempt) for stage in range(50) for attempt in range(1, 51)}) == 2500
    assert span_id(7, 3, 0) == span_id(7, 3, 1)  # calls of `when=` belong to the first attempt


def test_line_start_accepts_only_the_first_fields_of_an_event() -> None:
    assert line_start("pipeline.wide", status="OK") == b'{"type":"pipeline.wide","data":{"status":"OK"'
    with pytest.raises(ValueError, match=r"first fields of pipeline\.wide"):
        line_start("pipeline.wide", outcome="failed")


def test_custom_event_has_the_keys_that_readers_separate_from_its_payload() -> None:
    async def stage(ctx: Any) -> None:
        ctx.emit_event("note", {"n": 1})

    sink = MemoryEventSink()
    graph = Pipeline("p").with_stage("s", stage).build(wide_event_emitter=WideEventEmitter(sink))
    graph.run_sync()
    (note,) = sink.of_type("note")
    assert set(note) == {"n", *CUSTOM_EVENT_KEYS}
