"""Drawings as HTML, for notebooks."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich.console import Console, RenderableType
from rich.text import Text

from ._escape import visible

__all__ = ["html_of"]


_WIDTH = 120
"""Width of a drawing in characters; a notebook scrolls wider ones."""

_PAGE = '<pre style="white-space: pre; overflow-x: auto; line-height: 1.3; font-size: 90%">{code}</pre>'


def html_of(draw: Callable[[int], RenderableType], *, title: str = "") -> str:
    """Return a drawing as one HTML element. All text is escaped, and control characters are visible.

    Args:
        draw: Returns a drawing of the given width in characters.
        title: First line, in bold; default none.
    """
    console = Console(
        record=True,
        file=io.StringIO(),
        # By default, a console in a notebook also displays what it prints.
        force_jupyter=False,
        width=_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    if title:
        console.print(Text(visible(title), style="bold"))
    console.print(draw(_WIDTH), crop=False)
    return visible(console.export_html(inline_styles=True, code_format=_PAGE))
