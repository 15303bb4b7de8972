"""Parses TOML, and reports every kind of invalid content in the same way."""

from __future__ import annotations

import tomllib
from typing import Any

__all__ = ["parse_toml"]


def parse_toml(content: bytes | str) -> dict[str, Any]:
    """Return the table of a TOML document.

    Raises:
        ValueError: The content is invalid TOML or UTF-8, or is nested too deeply.
    """
    try:
        return tomllib.loads(content.decode() if isinstance(content, bytes) else content)
    except RecursionError:  # `tomllib` is recursive and has no limit for the depth
        raise ValueError("the document is nested too deeply") from None
