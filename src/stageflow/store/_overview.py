"""The overview of the record: the findings, what is new, and the pipelines with their statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct, structs

from .._time import epoch_us, rfc3339
from ..journal import RunFilter
from ._columns import text
from ._compared import Compared, Selected, compare
from ._error_groups import failed_with, new_errors
from ._findings import OverviewFinding, Statistics, findings_of
from ._queries import Queries
from ._selection import condition
from ._snapshot import Scope

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "SUMMARY_COLUMNS",
    "FirstSighting",
    "Overview",
    "PipelineSummary",
    "RunSummary",
    "VersionSummary",
    "first_sightings",
    "look",
    "run_summary",
]


_FEW = 5
"""Number of runs and versions in the lists."""

_MAX_SIGHTINGS = 50
_MAX_ERROR = 300

SUMMARY_COLUMNS = """pipeline_run_id, pipeline_name, status, outcome, failed, started_at, duration_ms, error,
    first_failed_stage, user_id, org_id, session_id, request_id, service_version, parent_run_id, sample_rate,
    event_id"""
"""The columns from which `run_summary` creates a summary."""


class RunSummary(Struct, frozen=True, kw_only=True):
    """A run in a list.

    Attributes:
        run_id: Its id.
        pipeline: Name of its pipeline.
        status: OK, FAIL, CANCEL, or OPEN for a run in progress.
        outcome: ok, degraded, failed, timeout, crashed, cancelled, suspended, or open.
        failed: Whether it counts as a failure; None if failure rates exclude it.
        started_at: RFC 3339.
        duration_ms: Duration in milliseconds; for a run in progress, until now.
        error: Its error, one line of at most 300 characters; None without an error.
        failed_stage: The first stage that failed; None if none did.
        running: The stages that are running; empty for a completed run.
        user_id: Its user; None if unknown. The next four fields are also None if unknown.
        org_id: Its organization.
        session_id: Its session.
        request_id: Its request.
        service_version: Version of the service.
        parent_run_id: The run that started it; None for a root run.
        weight: Number of runs that it represents (`sample_rate`).
    """

    run_id: str
    pipeline: str
    status: str
    outcome: str
    failed: bool | None
    started_at: str
    duration_ms: float | None
    error: str | None
    failed_stage: str | None
    running: tuple[str, ...] = ()
    user_id: str | None = None
    org_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    service_version: str | None = None
    parent_run_id: str | None = None
    weight: float = 1.0


class FirstSighting(Struct, frozen=True, kw_only=True):
    """A service version or an error that occurred for the first time.

    Attributes:
        at: When, RFC 3339.
        kind: "version" or "error".
        label: Its text.
        where: The predicate that selects its runs.
    """

    at: str
    kind: Literal["version", "error"]
    label: str
    where: str


class PipelineSummary(Struct, frozen=True, kw_only=True):
    """A pipeline in an overview.

    Attributes:
        pipeline: Name of the pipeline.
        runs: Number of runs, weighted.
        failure_rate: Share of failures, 0 to 1; None if failure rates exclude all runs.
        p50_ms: Median duration in milliseconds.
        p95_ms: 95th percentile.
        outcomes: Number of runs by outcome, weighted, most frequent first.
        stages: Names of its stages.
    """

    pipeline: str | None
    runs: float
    failure_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    outcomes: dict[str, float]
    stages: tuple[str, ...]


class VersionSummary(Struct, frozen=True, kw_only=True):
    """A service version in an overview.

    Attributes:
        version: The version.
        first_at: Start of its first run, RFC 3339.
        runs: Number of its runs, weighted.
    """

    version: str
    first_at: str
    runs: float


class Overview(Struct, frozen=True, kw_only=True):
    """The overview of the runs in a time range; see `EventStore.overview`.

    Attributes:
        since: Start of the time range, RFC 3339: that of the filter, or the start of the first run.
        until: Its end: that of the filter; else now, or without `since` the start of the last run.
        runs: Number of runs, weighted.
        first_at: Start of the oldest of them, RFC 3339; None without runs.
        last_at: Start of the newest; None without runs.
        findings: The findings, worst first; at least one.
        changes: Versions and errors that occurred for the first time in the time range, oldest first.
        failing: The five newest runs that failed.
        slowest: The five slowest runs.
        pipelines: The pipelines, most runs first; empty without `details`.
        versions: The five newest service versions; empty without `details`.
    """

    since: str
    until: str
    runs: float
    first_at: str | None
    last_at: str | None
    findings: tuple[OverviewFinding, ...]
    changes: tuple[FirstSighting, ...]
    failing: tuple[RunSummary, ...]
    slowest: tuple[RunSummary, ...]
    pipelines: tuple[PipelineSummary, ...] = ()
    versions: tuple[VersionSummary, ...] = ()


def look(
    store: Statistics,
    queries: Queries,
    filter: RunFilter,
    where: str | None,
    *,
    explain: bool,
    details: bool,
) -> Overview:
    """Return the overview; see `EventStore.overview`.

    Raises:
        QueryError: The predicate is invalid.
    """
    selected = Selected(filter, where)

    def read(cursor: DuckDBPyConnection) -> tuple[Compared, Overview]:
        compared = compare(cursor, queries.weighted, selected)
        return compared, Overview(
            since=compared.since,
            until=compared.until,
            runs=compared.shown.count,
            first_at=compared.first,
            last_at=compared.last,
            findings=(),
            changes=first_sightings(cursor, filter.since, filter.until),
            failing=_runs(cursor, selected, "failed", "started_at desc"),
            slowest=_runs(cursor, selected, "duration_ms is not null", "duration_ms desc"),
            versions=_versions(cursor, selected) if details else (),
        )

    # First occurrences depend on the whole record.
    compared, found = queries.run(read, "overview", predicates=[where], over=["runs"])
    return structs.replace(
        found,
        findings=findings_of(store, queries, selected, compared, explain=explain),
        pipelines=_pipelines(store, queries, selected) if details else (),
    )


def first_sightings(
    cursor: DuckDBPyConnection, since: str | None, until: str | None
) -> tuple[FirstSighting, ...]:
    """Return the versions and errors that occurred for the first time in a time range, oldest first.

    The first version of the record is not new. Errors are new if `ErrorGroup.is_new` is true.

    Args:
        cursor: The connection with the views.
        since: Start of the time range; None for the whole record.
        until: Its end; None for now.
    """
    start = f"first_at >= {text(since)}::timestamptz" if since is not None else "true"
    end = f"first_at < {text(until)}::timestamptz" if until is not None else "true"
    found = cursor.execute(f"""
        select epoch_us(first_at), service_version from (
            select min(started_at) as first_at, service_version
            from runs where service_version is not null group by service_version
            qualify first_at > min(first_at) over ()
        ) where {start} and {end} order by 1 desc limit {_MAX_SIGHTINGS}""").fetchall()
    sightings = [
        (
            at,
            FirstSighting(
                at=rfc3339(at), kind="version", label=name, where=f"service_version = {text(name)}"
            ),
        )
        for at, name in found
    ]
    for error in new_errors(cursor, since=since, until=until):
        where = failed_with(error.pipeline, error.stage, kind=error.kind, fingerprint=error.fingerprint)
        of = f"{error.stage} ({error.pipeline})" if error.stage is not None else error.pipeline
        at = rfc3339(error.first_us)
        sightings.append(
            (error.first_us, FirstSighting(at=at, kind="error", label=f"{error.kind} in {of}", where=where))
        )
    sightings.sort(key=lambda one: one[0])
    return tuple(sighting for _, sighting in sightings[-_MAX_SIGHTINGS:])


def run_summary(row: tuple[Any, ...]) -> RunSummary:
    """Return the summary for the values of `SUMMARY_COLUMNS`."""
    run_id, pipeline, status, outcome, failed, started_at, duration_ms, error, stage, *others = row
    user, org, session, request, version, parent, weight, _ = others
    return RunSummary(
        run_id=run_id or "",
        pipeline=pipeline or "",
        status=status or "",
        outcome=outcome or "",
        failed=failed,
        started_at=rfc3339(epoch_us(started_at.isoformat())) if started_at is not None else "",
        duration_ms=duration_ms,
        error=_first_line(error),
        failed_stage=stage,
        user_id=user,
        org_id=org,
        session_id=session,
        request_id=request,
        service_version=version,
        parent_run_id=parent,
        weight=weight or 1.0,
    )


def _first_line(error: str | None) -> str | None:
    if not error:
        return None
    line = error.partition("\n")[0]
    return line if len(line) <= _MAX_ERROR else line[: _MAX_ERROR - 1] + "…"


# ------------------------------------------------------------ lists


def _runs(cursor: DuckDBPyConnection, selected: Selected, which: str, order: str) -> tuple[RunSummary, ...]:
    found = cursor.execute(
        f"select {SUMMARY_COLUMNS} from runs where {selected.condition()} and {which}"
        f" order by {order} limit {_FEW}"
    ).fetchall()
    return tuple(map(run_summary, found))


def _versions(cursor: DuckDBPyConnection, selected: Selected) -> tuple[VersionSummary, ...]:
    found = cursor.execute(
        "select service_version, epoch_us(min(started_at)) as first_us, sum(sample_rate) from runs"
        f" where {selected.condition()} and service_version is not null"
        f" group by 1 order by first_us desc limit {_FEW}"
    ).fetchall()
    return tuple(VersionSummary(version=name, first_at=rfc3339(at), runs=runs) for name, at, runs in found)


def _pipelines(store: Statistics, queries: Queries, selected: Selected) -> tuple[PipelineSummary, ...]:
    def read(cursor: DuckDBPyConnection) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        outcomes = cursor.execute(
            "select pipeline_name, outcome, sum(sample_rate) from runs"
            f" where {selected.condition()} group by all order by 3 desc"
        ).fetchall()
        stages = cursor.execute(
            "select topology, list(distinct stage_name order by stage_name) from stages"
            f" where {condition('stages', selected.filter, None)} group by 1"
        ).fetchall()
        return outcomes, stages

    counted, staged = queries.run(
        read,
        "pipelines",
        predicates=[selected.where],
        over=["runs"],
        scope=Scope.began_since(selected.filter.since),
    )
    outcomes: dict[str | None, dict[str, float]] = {}
    for pipeline, outcome, count in counted:
        outcomes.setdefault(pipeline, {})[outcome] = count
    stages = dict(staged)
    return tuple(
        PipelineSummary(
            pipeline=each.pipeline,
            runs=each.count,
            failure_rate=each.failure_rate,
            p50_ms=each.p50_ms,
            p95_ms=each.p95_ms,
            outcomes=outcomes.get(each.pipeline, {}),
            stages=tuple(stages.get(each.pipeline, ())),
        )
        for each in store.stats("runs", selected.filter, where=selected.where)
    )
