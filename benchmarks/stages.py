"""What a stage costs beside one bare task per stage."""

from __future__ import annotations

from typing import Any

from stageflow import EventSink, JournalSink
from stageflow.observability import WideEventEmitter

from .floor import run_floor
from .graphs import build
from .rounds import Contestant, at_once, measure
from .shapes import Shape, chain, fan_out, layers

__all__ = ["bench_stages"]


class TakeAndDrop(EventSink):
    """Takes each event as a dict, in place, and drops it."""

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        pass


class AsyncTakeAndDrop(EventSink):
    """The same through the queue and the delivery task."""

    async def emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        pass


class Overriding(WideEventEmitter):
    """Looks at each result, as the emitters of applications do."""

    slow = 0

    def emit_stage_wide(self, stage_name: str, result: Any, ctx: Any) -> None:
        if result.duration_ms > 1000:
            self.slow += 1
        super().emit_stage_wide(stage_name, result, ctx)


def contestants(shape: Shape, folder: str) -> dict[str, Contestant]:
    """Return what is measured on one shape; the first is the floor."""

    def graph(emitter: WideEventEmitter | None) -> Contestant:
        on = emitter is not None
        built = build(
            shape,
            emit_stage_wide_events=on,
            emit_pipeline_wide_event=on,
            wide_event_emitter=emitter,
        )
        return lambda: built.run()

    return {
        "floor": lambda: run_floor(shape),
        "events off": graph(None),
        "sink that drops": graph(WideEventEmitter(TakeAndDrop())),
        "async sink that drops": graph(WideEventEmitter(AsyncTakeAndDrop())),
        "overriding emitter": graph(Overriding(TakeAndDrop())),
        "journal": graph(WideEventEmitter(JournalSink(folder))),
    }


async def bench_stages(rounds: int, folder: str) -> None:
    """Print microseconds per stage, and the ratio to the floor."""
    shapes = {
        "chain of 100": chain(100),
        "fan-out of 100": fan_out(100),
        "10 x 10 layers": layers(10, 10),
    }
    for title, shape in shapes.items():
        _print(title, len(shape), await measure(contestants(shape, folder), rounds))
    found = contestants(chain(5), folder)
    many = {name: at_once(found[name], 1000) for name in ("floor", "events off", "journal")}
    _print("1,000 runs of 5 at once", 5 * 1000, await measure(many, max(5, rounds // 4)))


def _print(title: str, stages: int, found: dict[str, tuple[float, float]]) -> None:
    print(f"{title:<28}{'a stage':>10}{'ratio':>9}")
    for name, (seconds, ratio) in found.items():
        print(f"  {name:<26}{seconds / stages * 1e6:>7.1f} us{ratio:>9.2f}")
    print()
