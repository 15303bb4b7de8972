"""The description of one stage: its options, declared once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypedDict

from msgspec import Struct

from ..context import StageContext
from ..errors import did_you_mean
from ..stages import Retry, StageKind
from .interceptor import Interceptor

__all__ = ["Condition", "StageDescription", "StageOptions", "StageSpec", "options_of"]

Condition = Callable[[StageContext], bool | Awaitable[bool]]


class StageOptions(TypedDict, total=False):
    """The options of a stage, as `with_stage` and `@stage` take them; None stands for the default.

    A new option is added here and to `StageSpec`; everything else derives from these two.
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
    """What `@stage` takes: also what `with_stage` takes by position."""

    name: str | None
    kind: StageKind | None
    dependencies: Iterable[str] | None


class StageSpec(Struct, frozen=True, eq=False):
    """What `with_stage` was given, with the defaults filled in. Nothing here is checked before `build()`."""

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
    """Return the options that were given, without those that are None.

    Raises:
        TypeError: There is no such option; the message names the closest one.
    """
    known = StageDescription.__annotations__
    for name in given:
        if name not in known:
            raise TypeError(
                f"{where} has no option {name!r}{did_you_mean(name, known)}"
                f"\n  hint: the options are {', '.join(known)}"
            )
    return {name: value for name, value in given.items() if value is not None}
