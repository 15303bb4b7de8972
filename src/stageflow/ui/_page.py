"""The files of the page, which `npm run build` creates in `web/`."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..errors import StageflowError

__all__ = ["page_routes", "require_asset"]

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "saved.js": "text/javascript; charset=utf-8",
    "worker.js": "text/javascript; charset=utf-8",
}

_MISSING = (
    "this installation does not contain the web UI: it was built without npm, or with STAGEFLOW_NO_UI=1"
)
_REMEDY = (
    "in a checkout, run `make ui-build`; otherwise reinstall stageflow on a machine where npm is available"
)


def _read(name: str) -> bytes | None:
    """Return a file of the page; None if the page has not been built."""
    file = files("stageflow.ui").joinpath("static", name)
    return file.read_bytes() if file.is_file() else None


def require_asset(name: str) -> bytes:
    """Return a file of the page.

    Raises:
        StageflowError: This installation does not contain the page.
    """
    content = _read(name)
    if content is None:
        raise StageflowError(_MISSING, hint=_REMEDY)
    return content


def page_routes() -> list[Route]:
    """Return the routes of the files. Any other path returns status 404."""
    return [
        Route("/", _file("index.html")),
        *(Route(f"/{name}", _file(name)) for name in _TYPES if name != "index.html"),
    ]


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        content = _read(name)
        if content is None:
            text = f"{_MISSING[0].upper()}{_MISSING[1:]}.\n{_REMEDY[0].upper()}{_REMEDY[1:]}.\n"
            return PlainTextResponse(text, status_code=503)
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_TYPES[name], headers=headers)

    return serve
