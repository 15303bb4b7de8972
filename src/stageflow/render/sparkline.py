"""A trend in a few characters: one block for each value, the tallest for the largest."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["sparkline"]

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = "_.-:=+*#"


def sparkline(values: Sequence[float | None], *, ascii_only: bool = False) -> str:
    """Return a sparkline from 0 to the largest value; a blank where there is none.

    Example:
        >>> sparkline([0, 1, None, 2, 4])
        '▁▃ ▅█'
        >>> sparkline([1, 3], ascii_only=True)
        '-#'
    """
    blocks = _ASCII if ascii_only else _BLOCKS
    top = max((value for value in values if value is not None), default=0.0)
    last = len(blocks) - 1
    return "".join(
        " " if value is None else blocks[min(int(value / top * last + 0.5), last) if top > 0 else 0]
        for value in values
    )
