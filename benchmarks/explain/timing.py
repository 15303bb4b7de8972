"""`python -m benchmarks.explain`: whether a planted cause is found, and nothing where none is."""

from __future__ import annotations

import argparse
import statistics
import time

import duckdb

from stageflow.store import explain

from .planted import CAUSES, planted

__all__ = ["bench_explain", "many_stages"]

RUNS = {0.02: 20_000, 0.002: 60_000}
"""How many runs there are, by the share of failures."""


def bench_explain(seeds: int) -> None:
    """Print in how many of the seeds it found what it should, and how long a question took."""
    print(f"explain, {seeds} seeds each, 40 decoys\n")
    print(f"{'cause':10}{'runs':>8}{'failures':>10}{'first':>8}{'in 3':>8}{'shuffled: none':>16}{'s':>8}")
    for failures, runs in RUNS.items():
        for cause in CAUSES:
            first = among_three = nothing = 0
            took = []
            for seed in range(seeds):
                connection, name = planted(seed, runs, failures, cause)
                began = time.perf_counter()
                fields = [difference.field for difference in explain(connection).differences]
                took.append(time.perf_counter() - began)
                first += name in fields[:1]
                among_three += name in fields[:3]
                connection, _ = planted(seed, runs, failures, cause, shuffled=True)
                found = explain(connection)
                nothing += not (found.differences or found.consequences)
            mean = statistics.fmean(took)
            print(f"{cause:10}{runs:8,}{failures:10.1%}{first:8}{among_three:8}{nothing:16}{mean:8.2f}")


def many_stages(runs: int = 83_334, stages: int = 12, topologies: int = 50) -> duckdb.DuckDBPyConnection:
    """Return a connection with a million stages; one fails in each of 2 % of the runs."""
    connection = duckdb.connect()
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


def bench_time(rounds: int = 5) -> None:
    """Print how long questions over a million stages take, warm."""
    connection = many_stages()
    ((runs, stages),) = connection.execute(
        "SELECT (SELECT count(*) FROM runs), (SELECT count(*) FROM stages)"
    ).fetchall()
    print(f"\n{runs:,} runs with {stages:,} stages\n")
    for question, over in (
        ("status = 'FAIL'", "runs"),
        ("duration_ms > 10000", "runs"),
        ("started_at > '2026-11-01 12:00:00Z'", "runs"),
        ("status = 'FAIL'", "stages"),
    ):
        took = []
        for _ in range(rounds + 1):
            began = time.perf_counter()
            found = explain(connection, question, over=over)  # type: ignore[arg-type]
            took.append(time.perf_counter() - began)
        print(f"{over:8}{question:40}{found.fields:5} fields{statistics.median(took[1:]):8.2f} s")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.explain", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="seeds of each kind (default 100)")
    bench_explain(parser.parse_args().seeds)
    bench_time()


if __name__ == "__main__":
    main()
