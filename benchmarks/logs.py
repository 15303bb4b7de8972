"""The cost of recording the log lines of a stage, compared with the same stage without it."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from stageflow import Pipeline
from stageflow._log_tail import LOG_CAPTURE, MAX_LOG_LINES
from stageflow.observability import WideEventEmitter

from .rounds import Contestant, measure
from .stages import TakeAndDrop

__all__ = ["bench_logs"]

_LINES = 100


async def bench_logs(rounds: int) -> None:
    """Print microseconds per line, and the ratio to the stage whose lines are not recorded."""
    logging.disable(logging.NOTSET)
    log = logging.getLogger("benchmark")
    log.propagate = False
    log.setLevel(logging.INFO)
    factory = logging.getLogRecordFactory()
    with Path(os.devnull).open("w", encoding="utf-8") as devnull:  # noqa: ASYNC230
        file = logging.StreamHandler(devnull)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name, handler in (("NullHandler", logging.NullHandler()), ("StreamHandler", file)):
            log.handlers = [handler]
            for kind, level in (("INFO", logging.INFO), ("WARNING", logging.WARNING)):
                found = await measure(_contestants(log, level), rounds)
                print(f"\n{_LINES} lines of level {kind} in one stage, {name}")
                for title, (seconds, ratio) in found.items():
                    print(f"  {title:24} {seconds / _LINES * 1e6:6.2f} us per line  {ratio:5.2f}")
    log.handlers = []
    logging.setLogRecordFactory(factory)
    logging.disable(logging.WARNING)


def _contestants(log: logging.Logger, level: int) -> dict[str, Contestant]:
    async def stage(ctx: Any) -> None:
        for number in range(_LINES):
            log.log(level, "fetched page %d of %s", number, "products")

    graph = (
        Pipeline("p")
        .with_stage("s", stage)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(TakeAndDrop()),
        )
    )

    async def without() -> None:
        logging.setLogRecordFactory(logging.LogRecord)
        LOG_CAPTURE.resize(0)
        await graph.run()

    async def recorded() -> None:
        LOG_CAPTURE.resize(MAX_LOG_LINES)
        await graph.run()

    return {"not recorded": without, "recorded": recorded}
