"""Puts pipeline, stage and run on every log line that is written below a stage."""

from __future__ import annotations

import logging

from .stage_context import current_stage

__all__ = ["StageLogFilter"]


class StageLogFilter(logging.Filter):
    """Sets `stage`, `pipeline_run_id` and `topology` on each record; "-" outside of a run.

    Add it to a handler, so that it sees the lines of every logger.

    Example:
        >>> handler = logging.StreamHandler()
        >>> handler.addFilter(StageLogFilter())
        >>> handler.setFormatter(logging.Formatter("%(stage)s %(pipeline_run_id)s %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the three fields, and let the record pass."""
        ctx = current_stage.get()
        record.stage = ctx.stage if ctx else "-"
        record.pipeline_run_id = str(ctx.run.pipeline_run_id) if ctx else "-"
        record.topology = ctx.run.topology if ctx else "-"
        return True
