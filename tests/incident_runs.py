"""Writes runs in which, since a few hours ago, those of two customers on one search shard are slow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from stageflow.journal import JournalSink

__all__ = ["HOURS", "ONSET_HOURS", "STAGES", "write_incident"]

STAGES = ("guard", "search", "llm", "answer")
HOURS, ONSET_HOURS = 48, 7
"""When the first run started, and when the incident began, in hours before now."""

_MEDIAN_MS = {"guard": 1.0, "search": 55.0, "llm": 490.0, "answer": 7.0}
_TIME = "%Y-%m-%dT%H:%M:%S.%fZ"


def write_incident(folder: Path, runs: int = 4000) -> Path:
    """Write runs that started evenly in the last 48 hours.

    The stage `llm` has most of the ordinary slow runs, and fails now and then. Since 7 hours ago, most
    runs of the customers acme and initech on the shard eu-4 are slow in `search`. Some fail there, and their
    later stages are skipped.

    Args:
        folder: The journal.
        runs: Number of runs.
    """
    dice = random.Random(11)
    sink = JournalSink(str(folder), fsync="never")
    now = datetime.now(UTC)
    for number in range(runs):
        began = now - timedelta(hours=HOURS * (1 - number / runs))
        is_late = now - began < timedelta(hours=ONSET_HOURS)
        for kind, data in _events(dice, began, number, is_late):
            assert sink.try_emit(type=kind, data=data)
    sink.close()
    return folder


def _events(
    dice: random.Random, began: datetime, number: int, is_late: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    run_id = f"run-{number:06d}"
    org = dice.choice(("globex", "acme", "initech", "umbrella", "hooli"))
    pipeline, shard = dice.choice(("ask", "ask", "ingest")), f"eu-{dice.randrange(1, 7)}"
    is_bad = is_late and org in ("acme", "initech") and shard == "eu-4"
    failing = "search" if is_bad else "llm"
    fails = dice.random() < (0.25 if is_bad else 0.004)
    shared = {
        "correlation_ids": {"pipeline_run_id": run_id, "user_id": f"u{dice.randrange(200)}", "org_id": org},
        "pipeline_metadata": {"service": "bot", "topology": pipeline, "execution_mode": "plain"},
        "schema_version": 1,
        "resource": {"service_version": "2.4.0" if number % 2 else "2.3.9", "host": "h", "pid": 1},
        "redacted": 0,
        "truncated": [],
        "sample_rate": 1,
    }
    clock, error, of_stages = began, None, []
    for name in STAGES:
        ms = 0.0 if error else _MEDIAN_MS[name] * dice.lognormvariate(0, 0.5)
        ms += 3000 * (name == "search" and is_bad and dice.random() < 0.9)
        is_failure = name == failing and fails
        status = "SKIP" if error else "FAIL" if is_failure else "OK"
        error = f"TimeoutError: no answer from {shard}" if is_failure else error
        attributes = {"search": {"shard": shard, "hits": dice.randrange(50)}, "llm": {"model": "m-small"}}
        times = {
            "started_at": clock.strftime(_TIME),
            "ended_at": _later(clock, ms),
            "duration_ms": round(ms, 3),
        }
        failure = {"error_type": "TimeoutError", "error_fingerprint": f"1:{failing}", "error": error}
        stage = {
            **shared,
            **times,
            "event_id": f"{run_id}/{name}",
            "stage_name": name,
            "status": status,
            "attempt": int(status != "SKIP"),
            "attempts": int(status != "SKIP"),
            "queue_ms": 0.0,
            "total_ms": round(ms, 3),
            "dependencies": STAGES[: STAGES.index(name)][-1:],
            "attributes": attributes.get(name, {}),
            "reason": f"{failing} failed" if status == "SKIP" else None,
            **(failure if is_failure else {"error": None}),
        }
        yield "stage.wide", stage
        of_stages.append({"stage_name": name, "status": status, "duration_ms": round(ms, 3), "error": None})
        clock += timedelta(milliseconds=ms)
    ms = (clock - began).total_seconds() * 1000
    yield (
        "pipeline.wide",
        {
            **shared,
            "event_id": run_id,
            "pipeline_name": pipeline,
            "status": "FAIL" if error else "OK",
            "outcome": "failed" if error else "ok",
            "started_at": began.strftime(_TIME),
            "ended_at": clock.strftime(_TIME),
            "duration_ms": round(ms, 3),
            "stages_total": len(STAGES),
            "stages_failed": int(error is not None),
            "stage_summaries": of_stages,
            "critical_path": STAGES,
            "critical_path_ms": round(ms, 3),
            "attributes": {"region": dice.choice(("eu", "us"))},
            "first_failed_stage": failing if error else None,
            **({"error_type": "TimeoutError", "error_fingerprint": f"1:{failing}"} if error else {}),
            "error": error,
        },
    )


def _later(time: datetime, ms: float) -> str:
    return (time + timedelta(milliseconds=ms)).strftime(_TIME)
