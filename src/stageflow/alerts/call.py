"""`Call`: notices to a Python function of yours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct

from .notice import Notice

__all__ = ["Call"]


class Call(Struct, frozen=True, kw_only=True):
    """Calls a function with each notice. One that returns has taken it; one that raises is tried again.

    Attributes:
        name: By which rules name it.
        function: Called with a `Notice`, in the thread that evaluates.

    Example:
        Call(name="log", function=lambda notice: log.warning("%s", notice.title))
    """

    name: str
    function: Callable[[Notice], object]

    def send(self, notice: Notice, *, in_doubt: bool = False) -> None:
        self.function(notice)

    def missing(self) -> Sequence[str]:
        return ()
