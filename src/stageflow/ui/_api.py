"""The responses of the web API. `web/src/api.ts` is generated from these types."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from ..alerts import IncidentRecord
from ..store import ErrorGroup, Explanation, RunExplanation, RunSummary, Stat

__all__ = [
    "Bin",
    "Causes",
    "Cell",
    "Completion",
    "Completions",
    "CursorStatus",
    "Differences",
    "Errors",
    "Facet",
    "FacetValue",
    "Facets",
    "Finding",
    "Heatmap",
    "Mark",
    "Overview",
    "Problem",
    "RunDetails",
    "Runs",
    "Series",
    "SeriesGroup",
    "SilenceRequest",
    "SnapshotInfo",
    "SqlResult",
    "StageGraph",
    "StageRow",
    "Stages",
    "Status",
    "Typical",
    "WriterStatus",
]


class SnapshotInfo(Struct, frozen=True, kw_only=True):
    """The state of the records that a response describes: `GET /api/snapshot` and the event stream.

    Attributes:
        number: Number of the snapshot; the next one has a higher number.
        read_at: When it was read, RFC 3339.
        source: The address of the journal or the archive, for display.
        runs: Number of completed runs.
        in_progress: Number of runs in progress.
        writing: Whether a process has the journal open for writing; it can change without a new snapshot.
        pipelines: Names of the pipelines, most runs first.
        first_at: Start of the oldest run, RFC 3339; None without runs.
        last_at: Start of the newest run, RFC 3339; None without runs.
        estimated: True if runs were sampled, so that counts are estimates.
        archive_error: Why the archive, or a part of it, is not included; None if all of it is.
        version: Version of stageflow; a page from another version reloads itself.
        options: The options with which other commands read the same records: "--journal .stageflow/demo".
        actions: Whether actions such as silencing an alert are allowed.
    """

    number: int
    read_at: str
    source: str
    runs: int
    in_progress: int
    writing: bool
    pipelines: tuple[str, ...]
    first_at: str | None
    last_at: str | None
    estimated: bool
    archive_error: str | None
    version: str
    options: str
    actions: bool


class Problem(Struct, frozen=True, kw_only=True):
    """The body of a response with an error status (RFC 9457: Problem Details).

    Attributes:
        title: A one-sentence description of the problem.
        status: The HTTP status.
        hint: How to solve it; None if there is no hint.
        reason: "expired" for a missing or expired token, "replaced" for a request that a newer request from
            the same panel replaced, "snapshot" for a snapshot that is no longer available, "invalid" for
            invalid parameters, "timeout" for a query that exceeded its time limit, "store" for records that
            cannot be read, "internal" for any other error.
    """

    title: str
    status: int
    hint: str | None = None
    reason: Literal["expired", "replaced", "snapshot", "invalid", "timeout", "store", "internal"]


class Runs(Struct, frozen=True, kw_only=True):
    """A page of runs: `GET /api/runs?limit=200&before=CURSOR`.

    Attributes:
        snapshot: Number of the snapshot.
        rows: The runs in the requested order; by default newest first.
        next: The value of `before` for the next page; None on the last page.
        total: Number of matching runs, weighted; None if it was not counted.
        sql: The query as SQL.
    """

    snapshot: int
    rows: tuple[RunSummary, ...]
    next: str | None
    total: float | None
    sql: str


class Typical(Struct, frozen=True, kw_only=True):
    """The typical duration of a stage or a run in its pipeline, from those that succeeded.

    Attributes:
        p50_ms: Median in milliseconds; None without other runs.
        p95_ms: 95th percentile in milliseconds.
        rows: Number of runs or stages.
    """

    p50_ms: float | None
    p95_ms: float | None
    rows: int


class RunDetails(Struct, frozen=True, kw_only=True):
    """Everything about one run: `GET /api/run?id=RUN`.

    Attributes:
        snapshot: Number of the snapshot.
        run: The data of its `pipeline.wide` event; for a run in progress the known fields, with status
            "OPEN" and `stages_running`.
        stages: The data of its `stage.wide` events: per stage, one for each retried attempt and a final one.
        events: The custom events, as pairs of type and data.
        children: The `pipeline.wide` events of the runs that it started.
        typical: The typical duration of the whole run.
        typical_stages: The typical duration of each stage.
        explanation: How it differs from comparable runs; None if it was not requested or is in progress.
    """

    snapshot: int
    run: dict[str, Any]
    stages: list[dict[str, Any]]
    events: list[tuple[str, dict[str, Any]]]
    children: list[dict[str, Any]]
    typical: Typical | None
    typical_stages: dict[str, Typical]
    explanation: RunExplanation | None


class Mark(Struct, frozen=True, kw_only=True):
    """A vertical mark in a chart over time.

    Attributes:
        at: RFC 3339.
        until: The end of the incident of an alert; None while it fires, and for other kinds.
        kind: A service version or an error that occurred for the first time, an incident of an alert, or the
            onset of a finding.
        label: Its text.
        where: The predicate that selects its runs; None for an alert.
    """

    at: str
    until: str | None = None
    kind: Literal["version", "error", "alert", "onset"]
    label: str
    where: str | None


class GroupTotal(Struct, frozen=True, kw_only=True):
    """The statistics of a group of rows in the whole time range, or in a part of it.

    Attributes:
        count: Number of rows.
        failed: Number of failures.
        failure_rate: Share of failures, 0 to 1; None without rows that can fail.
        p50_ms: Median duration in milliseconds; None without durations.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
    """

    count: float
    failed: float
    failure_rate: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class SeriesGroup(Struct, frozen=True, kw_only=True):
    """One line of each chart. Each list has one element per time step; None is a gap.

    Attributes:
        name: Value of the field by which the series is grouped; "selection" or "rest" if the request
            has a selection instead of a field; None for all rows or a missing value.
        where: The predicate that selects the group; None for all rows, or the rest.
        rank: The position of the value among all values of the field, in the order in which they first
            occurred, starting at 0. It does not depend on a filter or a time range, so a chart can derive the
            color of the value from it. None for all rows, or for a missing value.
        total: The group in the whole time range; None if the rows are not grouped.
        count: Number of rows.
        failed: Number of failures.
        failure_rate: Share of failures, 0 to 1; None for steps without rows.
        p50_ms: Median duration in milliseconds.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
    """

    name: str | None
    where: str | None
    rank: int | None
    total: GroupTotal | None
    count: tuple[float, ...]
    failed: tuple[float, ...]
    failure_rate: tuple[float | None, ...]
    p50_ms: tuple[float | None, ...]
    p95_ms: tuple[float | None, ...]
    p99_ms: tuple[float | None, ...]


class Series(Struct, frozen=True, kw_only=True):
    """Counts, failure rates and durations over time: `GET /api/series?by=FIELD`.

    With `select=PREDICATE` instead of a field, there are two groups: the selection and the rest.

    Attributes:
        snapshot: Number of the snapshot.
        since: Start of the first step, RFC 3339.
        step_s: Length of a step in seconds.
        steps: Number of steps.
        by: The field by which it is grouped; None for one group.
        groups: The groups, most rows first; at most ten.
        other_groups: Number of groups that are not included.
        previous: The same steps one week earlier; None if there are no rows.
        marks: The marks in the time range.
        estimated: True if rows were sampled.
        sql: The query as SQL.
        incomplete_first: Whether the time range starts within the first step.
        incomplete_last: Whether it ends within the last step.
    """

    snapshot: int
    since: str
    step_s: float
    steps: int
    by: str | None
    groups: tuple[SeriesGroup, ...]
    other_groups: int
    previous: SeriesGroup | None
    marks: tuple[Mark, ...]
    estimated: bool
    sql: str
    incomplete_first: bool
    incomplete_last: bool


class Finding(Struct, frozen=True, kw_only=True):
    """A sentence of the overview.

    Attributes:
        kind: What it is about; "none" if nothing is unusual.
        level: Its severity; "ok" if there are no problems.
        text: The sentence.
        where: The predicate that selects the affected runs, to compare them with the rest; or None.
        cause: The predicate of the runs that are affected more often than others; None if it is unknown.
        condition: The same in words; None if it is unknown.
        stage: The stage in which most of these runs fail, or that takes most of their additional time.
        since: When it started, RFC 3339; None if unknown.
        since_range: The earliest and the latest time at which it can have started; None if unknown.
        view: The view that shows the details.
    """

    kind: Literal["alert", "failures", "crashes", "durations", "none"]
    level: Literal["bad", "warning", "info", "ok"]
    text: str
    where: str | None
    cause: str | None
    condition: str | None
    stage: str | None
    since: str | None
    since_range: tuple[str, str] | None
    view: Literal["explore", "runs", "errors", "status"]


class Overview(Struct, frozen=True, kw_only=True):
    """The landing page: `GET /api/overview`.

    Attributes:
        snapshot: Number of the snapshot.
        findings: The findings, worst first; at least one.
        series: The charts.
        changes: The marks in the time range, newest first.
        slowest: The five slowest runs.
        failing: The five newest runs that failed.
    """

    snapshot: int
    findings: tuple[Finding, ...]
    series: Series
    changes: tuple[Mark, ...]
    slowest: tuple[RunSummary, ...]
    failing: tuple[RunSummary, ...]


class Causes(Struct, frozen=True, kw_only=True):
    """What the runs of the findings have in common, which takes longer: `GET /api/causes`.

    Attributes:
        snapshot: Number of the snapshot.
        findings: The findings of `Overview`, with causes.
        onsets: When findings started, oldest first.
    """

    snapshot: int
    findings: tuple[Finding, ...]
    onsets: tuple[Mark, ...]


class Cell(Struct, frozen=True, array_like=True, gc=False):
    """A cell of a heatmap that is not empty; a JSON array.

    Attributes:
        x: Index of the time step.
        y: Index of the interval of the measure; 0 is the lowest.
        count: Number of rows, weighted.
        failed: Number of failures, weighted.
        selected: Number of selected rows, weighted; 0 without a selection.
    """

    x: int
    y: int
    count: float
    failed: float
    selected: float


class Heatmap(Struct, frozen=True, kw_only=True):
    """A numeric field over time: `GET /api/heatmap?measure=FIELD&columns=200&rows=60&select=PREDICATE`.

    Attributes:
        snapshot: Number of the snapshot.
        over: "runs" or "stages".
        measure: The field.
        measure_sql: The field as an SQL expression, for predicates.
        since: Start of the first step, RFC 3339.
        step_s: Length of a step in seconds.
        columns: Number of steps, at most 200.
        log: Whether the edges grow exponentially.
        edges: The limits of the intervals: one more than the number of intervals, at most 61. The last
            interval includes its upper limit.
        cells: The cells that are not empty.
        count: Number of rows with a value, weighted.
        missing: Number of rows without a value, weighted.
        estimated: True if rows were sampled.
        sql: The query as SQL.
    """

    snapshot: int
    over: Literal["runs", "stages"]
    measure: str
    measure_sql: str
    since: str
    step_s: float
    columns: int
    log: bool
    edges: tuple[float, ...]
    cells: tuple[Cell, ...]
    count: float
    missing: float
    estimated: bool
    sql: str


class FacetValue(Struct, frozen=True, kw_only=True):
    """A value of a field, and how often it occurs.

    Attributes:
        value: The value as text; None if it is missing.
        where: The predicate that selects the rows with this value.
        selection: Number of selected rows with it, weighted; without a selection, of all rows.
        rest: Number of other rows with it, weighted; 0 without a selection.
    """

    value: str | None
    where: str
    selection: float
    rest: float


class Bin(Struct, frozen=True, kw_only=True):
    """An interval of a numeric field, and the number of rows in it.

    Attributes:
        low: Lower limit, inclusive.
        high: Upper limit, exclusive except in the last interval.
        where: The predicate that selects its rows.
        selection: Number of selected rows in it, weighted; without a selection, of all rows.
        rest: Number of other rows in it, weighted; 0 without a selection.
    """

    low: float
    high: float
    where: str
    selection: float
    rest: float


class Facet(Struct, frozen=True, kw_only=True):
    """The distribution of one field.

    Attributes:
        field: Name of the field.
        kind: "values" for the most frequent values, "numbers" for intervals.
        values: At most 8 values, most frequent first; empty for numbers.
        bins: At most 20 intervals; empty for values.
        other: Number of rows with any other value, in the selection and in the rest.
        missing: Number of rows without a value, in the selection and in the rest.
        distinct: Approximate number of distinct values.
        difference: Distance of the two distributions, 0 (equal) to 1 (disjoint); 0 without a selection, or if
            the distance can be due to chance.
    """

    field: str
    kind: Literal["values", "numbers"]
    values: tuple[FacetValue, ...]
    bins: tuple[Bin, ...]
    other: tuple[float, float]
    missing: tuple[float, float]
    distinct: int
    difference: float


class Facets(Struct, frozen=True, kw_only=True):
    """The distributions of the fields: `GET /api/facets?select=PREDICATE`.

    Attributes:
        snapshot: Number of the snapshot.
        over: "runs" or "stages".
        selection: Number of selected rows, weighted; without a selection, of all rows.
        rest: Number of all other rows, weighted; 0 without a selection.
        fields: The fields, most different first; sorted by name without a selection.
        left_out: Fields that are omitted because almost every row has a different value.
        sampled: Number of rows from which the distributions were computed; None if all rows were used.
    """

    snapshot: int
    over: Literal["runs", "stages"]
    selection: float
    rest: float
    fields: tuple[Facet, ...]
    left_out: tuple[str, ...]
    sampled: int | None


class Differences(Struct, frozen=True, kw_only=True):
    """How a selection differs from the rest: `GET /api/differences?select=PREDICATE`.

    With `against=PREDICATE`, the rest consists of the other rows that match this predicate.

    Attributes:
        snapshot: Number of the snapshot.
        explanation: The result of `EventStore.explain`.
        command: The equivalent command line.
        markdown: The result as compact Markdown, to paste into a chat with an assistant.
    """

    snapshot: int
    explanation: Explanation
    command: str
    markdown: str


class ErrorRow(Struct, frozen=True, kw_only=True):
    """A group of failures with the same error.

    Attributes:
        group: The group.
        where: The predicate that selects its runs.
    """

    group: ErrorGroup
    where: str


class Errors(Struct, frozen=True, kw_only=True):
    """The errors by fingerprint: `GET /api/errors`.

    Attributes:
        snapshot: Number of the snapshot.
        rows: The groups, most frequent first.
        trend_since: Start of the trend of each group, RFC 3339.
        trend_until: End of the trend.
    """

    snapshot: int
    rows: tuple[ErrorRow, ...]
    trend_since: str | None
    trend_until: str | None


class StageRow(Struct, frozen=True, kw_only=True):
    """A stage of a pipeline, with its statistics over time.

    Attributes:
        stat: Its statistics.
        where: The predicate that selects its rows in `stages`.
        runs_where: The predicate that selects the runs of the pipeline in `runs`.
        earlier: Its statistics before the last quarter of the time range.
        recent: Its statistics in the last quarter of the time range.
        p95_ms: 95th percentile of its duration in milliseconds for each time step; None is a gap.
        p99_ms: 99th percentile.
        count: Number of rows for each time step.
        failed: Number of failures for each time step.
    """

    stat: Stat
    where: str
    runs_where: str
    earlier: GroupTotal
    recent: GroupTotal
    p95_ms: tuple[float | None, ...]
    p99_ms: tuple[float | None, ...]
    count: tuple[float, ...]
    failed: tuple[float, ...]


class StageGraph(Struct, frozen=True, kw_only=True):
    """The graph of a pipeline, from its newest run.

    Attributes:
        pipeline: Name of the pipeline.
        edges: Pairs of stages; the second stage depends on the first.
        stages: All stages, in order.
    """

    pipeline: str
    stages: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]


class Stages(Struct, frozen=True, kw_only=True):
    """The stages of each pipeline: `GET /api/stages`.

    Attributes:
        snapshot: Number of the snapshot.
        since: Start of the first time step, RFC 3339.
        step_s: Length of a step in seconds.
        incomplete_last: Whether the time range ends within the last step.
        recent_since: Start of the last quarter of the time range, RFC 3339; the time before the first row
            does not count.
        rows: The stages, grouped by pipeline.
        graphs: The graph of each pipeline.
    """

    snapshot: int
    since: str
    step_s: float
    incomplete_last: bool
    recent_since: str
    rows: tuple[StageRow, ...]
    graphs: tuple[StageGraph, ...]


class SqlResult(Struct, frozen=True, kw_only=True):
    """The rows of a query: `GET /api/sql?query=SELECT`.

    Attributes:
        snapshot: Number of the snapshot.
        columns: Names of the columns.
        rows: At most `limit` rows, by default 200.
        more: Whether there are more rows.
        ms: Duration of the query in milliseconds.
    """

    snapshot: int
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool
    ms: float


class Completion(Struct, frozen=True, kw_only=True):
    """A suggestion of the filter bar.

    Attributes:
        text: The text that it inserts; for a field of a stage of a run, "stage/field".
        kind: A field of the rows, a field of a stage of a run, or a value.
        count: Number of rows with the value; None for a field, unless a value was requested.
        type: "text", "number", "time", "boolean" or "list" for a field; None for a value.
        usefulness: How useful it is to group by the field: the higher, the more useful. None for a value, and
            for fields by which it is not useful to group, such as ids and numbers.
        synonyms: Other names of the field.
        value: The requested value as it was recorded, which can have other capital letters; None without one.
    """

    text: str
    kind: Literal["field", "stage field", "value"]
    count: float | None = None
    type: str | None = None
    usefulness: int | None = None
    synonyms: tuple[str, ...] = ()
    value: str | None = None


class Completions(Struct, frozen=True, kw_only=True):
    """Suggestions of the filter bar.

    `GET /api/complete` returns all fields, `GET /api/complete?field=F&prefix=P` values of a field, and
    `GET /api/complete?value=V` the fields with a value, in any case.

    Attributes:
        snapshot: Number of the snapshot.
        suggestions: The suggestions; fields by name, values and the fields with a value by count.
    """

    snapshot: int
    suggestions: tuple[Completion, ...]


class SilenceRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /api/silence`, which suppresses the notifications of an alert.

    Attributes:
        rule: Name of the rule.
        hours: Number of hours, at most 720; 0 ends the silence.
        reason: The reason.
    """

    rule: str
    hours: Annotated[float, Meta(ge=0, le=720)]
    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class WriterStatus(Struct, frozen=True, kw_only=True):
    """A process that writes or has written to the journal.

    Attributes:
        name: Name of the writer.
        open: Whether the process is still writing.
        segments: Number of its segments in the journal.
        bytes: Size of these segments.
    """

    name: str
    open: bool
    segments: int
    bytes: int


