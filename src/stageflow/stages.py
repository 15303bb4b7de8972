"""The values that stages return and results contain: kinds, statuses, outputs and results."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from numbers import Real
from typing import Any, cast

from msgspec import Struct, field

from ._interrupts import INTERRUPTS, is_a
from .errors import StageOutputError, as_text, describe, type_name

__all__ = ["Artifact", "StageKind", "StageOutput", "StageResult", "StageStatus"]


class StageKind(StrEnum):
    """The purpose of a stage: a label in its events, by which runs can be grouped and filtered.

    Only ROUTE changes how a stage runs: a ROUTE stage can return `StageOutput.route`.

    Attributes:
        TRANSFORM: Computes its output from its inputs; the default.
        ENRICH: Adds data from another source, such as a database or a search index.
        ROUTE: Selects which of the stages that depend on it run.
        GUARD: Checks its input, and stops or fails the run if the input is not acceptable.
        WORK: Has an effect outside the run, such as a write or a request to another service.
        AGENT: Calls a model that selects its own steps.
    """

    TRANSFORM = "transform"
    ENRICH = "enrich"
    ROUTE = "route"
    GUARD = "guard"
    WORK = "work"
    AGENT = "agent"


class StageStatus(StrEnum):
    """How an attempt ended. All but RETRY are terminal: a stage has exactly one of those."""

    OK = "OK"
    SKIP = "SKIP"
    RETRY = "RETRY"
    FAIL = "FAIL"
    CANCEL = "CANCEL"


_NOTHING: Mapping[str, Any] = {}


class StageOutput(Struct, frozen=True, eq=False):
    """The outcome of one attempt; make one with `ok`, `skip`, `fail`, `cancel`, `retry` or `route`.

    Returning a mapping is short for `StageOutput.ok(mapping)`, returning None for `StageOutput.ok()`.

    An error or reason is text or an exception; of any other object the record contains the `str()`. None is
    not accepted: a record would contain the word "None" where a value was missing.

    Example:
        >>> StageOutput.ok(answer=42).data
        {'answer': 42}
        >>> StageOutput.skip("nothing to do").status
        <StageStatus.SKIP: 'SKIP'>
    """

    status: StageStatus
    data: dict[str, Any]
    error: str | None = None
    exception: BaseException | None = None
    reason: str | None = None
    after: float | None = None
    routes: tuple[str, ...] | None = None

    @staticmethod
    def ok(data: Mapping[str, Any] = _NOTHING, /, **fields: Any) -> StageOutput:
        """The stage succeeded; its dependents read `data` and `fields` through `ctx.inputs`.

        Raises:
            StageOutputError: `data` is not a mapping.
        """
        if type(data) is not dict and not isinstance(data, Mapping) and not hasattr(data, "keys"):
            raise StageOutputError(
                f"StageOutput.ok() takes a mapping, not {type_name(data)}",
                hint="pass the value under a name, as in StageOutput.ok(items=[...])",
            )
        return StageOutput(StageStatus.OK, {**data, **fields})

    @staticmethod
    def skip(reason: object = "", /, **fields: Any) -> StageOutput:
        """The stage had nothing to do; dependants run all the same.

        Raises:
            StageOutputError: `reason` is None.
        """
        text = _reason("skip", reason) or "skipped by the stage"
        return StageOutput(StageStatus.SKIP, fields, reason=text)

    @staticmethod
    def fail(error: str | BaseException, /, **fields: Any) -> StageOutput:
        """The stage failed, and says so without raising. It is not retried.

        Raises:
            StageOutputError: `error` is None, or an exception class that needs arguments.
        """
        text, exception = _split("fail", error)
        return StageOutput(StageStatus.FAIL, fields, error=text, exception=exception)

    @staticmethod
    def cancel(reason: object = "", /, **fields: Any) -> StageOutput:
        """End the whole run now, gracefully: it is no error, and the run's status is OK.

        Raises:
            StageOutputError: `reason` is None.
        """
        text = _reason("cancel", reason) or "stopped by the stage"
        return StageOutput(StageStatus.CANCEL, fields, reason=text)

    @staticmethod
    def retry(error: str | BaseException, /, *, after: float | None = None) -> StageOutput:
        """Try the stage again, `after` seconds from now (default: as its `Retry` policy waits).

        A stage without a policy of its own is tried three times in all. With no attempt left,
        the stage fails with `error`.

        Raises:
            StageOutputError: `error` is None or an exception class that needs arguments, or `after` is not a
                number.
            ValueError: `after` is negative, infinite or NaN.
        """
        if after is not None:
            if not isinstance(after, Real) or isinstance(after, bool):
                raise StageOutputError(
                    f"StageOutput.retry(after=...) takes a number of seconds, not {type_name(after)}",
                    hint="write StageOutput.retry(error, after=2.5)",
                )
            if not 0 <= after < float("inf"):
                raise ValueError(f"StageOutput.retry(after={after!r}): give seconds, 0 or more")
        text, exception = _split("retry", error)
        return StageOutput(StageStatus.RETRY, {}, error=text, exception=exception, after=after)

    @staticmethod
    def route(*labels: str, **fields: Any) -> StageOutput:
        """Of the dependants that were given a `route=`, run those with one of these labels.

        The others are skipped; without a label, all of them. Dependants without a `route=` run in any
        case.

        Raises:
            StageOutputError: A label is not text.
        """
        for label in labels:
            if not isinstance(label, str):
                raise StageOutputError(
                    f"StageOutput.route() takes labels as text, not {type_name(label)}",
                    hint='write StageOutput.route("short"), or StageOutput.route() to skip all of them',
                )
        return StageOutput(StageStatus.OK, fields, routes=labels)


def _reason(function: str, reason: object) -> str:
    if reason is None:
        raise StageOutputError(
            f"StageOutput.{function}() takes a reason, not None",
            hint=f'write StageOutput.{function}("...") with the reason, or omit the argument',
        )
    return as_text(reason)


def _split(function: str, error: str | BaseException) -> tuple[str, BaseException | None]:
    if error is None:
        raise StageOutputError(
            f"StageOutput.{function}() takes an error, not None",
            hint=f'write StageOutput.{function}("...") with what went wrong, or pass the exception',
        )
    if is_a(error, type) and issubclass(cast("type", error), BaseException):
        error = _created(function, cast("type[BaseException]", error))
    if is_a(error, BaseException):
        exception = cast("BaseException", error)
        return describe(exception), exception
    return as_text(error), None


def _created(function: str, kind: type[BaseException]) -> BaseException:
    """Return an instance of an exception class that was passed instead of one, as `raise` does."""
    try:
        return kind()
    except BaseException as raised:
        INTERRUPTS.contain(raised)
        name = type.__dict__["__name__"].__get__(kind)
        raise StageOutputError(
            f"StageOutput.{function}() cannot create the exception {name}: {describe(raised)}",
            hint="pass an instance of the exception",
        ) from None


class Artifact(Struct, frozen=True):
    """Something a stage made that is worth keeping beside its data: a file, an image, a prompt."""

    type: str
    payload: Any = None


class StageResult(Struct, frozen=True, eq=False):
    """The result of a stage: its terminal status, its data, its times, and what it said.

    The record of a run keeps type, message and stack of an exception; the result keeps the live
    `exception` itself. Times are whole nanoseconds since the Unix epoch; the properties give them
    as the events do.

    Example:
        >>> result = StageResult("search", StageStatus.OK, {"hits": 3}, ended_ns=1_500_000)
        >>> result.ok, result.duration_ms
        (True, 1.5)
    """

    name: str
    status: StageStatus
    data: Mapping[str, Any] = {}
    error: str | None = None
    exception: BaseException | None = None
    reason: str | None = None
    attempt: int = 1
    """Number of the attempt this tells of: the last one, or the next one of a stage that was waiting
    for it when the run ended. 0 for a stage that never started."""
    attempts: int = 1
    """How many attempts there were."""
    ready_ns: int = 0
    started_ns: int = 0
    ended_ns: int = 0
    kind: StageKind | None = None
    dependencies: tuple[str, ...] = ()
    optional: bool = False
    attributes: Mapping[str, Any] = {}
    artifacts: tuple[Artifact, ...] = ()
    events_count: int = 0
    missing_inputs: tuple[str, ...] = ()
    retry_after: float | None = None
    abandoned: bool = False
    outcome_by: str | None = None
    """Name of the interceptor that made the outcome, where one did."""
    sequence: int = field(default=0)
    """Place of the stage in its pipeline, counted from 0."""
    loop_blocked_ms: float | None = None
    """Milliseconds of the longest step of the last attempt on the event loop; None for at most 50."""

    @property
    def ok(self) -> bool:
        """True for a stage that did its work (status OK)."""
        return self.status is StageStatus.OK

    @property
    def duration_ms(self) -> float:
        """Milliseconds of the last attempt, to the microsecond; 0 for a stage that never started."""
        return (self.ended_ns // 1000 - self.started_ns // 1000) / 1000

    @property
    def queue_ms(self) -> float:
        """Milliseconds from ready to the start of the last attempt, waits between attempts included."""
        return (self.started_ns // 1000 - (self.ready_ns or self.started_ns) // 1000) / 1000

    @property
    def total_ms(self) -> float:
        """Milliseconds from ready to ended: all attempts and all waits."""
        return (self.ended_ns // 1000 - (self.ready_ns or self.started_ns) // 1000) / 1000

    @property
    def started_at(self) -> datetime:
        """Start of the last attempt, UTC."""
        return datetime.fromtimestamp(self.started_ns / 1e9, UTC)

    @property
    def ended_at(self) -> datetime:
        """End of the last attempt, UTC."""
        return datetime.fromtimestamp(self.ended_ns / 1e9, UTC)
