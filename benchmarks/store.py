"""The store over a million stage events: into the archive, and each question beside bare DuckDB.

`python -m benchmarks.store [EVENTS]`
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import duckdb

from stageflow.store import Compactor, EventStore

from .reading import STAGES, write_journal

__all__ = ["bench_store"]


def bench_store(folder: str, stage_events: int = 1_000_000, rounds: int = 15) -> None:
    """Print what it costs to archive, and the median of each question with its ratio to bare DuckDB."""
    path = os.path.join(folder, "store")
    events = stage_events * (STAGES + 1) // STAGES
    runs = write_journal(path, events)
    lines = sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path) if "ndjson" in name)
    compactor = Compactor(path)
    began = time.perf_counter()
    done = compactor.compact()
    took = time.perf_counter() - began
    files = [file for file in compactor.archive.files() if file.has_events]
    size = sum(file.size for file in files)
    print(f"{done.rows:,} events, {lines / 1e6:,.0f} MB as lines of JSON")
    print(
        f"  archived: {done.rows / took:,.0f} events/s, {size / done.rows:.1f} B an event, {len(files)} files"
    )
    with EventStore(path, compact_beyond=None) as store:
        _compare(store, [os.path.join(path, "archive", file.path) for file in files], runs, rounds)


def _compare(store: EventStore, paths: list[str], runs: list[str], rounds: int) -> None:
    bare = duckdb.connect()
    bare.execute("set timezone = 'UTC'")
    some = runs[len(runs) // 3]
    rows = f"read_parquet({paths!r}, union_by_name = true, hive_partitioning = true)"
    ranks = "quantile_disc(duration_ms, [0.5, 0.9, 0.95, 0.99])"
    queries = {
        "stats": f"""select topology, stage_name, count(*), count(*) filter (status = 'OK'),
            count(*) filter (status = 'FAIL'), count(*) filter (status = 'SKIP'),
            count(*) filter (status = 'CANCEL'), {ranks}
            from {rows} where type = 'stage.wide' group by all""",
        "errors": f"""select topology, stage_name, error_type, arg_max(error, ended_at), count(*),
            count(distinct pipeline_run_id), min(ended_at), max(ended_at)
            from {rows} where type = 'stage.wide' and status = 'FAIL' group by all""",
        "run": f"""select * from {rows}
            where starts_with(event_id, '{some}') and pipeline_run_id = '{some}'""",
    }
    ask: dict[str, Callable[[], Any]] = {
        "stats": store.stats,
        "errors": store.errors,
        "run": lambda: store.run(some),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ask}
    for _ in range(rounds):
        for name, question in ask.items():
            seconds[name].append(
                (_timed(question), _timed(lambda q=queries[name]: bare.execute(q).fetchall()))
            )
    print(f"  {'question':<22}{'ms':>8}{'DuckDB ms':>12}{'ratio':>8}")
    for name, pairs in seconds.items():
        ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"  {name:<22}{ours * 1e3:>8.1f}{theirs * 1e3:>12.1f}{ratio:>8.2f}")
    for name, question in (
        ("explain, failed", store.explain),
        ("explain, slow", store.explain_slow),
        ("runs", store.runs),
        ("slowest", store.slowest),
    ):
        took = statistics.median(_timed(question) for _ in range(5))
        print(f"  {name:<22}{took * 1e3:>8.1f}")


def _timed(ask: Callable[[], Any]) -> float:
    began = time.perf_counter()
    ask()
    return time.perf_counter() - began


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        bench_store(temporary, *map(int, sys.argv[1:]))
