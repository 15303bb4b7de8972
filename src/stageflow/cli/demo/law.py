"""Holds the journal against the law of the record: what every run must have left, and did."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from .record import Record, run_id_of

__all__ = ["Check", "check"]

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
