"""One run, compared with the typical durations of its pipeline."""

from __future__ import annotations

from ..journal import RunFilter
from ..store import PinnedStore
from ._api import RunDetails, Typical

__all__ = ["run_details"]


def run_details(store: PinnedStore, run_id: str, snapshot: int, *, explain: bool) -> RunDetails:
    """Return the details of a run; see `RunDetails`.

    Args:
        store: The store.
        run_id: The id, as `EventStore.run` accepts it.
        snapshot: Number of the snapshot.
        explain: Whether to compare it with similar runs.

    Raises:
        RunNotFoundError: The id matches no run, or more than one.
    """
    record = store.run(run_id)
    pipeline = record.run.get("pipeline_name")
    typical, typical_stages = None, {}
    if isinstance(pipeline, str) and pipeline:
        filter = RunFilter(pipeline=pipeline)
        for stat in store.stats("runs", filter, where="outcome = 'ok'"):
            typical = Typical(p50_ms=stat.p50_ms, p95_ms=stat.p95_ms, rows=stat.rows)
        for stat in store.stats("stages", filter, where="status = 'OK'"):
            if stat.stage is not None:
                typical_stages[stat.stage] = Typical(p50_ms=stat.p50_ms, p95_ms=stat.p95_ms, rows=stat.rows)
    explanation = None
    has_ended = record.run.get("status") not in ("OPEN", "CLOSED")
    if explain and has_ended:
        explanation = store.explain_run(record)
    return RunDetails(
        snapshot=snapshot,
        run=record.run,
        stages=record.stages,
        events=record.events,
        children=record.children,
        typical=typical,
        typical_stages=typical_stages,
        explanation=explanation,
    )
