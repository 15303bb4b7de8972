"""An interceptor that logs every attempt."""

from __future__ import annotations

import logging
from typing import Any

from ..stages import StageResult, StageStatus
from .interceptor import Proceed, StageCall

__all__ = ["Log"]


class Log:
    """Log the start and the recorded result of every attempt, with its stage, run and milliseconds.

    Args:
        level: Level of these lines; default DEBUG. FAIL and RETRY are logged at WARNING or higher.
        logger: Logger to use; default the one named "stageflow".

    Raises:
        ValueError: `level` is not a number.

    Example:
        graph = pipeline.build(interceptors=(Log(logging.INFO),))
    """

    def __init__(self, level: int = logging.DEBUG, logger: logging.Logger | None = None) -> None:
        if not isinstance(level, int):
            raise ValueError(f"Log(level={level!r}): give a number such as logging.INFO")
        self._level = level
        self._logger = logger or logging.getLogger("stageflow")

    async def __call__(self, call: StageCall, proceed: Proceed) -> Any:
        """Log the start, and the result once the engine has determined it."""
        ctx = call.ctx
        attempt = (call.pipeline, call.stage, ctx.attempt)
        run_id = ctx.run.pipeline_run_id

        def ended(result: StageResult) -> None:
            failed = result.status in (StageStatus.FAIL, StageStatus.RETRY)
            why = result.error or result.reason
            self._logger.log(
                max(self._level, logging.WARNING) if failed else self._level,
                "%s.%s attempt %d ended %s after %.1f ms%s (run %s)",
                *attempt,
                result.status,
                result.duration_ms,
                f": {why}" if why else "",
                run_id,
            )

        call.add_done_callback(ended)
        self._logger.log(self._level, "%s.%s attempt %d started (run %s)", *attempt, run_id)
        return await proceed()
