"""The overview of the record: what is unusual, what is new, and the pipelines with their statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

from msgspec import Struct, structs

from .._quantities import duration, percent
from .._time import epoch_us, get_clock, rfc3339
from ..journal import RunFilter
from ._columns import text
from ._explain._explanation import Explanation
from ._merge import count_if, percentiles, ranked
from ._queries import Queries
from ._selection import Over, condition
from ._snapshot import Scope
from ._statistics import Stat

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "SUMMARY_COLUMNS",
    "FirstSighting",
    "Overview",
    "OverviewFinding",
    "PipelineSummary",
    "RunSummary",
    "VersionSummary",
    "find",
    "first_sightings",
    "look",
    "run_summary",
    "time_range",
]


_FEW = 5
"""Number of runs and versions in the lists."""

_MIN_FAILURES = 3
"""Minimum number of failures for a finding about failures."""

_MIN_RUNS = 20
"""Minimum number of recent runs for a finding about durations."""

_NOTABLE = 1.5
"""A failure rate or a duration is notable if it is at least this multiple of the earlier one."""

_HIGH_RATE = 0.05
"""A failure rate that is notable even if it has not changed."""

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
        running: The stages that are running; empty for an ended run.
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


class OverviewFinding(Struct, frozen=True, kw_only=True):
    """A sentence about the runs of an overview.

    Attributes:
        kind: What it is about: "failures", "crashes" or "durations"; "none" if nothing is unusual.
        level: Its severity; "ok" if nothing is unusual.
        text: The sentence.
        where: The predicate that selects the affected runs, to compare them with the rest; or None.
        since: When it started, RFC 3339; None if unknown.
    """

    kind: Literal["failures", "crashes", "durations", "none"]
    level: Literal["bad", "warning", "info", "ok"]
    text: str
    where: str | None = None
    since: str | None = None


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


class _Statistics(Protocol):
    """The methods of `EventStore` on which the overview is based."""

    def stats(self, over: Over, filter: RunFilter, *, where: str | None) -> list[Stat]: ...

    def explain(self, *, filter: RunFilter, within: str | None) -> Explanation: ...

    def explain_slow(self, over: Over, filter: RunFilter, *, within: str | None) -> Explanation: ...


class _Rates(Struct, frozen=True):
    """Statistics of the runs in a time range.

    Attributes:
        count: Number of runs.
        failed: Number of failures.
        rated: Number of runs that failure rates include.
        p95_ms: The 95th percentile of the duration in milliseconds; None without runs.
        crashed: Number of crashed runs.
    """

    count: float
    failed: float
    rated: float
    p95_ms: float | None
    crashed: float

    @property
    def rate(self) -> float | None:
        return self.failed / self.rated if self.rated else None


class _Selected(Struct, frozen=True):
    """The runs of an overview."""

    filter: RunFilter
    where: str | None

    def condition(self, *, since: str | None = None, until: str | None = None) -> str:
        """Return the SQL condition of the runs, or of those that started between two times."""
        found = condition("runs", self.filter, self.where)
        found += f" and started_at >= {text(since)}::timestamptz" if since is not None else ""
        return found + (f" and started_at < {text(until)}::timestamptz" if until is not None else "")


class _Compared(Struct, frozen=True):
    """The last quarter of a time range, compared with the time before."""

    first: str | None
    last: str | None
    since: str
    until: str
    middle: str
    earlier: _Rates
    recent: _Rates


def look(
    store: _Statistics,
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
    selected = _Selected(filter, where)

    def read(cursor: DuckDBPyConnection) -> tuple[_Compared, Overview]:
        compared = _compare(cursor, queries.weighted, selected)
        return compared, Overview(
            since=compared.since,
            until=compared.until,
            runs=compared.earlier.count + compared.recent.count,
            first_at=compared.first,
            last_at=compared.last,
            findings=(),
            changes=first_sightings(cursor, compared.since, filter.until),
            failing=_runs(cursor, selected, "failed", "started_at desc"),
            slowest=_runs(cursor, selected, "duration_ms is not null", "duration_ms desc"),
            versions=_versions(cursor, selected) if details else (),
        )

    # First occurrences depend on the whole record.
    compared, found = queries.run(read, "overview", predicates=[where], over=["runs"])
    return structs.replace(
        found,
        findings=_findings(store, queries, selected, compared, explain=explain),
        pipelines=_pipelines(store, queries, selected) if details else (),
    )


def find(
    store: _Statistics, queries: Queries, filter: RunFilter, where: str | None, *, explain: bool
) -> tuple[OverviewFinding, ...]:
    """Return what is unusual; see `EventStore.findings`.

    Raises:
        QueryError: The predicate is invalid.
    """
    selected = _Selected(filter, where)
    compared = queries.run(
        lambda cursor: _compare(cursor, queries.weighted, selected),
        "findings",
        predicates=[where],
        over=["runs"],
        scope=Scope.began_since(filter.since),
    )
    return _findings(store, queries, selected, compared, explain=explain)


def time_range(
    rows: tuple[int | None, int | None], since_us: int | None, until_us: int | None
) -> tuple[int, int]:
    """Return the start and the end of a time range, in microseconds since the epoch.

    Args:
        rows: When the first and the last row started; None without rows.
        since_us: The start; None for that of the rows.
        until_us: The end; None for now, or without a start for that of the rows.
    """
    first, last = rows
    now_us = get_clock().wall_ns() // 1000
    if until_us is None:
        # A range that starts at a relative time ends now, so that a period without runs is visible.
        until_us = now_us if since_us is not None or last is None else last + 1
    if since_us is None:
        since_us = first if first is not None else until_us - 3_600_000_000
    return since_us, max(until_us, since_us + 1)


def first_sightings(cursor: DuckDBPyConnection, since: str, until: str | None) -> tuple[FirstSighting, ...]:
    """Return the versions and errors that occurred for the first time in a time range, oldest first.

    Versions and errors that were present from the start are not new: the first version, and errors that first
    occurred in the first twentieth of the recorded time.
    """
    end = f" and first_at < {text(until)}::timestamptz" if until is not None else ""
    found = cursor.execute(f"""
        select epoch_us(first_at), kind, label, value from (
            select min(started_at) as first_at, 'version' as kind, service_version as label,
                service_version as value
            from runs where service_version is not null group by service_version
            qualify first_at > min(first_at) over ()
            union all
            select min(started_at), 'error',
                coalesce(any_value(error_type), 'error')
                    || coalesce(' in ' || any_value(first_failed_stage), ''),
                error_fingerprint
            from runs where error_fingerprint is not null group by error_fingerprint
            having min(started_at) > (
                select min(started_at) + (max(started_at) - min(started_at)) / 20 from runs
            )
        ) where first_at >= {text(since)}::timestamptz{end} order by 1 desc
        limit {_MAX_SIGHTINGS}""").fetchall()
    columns = {"version": "service_version", "error": "error_fingerprint"}
    sightings = [
        FirstSighting(at=rfc3339(at), kind=kind, label=str(label), where=f"{columns[kind]} = {text(value)}")
        for at, kind, label, value in found
    ]
    return tuple(reversed(sightings))


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


def _runs(cursor: DuckDBPyConnection, selected: _Selected, which: str, order: str) -> tuple[RunSummary, ...]:
    found = cursor.execute(
        f"select {SUMMARY_COLUMNS} from runs where {selected.condition()} and {which}"
        f" order by {order} limit {_FEW}"
    ).fetchall()
    return tuple(map(run_summary, found))


def _versions(cursor: DuckDBPyConnection, selected: _Selected) -> tuple[VersionSummary, ...]:
    found = cursor.execute(
        "select service_version, epoch_us(min(started_at)) as first_us, sum(sample_rate) from runs"
        f" where {selected.condition()} and service_version is not null"
        f" group by 1 order by first_us desc limit {_FEW}"
    ).fetchall()
    return tuple(VersionSummary(version=name, first_at=rfc3339(at), runs=runs) for name, at, runs in found)


def _pipelines(store: _Statistics, queries: Queries, selected: _Selected) -> tuple[PipelineSummary, ...]:
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


# ------------------------------------------------------------ findings


def _compare(cursor: DuckDBPyConnection, weighted: bool, selected: _Selected) -> _Compared:
    ((first, last),) = cursor.execute(
        f"select epoch_us(min(started_at)), epoch_us(max(started_at)) from runs where {selected.condition()}"
    ).fetchall()
    times = selected.filter
    since_us, until_us = time_range(
        (first, last),
        epoch_us(times.since) if times.since else None,
        epoch_us(times.until) if times.until else None,
    )
    since, until = rfc3339(since_us), rfc3339(until_us)
    middle = rfc3339(since_us + (until_us - since_us) * 3 // 4)
    return _Compared(
        first=None if first is None else rfc3339(first),
        last=None if last is None else rfc3339(last),
        since=since,
        until=until,
        middle=middle,
        earlier=_rates(cursor, weighted, selected.condition(since=since, until=middle)),
        recent=_rates(cursor, weighted, selected.condition(since=middle)),
    )


def _rates(cursor: DuckDBPyConnection, weighted: bool, condition: str) -> _Rates:
    rows = f"select * from runs where {condition}"
    found = cursor.execute(f"""
        select {count_if()}, {count_if("failed")}, {count_if("failed is not null")},
            {percentiles((0.95,), weighted=weighted)}[1], {count_if("outcome = 'crashed'")}
        from {ranked(rows, "duration_ms", [], weighted=weighted)}""").fetchone()
    assert found is not None
    count, failed, rated, p95, crashed = found
    return _Rates(float(count), float(failed), float(rated), p95, float(crashed))


def _findings(
    store: _Statistics, queries: Queries, selected: _Selected, compared: _Compared, *, explain: bool
) -> tuple[OverviewFinding, ...]:
    found = [
        *_failures(store, queries, selected, compared, explain=explain),
        *_durations(store, selected, compared, explain=explain),
    ]
    order = ("bad", "warning", "info", "ok")
    found.sort(key=lambda finding: order.index(finding.level))
    return tuple(found) or (_nothing_unusual(compared),)


def _failures(
    store: _Statistics, queries: Queries, selected: _Selected, compared: _Compared, *, explain: bool
) -> list[OverviewFinding]:
    earlier, recent = compared.earlier, compared.recent
    failed = earlier.failed + recent.failed
    if failed < _MIN_FAILURES:
        return []
    rate = failed / (earlier.rated + recent.rated)
    explanation = store.explain(filter=selected.filter, within=selected.where) if explain else None
    onset = explanation.onset if explanation is not None else None
    before = after = None
    if onset is not None:
        before, after = _rates_around(queries, selected, compared.since, onset)
    if before is not None and after is not None and after > before:
        sentence = f"The failure rate is {percent(after)}, up from {percent(before)}, since {_clock(onset)}"
        now, level_rate = after, after / before if before else _NOTABLE
    else:
        sentence = f"{percent(rate)} of the runs fail ({failed:,.0f} of {earlier.count + recent.count:,.0f})"
        now, level_rate = rate, _ratio(recent.rate, earlier.rate)
        if level_rate >= _NOTABLE and recent.rate is not None and recent.failed >= _MIN_FAILURES:
            sentence += f", and {percent(recent.rate)} in the last quarter of the time range"
            now = recent.rate
    if explanation is not None and (cause := _cause(explanation)) is not None:
        sentence += f", mostly where {cause}"
    is_bad = now >= _HIGH_RATE or level_rate >= _NOTABLE
    found = [
        OverviewFinding(
            kind="failures",
            level="bad" if is_bad else "info",
            text=f"{sentence}.",
            where="failed",
            since=onset,
        )
    ]
    if crashed := earlier.crashed + recent.crashed:
        noun = "run was" if crashed == 1 else "runs were"
        found.append(
            OverviewFinding(
                kind="crashes",
                level="warning",
                text=f"{crashed:,.0f} {noun} interrupted because the process died.",
                where="outcome = 'crashed'",
            )
        )
    return found


def _rates_around(
    queries: Queries, selected: _Selected, since: str, onset: str
) -> tuple[float | None, float | None]:
    """Return the failure rates before and after a time."""

    def read(cursor: DuckDBPyConnection) -> tuple[float | None, float | None]:
        before, after = (
            _rates(cursor, queries.weighted, condition).rate
            for condition in (
                selected.condition(since=since, until=onset),
                selected.condition(since=onset),
            )
        )
        return before, after

    scope = Scope.began_since(selected.filter.since)
    return queries.run(read, "failure rates", predicates=[selected.where], over=["runs"], scope=scope)


def _durations(
    store: _Statistics, selected: _Selected, compared: _Compared, *, explain: bool
) -> list[OverviewFinding]:
    earlier, recent = compared.earlier, compared.recent
    if recent.p95_ms is None or earlier.p95_ms is None or recent.count < _MIN_RUNS:
        return []
    is_bad = _ratio(recent.p95_ms, earlier.p95_ms) >= _NOTABLE
    sentence = ""
    where = f"duration_ms >= {earlier.p95_ms!r}"
    if is_bad:
        sentence = (
            f"The p95 duration is {duration(recent.p95_ms)} in the last quarter of the time range,"
            f" up from {duration(earlier.p95_ms)}"
        )
    if explain:
        explanation = store.explain_slow("runs", selected.filter, within=selected.where)
        if (cause := _cause(explanation)) is not None:
            sentence = f"{sentence or 'The slowest 5% of the runs differ'}, mostly where {cause}"
            where = explanation.where
    if not sentence:
        return []
    return [
        OverviewFinding(
            kind="durations",
            level="bad" if is_bad else "warning",
            text=f"{sentence}.",
            where=where,
            since=compared.middle if is_bad else None,
        )
    ]


def _cause(explanation: Explanation) -> str | None:
    """Return the description of the first difference that is not only a time."""
    for difference in explanation.differences:
        if difference.shape not in ("date", "hour", "weekday") and difference.fields != ("started_at",):
            return difference.description
    return None


def _ratio(recent: float | None, earlier: float | None) -> float:
    if recent is None or earlier is None:
        return 1.0
    return recent / earlier if earlier else (_NOTABLE if recent else 1.0)


def _clock(time: str | None) -> str:
    return f"{time[11:16]} UTC on {time[:10]}" if time else ""


def _nothing_unusual(compared: _Compared) -> OverviewFinding:
    earlier, recent = compared.earlier, compared.recent
    count = earlier.count + recent.count
    if not count:
        sentence = "There are no runs in this time range."
    else:
        failed = earlier.failed + recent.failed
        failures = "no run failed" if not failed else f"{failed:,.0f} failed"
        p95 = recent.p95_ms if recent.p95_ms is not None else earlier.p95_ms
        sentence = f"Nothing unusual: {count:,.0f} runs, {failures}, p95 {duration(p95)}."
    return OverviewFinding(kind="none", level="ok", text=sentence)
