"""The terminal as our commands write to it."""

from __future__ import annotations

import os
import re
import sys

from rich.console import Console, RenderableType

__all__ = ["open_terminal", "print_json", "print_page", "room"]

_ANY_WIDTH = 10_000
"""In a pipe nothing is cut or folded: whoever reads it may look for any part of it."""

_CONTROLS = re.compile("[\x7f-\x9f]")
"""What JSON lets stand, and terminals obey."""


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - rich calls it where the error is caught, and would exit with 1


def open_terminal(*, stderr: bool = False) -> Console:
    """Return a console on standard output (or error).

    With `NO_COLOR`, as in a pipe, it writes plain text: rich alone would still write bold and dim.
    """
    plain = bool(os.environ.get("NO_COLOR"))
    return _Terminal(
        stderr=stderr, color_system=None if plain else "auto", highlight=False, markup=False, emoji=False
    )


def room(terminal: Console) -> int | None:
    """Return how many columns there are; None in a pipe, where there is room for everything."""
    return terminal.width if terminal.is_terminal else None


def print_page(terminal: Console, *pictures: RenderableType) -> None:
    """Print pictures to fit the terminal; in a pipe as wide as they are, and no blanks at line ends."""
    if terminal.is_terminal:
        terminal.print(*pictures, sep="\n")
        return
    width, terminal.width = terminal.width, _ANY_WIDTH
    with terminal.capture() as printed:
        terminal.print(*pictures, sep="\n")
    terminal.width = width
    for line in printed.get().splitlines():
        print(line.rstrip())


def print_json(*lines: bytes) -> None:
    """Print lines of JSON, in UTF-8 whatever the terminal has, and flush them."""
    for line in lines:
        text = _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode())
        sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.flush()
