"""Everything that a journal has of one run, put together from its lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct

from ..clock import get_clock
from ..schema import RunOpen
from .line import HEARTBEAT, RUN_CLOSED, RUN_OPEN, decode, decode_heartbeat, decode_run_open, run_of
from .stored import decode_stored
from .unfinished import Progress, UnfinishedRun, update_progress
from .wide import is_well_formed

__all__ = ["Gathered", "RunStory", "amend", "gather"]


class RunStory(Struct, frozen=True):
    """Everything that a journal has of one run.

    Attributes:
        run: The data of its `pipeline.wide`; of a run that is under way, the same keys as far as
            they are known, with status "OPEN" and outcome "open", and `stages_running`: the attempts
            that were running at the last heartbeat of its process, with their attributes so far.
        stages: The data of its `stage.wide` events, in order.
        events: Its stages' own events, type and data, in order.
        children: The data of the `pipeline.wide` of each run that was started inside it; for one that is in
            progress, what is known so far, as in `run`.
    """

    run: dict[str, Any]
    stages: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    children: list[dict[str, Any]]


class Gathered:
    """What was found of one run."""

    def __init__(self) -> None:
        self.is_run = False
        self.opened: RunOpen | None = None
        self.closed: str | None = None
        self.whole: dict[str, Any] | None = None
        self.stages: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.children: list[dict[str, Any]] = []
        self.opened_children: list[str] = []
        self.amendments: list[dict[str, Any]] = []
        self.progress = Progress()

    def take_crash(self, events: Iterable[tuple[str, Struct]]) -> None:
        """Take in the events that tell of its crash, as if they had been written."""
        for type, body in events:
            data = msgspec.to_builtins(body)
            if type == "pipeline.wide":
                self.whole = data
            else:
                self.stages.append(data)

    def apply_amendments(self) -> None:
        """Give each event the fields that came after it had gone out."""
        events = {event["event_id"]: event for event in self.stages if "event_id" in event}
        if self.whole is not None:
            events[self.whole["event_id"]] = self.whole
        for amendment in self.amendments:
            amend(events, amendment)

    def is_complete(self) -> bool:
        """Tell whether there is a terminal event for each stage that `pipeline.wide` counts."""
        ended = sum(stage.get("status") != "RETRY" for stage in self.stages)
        return self.whole is not None and ended >= self.whole.get("stages_total", 0)

    def children_without_end(self) -> set[str]:
        """Return the ids of the runs that were started inside it and have no `pipeline.wide`."""
        return set(self.opened_children) - {str(child["event_id"]) for child in self.children}

    def picture(self) -> dict[str, Any] | None:
        """Return what is known of a run without a `pipeline.wide`; None where its beginning is not."""
        if self.opened is None:
            return None
        run = UnfinishedRun(self.opened, map(msgspec.json.encode, self.stages), self.progress)
        if self.closed is None:
            return run.so_far(get_clock().wall_ns() // 1000)
        return run.so_far(run.last_known_us()) | {
            "status": "CLOSED",
            "outcome": "closed",
            "reason": self.closed,
        }


def gather(gathered: dict[str, Gathered], text: bytes, wanted: str) -> None:
    """Take in a line, if it belongs to a run whose id begins as `wanted`, or to one inside it."""
    if text.startswith(HEARTBEAT):
        if (heartbeat := decode_heartbeat(text)) is not None:
            update_progress({run_id: run.progress for run_id, run in gathered.items()}, heartbeat)
        return
    line = decode(text)
    if line is None:
        return
    body = line.data if isinstance(line.data, Raw) else line.journal
    data = decode_stored(body) if isinstance(body, Raw) else None
    if not isinstance(data, dict) or not isinstance(body, Raw) or not is_well_formed(line.type, body):
        return
    run_id = run_of(text)
    if text.startswith(RUN_OPEN) and str(data.get("parent_run_id") or "").startswith(wanted):
        gathered.setdefault(str(data["parent_run_id"]), Gathered()).opened_children.append(str(run_id))
    if line.type == "pipeline.wide" and str(data.get("parent_run_id") or "").startswith(wanted):
        gathered.setdefault(str(data["parent_run_id"]), Gathered()).children.append(data)
    if not run_id or not run_id.startswith(wanted):
        return
    run = gathered.setdefault(run_id, Gathered())
    if text.startswith(RUN_OPEN):
        if (opened := decode_run_open(text)) is not None:
            # What came before was an earlier run of the same id.
            gathered[run_id] = run = Gathered()
            run.is_run = True
            run.opened = opened
    elif text.startswith(RUN_CLOSED):
        run.closed = str(data.get("reason"))
    elif line.journal is not UNSET:
        pass
    elif line.type == "pipeline.wide":
        run.whole, run.is_run = data, True
    elif line.type == "stage.wide":
        run.stages.append(data)
        run.is_run = True
    elif line.type in ("stage.wide.amend", "pipeline.wide.amend"):
        run.amendments.append(data)
    else:
        run.events.append((line.type, data))


def amend(events: Mapping[str, dict[str, Any]], amendment: Mapping[str, Any]) -> None:
    """Put the fields of an amendment into the event that it belongs to, if that is there."""
    event = events.get(str(amendment.get("event_id")))
    if event is not None:
        event["attributes"] = {**(event.get("attributes") or {}), **(amendment.get("attributes") or {})}
        event["redacted"] = (event.get("redacted") or 0) + (amendment.get("redacted") or 0)
        event["truncated"] = [*(event.get("truncated") or []), *(amendment.get("truncated") or [])]
