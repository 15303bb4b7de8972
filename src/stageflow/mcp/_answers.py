"""The answers of the tools: compact plain values, from the queries of the store."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import structs

from .._time import get_clock
from .._timeparse import parse_duration, parse_time
from ..errors import InvalidArgumentError
from ..journal import RunFilter
from ..store import (
    Difference,
    ErrorGroup,
    EventStore,
    Explanation,
    Over,
    RunExplanation,
    as_predicate,
    explain_one_run,
    explain_selected,
    may_be_run_id,
    query_in_subprocess,
    select,
)
from ._results import Sql

__all__ = ["Answers", "View", "as_filter"]


Row = dict[str, Any]

View = Literal["runs", "stages", "items", "events", "counts"]
"""The views that a query can read."""

_SQL_TIMEOUT = 30.0
"""Time limit of a query in seconds."""

_MAX_SQL_ROWS = 1_000
"""Maximum number of rows of a query, including rows that only the file with the complete result contains."""

_IDS = ("request_id", "session_id", "user_id", "org_id")


class Answers:
    """Answers questions about the records of a journal and its archive.

    Args:
        journal: Directory of the journal; None for the archive alone.
        archive: Address of the archive; None for the archive of the journal.
    """

    def __init__(self, journal: Path | None, archive: str | None) -> None:
        self._journal = None if journal is None else str(journal)
        self._archive = archive
        self._store: EventStore | None = None
        self._opening = threading.Lock()

    def close(self) -> None:
        """Close the store."""
        with self._opening:
            if self._store is not None:
                self._store.close()
                self._store = None

    @property
    def store(self) -> EventStore:
        """The store, opened on first use: the journal may not exist when the server starts.

        Raises:
            JournalNotFoundError: The journal directory does not exist.
        """
        with self._opening:
            if self._store is None:
                # A tool must respond quickly, so it never archives a backlog.
                self._store = EventStore(self._journal, self._archive, compact_beyond=None)
            return self._store

    # ------------------------------------------------------------ all runs

    def overview(self) -> Row:
        """Return what is unusual, the pipelines, the most frequent errors, and the newest versions."""
        store = self.store
        found = store.overview()
        return {
            "runs": found.runs,
            "in_progress": len(store.runs(RunFilter(status="open"), limit=None)),
            "first_started_at": found.first_at,
            "last_started_at": found.last_at,
            "findings": [
                _without_none({"text": each.text, "where": None if each.where is None else Sql(each.where)})
                for each in found.findings
            ],
            "pipelines": [
                {
                    "pipeline": each.pipeline,
                    "runs": each.runs,
                    "failure_rate": each.failure_rate,
                    "p50_ms": each.p50_ms,
                    "p95_ms": each.p95_ms,
                    "outcomes": each.outcomes,
                    "stages": list(each.stages),
                }
                for each in found.pipelines
            ],
            "errors": [
                _without_none(
                    {
                        "pipeline": each.pipeline,
                        "stage": each.stage,
                        **_message(each),
                        "runs": each.runs,
                        "new": each.is_new,
                    }
                )
                for each in store.errors(limit=5)
            ],
            "versions": [
                {"service_version": each.version, "first": each.first_at, "runs": each.runs}
                for each in found.versions
            ],
            **self._archive_problem(),
        }

    def schema(self, view: View, field: str | None) -> Row:
        """Return the columns of a view by type, or the most frequent values of one of them."""
        if field is not None:
            name = '"{}"'.format(field.replace('"', '""'))
            rows = self.store.sql(
                f"select {name}, sum(sample_rate) from {view} group by 1 order by 2 desc", limit=20
            )
            return {
                "field": field,
                "values": [[value, count] for value, count in rows.rows],
                "more": rows.more,
            }
        columns = self.store.sql(f"describe {view}").rows
        by_type: dict[str, list[str]] = {}
        for name, type, *_ in columns:
            by_type.setdefault(type, []).append(name)
        return {"view": view, "columns": by_type}

    def runs(self, filter: RunFilter, where: str | None, limit: int) -> Row:
        """Return runs, newest first."""
        found = self.store.runs(filter, where=where, limit=limit + 1)
        return {
            "runs": [_summary(run) for run in found[:limit]],
            "more": len(found) > limit,
            **self._nothing(found, filter),
        }

    def run(self, run_id: str) -> Row:
        """Return one run with its stages."""
        record = self.store.run(run_id)
        run = record.run
        events = Counter(type for type, _ in record.events)
        return {
            **_summary(run),
            "attributes": run.get("attributes") or {},
            "critical_path": [
                each.get("stage") if isinstance(each, dict) else each
                for each in run.get("critical_path") or []
            ],
            "stages": [_stage(stage) for stage in [*record.stages, *run.get("stages_running", ())]],
            "events": dict(events),
            "child_runs": [_summary(child) for child in record.children],
        }

    def stats(
        self, over: Over, filter: RunFilter, where: str | None, by: str | None, every: str | None
    ) -> Row:
        """Return counts, failure rates and percentiles."""
        bucket = None if every is None else _duration(every)
        found = self.store.stats(over, filter, where=where, by=by, bucket=bucket)
        rows = [
            _without_none(
                {
                    "pipeline": each.pipeline,
                    "stage": each.stage,
                    by or "group": each.group,
                    "since": each.since,
                    "count": each.count,
                    "failed": each.failed,
                    "failure_rate": each.failure_rate,
                    "skipped": each.skipped or None,
                    "cancelled": each.cancelled or None,
                    "retried": each.retried or None,
                    "p50_ms": each.p50_ms,
                    "p95_ms": each.p95_ms,
                    "p99_ms": each.p99_ms,
                    "estimated": each.estimated or None,
                }
            )
            for each in found
        ]
        return {"over": over, "rows": rows, **self._nothing(found, filter)}

    def errors(self, filter: RunFilter, where: str | None, limit: int) -> Row:
        """Return groups of failures."""
        found = self.store.errors(filter, where=where, limit=limit)
        groups = [
            _without_none(
                {
                    "pipeline": each.pipeline,
                    "stage": each.stage,
                    "kind": each.kind,
                    **_message(each),
                    "count": each.count,
                    "runs": each.runs,
                    "users": each.users,
                    "first": each.first,
                    "last": each.last,
                    "new": each.is_new,
                    "trend": each.trend,
                    "fingerprint": each.fingerprint,
                    "examples": each.examples[:2],
                }
            )
            for each in found
        ]
        return {"errors": groups, **self._nothing(found, filter)}

    # ------------------------------------------------------------ comparisons

    def explain(
        self,
        selection: str,
        against: str | None,
        over: Over,
        filter: RunFilter,
        per: str | None,
        changed: bool,
        limit: int,
    ) -> Row:
        """Return how a selection of runs differs from the other runs, or one run from its peers."""
        if against is None and may_be_run_id(selection):
            run = explain_one_run(self.store, selection, filter)
            if run is not None:
                return _explained_run(run)
        selected = select(selection, against, filter)
        found = explain_selected(self.store, selected, over=over, per=per, limit=limit, changed=changed)
        problems = self._archive_problem() if found[0].selection.rows else self._nothing([], filter)
        return {"explanations": [_explained(each) for each in found], **problems}

    def compare(self, before: str, after: str, over: Over, filter: RunFilter) -> Row:
        """Return a comparison of two selections, by stage or pipeline."""
        found = self.store.compare(as_predicate(before), as_predicate(after), over, filter)
        rows = [
            _without_none(
                {
                    "pipeline": each.pipeline,
                    "stage": each.stage,
                    "count": [each.before.count, each.after.count],
                    "failure_rate": [each.before.failure_rate, each.after.failure_rate],
                    "p50_ms": [each.before.p50_ms, each.after.p50_ms],
                    "p95_ms": [each.before.p95_ms, each.after.p95_ms],
                    "q_failures": each.q_failures,
                    "q_durations": each.q_durations,
                }
            )
            for each in found
        ]
        return {"over": over, "values": "[before, after]", "rows": rows, **self._nothing(found, filter)}

    def sql(self, query: str, limit: int) -> Row:
        """Return the rows of a query."""
        rows = query_in_subprocess(
            self.store.path, self._archive, query, limit=min(limit, _MAX_SQL_ROWS), timeout=_SQL_TIMEOUT
        )
        return {"columns": rows.columns, "rows": [list(row) for row in rows.rows], "more": rows.more}

    # ------------------------------------------------------------ parts of results

    def _nothing(self, found: Iterable[Any], filter: RunFilter) -> Row:
        """Return why a result is empty: a pipeline or stage that does not exist."""
        if any(True for _ in found):
            return self._archive_problem()
        unknown = self.store.names().unknown(filter)
        return {"note": f"there is {unknown}" if unknown else "nothing matches", **self._archive_problem()}

    def _archive_problem(self) -> Row:
        error = self.store.archive_error
        return {} if error is None else {"warning": f"part of the archive cannot be read: {error}"}


def as_filter(**fields: Any) -> RunFilter:
    """Return the filter for the arguments of a tool. Times are those of the command line, such as "2h".

    Raises:
        InvalidArgumentError: A time is invalid.
    """
    now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
    for name in ("since", "until"):
        if fields.get(name) is not None:
            try:
                fields[name] = parse_time(fields[name], now)
            except ValueError as error:
                raise InvalidArgumentError(f"{name}: {error}") from None
    if fields.get("slower_than") is not None:
        fields["slower_than"] = _duration(fields["slower_than"])
    return RunFilter(**fields)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidArgumentError(str(error)) from None


def _message(group: ErrorGroup) -> Row:
    """Return the newest message of a group, and the number of its messages if there are several."""
    return {"message": group.message} | ({"messages": group.messages} if group.messages > 1 else {})


def _without_none(row: Row) -> Row:
    return {name: value for name, value in row.items() if value is not None}


def _summary(run: Row) -> Row:
    ids = run.get("correlation_ids") or {}
    return _without_none(
        {
            "run": ids.get("pipeline_run_id"),
            "pipeline": run.get("pipeline_name"),
            "outcome": run.get("outcome"),
            "started_at": run.get("started_at"),
            "duration_ms": run.get("duration_ms"),
            "error": run.get("error"),
            "failed_stage": run.get("first_failed_stage"),
            **{name: ids.get(name) for name in _IDS},
            "service_version": (run.get("resource") or {}).get("service_version"),
            "parent_run": run.get("parent_run_id"),
        }
    )


def _stage(stage: Row) -> Row:
    return _without_none(
        {
            "stage": stage.get("stage_name"),
            "status": stage.get("status"),
            "attempt": stage.get("attempt"),
            "queue_ms": stage.get("queue_ms"),
            "duration_ms": stage.get("duration_ms"),
            "error": stage.get("error"),
            "reason": stage.get("reason"),
            "stack": (stage.get("exception") or {}).get("stack"),
            "log_tail": stage.get("log_tail") or None,
            "child_runs": stage.get("child_runs") or None,
            "attributes": stage.get("attributes") or None,
        }
    )


def _explained(explanation: Explanation) -> Row:
    return _without_none(
        {
            "summary": explanation.summary,
            "pipeline": explanation.pipeline,
            "where": Sql(explanation.where),
            "selected": explanation.selection.count,
            "others": explanation.rest.count,
            "where_it_differs": [
                _without_none(
                    {
                        "stage": each.stage,
                        "what": each.what,
                        "error_type": each.error_type,
                        "share": each.share,
                        "ms": each.ms,
                        "other_ms": each.other_ms,
                    }
                )
                for each in explanation.locations[:5]
            ],
            "differences": [_difference(each) for each in explanation.differences],
            "likely_effects": [each.description for each in explanation.effects[:5]],
            "changes": [
                {
                    "field": each.field,
                    "value": each.value,
                    "first_at": each.first_at,
                    "selected": each.selection.rows,
                }
                for each in explanation.changes[:5]
            ]
            or None,
            "onset": explanation.onset,
            "limitations": list(explanation.limitations) or None,
            "sql": None if explanation.sql is None else Sql(explanation.sql),
        }
    )


def _difference(difference: Difference) -> Row:
    return _without_none(
        {
            "description": difference.description,
            "condition": Sql(difference.condition),
            "rate": difference.rate,
            "other_rate": difference.other_rate,
            "matching": difference.selection.count + difference.rest.count,
            "selected": difference.selection.count,
            "users": difference.users,
            "excess": [difference.excess_low, difference.excess_high],
            "p50_ms": difference.p50_ms,
            "other_p50_ms": difference.other_p50_ms,
            "q": difference.q_value,
            "verdict": difference.verdict if difference.verdict != "independent" else None,
            "relates_to": difference.relates_to,
            "same_rows": list(difference.synonyms[:3]) or None,
            "runs": list(difference.run_ids[:2]),
        }
    )


def _explained_run(run: RunExplanation) -> Row:
    found: Row = msgspec.to_builtins(structs.replace(run, stages=run.stages[:12], unusual=run.unusual[:8]))
    found["stages"] = [
        {"stage": stage["stage"], "status": stage["status"]}
        | {
            name: [stage[name]["value"], stage[name]["p50"]]
            for name in ("ran_ms", "waited_ms", "retried_ms")
            if stage[name]["value"]
        }
        for stage in found["stages"]
    ]
    return {"values": "[this run, median of its peers]", **_without_none(found)}
