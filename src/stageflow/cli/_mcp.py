"""The `mcp` command."""

from __future__ import annotations

from typing import Annotated

import typer

from ._options import ArchiveOption, JournalOption, journal_path
from ._output import print_text

__all__ = ["mcp"]


def mcp(
    journal: JournalOption = None,
    archive: ArchiveOption = None,
    skill: Annotated[
        bool, typer.Option("--skill", help="Print the skill file for coding agents, and exit.")
    ] = False,
) -> None:
    """Serve the records to coding agents: ten read-only MCP tools over standard input and output.

    An MCP client starts this command; see `docs/mcp.md` for its configuration. The tools read one journal,
    which does not have to exist yet, and accept no credentials.

    - `stageflow mcp --journal journal`

    - `stageflow mcp --skill > .claude/skills/stageflow/SKILL.md`
    """
    from ..mcp import read_skill, serve

    if skill:
        print_text(read_skill().rstrip("\n"))
        return
    path = None if journal is None and archive is not None else journal_path(journal)
    serve(path, archive)
