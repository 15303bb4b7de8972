"""What the journal costs its caller, beside a dict, a fast JSON encoder and one write."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from stageflow import JournalSink, PipelineContext, StageKind, StageResult, StageStatus
from stageflow.observability import WideEventEmitter
from stageflow.observability._run_context import run_context_of, start_run

from .rounds import Contestant, measure

__all__ = ["bench_journal"]

_EVENTS = 500


async def bench_journal(rounds: int, folder: str) -> None:
    """Print the median time of one event, and the ratio to the same event written by hand."""
    now = time.time_ns()
    context, _ = start_run(PipelineContext(user_id="u1", org_id="o1"), "p", now, 0)
    result = StageResult(
        "search",
        StageStatus.OK,
        {"documents": [], "took": 1},
        attempt=1,
        attempts=1,
        ready_ns=now,
        started_ns=now + 5_000,
        ended_ns=now + 1_234_000,
        kind=StageKind.TRANSFORM,
        dependencies=("parse",),
        attributes={"hits": 12, "index": "main", "cached": False},
    )

    def ours(**options: Any) -> Contestant:
        emitter = WideEventEmitter(JournalSink(os.path.join(folder, str(len(os.listdir(folder)))), **options))

        async def emit() -> None:
            for _ in range(_EVENTS):
                emitter.emit_stage_wide("search", result, context)

        return emit

    found = await measure(
        {
            "dict, JSON, one write": _by_hand(folder, result, context),
            "journal, fsync never": ours(fsync="never"),
            "journal, fsync interval": ours(),
        },
        rounds,
    )
    print(f"{'one stage.wide event':<28}{'an event':>10}{'ratio':>9}")
    for title, (seconds, ratio) in found.items():
        print(f"  {title:<26}{seconds / _EVENTS * 1e6:>7.2f} us{ratio:>9.2f}")
    print()


def _by_hand(folder: str, result: StageResult, context: PipelineContext) -> Contestant:
    """Write the same line as the journal: all values at hand, only the moments to be formatted."""
    fd = os.open(Path(folder, "by-hand.ndjson"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    encode = msgspec.json.Encoder().encode
    record = run_context_of(context)
    host, pid = os.uname().nodename, os.getpid()

    def moment(ns: int) -> str:
        return datetime.fromtimestamp(ns / 1e9, UTC).isoformat()

    async def emit() -> None:
        for _ in range(_EVENTS):
            data = {
                "stage_name": result.name,
                "status": "OK",
                "duration_ms": (result.ended_ns - result.started_ns) / 1e6,
                "started_at": moment(result.started_ns),
                "ended_at": moment(result.ended_ns),
                "error": None,
                "data_keys": list(result.data),
                "artifacts_count": 0,
                "events_count": 0,
                "correlation_ids": {
                    "pipeline_run_id": record.run_id,
                    "request_id": None,
                    "session_id": None,
                    "user_id": context.user_id,
                    "org_id": context.org_id,
                },
                "pipeline_metadata": {
                    "service": context.service,
                    "topology": context.topology,
                    "execution_mode": context.execution_mode,
                },
                "schema_version": 1,
                "event_id": f"{record.run_id}/{result.name}/{result.attempt}",
                "kind": "transform",
                "attempt": result.attempt,
                "attempts": result.attempts,
                "reason": None,
                "error_type": None,
                "exception": None,
                "dependencies": list(result.dependencies),
                "missing_inputs": [],
                "queue_ms": (result.started_ns - result.ready_ns) / 1e6,
                "total_ms": (result.ended_ns - result.ready_ns) / 1e6,
                "retry_after_ms": None,
                "abandoned": False,
                "outcome_by": None,
                "attributes": dict(result.attributes),
                "resource": {"service_version": None, "host": host, "pid": pid, "runtime": "cpython 3.11.7"},
                "trace": {
                    "trace_id": "0" * 31 + "1",
                    "span_id": "0" * 15 + "2",
                    "parent_span_id": "0" * 15 + "3",
                },
                "sample_rate": 1,
            }
            os.write(fd, encode({"type": "stage.wide", "data": data}) + b"\n")

    return emit
