"""The terminal as our commands write to it."""

from __future__ import annotations

import os

from rich.console import Console

__all__ = ["open_terminal"]


def open_terminal(*, stderr: bool = False) -> Console:
    """Return a console on standard output (or error).

    With `NO_COLOR`, as in a pipe, it writes plain text: rich alone would still write bold and dim.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(
        stderr=stderr, color_system=None if plain else "auto", highlight=False, markup=False, emoji=False
    )
