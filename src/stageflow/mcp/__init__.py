"""The MCP server: read-only tools that coding agents use to query the records of a journal."""

from __future__ import annotations

from ._server import create_server, serve
from ._skill import read_skill

__all__ = ["create_server", "read_skill", "serve"]
