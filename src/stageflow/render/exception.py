"""An exception of a record: its type and message, its stack, and the chain that led to it."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from .foreign import visible
from .palette import BAD, QUIET

__all__ = ["draw_exception"]

_LINKS = {"cause": "caused by", "context": "while handling", "group": "sub-exception"}


def draw_exception(exception: dict[str, Any]) -> Text:
    """Return the `exception` of an event as lines, innermost frame of each stack last.

    Example:
        Console().print(draw_exception(event["exception"]))
    """
    lines = _lines(exception)
    for link in exception["chain"]:
        words = _LINKS.get(link["relation"] or "", "with")
        lines += _lines(link, f"{words} ")
    return Text("\n", overflow="fold").join(lines)


def _lines(exception: dict[str, Any], words: str = "") -> list[Text]:
    return [Text.assemble((words, QUIET), _head(exception)), *_notes(exception), *_stack(exception)]


def _head(exception: dict[str, Any]) -> Text:
    message = exception["message"]
    return Text.assemble((visible(exception["type"]), BAD), f": {visible(message)}" if message else "")


def _stack(exception: dict[str, Any]) -> list[Text]:
    return [Text(f"  {visible(frame)}", style=QUIET) for frame in exception["stack"]]


def _notes(exception: dict[str, Any]) -> list[Text]:
    # Records of earlier versions have no notes.
    return [Text(f"  note: {visible(note)}") for note in exception.get("notes", ())]
