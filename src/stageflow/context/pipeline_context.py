"""Who a run is for and what it works on: ids, labels, input and shared clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from msgspec import Struct, field
from msgspec.structs import replace

from .._value import ValueType

__all__ = ["ContextOfRun", "PipelineContext"]

Id = str | UUID | None


class PipelineContext(Struct, metaclass=ValueType, frozen=True, kw_only=True, eq=False, weakref=True):
    """The context of a run. Every field is optional.

    A context is immutable. Each run works on a copy with all fields filled in, so concurrent runs can share
    one context.

    Args:
        pipeline_run_id: Id of the run; a UUIDv7 is made where there is none. Give one only if no
            other run has it: events with the same id count once.
        request_id: Id of the request that the run answers.
        session_id: Id of the session or conversation.
        user_id: Id of the user.
        org_id: Id of the organisation.
        service: Name of the service, as in OpenTelemetry's `service.name`.
        topology: Which pipeline this is; default: the pipeline's name.
        execution_mode: A label of your own, for "practice", "batch" and the like.
        data: The input of the run, read by stages as `ctx.run.data`. A dict is copied, one level deep.
        resources: Shared clients and the like, by name. They are never recorded.
        traceparent: The W3C `traceparent` header of the caller, to continue its trace.

    Example:
        >>> PipelineContext(user_id="u1", data={"question": "why?"}).data["question"]
        'why?'
    """

    pipeline_run_id: Id = None
    request_id: Id = None
    session_id: Id = None
    user_id: Id = None
    org_id: Id = None
    service: str | None = None
    topology: str | None = None
    execution_mode: str | None = None
    data: Any = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)
    traceparent: str | None = None

    def with_data(self, data: Any) -> PipelineContext:
        """Return a copy of this context with other data, for another run with the same ids and labels.

        Example:
            >>> PipelineContext(user_id="u1").with_data({"question": "why?"}).user_id
            'u1'
        """
        return replace(self, data=data)


class ContextOfRun(PipelineContext, frozen=True, kw_only=True, eq=False, weakref=True):
    """The context of a run that has started, filled in by the engine, and every copy of it.

    A run started with such a context inherits the labels and ids that the caller set, but gets its own
    `pipeline_run_id`.

    Attributes:
        defaults: Names of the labels that the engine filled in: another run gets its own.
    """

    defaults: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        names = PipelineContext.__struct_fields__
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{PipelineContext.__name__}({fields})"
