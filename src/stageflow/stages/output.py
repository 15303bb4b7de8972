"""What a stage hands back from one attempt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from msgspec import Struct

from ..errors import StageOutputError, as_text, describe, type_name
from ..interrupts import is_a
from .kind import StageStatus

__all__ = ["StageOutput"]

_NOTHING: Mapping[str, Any] = {}


class StageOutput(Struct, frozen=True, eq=False):
    """The outcome of one attempt; make one with `ok`, `skip`, `fail`, `cancel`, `retry` or `route`.

    Returning a mapping is short for `StageOutput.ok(mapping)`, returning None for `StageOutput.ok()`.

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
        """The stage had nothing to do; dependants run all the same."""
        return StageOutput(StageStatus.SKIP, fields, reason=as_text(reason) or "skipped by the stage")

    @staticmethod
    def fail(error: str | BaseException, /, **fields: Any) -> StageOutput:
        """The stage failed, and says so without raising. It is not retried."""
        text, exception = _split(error)
        return StageOutput(StageStatus.FAIL, fields, error=text, exception=exception)

    @staticmethod
    def cancel(reason: object = "", /, **fields: Any) -> StageOutput:
        """End the whole run now, gracefully: it is no error, and the run's status is OK."""
        return StageOutput(StageStatus.CANCEL, fields, reason=as_text(reason) or "stopped by the stage")

    @staticmethod
    def retry(error: str | BaseException, /, *, after: float | None = None) -> StageOutput:
        """Try the stage again, `after` seconds from now (default: as its `Retry` policy waits).

        A stage without a policy of its own is tried three times in all. With no attempt left,
        the stage fails with `error`.
        """
        if after is not None and not 0 <= after < float("inf"):
            raise ValueError(f"StageOutput.retry(after={after!r}): give seconds, 0 or more")
        text, exception = _split(error)
        return StageOutput(StageStatus.RETRY, {}, error=text, exception=exception, after=after)

    @staticmethod
    def route(*labels: str, **fields: Any) -> StageOutput:
        """Of the dependants that were given a `route=`, run those with one of these labels.

        The others are skipped; without a label, all of them. Dependants without a `route=` run in any
        case.
        """
        return StageOutput(StageStatus.OK, fields, routes=labels)


def _split(error: str | BaseException) -> tuple[str, BaseException | None]:
    if is_a(error, type) and issubclass(cast("type", error), BaseException):
        error = cast("type[BaseException]", error)()  # the class instead of an instance, as in `raise`
    if is_a(error, BaseException):
        exception = cast("BaseException", error)
        return describe(exception), exception
    return as_text(error), None
