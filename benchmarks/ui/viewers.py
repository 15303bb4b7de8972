"""Ten viewers while four processes write 2,000 events per second: latencies, and lost events."""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import threading
import time
from datetime import UTC, datetime

from stageflow.journal import JournalSink
from stageflow.store import EventStore

from .records import STAGES, events_of_run
from .server import Server, serve

__all__ = ["bench_viewers"]

_EVENTS_PER_RUN = len(STAGES) + 1


def _write(path: str, events_per_second: float, seconds: float, seed: int) -> None:
    sink = JournalSink(path)
    dice = random.Random(seed)
    began = time.monotonic()
    number = 0
    while (elapsed := time.monotonic() - began) < seconds:
        if number * _EVENTS_PER_RUN > elapsed * events_per_second:
            time.sleep(0.002)
            continue
        for kind, data in events_of_run(dice, datetime.now(UTC), number, is_new=True):
            sink.try_emit(type=kind, data=data)
        number += 1
    sink.close()


class _Viewer:
    """A browser with the overview open: it requests four panels for each new snapshot."""

    def __init__(self, server: Server, name: str, stop: threading.Event) -> None:
        self.client = server.client()
        self.name = name
        self.stop = stop
        self.seconds: list[float] = []
        self.snapshots = 0
        self.delays: list[float] = []

    def watch(self) -> None:
        with self.client.stream("GET", "/api/stream", timeout=None) as response:
            kind = ""
            for line in response.iter_lines():
                if self.stop.is_set():
                    return
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "data" and kind == "snapshot":
                    self._show(json.loads(value)["last_at"])

    def _show(self, last_at: str | None) -> None:
        self.snapshots += 1
        if last_at is not None:
            newest = datetime.fromisoformat(last_at)
            self.delays.append((datetime.now(UTC) - newest).total_seconds())
        for path in ("runs", "heatmap", "series", "stages"):
            began = time.perf_counter()
            headers = {"x-stageflow-panel": f"{self.name}/{path}"}
            response = self.client.get(f"/api/{path}", params={"since": "1h"}, headers=headers)
            if response.status_code != 409:
                assert response.status_code == 200, response.text
                self.seconds.append(time.perf_counter() - began)


def bench_viewers(
    path: str, *, viewers: int = 10, writers: int = 4, rate: int = 2_000, seconds: int = 60
) -> None:
    """Print the latency of requests, the age of the newest run, and whether every event is in the store."""
    JournalSink(path).close()
    stop = threading.Event()
    processes = [
        multiprocessing.get_context("spawn").Process(
            target=_write, args=(path, rate / writers, seconds, seed)
        )
        for seed in range(writers)
    ]
    with serve(path) as server:
        watching = [_Viewer(server, f"viewer-{number}", stop) for number in range(viewers)]
        threads = [threading.Thread(target=viewer.watch, daemon=True) for viewer in watching]
        for each in (*processes, *threads):
            each.start()
        for process in processes:
            process.join()
        stop.set()
        found = sorted(one for viewer in watching for one in viewer.seconds)
        delays = sorted(one for viewer in watching for one in viewer.delays)
        p95 = found[int(len(found) * 0.95)]
        print(f"\n{viewers} viewers, {writers} writers, {rate:,} events per second for {seconds} s")
        median = statistics.median(found)
        print(f"  requests {len(found):,}: median {median * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms")
        print(f"  snapshots for each viewer: {watching[0].snapshots}")
        print(
            f"  age of the newest run when a viewer sees it: median {statistics.median(delays):.1f} s,"
            f" p95 {delays[int(len(delays) * 0.95)]:.1f} s"
        )
        print(f"  peak memory of the server: {server.peak_mb:,.0f} MB")
        with server.client() as client:
            expected = sum(process.exitcode == 0 for process in processes)
            deadline = time.monotonic() + 60
            with EventStore(path) as store:
                written = store.sql("select count(*), count(distinct event_id) from events").rows[0]
            shown = (0,)
            while shown[0] != written[0] and time.monotonic() < deadline:
                answer = client.get("/api/sql", params={"query": "select count(*) from events"})
                shown = tuple(answer.json()["rows"][0])
                time.sleep(0.5)
        print(
            f"  writers that ended well: {expected}; events {written[0]:,}, distinct {written[1]:,},"
            f" shown {shown[0]:,}"
        )
