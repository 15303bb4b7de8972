"""An exception of a record: its type and message, its stack, and the chain that led to it."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from .foreign import visible
from .palette import BAD, QUIET

__all__ = ["draw_exception"]

_LINKS = {"cause": "caused by", "context": "while handling", "group": "of the group"}


def draw_exception(exception: dict[str, Any]) -> Text:
    """Return the `exception` of an event as lines, innermost frame of each stack last.

    Example:
        Console().print(draw_exception(event["exception"]))
    """
    lines = [_head(exception), *_stack(exception)]
    for link in exception["chain"]:
        words = _LINKS.get(link["relation"] or "", "with")
        lines += [Text.assemble((f"{words} ", QUIET), _head(link)), *_stack(link)]
    return Text("\n", overflow="fold").join(lines)


def _head(exception: dict[str, Any]) -> Text:
    message = exception["message"]
    return Text.assemble((visible(exception["type"]), BAD), f": {visible(message)}" if message else "")


def _stack(exception: dict[str, Any]) -> list[Text]:
    return [Text(f"  {visible(frame)}", style=QUIET) for frame in exception["stack"]]
