"""How long `explain` takes over a million stages or more, and how much memory it needs."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb

from stageflow.store import explain

__all__ = ["many_stages", "print_times"]

_QUESTIONS = (
    ("runs", "status = 'FAIL'"),
    ("runs", "duration_ms > 10000"),
    ("runs", "started_at > '2026-11-01 12:00:00Z'"),
    ("stages", "status = 'FAIL'"),
)
_READ = "read"
"""Instead of a question: every column is aggregated once."""

_MAX_SECONDS = 900


def many_stages(
    runs: int = 83_334, stages: int = 12, topologies: int = 50, database: str = ":memory:"
) -> duckdb.DuckDBPyConnection:
    """Return a connection with tables of 12 stages a run; one stage fails in each of 2 % of the runs."""
    connection = duckdb.connect(database)
    connection.execute("SET threads = 1")  # for random() to give the same again
    connection.execute("SELECT setseed(0.5)")
    attributes = ", ".join(
        f'floor(random() * {2 + n * 3}) AS "attributes.k{n}"'
        if n % 2
        else f"'v' || floor(random() * {2 + n * 3}) AS \"attributes.k{n}\""
        for n in range(30)
    )
    connection.execute(
        f"CREATE TABLE runs AS SELECT 'run' || i AS pipeline_run_id, 'run' || i AS event_id, "
        f"if(random() < 0.02, 'FAIL', 'OK') AS status, 'topology_' || i % {topologies} AS topology, "
        f"'user' || floor(random() * 1000) AS user_id, 'org' || floor(random() * 50) AS org_id, "
        f"1.0::DOUBLE AS sample_rate, TIMESTAMPTZ '2026-11-01 00:00:00Z' + to_seconds(i) AS started_at, "
        f"exp(random() * 10) AS duration_ms, 'host' || floor(random() * 20) AS host, "
        f"(4000 + floor(random() * 8))::BIGINT AS pid, (random() * 1e9)::BIGINT AS memory_peak_bytes, "
        f"random() * 100 AS cpu_percent, {attributes} FROM range({runs}) r(i)"
    )
    connection.execute(
        f"CREATE TABLE stages AS SELECT *, if(status = 'FAIL', 'TimeoutError', NULL) AS error_type FROM ("
        f"SELECT r.pipeline_run_id, r.event_id || '/' || j || '/1' AS event_id, "
        f"'stage_' || j AS stage_name, "
        f"if(r.status = 'FAIL' AND j = hash(r.event_id) % {stages}, 'FAIL', 'OK') AS status, "
        f"exp(random() * 10) AS duration_ms, random() AS queue_ms, 1 AS attempts, "
        f"r.started_at, r.sample_rate, "
        f'\'m\' || floor(random() * 5) AS "attributes.model", floor(random() * 5000) AS "attributes.tokens", '
        f'random() < 0.5 AS "attributes.hit" FROM runs r, range({stages}) s(j))'
    )
    connection.execute("RESET threads")
    return connection


def print_times(runs: int, rounds: int = 5) -> None:
    """Print how long questions take, each in its own process, compared with reading the columns.

    Args:
        runs: Number of runs, with 12 stages each.
        rounds: Number of times that each question is repeated after the first one.
    """
    print(f"\n{runs:,} runs with {runs * 12:,} stages, in a file that is in the page cache\n")
    print("| over | question | fields | first, s | repeated, s | peak memory, MB |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "runs.duckdb")
        many_stages(runs, database=database).close()
        for over, question in (("both", _READ), *_QUESTIONS):
            command = (sys.executable, "-m", "benchmarks.explain.timing", database, over, question)
            ran = subprocess.run(
                (*command, "--rounds", str(rounds)), stdout=subprocess.PIPE, timeout=_MAX_SECONDS, check=True
            )
            took: dict[str, Any] = json.loads(ran.stdout)
            print(
                f"| {over} | `{question}` | {took['fields']} | {took['seconds'][0]:.2f} "
                f"| {statistics.median(took['seconds'][1:]):.2f} | {took['peak'] / 1e6:,.0f} |",
                flush=True,
            )


def _ask(connection: duckdb.DuckDBPyConnection, over: Any, question: str) -> int:
    """Ask once, and return the number of fields."""
    if question != _READ:
        return explain(connection, question, over=over).fields
    fields = 0
    for table in ("runs", "stages"):
        names = [name for name, *_ in connection.execute(f"DESCRIBE {table}").fetchall()]
        # A sum of hashes reads every value, which a minimum might take from the statistics of the file.
        hashes = ", ".join(f'sum(hash("{name}"))' for name in names)
        connection.execute(f"SELECT {hashes} FROM {table}").fetchall()
        fields += len(names)
    return fields


def main() -> None:
    """Ask a question several times, and print the times as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain.timing", description=__doc__)
    parser.add_argument("database", help="the file of the tables")
    parser.add_argument("over", help="the view that the question is about")
    parser.add_argument("question", help="the predicate")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of the question (default 5)")
    arguments = parser.parse_args()
    connection = duckdb.connect(arguments.database, read_only=True)
    seconds, fields = [], 0
    for _ in range(arguments.rounds + 1):
        began = time.perf_counter()
        fields = _ask(connection, arguments.over, arguments.question)
        seconds.append(time.perf_counter() - began)
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(json.dumps({"fields": fields, "seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
