"""`python -m benchmarks`: cost per stage beside one bare task per stage.

Every round runs each contestant once, in an order that turns; a ratio is taken within a round, and
the median of the rounds is printed. So a machine that slows down slows down both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from stageflow import EventSink, JournalSink, WideEventEmitter

from .floor import run_floor
from .graphs import Shape, build, chain, fan_out, layers

Contestant = Callable[[], Awaitable[Any]]


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


async def measure(runners: dict[str, Contestant], stages: int, rounds: int) -> None:
    """Print microseconds per stage and the ratio to the floor for each contestant."""
    names = list(runners)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 3):
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            began = time.perf_counter()
            await runners[name]()
            took = time.perf_counter() - began
            # Nothing of one contestant may be left for the next one to pay.
            await asyncio.sleep(0.001)
            if round_number >= 3:
                seconds[name].append(took)
    floor = seconds[names[0]]
    for name in names:
        ratios = [ours / theirs for ours, theirs in zip(seconds[name], floor, strict=True)]
        per_stage = statistics.median(seconds[name]) / stages * 1e6
        print(f"  {name:<24}{per_stage:>8.1f} us{statistics.median(ratios):>9.2f}")


async def bench(rounds: int) -> None:
    shapes = {
        "chain of 100": chain(100),
        "fan-out of 100": fan_out(100),
        "10 x 10 layers": layers(10, 10),
    }
    with tempfile.TemporaryDirectory() as folder:
        for title, shape in shapes.items():
            print(f"{title:<26}{'a stage':>10}{'ratio':>9}")
            await measure(contestants(shape, folder), len(shape), rounds)
            print()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="rounds per shape (default 60)")
    asyncio.run(bench(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
