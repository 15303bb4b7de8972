"""Reads back what one invocation left in the journal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ...journal import JournalReader

__all__ = ["Event", "Record", "read_record", "run_id_of"]

Event = dict[str, Any]


class Record:
    """Events by type, in the order of the journal.

    Attributes:
        runs: The data of all `pipeline.wide`.
        stages: The data of all `stage.wide`.
        answers: The data of all `desk.answered`.
    """

    def __init__(self, events: Iterator[tuple[str, Event]]) -> None:
        by_type: dict[str, list[Event]] = defaultdict(list)
        for event_type, data in events:
            by_type[event_type].append(data)
        self.runs = by_type["pipeline.wide"]
        self.stages = by_type["stage.wide"]
        self.answers = by_type["desk.answered"]

    def __len__(self) -> int:
        return len(self.runs) + len(self.stages) + len(self.answers)

    def stages_of(self, run: Event) -> list[Event]:
        """Return the data of the `stage.wide` events of one run."""
        run_id = run_id_of(run)
        return [stage for stage in self.stages if run_id_of(stage) == run_id]


def run_id_of(event: Event) -> str:
    """Return the id of the run that an event belongs to."""
    return str(event["correlation_ids"]["pipeline_run_id"])


def read_record(reader: JournalReader, batch: str) -> Record:
    """Read the events of all runs whose `request_id` begins with `batch`."""
    events = ((entry.type, entry.data() or {}) for entry in reader)
    return Record(
        (event_type, data)
        for event_type, data in events
        if str(data["correlation_ids"]["request_id"]).startswith(batch)
    )
