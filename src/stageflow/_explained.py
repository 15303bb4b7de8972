"""The fields of explanations: plain records, which the store computes and `render` draws."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

__all__ = [
    "Change",
    "Difference",
    "ExplanationRecord",
    "LeftOut",
    "Location",
    "Measured",
    "Part",
    "RunExplanationRecord",
    "SameError",
    "SameTime",
    "Shape",
    "StageMeasured",
    "UnusualValue",
    "Verdict",
]

Shape = Literal[
    "value",
    "values",
    "prefix",
    "element",
    "absence",
    "threshold",
    "interval",
    "date",
    "weekday",
    "hour",
    "combination",
]
"""The kind of condition: one value, a set of values, a prefix, an element of a list, a missing value, a
threshold or an interval of a number or a time, a date, a day of the week, an hour of the day (UTC), or a
combination of two or three of these, and a time."""

Verdict = Literal["independent", "remains", "explained", "inseparable"]
"""How a difference relates to the ones above it: it does not depend on them; it depends on one of them and
remains after controlling for it; it disappears after controlling for it; or the two occur together, so that
neither remains after controlling for the other."""


class Part(Struct, frozen=True, gc=False):
    """The rows of the selection, or of the rest, that match a condition.

    Attributes:
        rows: Number of matching rows.
        count: The number of rows that these represent: the sum of their `sample_rate`.
        share: `count` divided by the count of the whole selection or rest, 0 to 1.
    """

    rows: int
    count: float
    share: float


class Difference(Struct, frozen=True, kw_only=True):
    """A condition that the selection meets more often than the rest.

    Attributes:
        fields: The fields: columns of the view, "stage/column" for a field of a stage of a run, or
            "run/column" for a field of the run of a stage. More than one for a combination.
        shape: The kind of condition.
        description: The condition as text: "org_id = acme", "attributes.tokens > 812.5", "region is missing".
        parts: The descriptions of the conditions of a combination, one for each field; otherwise empty.
        value: The value, the values, or the limits of an interval; None if the condition has none.
        condition: The condition as an SQL predicate over the view.
        selection: The rows of the selection that meet the condition.
        rest: The rows of the rest that meet the condition.
        rate: The share of the rows with the condition that belong to the selection, 0 to 1: the failure rate,
            if the selection consists of the failures.
        other_rate: The same share for the rows without the condition.
        excess: The number of selected rows beyond those expected at `other_rate`.
        excess_low: Lower limit of the 95% confidence interval of `excess`.
        excess_high: Its upper limit.
        p50_ms: Median duration in milliseconds of all rows with the condition, to three significant digits;
            None if the selection does not depend on durations.
        other_p50_ms: The same for all other rows.
        lift: The share in the selection divided by the share in the rest; None if no row of the rest matches.
        deviance: The deviance (G²) that the condition explains in addition to the differences above it.
        q_value: The p-value, corrected for all comparisons: among all differences up to a q-value, at most
            this share is expected to be due to chance.
        clusters: Number of clusters, for example sessions, with selected rows that meet the condition.
        users: Number of users of these rows; None if no row names its user.
        run_ids: Ids of up to five selected runs that meet the condition, newest first.
        sql: A query for the selected rows that meet the condition.
        synonyms: Conditions on other fields that match the same rows.
        verdict: How the difference relates to the ones above it.
        relates_to: The description of the difference to which `verdict` refers; None if it is independent.
        varies: How the effect differs between the rows with and without an earlier difference; None if it
            does not.
        same_time_share: The share of the other rows from the time of the selection that match, 0 to 1, if the
            difference is due to that time: nearly all rows from that time match, for example those of a
            version that had been released earlier. None if it is not.
    """

    fields: tuple[str, ...]
    shape: Shape
    description: str
    value: Any
    condition: str
    selection: Part
    rest: Part
    rate: float
    other_rate: float
    excess: float
    excess_low: float
    excess_high: float
    p50_ms: float | None = None
    other_p50_ms: float | None = None
    lift: float | None
    deviance: float
    q_value: float
    clusters: int
    users: int | None = None
    run_ids: tuple[str, ...]
    sql: str
    synonyms: tuple[str, ...] = ()
    verdict: Verdict = "independent"
    relates_to: str | None = None
    varies: str | None = None
    parts: tuple[str, ...] = ()
    same_time_share: float | None = None

    def __str__(self) -> str:
        return self.description


class Location(Struct, frozen=True, kw_only=True):
    """Where the selection differs: a failing stage and its error, or a stage that takes longer.

    Attributes:
        stage: Name of the stage; None if the run failed as a whole, or for time outside the stages.
        what: "failed" for an error, otherwise what takes the time: "ran", "waited", "retried".
        error_type: Type of the error; None if `what` is not "failed".
        fingerprint: Fingerprint of the error, if the record contains one.
        selection: The rows of the selection with this error; for a time, those in which the stage ran.
        rest: The same for the rest.
        ms: Mean time per selected row in milliseconds, on the critical path; None for an error.
        other_ms: The same for the rest.
        share: The share of the failures, or of the excess time, for which the location accounts, 0 to 1.
        cause_share: The same share for the selected rows that match the first difference; None if nothing
            differs.
    """

    stage: str | None
    what: Literal["failed", "ran", "waited", "retried"]
    error_type: str | None = None
    fingerprint: str | None = None
    selection: Part
    rest: Part
    ms: float | None = None
    other_ms: float | None = None
    share: float
    cause_share: float | None = None


class Change(Struct, frozen=True, kw_only=True):
    """Something that occurred for the first time shortly before the selection started.

    Attributes:
        field: The field: `service_version`, an attribute, "stage/column" for an attribute of a stage,
            `error_type`.
        value: The value that is new.
        first_at: When it first occurred, RFC 3339.
        before_onset_s: Seconds from then until the onset; negative if it occurred after it.
        selection: The rows of the selection with this value.
        rest: The rows of the rest with this value.
    """

    field: str
    value: str
    first_at: str
    before_onset_s: float
    selection: Part
    rest: Part


class SameTime(Struct, frozen=True, kw_only=True):
    """The rows of the time range of a selection that are not selected.

    Attributes:
        since: When the first selected row started, RFC 3339.
        until: When the last one started.
        against: The predicate of the time range, to compare the selection with these rows only.
        count: The number that these rows represent; an estimate if the rest was sampled.
    """

    since: str
    until: str
    against: str
    count: float


class LeftOut(Struct, frozen=True):
    """Fields that were not compared, and the reason."""

    reason: str
    fields: tuple[str, ...]


class ExplanationRecord(Struct, frozen=True, kw_only=True):
    """The fields of `stageflow.store.Explanation`, which documents them."""

    summary: str
    where: str
    against: str | None
    within: str | None
    over: Literal["runs", "stages"]
    pipeline: str | None = None
    selected_are: str
    described: str | None = None
    selection: Part
    rest: Part
    selection_compared: int
    rest_compared: int
    cluster: str | None
    clusters: int
    users: int | None
    design_effect: float
    fields: int
    comparisons: int
    alpha: float
    onset: str | None = None
    onset_range: tuple[str, str] | None = None
    same_time: SameTime | None = None
    locations: tuple[Location, ...] = ()
    differences: tuple[Difference, ...] = ()
    effects: tuple[Difference, ...] = ()
    changes: tuple[Change, ...] = ()
    changes_before: str | None = None
    changes_by: Literal["onset", "rate", "first row"] | None = None
    left_out: tuple[LeftOut, ...] = ()
    limitations: tuple[str, ...] = ()
    sql: str | None = None


# ------------------------------------------------------------ one run


class Measured(Struct, frozen=True, kw_only=True, gc=False):
    """A duration or a number of a run, compared with its peers.

    Attributes:
        value: The value of the run; None if it is unknown.
        p50: The median of the peers; None without peers.
        p95: Their 95th percentile.
        percentile: The share of the peers with a lower value, 0 to 1; None if either is unknown.
    """

    value: float | None
    p50: float | None = None
    p95: float | None = None
    percentile: float | None = None

    @property
    def excess(self) -> float:
        """The difference to the median, or the value if no peer has one; 0 if the value is unknown."""
        return (self.value or 0.0) - (self.p50 or 0.0) if self.value is not None else 0.0


class StageMeasured(Struct, frozen=True, kw_only=True):
    """A stage of a run, compared with the same stage of the peers.

    Attributes:
        stage: Name of the stage.
        status: Its status; "OPEN" if it has not ended.
        attempts: Number of its attempts; None if it has not ended.
        critical: Whether it is on the critical path; False if the path is unknown.
        peers: Number of peers in which the stage ran.
        ran_ms: The duration of the last attempt in milliseconds.
        waited_ms: The time from when the stage was ready until it started, in milliseconds.
        retried_ms: The time of earlier attempts, and between attempts, in milliseconds.
    """

    stage: str
    status: str
    attempts: int | None
    critical: bool
    peers: int
    ran_ms: Measured
    waited_ms: Measured
    retried_ms: Measured


class UnusualValue(Struct, frozen=True, kw_only=True):
    """A value of a run that few of its peers have, or that most runs with the same problem have.

    Attributes:
        field: The field: a column of the runs, or "stage/column" for a field of a stage.
        value: The value of the run.
        share: The share of the peers with this value, for a number with a value at least as extreme; 0 to 1.
        typical: The most frequent value of the peers, or their median.
        typical_share: The share of the peers with the most frequent value; None for a number.
        similar_share: The share of the runs with the same problem that have this value; None unless it is
            much higher than that of the peers.
        same_time_share: The share of the peers from the same time with this value, if nearly all of them have
            it, so that it is due to the time of the run, such as a version that was released before;
            otherwise None.
        low: The 0.5th percentile of the peers; None unless the value is a number.
        high: The 99.5th percentile.
    """

    field: str
    value: str | float | bool
    share: float
    typical: str | float
    typical_share: float | None = None
    similar_share: float | None = None
    same_time_share: float | None = None
    low: float | None = None
    high: float | None = None


class SameError(Struct, frozen=True, kw_only=True):
    """The runs with the error of a run: those of its `ErrorGroup`.

    Attributes:
        fingerprint: The `error_fingerprint`.
        stage: The stage that failed; None if the runs failed themselves.
        where: The predicate over `runs` that selects them.
        failures: The runs of the pipeline in which the same stage failed with this fingerprint, including the
            run; `share` is their share of all failed runs.
        first_at: When the first of them started, RFC 3339.
        last_at: When the last of them started.
    """

    fingerprint: str
    stage: str | None
    where: str
    failures: Part
    first_at: str
    last_at: str


class RunExplanationRecord(Struct, frozen=True, kw_only=True):
    """The fields of `stageflow.store.RunExplanation`, which documents them."""

    run_id: str
    pipeline: str
    outcome: str
    started_at: str
    summary: str
    error: str | None
    peers: Part
    duration_ms: Measured
    stages: tuple[StageMeasured, ...] = ()
    unusual: tuple[UnusualValue, ...] = ()
    similar_are: str | None = None
    same_error: SameError | None = None
    limitations: tuple[str, ...] = ()
