"""The description of one stage, as it was given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from ..context import StageContext
from ..stages import Retry, StageKind
from .interceptor import Interceptor

__all__ = ["Condition", "StageSpec"]

Condition = Callable[[StageContext], bool | Awaitable[bool]]


class StageSpec(Struct, frozen=True, eq=False):
    """What `with_stage` was told. Nothing here is checked before `build()`."""

    name: str
    runner: Any
    kind: StageKind
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
