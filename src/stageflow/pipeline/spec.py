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
