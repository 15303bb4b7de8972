"""Checks the record of the demonstration."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

from ...journal import JournalReader

__all__ = ["Check", "Event", "Record", "check", "read_record", "run_id_of"]


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


_COUNTS = {
    "stages_completed": "OK",
    "stages_failed": "FAIL",
    "stages_skipped": "SKIP",
    "stages_cancelled": "CANCEL",
}


class Check(NamedTuple):
    """What was counted, and what is wrong with it: nothing, if all is well."""

    runs: int
    pipelines: int
    due: int
    terminals: int
    retries: int
    own: int
    wrong: list[str]


def check(record: Record, runs: int, stages: int) -> Check:
    """Count the events of `runs` runs of a pipeline with `stages` stages.

    The law: one `pipeline.wide` a run; one terminal `stage.wide` a stage and run; and the counts
    of the one are those of the others.
    """
    pipelines = Counter(run_id_of(run) for run in record.runs)
    terminals = Counter(
        (run_id_of(stage), stage["stage_name"]) for stage in record.stages if stage["status"] != "RETRY"
    )
    ends = Counter((run_id_of(stage), stage["status"]) for stage in record.stages)
    wrong = [f"{len(pipelines)} runs have a pipeline.wide, of {runs}"] if len(pipelines) != runs else []
    wrong += [f"run {run_id} has {many} pipeline.wide" for run_id, many in pipelines.items() if many != 1]
    wrong += [
        f"run {run_id} has {many} terminal stage.wide of {stage!r}"
        for (run_id, stage), many in terminals.items()
        if many != 1
    ]
    for run in record.runs:
        run_id = run_id_of(run)
        wrong += [
            f"run {run_id} says {key}={run[key]}, and has {ends[run_id, status]} stage.wide of {status}"
            for key, status in _COUNTS.items()
            if run[key] != ends[run_id, status]
        ]
        if run["stages_total"] != stages:
            wrong.append(f"run {run_id} says stages_total={run['stages_total']}, of {stages}")
    if terminals.total() != runs * stages:
        wrong.append(f"{terminals.total()} terminal stage.wide, of {runs * stages}")
    retries = len(record.stages) - terminals.total()
    return Check(
        runs, pipelines.total(), runs * stages, terminals.total(), retries, len(record.answers), wrong
    )
