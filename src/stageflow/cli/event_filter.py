"""Which events `stageflow tail` shows."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["EventFilter"]


class EventFilter(Struct, frozen=True, kw_only=True):
    """Which events are wanted; what is None leaves the choice open.

    Attributes:
        type: Type of the event.
        status: Its status or, of a run, its outcome; in any case.
        pipeline: Name of the pipeline.
        stage: Name of the stage; behind a colon its status.
        id: One of the five ids, or the beginning of a run's.
    """

    type: str | None = None
    status: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    id: str | None = None

    def takes(self, type: str, data: dict[str, Any]) -> bool:
        """Tell whether an event is wanted."""
        return (
            (self.type is None or self.type == type)
            and (self.status is None or _same(self.status, data.get("status"), data.get("outcome")))
            and (self.pipeline is None or self.pipeline in _pipelines(data))
            and (self.stage is None or _is_of(data, self.stage))
            and (self.id is None or _has_id(data, self.id))
        )

    def may_take(self, line: bytes) -> bool:
        """Tell whether an event may be wanted from its line alone: to read each would take long."""
        words = [word for word in (self.type, self.pipeline, self.id) if word is not None]
        words += [self.stage.partition(":")[0]] if self.stage is not None else []
        return all(msgspec.json.encode(word)[1:-1] in line for word in words) and (
            self.status is None
            or any(f'"{word}"'.encode() in line for word in (self.status.upper(), self.status.lower()))
        )


def _same(wanted: str, *words: object) -> bool:
    return any(isinstance(word, str) and word.lower() == wanted.lower() for word in words)


def _pipelines(data: dict[str, Any]) -> tuple[object, object]:
    # An event of a stage has its topology: the pipeline's name, unless the context says otherwise.
    return data.get("pipeline_name"), _mapping(data.get("pipeline_metadata")).get("topology")


def _is_of(data: dict[str, Any], wanted: str) -> bool:
    name, _, status = wanted.partition(":")
    return data.get("stage_name") == name and (not status or _same(status, data.get("status")))


def _has_id(data: dict[str, Any], wanted: str) -> bool:
    ids = _mapping(data.get("correlation_ids"))
    return wanted in ids.values() or str(ids.get("pipeline_run_id") or "").startswith(wanted)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
