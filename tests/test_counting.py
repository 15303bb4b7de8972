"""Tests that the counters match the ids that sinks received, however a sink behaves and a process ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import Program

from stageflow import EventSink, Pipeline, PipelineContext, flush
from stageflow.events import BackgroundEventSink, SinkStats, set_drain_timeout, stats
from stageflow.events._delivery import DELIVERY
from stageflow.observability import WideEventEmitter

pytestmark = pytest.mark.slow

Start = Callable[[str], Program]


async def nothing(ctx: Any) -> None: ...


class Receiving(EventSink):
    """Keeps the ids of the events whose call of it returned."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.calls = 0

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        self.calls += 1
        await self.behave()
        self.ids.append((data or {})["event_id"])

    async def behave(self) -> None: ...


class Slow(Receiving):
    async def behave(self) -> None:
        await asyncio.sleep(0)


class Raising(Receiving):
    async def behave(self) -> None:
        if self.calls % 3:
            raise ConnectionError("down")


class Down(Receiving):
    async def behave(self) -> None:
        raise ConnectionError("down")


class Hanging(Receiving):
    """Hangs at its 11th event, until it is released: or it would hang the flush of other tests, too."""

    async def behave(self) -> None:
        if self.calls == 11:
            self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
            await self.end.wait()

    def release(self) -> None:
        self.loop.call_soon_threadsafe(self.end.set)


class InPlace(Receiving):
    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:  # type: ignore[override]
        self.ids.append((data or {})["event_id"])


def holds(found: SinkStats, ids: list[str]) -> None:
    assert found.offered == found.accepted + sum(found.rejected.values())
    assert found.accepted == found.delivered + sum(found.dropped.values()) + found.pending
    assert found.delivered == len(ids) == len(set(ids))


@pytest.fixture(autouse=True)
def _the_bound_is_put_back() -> Iterator[None]:
    yield
    set_drain_timeout(5)


async def settle(sink: Any) -> SinkStats:
    """Return the counters once nothing is pending any more; `flush` would wait for every other sink, too."""
    async with asyncio.timeout(30):
        while DELIVERY.channel_of(sink).stats().pending:
            await asyncio.sleep(0.001)
    return DELIVERY.channel_of(sink).stats()


async def many_runs(sink: Any, runs: int) -> None:
    graph = (
        Pipeline("p")
        .with_stage("a", nothing)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )
    await asyncio.gather(
        *(graph.run(PipelineContext(pipeline_run_id=f"r{number}")) for number in range(runs))
    )


@pytest.mark.parametrize("kind", [Receiving, Slow, Raising, Down, Hanging, InPlace])
@pytest.mark.parametrize("background", [False, True])
async def test_counters_match_the_delivered_event_ids(kind: type[Receiving], background: bool) -> None:
    sink = kind()
    outer: Any = BackgroundEventSink(sink) if background else sink
    await many_runs(outer, 500)
    if kind is Hanging:
        assert not await flush(0.3)
        found = DELIVERY.channel_of(outer).stats()
        assert isinstance(sink, Hanging)
        ids = sink.ids.copy()
        sink.release()
        await settle(outer)
        sink.ids = ids
    else:
        found = await settle(outer)
    assert found.offered == 1000
    holds(found, sink.ids)
    if kind is Down:
        assert found.dropped == {"sink_error": 1000}
    if kind is Hanging:
        assert (found.delivered, found.pending) == (10, 990)


@pytest.mark.parametrize("kind", [Receiving, InPlace])
async def test_counters_are_exact_for_ten_thousand_concurrent_runs(kind: type[Receiving]) -> None:
    sink = kind()
    await many_runs(sink, 10_000)
    found = await settle(sink)
    assert found.offered == 20_000
    holds(found, sink.ids)
    if kind is InPlace:
        assert found.delivered == 20_000
    else:  # what the queue had no room for was rejected, and nothing else was lost
        assert found.rejected.keys() <= {"queue_full"}
        assert found.dropped == {}


def test_counters_are_exact_after_a_loop_is_closed_early() -> None:
    sink = Slow()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(many_runs(sink, 200))
    loop.close()
    found = stats().of("Slow")
    holds(found, sink.ids)
    assert found.offered == 400
    assert found.pending == 0
    assert set(found.dropped) <= {"loop_closed"}


def test_counters_are_exact_if_a_loop_ends_before_a_slow_sink_finishes() -> None:
    class Slower(Receiving):
        async def behave(self) -> None:
            await asyncio.sleep(0.02)

    sink = Slower()
    set_drain_timeout(0.2)
    asyncio.run(many_runs(sink, 100))
    found = DELIVERY.channel_of(sink).stats()
    holds(found, sink.ids)
    assert found.offered == 200
    assert found.pending == 0
    assert set(found.dropped) <= {"drain_timeout", "sink_error", "sink_closed"}


ENDS = """
    import asyncio, json, os, signal, sys, stageflow
    from stageflow import EventSink, JournalSink, Pipeline
    from stageflow.events import FanoutEventSink

    class Receiving(EventSink):
        ids = []
        async def emit(self, *, type, data):
            await asyncio.sleep(0.001)
            self.ids.append(data["event_id"])

    async def work(ctx): ...

    sink = Receiving()
    graph = Pipeline("p").with_stage("a", work).build()

    def tell(name):
        found = stageflow.events.stats().of("Receiving")
        lost = [sum(found.rejected.values()), sum(found.dropped.values())]
        counted = [found.offered, found.accepted, found.delivered, found.pending, *lost, len(set(sink.ids))]
        print(json.dumps([name, *counted]), flush=True)
"""


def told(one: Program) -> dict[str, list[int]]:
    _, out, err = one.ended()
    assert out, err
    return {line[0]: line[1:] for line in map(json.loads, out.splitlines())}


def adds_up(counted: list[int]) -> None:
    offered, accepted, delivered, pending, rejected, dropped, ids = counted
    assert offered == accepted + rejected
    assert accepted == delivered + dropped + pending
    assert delivered == ids


def test_counters_are_exact_after_sigterm_in_a_session(program: Start) -> None:
    one = program(
        ENDS
        + """
    async def main():
        try:
            both = FanoutEventSink(JournalSink(sys.argv[1]), sink)
            async with stageflow.session(sink=both, health_seconds=None):
                for number in range(50):
                    await graph.run()
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(3600)
        finally:
            tell("end")

    asyncio.run(main())
    """
    )
    found = told(one)["end"]
    adds_up(found)
    assert found[2] == 101  # 50 runs, and the last word on the health of the process
    assert len(one.events()) == 101


def test_forked_child_starts_with_zero_counters(program: Start) -> None:
    one = program(
        ENDS
        + """
    stageflow.configure(sink=sink, health_seconds=None)

    async def run(many):
        for _ in range(many):
            await graph.run()

    asyncio.run(run(20))
    if not (child := os.fork()):
        sink.ids.clear()
        asyncio.run(run(5))
        tell("child")
        os._exit(0)
    os.waitpid(child, 0)
    asyncio.run(run(1))
    tell("parent")
    """
    )
    found = told(one)
    for counted in found.values():
        adds_up(counted)
    assert found["child"][0] == 10
    assert found["parent"][0] == 42
