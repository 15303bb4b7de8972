"""Restricts who can use the web UI: a token, the Host and Origin headers, and the content security policy."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from urllib.parse import parse_qsl, urlencode

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._api import Problem

__all__ = ["HEADERS", "LocalAccess", "Protection", "problem_response"]


HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:;"
        " worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Headers of every response. Only scripts of the UI run, and the page cannot send requests to other
hosts."""

_SAME_ORIGIN = (None, "same-origin", "none")
"""Accepted values of `Sec-Fetch-Site` (Fetch Metadata Request Headers) for the API."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.%]+\]|[^:\[\]]+)(?::(?P<port>[0-9]{0,5}))?")
"""The Host header: a name or an address, and a port."""

_ANY_ADDRESS = frozenset(("0.0.0.0", "::"))

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")


def problem_response(problem: Problem) -> Response:
    """Return the response for a problem (RFC 9457)."""
    return Response(
        msgspec.json.encode(problem), status_code=problem.status, media_type="application/problem+json"
    )


class Protection:
    """Adds the security headers to every response, and rejects requests from other sites.

    The Origin header is compared with the Host header, not with the address of the server, so that the UI
    works through a tunnel such as `ssh -L`.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        refused = _refuse_other_sites(scope)
        await (refused or self._app)(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Send:
    """Return a function that adds the security headers to a response."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return send_with_headers


def _refuse_other_sites(scope: Scope) -> Response | None:
    headers = Headers(scope=scope)
    origin, host = headers.get("origin"), headers.get("host", "")
    foreign = origin is not None and origin.partition("://")[2].lower() != host.lower()
    # Other sites may link to a page, but they may not call the API.
    is_api = _is_api(scope)
    if foreign or (is_api and headers.get("sec-fetch-site") not in _SAME_ORIGIN):
        return problem_response(
            Problem(
                title="Requests from other sites are not allowed.",
                status=403,
                hint="Open the UI directly in the browser.",
                reason="invalid",
            )
        )
    return None


def _is_api(scope: Scope) -> bool:
    # The path contains the prefix under which an application mounts the UI.
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "")).startswith("/api/")


class LocalAccess:
    """Requires a token, which the first URL contains and the browser then sends as a cookie.

    The name of the cookie contains the port, because browsers send cookies to all ports of a host.

    Args:
        app: The application.
        hosts: Accepted names in the Host header, in addition to those of this machine. A page of another
            site that resolves its own name to this machine is thereby rejected (DNS rebinding). With
            "0.0.0.0" or "::", every IP address is accepted: no site has such a name.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = ()) -> None:
        self._app = app
        self._hosts = {
            *_LOCAL_HOSTS,
            *(f"[{host}]" if ":" in host else host for host in map(str.lower, hosts)),
        }
        self._any_address = not _ANY_ADDRESS.isdisjoint(hosts)
        self.token = secrets.token_urlsafe(24)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            refused = self._refuse(scope)
            if refused is not None:
                await refused(scope, receive, _with_headers(send))
            else:
                await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        found = _HOST.fullmatch(Headers(scope=scope).get("host", "").lower())
        if found is None or not self._is_known(found["name"]):
            return problem_response(
                Problem(
                    title="The UI does not accept this host name.",
                    status=421,
                    hint="Use http://localhost, or start `stageflow ui --host NAME`.",
                    reason="invalid",
                )
            )
        cookie_name = f"stageflow_{found['port'] or 80}"
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if (given := query.pop("token", None)) is not None and self._is_token(given):
            # A location that begins with two slashes is another host.
            response = RedirectResponse(f"/{scope['path'].lstrip('/')}{_as_query(query)}", 303)
            response.set_cookie(cookie_name, self.token, httponly=True, samesite="lax")
            return response
        # A cookie of another server on this host may have a value that `http.cookies` rejects.
        cookies = HTTPConnection(scope).cookies
        if self._is_token(cookies.get(cookie_name, "")):
            return None
        problem = Problem(
            title="The token is missing, or it expired because the server was restarted.",
            status=401,
            hint="Open the URL that `stageflow ui` printed.",
            reason="expired",
        )
        if _is_api(scope):
            return problem_response(problem)
        return Response(f"{problem.title}\n{problem.hint}\n", status_code=401, media_type="text/plain")

    def _is_known(self, host: str) -> bool:
        return host in self._hosts or (self._any_address and _is_address(host))

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _as_query(query: dict[str, str]) -> str:
    return f"?{urlencode(query)}" if query else ""
