"""The skill file: Markdown instructions for a coding agent, such as which tool to call first."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_skill"]


def read_skill() -> str:
    """Return the text of the skill file.

    Example:
        Path(".claude/skills/stageflow/SKILL.md").write_text(read_skill())
    """
    return Path(__file__).with_name("SKILL.md").read_text(encoding="utf-8")
