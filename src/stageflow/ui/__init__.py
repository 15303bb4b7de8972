"""The web UI: browse runs, select a region, and see how it differs from the rest."""

from ..errors import MissingExtraError

try:
    from ._app import WebUI as asgi
    from ._saved import explanation_as_html, run_as_html
    from ._server import serve, tunnel_command
except ImportError as error:
    if (error.name or "").partition(".")[0] not in ("sse_starlette", "starlette", "uvicorn"):
        raise
    raise MissingExtraError("the web UI", "ui") from error

__all__ = ["asgi", "explanation_as_html", "run_as_html", "serve", "tunnel_command"]
