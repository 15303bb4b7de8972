"""The ids of the current stage, to correlate log lines with runs and traces."""

from __future__ import annotations

import logging

from .context import current_stage

__all__ = ["StageLogFilter", "stage_fields"]

_OUTSIDE = dict.fromkeys(("stage", "attempt", "pipeline_run_id", "topology", "trace_id", "span_id"), "-")


def stage_fields() -> dict[str, str]:
    """Return the ids of the stage that is running: those of its run, of the attempt and of its trace.

    Returns:
        `stage`, `attempt`, `pipeline_run_id`, `topology`, and `trace_id` and `span_id` as W3C Trace Context
        defines them. Outside of a stage, an empty dict.

    Example:
        >>> stage_fields()
        {}
    """
    ctx = current_stage.get()
    if ctx is None:
        return {}
    _, trace_id, span_id, _ = ctx.traceparent.split("-")
    return {
        "stage": ctx.stage,
        "attempt": str(ctx.attempt),
        "pipeline_run_id": str(ctx.run.pipeline_run_id),
        "topology": ctx.run.topology or "-",
        "trace_id": trace_id,
        "span_id": span_id,
    }


class StageLogFilter(logging.Filter):
    """A logging filter that sets the fields of `stage_fields` on each record; "-" outside of a stage.

    Add it to a handler, so that it applies to the records of every logger.

    Example:
        >>> handler = logging.StreamHandler()
        >>> handler.addFilter(StageLogFilter())
        >>> handler.setFormatter(logging.Formatter("%(stage)s %(pipeline_run_id)s %(trace_id)s %(message)s"))
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the fields, and accept the record."""
        for name, value in (stage_fields() or _OUTSIDE).items():
            setattr(record, name, value)
        return True