class CursorStatus(Struct, frozen=True, kw_only=True):
    """A reader of the journal.

    Attributes:
        name: Name of the cursor.
        lag_bytes: Number of bytes that it has not read yet.
        error: Why its position is unknown; None if it is known.
    """

    name: str
    lag_bytes: int
    error: str | None


class Status(Struct, frozen=True, kw_only=True):
    """The state of the system: `GET /api/status`.

    Attributes:
        snapshot: Number of the snapshot.
        source: The journal or the archive.
        alerts: The state of each alert rule: its name, the fields of `RuleState`, and `silence`, the silence
            that applies, or None.
        incidents: The newest incidents of all rules, newest first; at most 50.
        alerts_error: Why the state of the alerts is unavailable; None if it is available.
        writers: The writers.
        cursors: The readers.
        damage: Descriptions of damaged files.
        dropped: Number of dropped events that the journal reports.
        archive: Facts about the archive, as pairs of a name and a value.
        age_s: Seconds since the snapshot was read.
        viewers: Number of open event streams.
        queries: Number of queries that are running.
        cache_bytes: Size of the cached results.
    """

    snapshot: int
    source: str
    alerts: list[dict[str, Any]]
    incidents: tuple[IncidentRecord, ...]
    alerts_error: str | None
    writers: tuple[WriterStatus, ...]
    cursors: tuple[CursorStatus, ...]
    damage: tuple[str, ...]
    dropped: int
    archive: tuple[tuple[str, str], ...]
    age_s: float
    viewers: int
    queries: int
    cache_bytes: int
