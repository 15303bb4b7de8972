"""Failures grouped by error, and which of these errors are new."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from msgspec import Struct

from .._time import epoch_us, get_clock, rfc3339
from ._columns import FAILED, text
from ._merge import count_if
from ._result_list import ResultList

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = [
    "FAILURE_COLUMNS",
    "ErrorGroup",
    "NewError",
    "baseline",
    "errors",
    "failed_with",
    "failure_condition",
    "new_errors",
]


_BASELINE = timedelta(days=30)
"""An error that occurred in this time before a period is not new in it."""


class ErrorGroup(Struct, frozen=True):
    """Failures with the same error: of one stage, or of runs that failed as a whole.

    Failures have the same error if they have the same `error_fingerprint`. Those without one, from earlier
    versions, have the same error if their messages differ only in numbers and ids.

    Attributes:
        pipeline: Name of the pipeline; for a stage, the topology that it ran in.
        stage: Name of the stage; None if the run itself failed, for example by its deadline.
        kind: The class of the exception; for a run without an exception, its outcome ("timeout", "crashed").
            Runs whose outcome does not count as a failure are excluded, by default those that were cancelled.
        message: The newest message; see `messages`.
        rows: Number of events.
        count: The weighted number of events.
        runs: Number of stored runs with this failure.
        first: When the failure first occurred: in the record, or, with a start of the period, in the period
            or in the 30 days before it. Like `is_new`, it includes failures that the filter excludes.
        last: When the failure last occurred in the period.
        examples: Ids of up to five of the newest runs with this failure.
        fingerprint: The `error_fingerprint`, or None.
        users: Number of different `user_id` values of these runs.
        trend: The weighted number of events in each of 12 equal parts of the period, oldest first. The period
            is that of the filter; by default, it starts with `first` of the oldest group and ends now.
        is_new: True if the failure first occurred in the period, and not in the 30 days before it; without a
            start of the period, in the most recent 25% of the recorded time. If less time is recorded, its
            first 25% is the baseline.
        messages: Number of different messages.
    """

    pipeline: str
    stage: str | None
    kind: str
    message: str
    rows: int
    count: float
    runs: int
    first: datetime
    last: datetime
    examples: list[str]
    fingerprint: str | None = None
    users: int = 0
    trend: list[float] = []
    is_new: bool = False
    messages: int = 1


_EXAMPLES = 5
_PARTS = 12
"""The number of parts of a trend."""

_MAX_NEW = 50
"""Maximum number of new errors to return."""

_NORMALIZED_MESSAGE = r"""regexp_replace(regexp_replace(message,
    '[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}|0x[0-9a-fA-F]+', '#', 'g'), '[0-9]+', '#', 'g')"""


def failure_condition(of_stages: str, of_runs: str) -> str:
    """Return the SQL condition over `events` for failures of stages, and of runs that failed themselves.

    A run whose stage failed is not listed, unless the run failed for another reason as well.

    Args:
        of_stages: Condition for the stages to include.
        of_runs: Condition for the runs to include.
    """
    itself = "(first_failed_stage is null or outcome <> 'failed')"
    return f"""{FAILED} and ((type = 'stage.wide' and {of_stages})
        or (type = 'pipeline.wide' and {itself} and {of_runs}))"""


FAILURE_COLUMNS = """if(type = 'stage.wide', topology, pipeline_name) as pipeline, stage_name as stage,
    coalesce(error_type, outcome, 'failed') as kind, coalesce(error, '') as message,
    error_fingerprint as fingerprint, pipeline_run_id, user_id, ended_at, sample_rate"""
"""SQL: the columns of `events` that describe a failure."""


def failed_with(pipeline: str | None, stage: str | None, *, kind: str | None, fingerprint: str | None) -> str:
    """Return the SQL condition over `runs` for the runs with the failures of an `ErrorGroup`.

    Args:
        pipeline: The pipeline of the group.
        stage: Its stage; None if the runs failed themselves.
        kind: Its kind.
        fingerprint: Its fingerprint, if it has one.
    """
    if stage is None:
        of_error = f"outcome = {text(kind or '')}"
        if fingerprint is not None:
            of_error = f"error_fingerprint = {text(fingerprint)}"
        return (
            f"failed and pipeline_name = {text(pipeline or '')} and {of_error}"
            f" and (first_failed_stage is null or outcome <> 'failed')"
        )
    of_error = (
        f"error_fingerprint = {text(fingerprint)}"
        if fingerprint is not None
        else f"error_type = {text(kind or '')}"
    )
    return (
        "pipeline_run_id in (select pipeline_run_id from stages"
        f" where topology = {text(pipeline or '')} and stage_name = {text(stage)}"
        f" and status = 'FAIL' and {of_error})"
    )


def baseline(since: str | None) -> str | None:
    """Return the time from which events determine whether an error is new, RFC 3339; None for all events."""
    if since is None:
        return None
    return rfc3339(epoch_us(since) - int(_BASELINE.total_seconds()) * 1_000_000)


class _Known(Struct, frozen=True):
    """The time in which an error must not have occurred to be new: from `start`, until before `end`."""

    start: str
    end: str

    @classmethod
    def before(cls, connection: DuckDBPyConnection, since: str | None, until: str | None) -> _Known:
        """Return the baseline of a period: the time before it, or the first part of the record."""
        start = baseline(since)
        limits = [f"started_at >= {text(start)}::timestamptz"] if start is not None else []
        limits += [f"started_at < {text(until)}::timestamptz"] if until is not None else []
        recorded = f"where {' and '.join(limits)}" if limits else ""
        ((first_us, last_us),) = connection.execute(
            f"select epoch_us(min(started_at)), epoch_us(max(started_at)) from runs {recorded}"
        ).fetchall()
        now_us = get_clock().wall_ns() // 1000
        first_us, last_us = first_us or now_us, last_us or now_us
        if since is None:
            end_us = first_us + (last_us - first_us) * 3 // 4
        else:
            until_us = epoch_us(until) if until is not None else now_us
            end_us = max(epoch_us(since), first_us + (until_us - first_us) // 4)
        return cls(rfc3339(first_us), rfc3339(end_us))

    def recorded(self, until: str | None) -> str:
        """Return the SQL condition over `events` for this time and the rest of the period.

        Args:
            until: End of the period; None for all later events.
        """
        condition = f"started_at >= {text(self.start)}::timestamptz"
        return condition if until is None else f"{condition} and started_at < {text(until)}::timestamptz"


def _keyed(failures: str) -> str:
    """Return the common table expressions of failures with the key of their group.

    Args:
        failures: A query for the failures, with `FAILURE_COLUMNS`.
    """
    # Without a fingerprint, normalize each distinct message once: most failures share their message.
    return f"""failures as materialized ({failures}), messages as (
            select message, {_NORMALIZED_MESSAGE} as normalized
            from (select distinct message from failures where fingerprint is null)
        ), keyed as (
            select failures.*, hash(pipeline, stage, fingerprint,
                if(fingerprint is null, {{'kind': kind, 'message': normalized}}, null)) as key
            from failures left join messages
                on failures.fingerprint is null and messages.message = failures.message
        )"""


def errors(
    connection: DuckDBPyConnection,
    of_stages: str,
    of_runs: str,
    *,
    since: str | None,
    until: str | None,
    limit: int,
) -> list[ErrorGroup]:
    """Return groups of failures with the same error, most frequent first.

    Args:
        connection: The connection with the views.
        of_stages: Condition for the stages to include.
        of_runs: Condition for the runs to include.
        since: Start of the period; None for the first failure.
        until: End of the period; None for now.
        limit: Maximum number of groups.
    """
    known = _Known.before(connection, since, until)
    recorded = known.recorded(until)
    until = until or rfc3339(get_clock().wall_ns() // 1000)
    start = f"epoch({text(since)}::timestamptz)" if since else "(select epoch(min(first)) from occurred)"
    length = f"greatest(epoch({text(until)}::timestamptz) - {start}, 1e-6)"
    # A failure can end after the period of the filter, which selects by the start.
    part = f"greatest(least(floor({_PARTS} * (epoch(ended_at) - {start}) / {length}), {_PARTS - 1}), 0)"
    trend = ", ".join(count_if(f"part = {number}") for number in range(_PARTS))
    failures = f"""select {FAILURE_COLUMNS}, true as selected, false as known from events
            where {failure_condition(of_stages, of_runs)}
        union all select {FAILURE_COLUMNS}, false, started_at < {text(known.end)}::timestamptz from events
            where {failure_condition(recorded, recorded)}"""
    found = connection.execute(f"""
        with {_keyed(failures)}, occurred as (
            select key, min(ended_at) as first, bool_or(known) as was_known
            from keyed group by key having bool_or(selected)
        )
        select pipeline, stage, arg_max(kind, ended_at), arg_max(message, ended_at), count(*),
            {count_if()} as weighted_count, count(distinct pipeline_run_id), any_value(first), max(ended_at),
            coalesce(arg_max(pipeline_run_id, ended_at, {_EXAMPLES}), []), any_value(fingerprint),
            count(distinct user_id), [{trend}]::double[],
            not any_value(was_known), count(distinct message)
        from (select *, {part} as part from keyed join occurred using (key) where selected)
        group by pipeline, stage, key
        order by weighted_count desc, pipeline, stage, max(ended_at) desc, any_value(fingerprint)
        limit {limit}
    """).fetchall()
    groups = (ErrorGroup(pipeline or "", *rest) for pipeline, *rest in found)
    return ResultList(groups, "draw_errors")


class NewError(Struct, frozen=True):
    """An error that is new in a period.

    Attributes:
        pipeline: Name of the pipeline.
        stage: Name of the stage; None if the run itself failed.
        kind: The class of the exception, or the outcome.
        fingerprint: The `error_fingerprint`, or None.
        first_us: When the first run or stage with this failure started, in microseconds since the epoch.
    """

    pipeline: str
    stage: str | None
    kind: str
    fingerprint: str | None
    first_us: int


def new_errors(connection: DuckDBPyConnection, *, since: str | None, until: str | None) -> list[NewError]:
    """Return the errors whose `ErrorGroup.is_new` is true in a period, newest first.

    Args:
        connection: The connection with the views.
        since: Start of the period; None for the most recent 25% of the recorded time.
        until: End of the period; None for now.
    """
    known = _Known.before(connection, since, until)
    recorded = known.recorded(until)
    failures = (
        f"select {FAILURE_COLUMNS}, started_at from events where {failure_condition(recorded, recorded)}"
    )
    found = connection.execute(f"""
        with {_keyed(failures)}
        select coalesce(pipeline, ''), stage, arg_max(kind, ended_at), any_value(fingerprint),
            epoch_us(min(started_at)) as first_us
        from keyed group by pipeline, stage, key
        having min(started_at) >= {text(known.end)}::timestamptz
        order by first_us desc, pipeline, stage limit {_MAX_NEW}""").fetchall()
    return [NewError(*row) for row in found]
