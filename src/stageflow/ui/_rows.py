"""Lists of runs: one page, the newest runs, and the runs in progress."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .._time import epoch_us, get_clock, rfc3339
from ..errors import InvalidArgumentError
from ..journal import Journal
from ..store import SUMMARY_COLUMNS, PinnedStore, RunSummary, run_summary, text
from ._api import Runs
from ._question import Question

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

__all__ = ["NewestRuns", "runs_in_progress", "runs_page"]

_NEWEST = 1_000
"""Number of newest runs to keep in memory."""


def runs_page(store: PinnedStore, question: Question, snapshot: int) -> Runs:
    """Return a page of runs; see `Runs`.

    Raises:
        InvalidArgumentError: `before` is invalid.
        QueryError: A predicate is invalid.
    """
    descending = question.order.startswith("-")
    column = question.order.lstrip("-")
    direction = "desc" if descending else "asc"
    rest = question.condition
    if question.before is not None:
        rest += f" and ({column}, event_id) {'<' if descending else '>'} ({_position(question)})"
    order = f"order by {column} {direction}, event_id {direction}"
    if column == "duration_ms":
        rest += " and duration_ms is not null"
    query = f"select {SUMMARY_COLUMNS} from runs where {rest} {order} limit {question.limit + 1}"

    def read(cursor: DuckDBPyConnection) -> tuple[list[tuple[Any, ...]], float | None]:
        found = cursor.execute(query).fetchall()
        if not question.count:
            return found, None
        counted = cursor.execute(f"select sum(sample_rate) from runs where {question.condition}").fetchone()
        return found, float(counted[0] or 0) if counted else 0.0

    found, total = store.query(read, query, predicates=[question.where], over=["runs"])
    page = found[: question.limit]
    position = _position_of(page[-1], column) if len(found) > question.limit else None
    return Runs(
        snapshot=snapshot,
        rows=tuple(map(run_summary, page)),
        next=position,
        total=total,
        sql=f"select * from runs where {question.condition} {order} limit {question.limit}",
    )


def _position_of(row: tuple[Any, ...], column: str) -> str:
    value = rfc3339(epoch_us(row[5].isoformat())) if column == "started_at" else repr(float(row[6]))
    return f"{value}~{row[16]}"


def _position(question: Question) -> str:
    value, _, event_id = str(question.before).partition("~")
    try:
        if question.order.endswith("started_at"):
            return f"{text(rfc3339(epoch_us(value)))}::timestamptz, {text(event_id)}"
        return f"{float(value)!r}, {text(event_id)}"
    except ValueError:
        raise InvalidArgumentError(f"invalid position {question.before!r}") from None


class NewestRuns:
    """The newest runs of a snapshot, kept in memory so that the first page does not require a query.

    Args:
        store: The store of the snapshot.
    """

    def __init__(self, store: PinnedStore) -> None:
        query = f"select {SUMMARY_COLUMNS} from runs order by started_at desc, event_id desc limit {_NEWEST}"
        found = store.query(lambda cursor: cursor.execute(query).fetchall(), query)
        self._rows = [run_summary(row) for row in found]
        self._positions = [_position_of(row, "started_at") for row in found]
        self._is_all = len(found) < _NEWEST

    def page(self, question: Question, snapshot: int) -> Runs | None:
        """Return a page; None if it is not one of the newest runs, or if the request restricts the runs."""
        restricted = question.where is not None or question.until is not None or question.count
        if restricted or question.order != "-started_at":
            return None
        start = 0
        if question.before is not None:
            if question.before not in self._positions:
                return None
            start = self._positions.index(question.before) + 1
        end = start + question.limit
        rows = self._rows[start:end]
        if question.since is not None:
            rows = [row for row in rows if row.started_at >= question.since]
            if len(rows) < question.limit and end >= len(self._rows) and not self._is_all:
                return None
            is_last = len(rows) < question.limit
        else:
            if end >= len(self._rows) and not self._is_all:
                return None
            is_last = end >= len(self._rows)
        return Runs(
            snapshot=snapshot,
            rows=tuple(rows),
            next=None if is_last or not rows else self._positions[start + len(rows) - 1],
            total=None,
            sql=f"select * from runs where {question.condition} order by started_at desc"
            f" limit {question.limit}",
        )


def runs_in_progress(journal: str | None, snapshot: int) -> Runs:
    """Return the runs in progress, newest first; none for an archive without its journal.

    Raises:
        OSError: The journal cannot be read.
    """
    runs = Journal(journal).in_progress() if journal is not None else []
    rows = sorted((_row_in_progress(run) for run in runs), key=lambda row: row.started_at, reverse=True)
    return Runs(snapshot=snapshot, rows=tuple(rows[:200]), next=None, total=float(len(rows)), sql="")


def _row_in_progress(run: Mapping[str, Any]) -> RunSummary:
    ids = run.get("correlation_ids") or {}
    started_at = str(run.get("started_at") or "")
    try:
        duration_ms = get_clock().wall_ns() / 1e6 - epoch_us(started_at) / 1e3
    except (TypeError, ValueError):
        duration_ms = None
    return RunSummary(
        run_id=str(run.get("event_id")),
        pipeline=str(run.get("pipeline_name") or ""),
        status="OPEN",
        outcome="open",
        failed=None,
        started_at=started_at,
        duration_ms=duration_ms,
        error=None,
        failed_stage=None,
        running=tuple(_names(run.get("stages_running") or ())),
        user_id=ids.get("user_id"),
        org_id=ids.get("org_id"),
        session_id=ids.get("session_id"),
        request_id=ids.get("request_id"),
        service_version=(run.get("resource") or {}).get("service_version"),
        parent_run_id=run.get("parent_run_id"),
    )


def _names(running: Iterable[Any]) -> list[str]:
    return [str(each.get("stage_name", "")) if isinstance(each, Mapping) else str(each) for each in running]
