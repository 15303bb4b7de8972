"""Checks the record of the demo against the record guarantees."""

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
        runs: The data of all `pipeline.wide` events.
        stages: The data of all `stage.wide` events.
        answers: The data of all `desk.answered` events.
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
    """The counts of events, and the violations of the record guarantees.

    Attributes:
        runs: Number of runs that were started.
        pipelines: Number of `pipeline.wide` events.
        expected: Expected number of terminal `stage.wide` events.
        terminals: Number of terminal `stage.wide` events.
        retries: Number of `stage.wide` events with status RETRY.
        answers: Number of `desk.answered` events.
        problems: Violations of the record guarantees; empty if there are none.
    """

    runs: int
    pipelines: int
    expected: int
    terminals: int
    retries: int
    answers: int
    problems: list[str]


def check(record: Record, runs: int, stages: int) -> Check:
    """Count the events of `runs` runs of a pipeline with `stages` stages, and check the record guarantees.

    Each run has one `pipeline.wide` event and one terminal `stage.wide` event per stage, and the counts in
    the `pipeline.wide` event equal the numbers of these.
    """
    pipelines = Counter(run_id_of(run) for run in record.runs)
    terminals = Counter(
        (run_id_of(stage), stage["stage_name"]) for stage in record.stages if stage["status"] != "RETRY"
    )
    ends = Counter((run_id_of(stage), stage["status"]) for stage in record.stages)
    problems = (
        [f"{len(pipelines)} of {runs} runs have a pipeline.wide event"] if len(pipelines) != runs else []
    )
    problems += [
        f"run {run_id} has {number} pipeline.wide events"
        for run_id, number in pipelines.items()
        if number != 1
    ]
    problems += [
        f"run {run_id} has {number} terminal stage.wide events of stage {stage!r}"
        for (run_id, stage), number in terminals.items()
        if number != 1
    ]
    for run in record.runs:
        run_id = run_id_of(run)
        problems += [
            f"run {run_id} has {key}={run[key]}, but {ends[run_id, status]} {status} events"
            for key, status in _COUNTS.items()
            if run[key] != ends[run_id, status]
        ]
        if run["stages_total"] != stages:
            problems.append(f"run {run_id} has stages_total={run['stages_total']}, expected {stages}")
    if terminals.total() != runs * stages:
        problems.append(f"{terminals.total()} terminal stage.wide events, expected {runs * stages}")
    retries = len(record.stages) - terminals.total()
    return Check(
        runs, pipelines.total(), runs * stages, terminals.total(), retries, len(record.answers), problems
    )
