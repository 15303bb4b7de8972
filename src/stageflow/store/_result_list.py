"""A list of results that a notebook displays as a table."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from ..render import as_html

__all__ = ["ResultList"]

T = TypeVar("T")


class ResultList(list[T]):
    """A list that a notebook displays as the command line would.

    Args:
        items: The items.
        drawing: Name of the function of `stageflow.render` that draws them.
        options: Arguments of this function.
    """

    def __init__(self, items: Iterable[T], drawing: str, **options: Any) -> None:
        super().__init__(items)
        self._drawing = drawing
        self._options = options

    def _repr_html_(self) -> str | None:
        rows = msgspec.to_builtins(list(self), builtin_types=(datetime,))
        return as_html(self._drawing, rows, **self._options) if rows else None
