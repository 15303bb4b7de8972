"""Reading a large journal without an archive, beside DuckDB scanning the same lines once."""

from __future__ import annotations

import glob
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import duckdb

from stageflow import JournalSink, PipelineContext, StageResult, StageStatus
from stageflow.journal import Journal, RunFilter
from stageflow.observability import WideEventEmitter
from stageflow.observability._run_context import start_run
from stageflow.results import PipelineResults

__all__ = ["bench_reading", "write_journal"]

STAGES = 12
RUNS_OF_EACH = 50


def write_journal(path: str, events: int, seed: int = 1) -> list[str]:
    """Write so many events of 50 topologies, 12 stages each, and return the ids of the runs."""
    dice = random.Random(seed)
    names = [f"stage_{number:02}" for number in range(STAGES)]
    sink = JournalSink(path, fsync="never")
    emitter = WideEventEmitter(sink)
    runs = []
    for number in range(events // (STAGES + 1)):
        began = time.time_ns()
        given = PipelineContext(user_id=f"u{dice.randrange(1000)}", topology=f"topology_{number % 50}")
        context, _ = start_run(given, "bench", began, 0)
        results = {}
        for index, name in enumerate(names):
            took = int(dice.lognormvariate(16, 1))
            failed = dice.random() < 0.02
            results[name] = StageResult(
                name,
                StageStatus.FAIL if failed else StageStatus.OK,
                {"documents": 1},
                "ConnectionError: search is down" if failed else None,
                attempt=1,
                attempts=1,
                ready_ns=began,
                started_ns=began + 1000,
                ended_ns=began + 1000 + took,
                dependencies=tuple(names[index - 1 : index]),
                attributes={"model": f"m{number % 7}", "tokens": dice.randrange(4000), "cached": failed},
            )
            emitter.emit_stage_wide(name, results[name], context)
        emitter.emit_pipeline_wide(
            PipelineResults(
                results.items(),
                pipeline_name="bench",
                context=context,
                outcome="failed" if any(result.error for result in results.values()) else "ok",
                started_ns=began,
                ended_ns=max(result.ended_ns for result in results.values()),
            ),
            context,
        )
        runs.append(str(context.pipeline_run_id))
    sink.close()
    return runs


def bench_reading(folder: str, events: int = 1_000_000, rounds: int = 5) -> None:
    """Print the median seconds of each question, and the ratio to DuckDB's scan."""
    path = os.path.join(folder, "reading")
    runs = write_journal(path, events)
    files = glob.glob(os.path.join(path, "*.ndjson"))
    size = sum(map(os.path.getsize, files))
    journal = Journal(path)
    some = runs[len(runs) // 3]
    asked: dict[str, Callable[[], Any]] = {
        "DuckDB, lines that are JSON": lambda: _scan(files, "json_valid(line)"),
        "DuckDB, lines alone": lambda: _scan(files, "true"),
        "runs": journal.runs,
        "runs, failed": lambda: journal.runs(RunFilter(status="FAIL")),
        "runs, of one user": lambda: journal.runs(RunFilter(id="u17")),
        "runs, none fits": lambda: journal.runs(RunFilter(pipeline="none")),
        "runs, all of them": lambda: journal.runs(limit=None),
        "show": lambda: journal.run(some),
        "show last": lambda: journal.run("last"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, ask in asked.items():
            began = time.perf_counter()
            ask()
            seconds[name].append(time.perf_counter() - began)
    first = statistics.median(seconds["DuckDB, lines that are JSON"])
    title = f"{events:,} events, {size / 1e6:,.0f} MB, {len(files)} files"
    print(f"{title:<40}{'seconds':>10}{'ratio':>9}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        print(f"  {name:<38}{median:>10.3f}{median / first:>9.2f}")
    print()


def _scan(files: list[str], condition: str) -> Any:
    """Count the lines for which a condition holds, read as DuckDB reads them while files grow."""
    return duckdb.sql(
        "select count(*) from read_csv($files, columns = {'line': 'VARCHAR'}, delim = '\x01', quote = '',"
        f" escape = '', header = false, auto_detect = false, max_line_size = 16000000) where {condition}",
        params={"files": files},
    ).fetchall()
