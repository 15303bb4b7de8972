"""`RunRecord`: everything that a journal contains about one run, collected from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from .._state_file import decode_stored
from .._time import get_clock
from ..render import as_html
from ..schema import RunOpen
from ._format import (
    HEARTBEAT,
    RUN_CLOSED,
    RUN_OPEN,
    decode,
    decode_heartbeat,
    decode_run_open,
    is_well_formed,
    run_of,
)
from ._recovery import (
    RunProgress,
    UnfinishedRun,
    update_progress,
)

__all__ = ["CollectedRun", "RunRecord", "amend", "collect_line"]


class RunRecord(Struct, frozen=True):
    """The complete record of one run.

    Attributes:
        run: The data of its `pipeline.wide` event. For a run in progress, the same keys as far as they are
            known, with status "OPEN", outcome "open" and `stages_running`: the attempts that were running at
            the last heartbeat of the process, with their attributes so far.
        stages: The data of its `stage.wide` events, in order.
        events: The custom events of its stages, as pairs of type and data, in order.
        children: The data of the `pipeline.wide` event of each run that was started inside this run; for a
            child in progress, the known fields, as in `run`.
    """

    run: dict[str, Any]
    stages: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    children: list[dict[str, Any]]

    def _repr_html_(self) -> str | None:
        return as_html("draw_run", self.run, self.stages, events=self.events, children=self.children)


class CollectedRun:
    """The lines collected for one run."""

    def __init__(self) -> None:
        self.is_run = False
        self.opened: RunOpen | None = None
        self.closed: str | None = None
        self.pipeline_wide: dict[str, Any] | None = None
        self.stages: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.children: list[dict[str, Any]] = []
        self.amendments: list[dict[str, Any]] = []
        self.progress = RunProgress()

    def add_crash_events(self, events: Iterable[tuple[str, Struct]]) -> None:
        """Add the events that complete a crashed run, as if they had been written."""
        for type, body in events:
            data = msgspec.to_builtins(body)
            if type == "pipeline.wide":
                self.pipeline_wide = data
            else:
                self.stages.append(data)

    def apply_amendments(self) -> None:
        """Apply the collected amendments to the events that they belong to."""
        events = {event["event_id"]: event for event in self.stages if "event_id" in event}
        if self.pipeline_wide is not None:
            events[self.pipeline_wide["event_id"]] = self.pipeline_wide
        for amendment in self.amendments:
            amend(events, amendment)

    def is_complete(self) -> bool:
        """Return whether there is a terminal event for each stage that `pipeline.wide` counts."""
        ended = sum(stage.get("status") != "RETRY" for stage in self.stages)
        return self.pipeline_wide is not None and ended >= self.pipeline_wide.get("stages_total", 0)

    def children_without_end(self) -> set[str]:
        """Return the ids of the runs that were started inside this run and have no `pipeline.wide`."""
        started = {run_id for run_ids in self.progress.child_runs.values() for run_id in run_ids}
        return started - {str(child["event_id"]) for child in self.children}

    def partial_record(self) -> dict[str, Any] | None:
        """Return the known fields of a run without a `pipeline.wide`, or None if its start is unknown."""
        if self.opened is None:
            return None
        run = UnfinishedRun(self.opened, map(msgspec.json.encode, self.stages), self.progress)
        if self.closed is None:
            return run.partial_record(get_clock().wall_ns() // 1000)
        return run.partial_record(run.last_known_us()) | {
            "status": "CLOSED",
            "outcome": "closed",
            "reason": self.closed,
        }


def collect_line(collected: dict[str, CollectedRun], text: bytes, wanted: str) -> None:
    """Collect a line if it belongs to a run whose id starts with `wanted`, or to a child of such a run."""
    if text.startswith(HEARTBEAT):
        if (heartbeat := decode_heartbeat(text)) is not None:
            update_progress({run_id: run.progress for run_id, run in collected.items()}, heartbeat)
        return
    line = decode(text)
    if line is None:
        return
    body = line.data if isinstance(line.data, Raw) else line.journal
    data = decode_stored(body) if isinstance(body, Raw) else None
    if not isinstance(data, dict) or not isinstance(body, Raw) or not is_well_formed(line.type, body):
        return
    run_id = run_of(text)
    opened = decode_run_open(text) if text.startswith(RUN_OPEN) else None
    if opened is not None and opened.parent_run_id is not None and opened.parent_run_id.startswith(wanted):
        collected.setdefault(opened.parent_run_id, CollectedRun()).progress.child_run_started(opened)
    if line.type == "pipeline.wide" and str(data.get("parent_run_id") or "").startswith(wanted):
        collected.setdefault(str(data["parent_run_id"]), CollectedRun()).children.append(data)
    if not run_id or not run_id.startswith(wanted):
        return
    run = collected.setdefault(run_id, CollectedRun())
    if opened is not None:
        # Earlier lines belong to an earlier run with the same id.
        collected[run_id] = run = CollectedRun()
        run.is_run = True
        run.opened = opened
    elif text.startswith(RUN_OPEN):
        pass  # damaged
    elif text.startswith(RUN_CLOSED):
        run.closed = str(data.get("reason"))
    elif line.journal is not UNSET:
        pass
    elif line.type == "pipeline.wide":
        run.pipeline_wide, run.is_run = data, True
    elif line.type == "stage.wide":
        run.stages.append(data)
        run.is_run = True
    elif line.type in ("stage.wide.amend", "pipeline.wide.amend"):
        run.amendments.append(data)
    else:
        run.events.append((line.type, data))


def amend(events: Mapping[str, dict[str, Any]], amendment: Mapping[str, Any]) -> None:
    """Apply an amendment to the event that it belongs to, if `events` contains it."""
    event = events.get(str(amendment.get("event_id")))
    if event is not None:
        event["attributes"] = {**(event.get("attributes") or {}), **(amendment.get("attributes") or {})}
        event["redacted"] = (event.get("redacted") or 0) + (amendment.get("redacted") or 0)
        event["truncated"] = [*(event.get("truncated") or []), *(amendment.get("truncated") or [])]
