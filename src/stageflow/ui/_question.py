"""`Question`: the parameters that the requests of the web API share."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, TypeVar

from msgspec import Struct

from .._time import get_clock
from .._timeparse import parse_time
from ..errors import InvalidArgumentError
from ..journal import RunFilter
from ..store import Over, as_predicate, condition

__all__ = ["Question"]

Order = Literal["-started_at", "started_at", "-duration_ms", "duration_ms"]

_Word = TypeVar("_Word", bound=str)

_ORDERS: tuple[Order, ...] = ("-started_at", "started_at", "-duration_ms", "duration_ms")
_EARLIEST, _LATEST = "1900-01-01", "2900-01-01"
"""Limits of times, so that dates calculated from them do not overflow."""

_OVERS: tuple[Over, ...] = ("runs", "stages")


class Question(Struct, frozen=True, kw_only=True):
    """The parameters of a request. Each is None if the request does not contain it.

    Attributes:
        over: The view: "runs" or "stages".
        where: SQL predicate of the rows.
        since: Only rows that started at or after this time, RFC 3339.
        until: Only rows that started before this time, RFC 3339.
        select: SQL predicate of the selection, which is compared with the rest of the rows.
        against: SQL predicate of the rows with which the selection is compared; None for all other rows.
        measure: The numeric field of a heatmap, which may be a field of a stage; default `duration_ms`.
        by: The field by which a series is grouped, which may be a field of a stage.
        columns: Maximum number of time steps, at most 200.
        rows: Maximum number of intervals of the measure, at most 60.
        previous: Whether to include the same time range one week earlier.
        order: The order of runs.
        before: The position after which a page of runs starts.
        limit: Maximum number of rows of a page, at most 200.
        count: Whether to count all matching runs.
        id: The id of a run.
        explain: Whether to compare a run with similar runs.
        query: An SQL query.
        field: The field whose values to suggest.
        prefix: The prefix of these values.
        value: The value whose fields to suggest.
    """

    over: Over = "runs"
    where: str | None = None
    since: str | None = None
    until: str | None = None
    select: str | None = None
    against: str | None = None
    measure: str = "duration_ms"
    by: str | None = None
    columns: int = 120
    rows: int = 40
    previous: bool = False
    order: Order = "-started_at"
    before: str | None = None
    limit: int = 200
    count: bool = False
    id: str | None = None
    explain: bool = False
    query: str | None = None
    field: str | None = None
    prefix: str | None = None
    value: str | None = None

    @classmethod
    def parse(cls, parameters: Mapping[str, str]) -> Question:
        """Return the question of a request. Empty parameters are ignored.

        Raises:
            InvalidArgumentError: A parameter is unknown or invalid.
            QueryError: A window is invalid.
        """
        given = {name: value for name, value in parameters.items() if value != "" and name != "snapshot"}
        if "steps" in given:
            given["columns"] = given.pop("steps")
        unknown = sorted(given.keys() - set(cls.__struct_fields__))
        if unknown:
            raise InvalidArgumentError(f"unknown parameter {unknown[0]!r}")
        now = datetime.fromtimestamp(get_clock().wall_ns() / 1e9, UTC)
        times = {name: _time(name, given.get(name), now) for name in ("since", "until")}
        if times["since"] is not None and times["until"] is not None and times["until"] <= times["since"]:
            raise InvalidArgumentError("until must be later than since")
        predicates = {
            name: as_predicate(given[name]) for name in ("where", "select", "against") if name in given
        }
        return cls(
            over=_one_of("over", given.get("over", "runs"), _OVERS),
            where=predicates.get("where"),
            since=times["since"],
            until=times["until"],
            select=predicates.get("select"),
            against=predicates.get("against"),
            measure=given.get("measure", "duration_ms"),
            by=given.get("by"),
            columns=_number("columns", given.get("columns", "120"), 200),
            rows=_number("rows", given.get("rows", "40"), 60),
            previous=given.get("previous") == "1",
            order=_one_of("order", given.get("order", "-started_at"), _ORDERS),
            before=given.get("before"),
            limit=_number("limit", given.get("limit", "200"), 200),
            count=given.get("count") == "1",
            id=given.get("id"),
            explain=given.get("explain") == "1",
            query=given.get("query"),
            field=given.get("field"),
            prefix=given.get("prefix"),
            value=given.get("value"),
        )

    @property
    def filter(self) -> RunFilter:
        """The filter for the time range."""
        return RunFilter(since=self.since, until=self.until)

    @property
    def condition(self) -> str:
        """The SQL condition of the rows. The predicates of the user are not validated yet."""
        return condition(self.over, self.filter, self.where)

    @property
    def predicates(self) -> tuple[str | None, ...]:
        """The predicates of the user, which must be validated."""
        return (self.where, self.select, self.against)


def _time(name: str, text: str | None, now: datetime) -> str | None:
    if text is None:
        return None
    try:
        time = parse_time(text, now, UTC)
    except ValueError as error:
        raise InvalidArgumentError(f"{name}: {error}") from None
    if not _EARLIEST <= time < _LATEST:
        raise InvalidArgumentError(
            f"{name} must be between {_EARLIEST[:4]} and {_LATEST[:4]}, not {text[:40]!r}"
        )
    return time


def _number(name: str, text: str, maximum: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= maximum:
        return int(text)
    raise InvalidArgumentError(f"{name} must be a number from 1 to {maximum}, not {text[:40]!r}")


def _one_of(name: str, text: str, known: tuple[_Word, ...]) -> _Word:
    for each in known:
        if text == each:
            return each
    raise InvalidArgumentError(f"{name} must be one of {', '.join(known)}, not {text[:40]!r}")
