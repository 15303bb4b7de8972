"""A receiver that is down for hours of simulated time: what arrives, what is counted, and what it costs.

For a longer test than in the suite, run `python -m tests.export_outage 24`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import selectors
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

# Under `python -m tests.export_outage` the folder is not where modules are looked for.
sys.path.insert(0, str(Path(__file__).parent))

from export_receiver import Answer, ExportReceiver, Request
from export_storm import memory_mb

from stageflow import JournalSink, Pipeline
from stageflow.export import DeadLetters, ExportRunner, ExportSettings, ExportState, HttpExporter
from stageflow.observability import WideEventEmitter

HOUR = 3600.0

KINDS = {
    "no response": Answer(drop=True),
    "status 503": Answer(503),
    "status 500": Answer(500),
}
"""How a receiver that is down responds."""


class SimulatedTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that skips the time until the next timer if it waits for nothing else.

    While a socket is open or a thread of the executor works, time passes as usual. Real servers can therefore
    be used, and a request never times out because of a skip.

    Attributes:
        skipped: Seconds that were skipped.
    """

    def __init__(self) -> None:
        self.skipped = 0.0
        self._calls = 0
        super().__init__(_SkippingSelector(self))

    def time(self) -> float:
        return super().time() + self.skipped

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        self._calls += 1
        future = super().run_in_executor(executor, func, *args)
        future.add_done_callback(self._call_ended)
        return future

    async def shutdown_default_executor(self, *arguments: Any) -> None:
        self._calls += 1  # it waits for a thread, with a timeout from Python 3.12 on
        try:
            await super().shutdown_default_executor(*arguments)
        finally:
            self._calls -= 1

    def _call_ended(self, future: asyncio.Future[Any]) -> None:
        self._calls -= 1

    @property
    def has_calls(self) -> bool:
        """Whether the executor works."""
        return self._calls > 0


class _SkippingSelector(selectors.DefaultSelector):
    def __init__(self, loop: SimulatedTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(0)
        if found or timeout is None or timeout <= 0:
            return found or super().select(timeout)
        if len(self.get_map()) > 1 or self._loop.has_calls:  # the loop itself registers one socket
            return super().select(timeout)
        self._loop.skipped += timeout
        return []


class Outage(NamedTuple):
    """What happened.

    Attributes:
        hours: Duration of the outage in simulated hours.
        written: Events in the journal, in order.
        accepted: Events that the receiver accepted, in order, with duplicates.
        requests: Requests that arrived.
        refused: How many of them the receiver refused.
        state: The state of the exporter at the end.
        letters: The id and the reason of each dead letter.
        memory_mb: Resident memory after each simulated hour, in MB.
        run_ms: Median duration of a run before the outage, and during it, in ms; empty if none was measured.
    """

    hours: float
    written: list[str]
    accepted: list[str]
    requests: int
    refused: int
    state: ExportState
    letters: list[tuple[str, str]]
    memory_mb: list[float]
    run_ms: list[float]


def outage(folder: Path, kind: str, hours: float = 1.0, events: int = 2500, runs: int = 0) -> Outage:
    """Export to a receiver that is down for some simulated hours, and then rejects every 100th event.

    Args:
        folder: Folder for the journal.
        kind: How the receiver responds while it is down; a key of `KINDS`.
        hours: Duration of the outage in simulated hours.
        events: Events in the journal when the exporter starts.
        runs: Runs to measure, before the outage and during it.
    """
    journal = folder / "journal"
    loops: list[SimulatedTimeLoop] = []
    began: list[float] = []
    memory: list[float] = []
    requests = refused = 0

    def new_loop() -> SimulatedTimeLoop:
        loops.append(SimulatedTimeLoop())
        return loops[-1]

    def answer(request: Request) -> Answer:
        nonlocal requests, refused
        requests += 1
        receiver.requests.clear()  # its memory is not that of the exporter
        now = loops[-1].time()
        if not began:
            began.append(now)
        if (now - began[0]) // HOUR >= len(memory):
            memory.append(memory_mb(os.getpid()))
        if now - began[0] < hours * HOUR:
            refused += 1
            return KINDS[kind]
        rejected = [
            {"index": index, "reason": f"no {line['event_id']}"}
            for index, line in enumerate(request.lines)
            if line["event_id"].endswith("00")
        ]
        return Answer(200, json.dumps({"rejected": rejected}).encode())

    with closing(JournalSink(journal)) as sink:
        for number in range(events):
            sink.try_emit(type="order.placed", data={"event_id": f"e{number}", "text": "x" * 200})
        run_ms = [_median_ms(sink, runs)] if runs else []
        with ExportReceiver(answer) as receiver:
            exporter = HttpExporter(receiver.url, name="shop")
            ended = threading.Event()
            total = events + 4 * runs  # a run has two events

            def notify(state: ExportState) -> None:
                if state.counters.read >= total:
                    ended.set()

            runner = ExportRunner(
                journal, exporter, settings=ExportSettings(), on_change=notify, loop_factory=new_loop
            ).start()
            if runs:
                run_ms.append(_median_ms(sink, runs))
            assert ended.wait(600), runner.state
            assert runner.stop()
            accepted = [line["event_id"] for line in receiver.accepted]
    paths = sorted(journal.glob("*.ndjson"))
    lines = [json.loads(line) for path in paths for line in path.read_bytes().splitlines()]
    letters = DeadLetters(str(journal / "export" / "shop" / "rejected"))
    return Outage(
        hours,
        [line["data"]["event_id"] for line in lines if "data" in line],
        accepted,
        requests,
        refused,
        runner.state,
        [(letter.event_id, letter.reason) for letter in letters],
        memory,
        run_ms,
    )


def _median_ms(sink: JournalSink, runs: int) -> float:
    """Return the median duration of runs of one stage that does nothing."""

    async def work(ctx: Any) -> None:
        pass

    async def measure() -> float:
        graph = (
            Pipeline("p")
            .with_stage("a", work)
            .build(
                emit_stage_wide_events=True,
                emit_pipeline_wide_event=True,
                wide_event_emitter=WideEventEmitter(sink),
            )
        )
        times = []
        for _ in range(runs):
            began = time.perf_counter()
            await graph.run()
            times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)

    return asyncio.run(measure())


