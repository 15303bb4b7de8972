"""What a sink that misbehaves costs a run, beside a healthy one of its kind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from stageflow import EventSink
from stageflow.events import BackgroundEventSink
from stageflow.observability import WideEventEmitter

from .graphs import build
from .rounds import Contestant, measure
from .shapes import chain

__all__ = ["bench_sinks"]


class Healthy(EventSink):
    """Takes events asynchronously."""

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        pass


class Raising(EventSink):
    """Is down."""

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        raise ConnectionError("no route to host")


class Hanging(EventSink):
    """Never comes back from its first event."""

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        await asyncio.Event().wait()


class Blocking(EventSink):
    """Blocks its thread for 100 ms an event."""

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        time.sleep(0.1)


async def bench_sinks(rounds: int) -> None:
    """Print the median time of a run of 10 stages, and the ratio to that with a healthy sink."""

    def run_with(sink: EventSink) -> Contestant:
        graph = build(
            chain(10),
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
        return lambda: graph.run()

    pairs = {
        "raising": ("healthy", Healthy(), Raising()),
        "hanging": ("healthy", Healthy(), Hanging()),
        "blocking in the background": (
            "healthy in the background",
            BackgroundEventSink(Healthy()),
            BackgroundEventSink(Blocking()),
        ),
    }
    print(f"{'a run of 10 stages':<28}{'a run':>10}{'ratio':>9}")
    for name, (beside, healthy, bad) in pairs.items():
        found = await measure({beside: run_with(healthy), name: run_with(bad)}, rounds)
        for title, (seconds, ratio) in found.items():
            print(f"  {title:<26}{seconds * 1e6:>7.0f} us{ratio:>9.2f}")
    print()
