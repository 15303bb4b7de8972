"""`--journal`: which journal a command looks into, and which one its hints name."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..journal import Journal

__all__ = ["JournalOption", "find_journal", "forget_journal", "hint_with_journal"]

_USUAL = ("journal", ".stageflow/demo")
"""Where a journal is looked for that was not named: the first is what examples use."""

_VARIABLE = "STAGEFLOW_JOURNAL"

_COMMAND = re.compile(
    r"`stageflow (?:doctor|compact|runs|show|tail|stats|query|totals|alerts \w+)(?![^`]*--journal)[^`]*(?=`)"
)

_named: list[Path] = []
"""The journal that the running command got as an argument; empty for another one."""

JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        envvar=_VARIABLE,
        show_default=False,
        help=f"Directory of the journal; default {' or '.join(_USUAL)}, the first that is there.",
    ),
]


def find_journal(named: Path | None) -> Journal:
    """Return the journal that was named, or the first of the usual ones.

    Raises:
        JournalNotFoundError: It is not there.
    """
    forget_journal()
    if named is not None and os.environ.get(_VARIABLE) != os.fspath(named):
        _named.append(named)
    usual = next((path for path in _USUAL if Path(path).is_dir()), _USUAL[0])
    return Journal(usual if named is None else named)


def forget_journal() -> None:
    """Let hints name no journal, because a command begins."""
    _named.clear()


def hint_with_journal(text: str) -> str:
    """Return a text in which each command of a hint names the journal that this command was given.

    Example:
        >>> hint_with_journal("`stageflow doctor --repair` moves it to broken/")
        '`stageflow doctor --repair` moves it to broken/'
    """
    if not _named:
        return text
    option = f" --journal {shlex.quote(os.fspath(_named[0]))}"
    return _COMMAND.sub(lambda command: command[0] + option, text)
