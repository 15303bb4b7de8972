"""A run's own copy of the context it was given."""

from __future__ import annotations

from copy import copy

from ..context import PipelineContext
from ..ids import uuid7
from ..observability.resource import service_name
from ..observability.run_record import RunRecord, parent_record

__all__ = ["own_context"]


def own_context(context: PipelineContext, pipeline: str, wall_ns: int, origin_ns: int) -> PipelineContext:
    """Return a copy of `context` with what it leaves open filled in, and with the record of its run."""
    own = copy(context)
    if own.pipeline_run_id is None or own._record is not None:
        # The context of another run lends its labels, never its id.
        own.pipeline_run_id = uuid7(wall_ns)
    own.service = own.service or service_name() or "unknown_service"
    own.topology = own.topology or pipeline
    own.execution_mode = own.execution_mode or "default"
    if type(own.data) is dict:
        own.data = own.data.copy()
    own._record = RunRecord(own, pipeline, parent_record(), origin_ns)
    return own
