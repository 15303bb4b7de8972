"""The description of one stage: the single declaration of its options."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypedDict

from msgspec import Struct

from ..context import StageContext
from ..errors import InvalidArgumentError, did_you_mean
from ..stages import Retry, StageKind
from .interceptor import Interceptor

__all__ = ["Condition", "StageDescription", "StageOptions", "StageSpec", "options_of"]

Condition = Callable[[StageContext], bool | Awaitable[bool]]


class StageOptions(TypedDict, total=False):
    """The options of a stage, as accepted by `with_stage` and `@stage`; None means the default.

    Add a new option here and to `StageSpec`; everything else is derived from these two classes.
    """

    conditional: bool | None
    optional: bool | None
    when: Condition | None
    route: str | None
    timeout: float | None
    retry: Retry | None
    limit: str | None
    interceptors: Iterable[Interceptor] | None


class StageDescription(StageOptions, total=False):
    """The arguments of `@stage`, including those that `with_stage` accepts by position."""

    name: str | None
    kind: StageKind | None
    dependencies: Iterable[str] | None


class StageSpec(Struct, frozen=True, eq=False):
    """The arguments of `with_stage`, with defaults filled in. `build()` validates them."""

    name: str
    runner: Any
    kind: StageKind = StageKind.TRANSFORM
    dependencies: tuple[str, ...] = ()
    conditional: bool = False
    optional: bool = False
    when: Condition | None = None
    route: str | None = None
    timeout: float | None = None
    retry: Retry | None = None
    limit: str | None = None
    interceptors: tuple[Interceptor, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the description as plain values, for a picture of it."""
        policies = {
            "route": self.route,
            "when": None if self.when is None else getattr(self.when, "__name__", "when"),
            "conditional": "" if self.conditional else None,
            "optional": "" if self.optional else None,
            "timeout": None if self.timeout is None else f"{self.timeout:g}s",
            "retry": None if self.retry is None else str(self.retry.attempts),
            "limit": self.limit,
            "interceptors": ",".join(
                getattr(around, "__name__", None) or type(around).__name__ for around in self.interceptors
            )
            or None,
        }
        return {
            "name": self.name,
            "kind": str(self.kind),
            "dependencies": self.dependencies,
            "policies": {name: text for name, text in policies.items() if text is not None},
        }


def options_of(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options that are not None.

    Raises:
        InvalidArgumentError: An option does not exist; the message suggests the closest match.
    """
    known = StageDescription.__annotations__
    for name in given:
        if name not in known:
            raise InvalidArgumentError(
                f"{where} has no option {name!r}{did_you_mean(name, known)}",
                hint=f"the options are {', '.join(known)}",
            )
    return {name: value for name, value in given.items() if value is not None}
