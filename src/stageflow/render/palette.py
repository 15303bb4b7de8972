"""Which colour stands for which outcome and status; the word always stands beside it."""

from __future__ import annotations

from rich.text import Text

__all__ = ["BAD", "OUTCOMES", "QUIET", "STATUSES", "coloured"]

QUIET = "dim"
BAD = "red"

OUTCOMES = {
    "ok": "green",
    "degraded": "yellow",
    "stopped": "cyan",
    "failed": BAD,
    "timeout": BAD,
    "cancelled": "magenta",
    "crashed": f"bold {BAD}",
    "closed": QUIET,
    "open": "blue",
}
"""The outcomes of runs, in the order in which a table lists them."""

STATUSES = {"OK": "green", "SKIP": QUIET, "RETRY": "yellow", "FAIL": BAD, "CANCEL": "magenta", "OPEN": "blue"}
"""The statuses of stages and runs."""

_RUNNING = {"RUNNING": "blue"}
"""How a stage that is running is shown: its record has the status OPEN until it ends."""


def coloured(word: str) -> Text:
    """Return an outcome or a status in its colour.

    Example:
        >>> coloured("failed").style
        'red'
    """
    return Text(word, style=OUTCOMES.get(word) or STATUSES.get(word) or _RUNNING.get(word) or "")