def main(hours: float, runs: int) -> None:
    problems = []
    for kind in KINDS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = outage(Path(folder), kind, hours, runs=runs)
        state, counters = found.state, found.state.counters
        print(
            f"{kind}: {hours:g} simulated hours in {time.monotonic() - began:.1f} s;"
            f" {state.failures} failed attempts ({state.failures / hours:.1f} per hour);"
            f" {counters.sent} sent, {counters.rejected} rejected;"
            f" memory {found.memory_mb[0]:.0f} MB at the start, {max(found.memory_mb):.0f} MB at most;"
            f" median run {found.run_ms[0]:.3f} ms before, {found.run_ms[1]:.3f} ms meanwhile"
        )
        problems += [f"{kind}: {problem}" for problem in problems_of(found)]
    sys.exit("\n".join(problems) or None)


def problems_of(found: Outage) -> list[str]:
    """Return what is wrong, a sentence each."""
    problems = []
    rejected = [event for event in found.written if event.endswith("00")]
    arrived = [event for event in found.written if not event.endswith("00")]
    if {*found.accepted} != {*arrived}:
        problems.append("some events did not arrive")
    if [event for event, _ in found.letters] != rejected:
        problems.append(f"{len(found.letters)} dead letters, not {len(rejected)}")
    counters = found.state.counters
    counted = (counters.read, counters.sent, counters.rejected)
    if counted != (len(found.written), len(arrived), len(rejected)):
        problems.append(f"read, sent and rejected are {counted}")
    attempts = (found.state.attempts, found.state.failures)
    if attempts != (found.requests, found.refused):
        problems.append(f"attempts and failures are {attempts}, not {found.requests} and {found.refused}")
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.export_outage",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("hours", type=float, nargs="?", default=24, help="simulated hours (default: 24)")
    parser.add_argument("--runs", type=int, default=3000, help="runs to measure (default: 3000)")
    arguments = parser.parse_args()
    main(arguments.hours, arguments.runs)
