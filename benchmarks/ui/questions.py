"""The time of each request to the web UI, cold and warm, compared with the bare DuckDB query."""

from __future__ import annotations

import statistics
import threading
import time
from typing import Any

import httpx

from stageflow.store import PinnedStore

from .server import serve

__all__ = ["bench_questions"]

_SELECT = "duration_ms > 3000"
_HEAVY = "select count(distinct md5(event_id || a.range)) from events, range(200) a"

_QUESTIONS: tuple[tuple[str, str, dict[str, str], str], ...] = (
    ("runs list, newest", "runs", {}, "select * from runs order by started_at desc limit 200"),
    (
        "runs list, filtered",
        "runs",
        {"where": "org_id = 'globex' and failed"},
        "select * from runs where org_id = 'globex' and failed order by started_at desc limit 200",
    ),
    (
        "heatmap",
        "heatmap",
        {"measure": "duration_ms"},
        (
            "select epoch_us(started_at) // 1440000000, floor(ln(duration_ms) * 6), sum(sample_rate),"
            " sum(sample_rate) filter (failed) from runs group by all"
        ),
    ),
    (
        "heatmap of stages",
        "heatmap",
        {"over": "stages"},
        (
            "select epoch_us(started_at) // 1440000000, floor(ln(duration_ms + 1) * 6), sum(sample_rate),"
            " sum(sample_rate) filter (failed) from stages group by all"
        ),
    ),
    (
        "series",
        "series",
        {},
        (
            "select time_bucket(interval 30 minute, started_at), sum(sample_rate), quantile_disc(duration_ms,"
            " [0.5, 0.95, 0.99]) from runs group by 1"
        ),
    ),
    ("facets", "facets", {"select": _SELECT}, f"select columns(*) from runs where {_SELECT}"),
    (
        "box to differences",
        "differences",
        {"select": _SELECT},
        f'select org_id, "attributes.region", count(*), count(*) filter ({_SELECT}) from runs group by all',
    ),
    ("overview", "overview", {}, "select count(*), count(*) filter (failed) from runs"),
    ("causes", "causes", {}, "select columns(*) from runs"),
    ("errors", "errors", {}, "select error_type, count(*) from stages where status = 'FAIL' group by 1"),
    (
        "run",
        "run",
        {"id": "last"},
        "select stage_name, quantile_disc(duration_ms, 0.5) from stages group by 1",
    ),
)


def bench_questions(journal: str, rounds: int = 7) -> None:
    """Print the median time of each question.

    The server caches results, so that each round asks a slightly different question: `until` differs.
    """
    with serve(journal) as server, PinnedStore(journal) as bare, server.client() as client:
        began = time.perf_counter()
        info = client.get("/api/snapshot").json()
        print(f"\n{info['runs']:,} runs; first answer {time.perf_counter() - began:.2f} s after the start\n")
        print("| question | cold, ms | warm, ms | DuckDB, ms | ratio |")
        print("| --- | --- | --- | --- | --- |")
        for name, path, parameters, query in _QUESTIONS:
            seconds, theirs = [], []
            for number in range(rounds):
                later = {} if name == "runs list, newest" else {"until": f"2030-01-01T00:00:{number:02d}Z"}
                seconds.append(_timed(client, path, parameters | later))
                began = time.perf_counter()
                bare.query(lambda cursor, query=query: cursor.execute(query).fetchall(), query)
                theirs.append(time.perf_counter() - began)
            warm, bare_s = statistics.median(seconds[1:]), statistics.median(theirs[1:])
            print(
                f"| {name} | {seconds[0] * 1e3:.0f} | {warm * 1e3:.0f} | {bare_s * 1e3:.0f}"
                f" | {warm / bare_s:.1f} |",
                flush=True,
            )
        _print_during_heavy(server.url, client)
        print(f"\npeak memory of the server: {server.peak_mb:,.0f} MB")


def _print_during_heavy(url: str, client: httpx.Client) -> None:
    """Print how long the list of runs takes while two heavy queries run."""
    stop = threading.Event()

    def ask(number: int) -> None:
        with httpx.Client(base_url=url.partition("/?")[0], cookies=client.cookies, timeout=None) as other:
            panel = {"x-stageflow-panel": f"heavy/{number}"}
            other.get("/api/sql", params={"query": f"{_HEAVY} -- {number}"}, headers=panel)

    threads = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    while client.get("/api/status").json()["queries"] < 2 and not stop.is_set():
        time.sleep(0.05)
    for name, parameters in (("newest", {}), ("filtered", {"where": "org_id = 'globex' and failed"})):
        seconds = sorted(
            _timed(
                client, "runs", parameters | ({"until": f"2030-01-02T00:00:{n:02d}Z"} if parameters else {})
            )
            for n in range(40)
        )
        print(
            f"\nruns list, {name}, during two heavy queries: median {seconds[20] * 1e3:.0f} ms,"
            f" p95 {seconds[37] * 1e3:.0f} ms"
        )
    for number in range(2):
        client.get("/api/complete", headers={"x-stageflow-panel": f"heavy/{number}"})
    for thread in threads:
        thread.join(30)


def _later(number: int) -> str:
    return f"2030-01-01T00:00:{number:02d}Z"


def _timed(client: httpx.Client, path: str, parameters: dict[str, Any]) -> float:
    began = time.perf_counter()
    response = client.get(f"/api/{path}", params=parameters)
    took = time.perf_counter() - began
    assert response.status_code == 200, response.text
    return took
