"""Distinguishes wide events from events that only share their name: custom events, and damaged events."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import GenericAlias, NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Raw, Struct

from ..schema import (
    CorrelationIds,
    ExceptionInfo,
    PipelineMetadata,
    PipelineWide,
    StageSummary,
    StageWide,
    WideAmend,
)
from .line import decode, is_timestamp
from .stored import decode_stored, decoder

__all__ = ["REQUIRED", "decode_event", "is_well_formed", "is_whole_run"]

REQUIRED = {
    "stage.wide": ("stage_name", "status", "duration_ms", "started_at", "ended_at", "correlation_ids"),
    "pipeline.wide": (
        "status",
        "duration_ms",
        "started_at",
        "ended_at",
        "stage_summaries",
        "correlation_ids",
        "pipeline_metadata",
        "event_id",
    ),
    "stage.wide.amend": ("event_id",),
    "pipeline.wide.amend": ("event_id",),
}
"""The fields that readers of such an event require. The others may be missing."""

_REQUIRED_INSIDE = {
    CorrelationIds: ("pipeline_run_id",),
    PipelineMetadata: ("topology",),
    StageSummary: ("stage_name", "status", "duration_ms", "error"),
}
"""The required fields of nested objects."""

_TIMES = ("started_at", "ended_at")


def is_well_formed(type: str, content: Raw | bytes) -> bool:
    """Return whether an event has the fields of its type, and each has the right JSON type.

    Unknown statuses are accepted, because a later version may have written them. Events of other types are
    accepted with any content.

    Args:
        type: Type of the event.
        content: Its data, as JSON.
    """
    if type not in REQUIRED:
        return True
    event = _decoder(type)(content)
    return event is not None and all(
        is_timestamp(time) for name in _TIMES if isinstance(time := getattr(event, name, None), str)
    )


def decode_event(text: bytes) -> dict[str, Any] | None:
    """Return the data of a line with a wide event; None if it is damaged."""
    line = decode(text)
    if line is None or not isinstance(line.data, Raw) or not is_well_formed(line.type, line.data):
        return None
    data: dict[str, Any] = decode_stored(line.data, dict[str, Any])
    return data


def is_whole_run(text: bytes) -> bool:
    """Return whether a line contains a `pipeline.wide` event with all fields that readers require."""
    line = decode(text)
    return line is not None and isinstance(line.data, Raw) and is_well_formed(line.type, line.data)


@functools.cache
def _decoder(type: str) -> Callable[[bytes | Raw], Any]:
    shapes: dict[str, Any] = {"stage.wide": StageWide, "pipeline.wide": PipelineWide}
    return decoder(_relaxed(shapes.get(type, WideAmend), REQUIRED[type]))


def _relaxed(shape: type[Struct], required: tuple[str, ...]) -> type[Struct]:
    """Return a type like this one that accepts any string where the schema lists allowed values."""
    fields: list[Any] = []
    for name, annotation in get_type_hints(shape, include_extras=True).items():
        relaxed = _without_literals(annotation)
        # A missing field is null in a row of the archive.
        fields.append((name, relaxed) if name in required else (name, relaxed | None, None))
    return msgspec.defstruct(f"Any{shape.__name__}", fields, kw_only=True, gc=False)


def _without_literals(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Struct):
        # ExceptionInfo is recursive, and nothing depends on its literals.
        inside = _REQUIRED_INSIDE.get(annotation, ())
        return annotation if annotation is ExceptionInfo else _relaxed(annotation, inside)
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return str | None if None in inner else str
    if origin is UnionType or str(origin) == "typing.Union":
        parts = [_without_literals(each) for each in inner if each is not NoneType]
        united = functools.reduce(lambda a, b: a | b, parts)
        return united | None if NoneType in inner else united
    if origin is list:
        return GenericAlias(list, (_without_literals(inner[0]),))
    return annotation
