"""The dashboard of docs/export-recipes.md: its SQL against a real PostgreSQL server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_server import postgres_server
from psycopg.rows import dict_row

from stageflow import JournalSink, Pipeline, PipelineContext, Retry
from stageflow.export import ExportRunner, ExportSettings, PostgresExporter
from stageflow.observability import WideEventEmitter

PAGE = Path(__file__).parents[1] / "docs" / "export-recipes.md"
(DASHBOARD,) = (json.loads(block) for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL))
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"]}


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres_server() as url:
        yield url


@pytest.fixture
def exported(database: str, tmp_path: Path) -> str:
    """A database with two runs that succeed, one of them after a retry, and one that fails."""
    sink = JournalSink(tmp_path / "journal")

    async def charge(ctx: Any) -> None:
        ctx.record_llm("m", cost_usd=0.25)
        ctx.count("http.client.count", 2)
        if ctx.run.data == "flaky" and ctx.attempt == 1:
            raise ConnectionError("again")
        if ctx.run.data == "broken":
            raise ValueError("no card")

    graph = (
        Pipeline("checkout")
        .with_stage("charge", charge, retry=Retry(2, wait=0, on=ConnectionError))
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )

    async def run() -> None:
        for data in ("good", "flaky", "broken"):
            await graph.run(PipelineContext(data=data))

    asyncio.run(run())
    sink.close()
    exporter = PostgresExporter(database)
    runner = ExportRunner(tmp_path / "journal", exporter, settings=ExportSettings(batch_seconds=0.02))
    runner.request_stop(60, drain=True)
    runner.run()
    assert runner.state.counters.rejected == 0
    return database


def rows_of(database: str, title: str) -> list[dict[str, Any]]:
    """Return the rows of a panel for the last hour, with the macros that Grafana replaces."""
    (target,) = PANELS[title]["targets"]
    end = datetime.now(UTC) + timedelta(minutes=1)
    start, end_text = (end - timedelta(hours=1)).isoformat(), end.isoformat()
    group = r"floor(extract(epoch from \1)/60)*60 AS \"time\"".replace('\\"', '"')
    sql = re.sub(r"\$__timeGroupAlias\((\w+), \$__interval\)", group, target["rawSql"])
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN '{start}' AND '{end_text}'", sql)
    sql = sql.replace("$__timeFrom()", f"'{start}'").replace("$__timeTo()", f"'{end_text}'")
    assert "$" not in sql
    with psycopg.connect(database, row_factory=dict_row) as connection:
        return connection.execute(sql.encode()).fetchall()


def test_panels_show_the_exported_runs(exported: str) -> None:
    outcomes = rows_of(exported, "Runs by outcome")
    assert {row["metric"]: row["value"] for row in outcomes} == {"ok": 2, "failed": 1}
    (duration,) = rows_of(exported, "Duration of runs, 95th percentile")
    assert duration["metric"] == "checkout"
    assert duration["value"] > 0
    (error,) = rows_of(exported, "Errors")
    assert (error["stage_name"], error["error_type"], error["stages"]) == ("charge", "ValueError", 1)
    assert "no card" in error["last_error"]
    assert re.fullmatch("[0-9a-f]{32}", error["last_trace"])
    (stage,) = rows_of(exported, "Stages")
    assert (stage["attempts"], stage["retries"], stage["failures"]) == (4, 1, 1)
    (cost,) = rows_of(exported, "Cost of models (USD) and calls to other services")
    assert (float(cost["cost_usd"]), int(cost["http_calls"]), cost["queries"]) == (1.0, 8, None)


def test_panels_do_not_overlap_and_use_the_data_source_of_the_dashboard() -> None:
    cells = [
        (x, y)
        for panel in PANELS.values()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {panel["datasource"]["uid"] for panel in PANELS.values()} == {"${datasource}"}
