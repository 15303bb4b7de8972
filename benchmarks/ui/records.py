"""Runs of a chat service with a planted cause, written to a journal and moved to its archive."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from stageflow.journal import JournalSink
from stageflow.store import Compactor

__all__ = ["STAGES", "archive_runs", "events_of_run", "write_runs"]

STAGES = ("guard", "search", "rank", "llm", "answer")
_BEFORE = dict(zip(STAGES[1:], STAGES, strict=False))
_LOG_MEAN_MS = {"guard": 0.0, "search": 4.0, "rank": 3.0, "llm": 6.2, "answer": 2.0}
_ORGS = ("globex", "acme", "initech", "umbrella", "hooli", "stark", "wayne")
_MODELS = ("m-small", "m-large", "m-mini")
_NEW_AFTER = 0.85
"""The share of the time after which the service has a new version, which fails for one org and model."""


def write_runs(path: str, runs: int, *, days: float = 2.0, seed: int = 7) -> None:
    """Write runs that started in the last days, evenly distributed.

    Args:
        path: Directory of the journal.
        runs: Number of runs, with five stages each.
        days: The time in which they started.
        seed: Determines all values.
    """
    dice = random.Random(seed)
    sink = JournalSink(path, fsync="never")
    until = datetime.now(UTC)
    since = until - timedelta(days=days)
    for number in range(runs):
        share = number / runs
        for kind, data in events_of_run(
            dice, since + (until - since) * share, number, is_new=share > _NEW_AFTER
        ):
            sink.try_emit(type=kind, data=data)
    sink.close()


def archive_runs(path: str, runs: int, *, at_once: int = 200_000) -> None:
    """Write runs and move them to the archive, in parts that fit on the disk.

    Args:
        path: Directory of the journal.
        runs: Number of runs.
        at_once: Number of runs of a part.
    """
    for part in range(-(-runs // at_once)):
        write_runs(path, min(at_once, runs - part * at_once), seed=part)
        Compactor(path).compact()


def events_of_run(
    dice: random.Random, started: datetime, number: int, *, is_new: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of one run; the last one is its `pipeline.wide` event."""
    milliseconds = int(started.timestamp() * 1e3)
    run_id = (
        f"{milliseconds >> 16:08x}-{milliseconds & 0xFFFF:04x}-7{dice.randrange(4096):03x}"
        f"-8{dice.randrange(4096):03x}-{dice.randrange(1 << 48):012x}"
    )
    org, model = dice.choice(_ORGS), dice.choice(_MODELS)
    pipeline = dice.choice(("ask", "ask", "ask", "ingest"))
    is_bad = pipeline == "ask" and is_new and org == "globex" and model == "m-large"
    fails = dice.random() < (0.6 if is_bad else 0.006)
    common = {
        "correlation_ids": {
            "pipeline_run_id": run_id,
            "request_id": f"req-{number}",
            "session_id": f"s-{number // 5}",
            "user_id": f"u{dice.randrange(300)}",
            "org_id": org,
        },
        "pipeline_metadata": {"service": "chat", "topology": pipeline, "execution_mode": "plain"},
        "schema_version": 1,
        "resource": {
            "service_version": "2.4.0" if is_new else "2.3.9",
            "host": f"host-{dice.randrange(6)}",
            "pid": 100 + dice.randrange(4),
            "runtime": "cpython 3.11.7",
            "environment": "prod",
            "commit": None,
        },
        "redacted": 0,
        "truncated": [],
        "sample_rate": 1,
        "exception": None,
    }
    clock, summaries, error = started, [], None
    for name in STAGES:
        ms = dice.lognormvariate(_LOG_MEAN_MS[name], 0.5)
        if name == "llm" and is_bad and dice.random() < 0.7:
            ms *= 6
        status, kind = "OK", None
        if error is not None:
            status, ms = "SKIP", 0.0
        elif name == "llm" and fails:
            status, kind = "FAIL", dice.choice(("TimeoutError", "TimeoutError", "RateLimitError"))
            error = f"{kind}: no answer from {model}"
        ended = clock + timedelta(milliseconds=ms)
        attempts = 0 if status == "SKIP" else 1
        attributes: dict[str, Any] = {}
        if name == "llm":
            attributes = {
                "model": model,
                "prompt_tokens": dice.randrange(20, 4000),
                "usd": dice.random() / 50,
            }
        elif name == "search":
            attributes = {"hits": dice.randrange(50)}
        yield (
            "stage.wide",
            common
            | {
                "stage_name": name,
                "event_id": f"{run_id}/{name}/{attempts}",
                "kind": "work",
                "status": status,
                "started_at": _text(clock),
                "ended_at": _text(ended),
                "duration_ms": round(ms, 3),
                "queue_ms": round(dice.random(), 3),
                "total_ms": round(ms, 3),
                "attempt": attempts,
                "attempts": attempts,
                "dependencies": [_BEFORE[name]] if name in _BEFORE else [],
                "error": error if kind else None,
                "error_type": kind,
                "error_fingerprint": _fingerprint(kind),
                "reason": "llm failed" if status == "SKIP" else None,
                "data_keys": [],
                "artifacts_count": 0,
                "events_count": 0,
                "attributes": attributes,
            },
        )
        summaries.append({"stage_name": name, "status": status, "duration_ms": round(ms, 3), "error": None})
        clock = ended
    ms = (clock - started).total_seconds() * 1e3
    kind = error.partition(":")[0] if error else None
    yield (
        "pipeline.wide",
        common
        | {
            "event_id": run_id,
            "pipeline_name": pipeline,
            "status": "FAIL" if error else "OK",
            "outcome": "failed" if error else "ok",
            "started_at": _text(started),
            "ended_at": _text(clock),
            "duration_ms": round(ms, 3),
            "stages_total": len(STAGES),
            "stages_completed": sum(one["status"] == "OK" for one in summaries),
            "stages_failed": int(error is not None),
            "stages_skipped": sum(one["status"] == "SKIP" for one in summaries),
            "stages_cancelled": 0,
            "stage_summaries": summaries,
            "error": error,
            "error_type": kind,
            "error_fingerprint": _fingerprint(kind),
            "first_failed_stage": "llm" if error else None,
            "critical_path": list(STAGES),
            "critical_path_ms": round(ms, 3),
            "stages_abandoned": 0,
            "attributes": {
                "region": dice.choice(("eu", "us", "ap")),
                "cache_hit": dice.random() < 0.3,
                "channel": dice.choice(("web", "voice", "api")),
            },
        },
    )


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _fingerprint(kind: str | None) -> str | None:
    return None if kind is None else f"1:{'t' if kind.startswith('T') else 'r'}{'0' * 15}"
