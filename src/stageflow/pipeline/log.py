"""An interceptor that logs every attempt."""

from __future__ import annotations

import logging
from typing import Any

from ..clock import get_clock
from ..errors import describe
from .interceptor import Proceed, StageCall

__all__ = ["Log"]


class Log:
    """Log the start and the end of every attempt, with its stage, run and milliseconds.

    Args:
        level: Level of these lines; default DEBUG. What an attempt raised is logged at WARNING.
        logger: Logger to use; default the one named "stageflow".

    Example:
        graph = pipeline.build(interceptors=(Log(logging.INFO),))
    """

    def __init__(self, level: int = logging.DEBUG, logger: logging.Logger | None = None) -> None:
        if not isinstance(level, int):
            raise ValueError(f"Log(level={level!r}): give a number such as logging.INFO")
        self._level = level
        self._logger = logger or logging.getLogger("stageflow")

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Log, proceed, log."""
        log, level, ctx = self._logger, self._level, call.ctx
        who = (call.pipeline, call.stage, ctx.attempt, ctx.run.pipeline_run_id)
        log.log(level, "%s.%s attempt %d started (run %s)", *who)
        began = get_clock().monotonic_ns()
        try:
            output = await proceed()
        except BaseException as error:
            took = (get_clock().monotonic_ns() - began) / 1e6
            failed = max(level, logging.WARNING) if isinstance(error, Exception) else level
            log.log(failed, "%s.%s attempt %d raised %s after %.1f ms (run %s)",
                    *who[:3], describe(error), took, who[3])  # fmt: skip
            raise
        took = (get_clock().monotonic_ns() - began) / 1e6
        log.log(level, "%s.%s attempt %d ended %s after %.1f ms (run %s)",
                *who[:3], output.status, took, who[3])  # fmt: skip
        return output
