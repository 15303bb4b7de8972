"""`LoggingEventSink`: one readable line an event, the payload as JSON at its end, FAIL at ERROR."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from stageflow import Pipeline
from stageflow.events import LoggingEventSink
from stageflow.observability import WideEventEmitter


async def fine(ctx: Any) -> dict[str, int]:
    ctx.emit_event("cache.miss", {"key": "k1"})
    return {"n": 1}


async def broken(ctx: Any) -> None:
    raise ValueError("two\nlines")


async def logged(sink: LoggingEventSink, caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    caplog.set_level(logging.DEBUG, "stageflow")
    graph = (
        Pipeline("p")
        .with_stage("fine", fine)
        .with_stage("broken", broken, dependencies=("fine",))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    await graph.run()
    return [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_event_is_logged_as_one_line_with_its_payload_as_json(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = await logged(LoggingEventSink(), caplog)
    assert [level for level, _ in lines] == ["INFO", "INFO", "ERROR", "ERROR"]
    heads = [text[: text.index("{")] for _, text in lines]
    assert heads[0] == "cache.miss fine "
    assert heads[1].startswith("stage.wide fine OK ")
    assert heads[1].endswith(" ms ")
    assert heads[2].startswith("stage.wide broken FAIL ")
    assert heads[2].endswith(" ms ValueError: two ")
    assert heads[3].startswith("pipeline.wide p FAIL ")
    assert all("\n" not in text for _, text in lines)
    payloads = [json.loads(text[text.index("{") :]) for _, text in lines]
    assert payloads[2]["error"] == "ValueError: two\nlines"


async def test_level_is_configurable_and_disabled_levels_build_no_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines = await logged(LoggingEventSink("DEBUG"), caplog)
    assert [level for level, _ in lines] == ["DEBUG", "DEBUG", "ERROR", "ERROR"]
    with pytest.raises(ValueError, match=r"level must be a logging level such as .*, got 'loud'"):
        LoggingEventSink("loud")


async def test_line_of_a_stage_event_names_the_stage_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def stage(ctx: Any) -> None:
        ctx.emit_event("note", {"pipeline_name": "another"})

    caplog.set_level(logging.DEBUG, "stageflow")
    emitter = WideEventEmitter(LoggingEventSink())
    await Pipeline("p").with_stage("s", stage).build(wide_event_emitter=emitter).run()
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("note "))
    assert line.partition("{")[0].split() == ["note", "s"]
