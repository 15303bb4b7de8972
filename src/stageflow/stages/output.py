"""What a stage hands back from one attempt."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, cast

from msgspec import Struct

from ..errors import StageOutputError, as_text, describe, type_name
from ..interrupts import INTERRUPTS, is_a
from .kind import StageStatus

__all__ = ["StageOutput"]

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
