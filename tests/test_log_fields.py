"""Tests for the ids of the stage in log lines: the filter of `logging`, structlog and loguru."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from typing import Any

import structlog
from loguru import logger as loguru_logger

from stageflow import Pipeline, Retry, StageLogFilter
from stageflow.integrations import stage_fields
from stageflow.integrations.structlog import add_stage_fields
from stageflow.testing import capture_events


def ids_of(event: dict[str, Any]) -> dict[str, str]:
    return {
        "stage": event["stage_name"],
        "attempt": str(event["attempt"]),
        "pipeline_run_id": event["correlation_ids"]["pipeline_run_id"],
        "topology": event["pipeline_metadata"]["topology"],
        "trace_id": event["trace"]["trace_id"],
        "span_id": event["trace"]["span_id"],
    }


async def test_fields_are_those_of_the_event_of_each_attempt() -> None:
    seen: list[dict[str, str]] = []

    async def flaky(ctx: Any) -> None:
        seen.append(stage_fields())
        await asyncio.to_thread(lambda: seen.append(stage_fields()))
        if ctx.attempt == 1:
            raise ConnectionError("down")

    with capture_events() as events:
        await Pipeline("p").with_stage("flaky", flaky, retry=Retry(2, wait=0, on=ConnectionError)).run()
    stages = events.of_type("stage.wide")
    assert [stage["status"] for stage in stages] == ["RETRY", "OK"]
    assert seen == [ids_of(stages[0]), ids_of(stages[0]), ids_of(stages[1]), ids_of(stages[1])]
    assert stage_fields() == {}


async def test_records_of_logging_have_the_fields_inside_and_outside_of_a_stage() -> None:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.addFilter(StageLogFilter())
    handler.setFormatter(
        logging.Formatter("%(stage)s %(attempt)s %(pipeline_run_id)s %(topology)s %(trace_id)s %(span_id)s")
    )
    log = logging.getLogger("test_log_fields")
    log.addHandler(handler)
    log.propagate = False

    def work(ctx: Any) -> None:
        log.warning("inside")

    with capture_events() as events:
        await Pipeline("p").with_stage("work", work).run()
    log.warning("outside")
    (event,) = events.of_type("stage.wide")
    assert output.getvalue().splitlines() == [" ".join(ids_of(event).values()), "- - - - - -"]


async def test_structlog_and_loguru_add_the_fields() -> None:
    lines, records = io.StringIO(), list[dict[str, Any]]()
    log = structlog.wrap_logger(
        structlog.PrintLogger(lines), processors=[add_stage_fields, structlog.processors.JSONRenderer()]
    )
    patched = loguru_logger.patch(lambda record: record["extra"].update(stage_fields()))
    sink = loguru_logger.add(lambda message: records.append(message.record["extra"]), level="INFO")

    def work(ctx: Any) -> None:
        log.info("inside", attempt="own")
        patched.info("inside")

    try:
        with capture_events() as events:
            await Pipeline("p").with_stage("work", work).run()
        log.info("outside")
        patched.info("outside")
    finally:
        loguru_logger.remove(sink)
    (event,) = events.of_type("stage.wide")
    inside, outside = map(json.loads, lines.getvalue().splitlines())
    assert inside == {"event": "inside", **ids_of(event), "attempt": "own"}
    assert outside == {"event": "outside"}
    assert records == [ids_of(event), {}]
