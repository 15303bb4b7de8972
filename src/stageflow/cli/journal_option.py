"""`--journal`: which journal a command looks into."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..journal import Journal

__all__ = ["JournalOption", "find_journal"]

_USUAL = ("journal", ".stageflow/demo")
"""Where a journal is looked for that was not named: the first is what examples use."""

JournalOption = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        metavar="DIR",
        envvar="STAGEFLOW_JOURNAL",
        show_default=False,
        help=f"Directory of the journal; default {' or '.join(_USUAL)}, the first that is there.",
    ),
]


def find_journal(named: Path | None) -> Journal:
    """Return the journal that was named, or the first of the usual ones.

    Raises:
        JournalNotFoundError: It is not there.
    """
    usual = next((path for path in _USUAL if Path(path).is_dir()), _USUAL[0])
    return Journal(usual if named is None else named)
