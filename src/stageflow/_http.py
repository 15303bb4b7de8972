"""An HTTP client whose requests have a total time limit, which includes slow connections and responses."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.parse import urlsplit

from msgspec import Struct

from ._time import get_clock
from .errors import MissingExtraError, as_text, describe, type_name

__all__ = [
    "HttpClient",
    "HttpError",
    "HttpResponse",
    "check_http",
    "post_blocking",
    "url_problem",
    "without_secrets",
]


_MAX_BODY = 1 << 20
"""Maximum number of bytes of a response that are read."""


class HttpError(Exception):
    """There was no response.

    Attributes:
        reason: What happened, in one line, without secrets.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HttpResponse(Struct, frozen=True):
    """A response.

    Attributes:
        status: The status code.
        headers: The headers; the names are in lower case.
        body: The body, truncated to 1 MiB.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def retry_after(self) -> float | None:
        """Seconds that the header `retry-after` requests, or None."""
        text = self.headers.get("retry-after", "").strip()
        if text.isascii() and text.isdigit():
            return float(text[:9])
        try:
            return max(0.0, parsedate_to_datetime(text).timestamp() - get_clock().wall_ns() / 1e9)
        except (ValueError, OverflowError):
            return None


class HttpClient:
    """Sends requests on one event loop, and reuses connections. Redirects are not followed.

    Proxies and certificates are configured by the usual environment variables: `HTTPS_PROXY`, `NO_PROXY`,
    `SSL_CERT_FILE`.

    Args:
        feature: Name of the feature for the error if the packages are not installed.
        extra: The extra with the packages.

    Raises:
        MissingExtraError: httpx is not installed.

    Example:
        async with HttpClient("a webhook", "alerts") as client:
            response = await client.post("https://ops.example/hook", b"{}", {}, seconds=15)
    """

    def __init__(self, feature: str, extra: str) -> None:
        httpx = _httpx(feature, extra)
        self._httpx = httpx
        # `post` limits the total time; the limits of httpx apply to each read and write.
        self._client = httpx.AsyncClient(timeout=None, follow_redirects=False)

    async def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float
    ) -> HttpResponse:
        """Send a POST request, and return the response.

        Args:
            url: The URL. A user and password in it are sent as basic authentication.
            body: The body.
            headers: The headers.
            seconds: Maximum duration of the request and its response.

        Raises:
            HttpError: There was no response within the time limit, or it was not valid HTTP.
        """
        httpx = self._httpx
        posting = _posting.set(True)
        try:
            async with asyncio.timeout(seconds):
                # Without compression, the limit on the bytes that are read also limits the size of the body.
                sent = {"accept-encoding": "identity", **headers}
                async with self._client.stream("POST", url, content=body, headers=sent) as response:
                    received = bytearray()
                    async for part in response.aiter_raw():
                        received += part[: _MAX_BODY - len(received)]
                        if len(received) >= _MAX_BODY:
                            break
                    found = {name.lower(): value for name, value in response.headers.items()}
                    return HttpResponse(response.status_code, found, bytes(received))
        except TimeoutError:
            raise HttpError(f"no response within {seconds:g} s") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise HttpError(f"no connection: {_cause_of(error)}") from None
        except httpx.HTTPError as error:
            raise HttpError(f"no response: {type(error).__name__}") from None
        except (httpx.InvalidURL, ValueError, OSError) as error:
            raise HttpError(f"the request cannot be sent: {describe(error)}") from None
        finally:
            _posting.reset(posting)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()


def _cause_of(error: BaseException) -> str:
    """Return the message of the innermost exception, such as that of a refused connection."""
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    return as_text(cause) or type_name(cause)


def post_blocking(
    feature: str, extra: str, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float
) -> HttpResponse:
    """Send a POST request from synchronous code, even on a thread with a running event loop.

    Args:
        feature: See `HttpClient`.
        extra: See `HttpClient`.
        url: See `HttpClient.post`.
        body: See `HttpClient.post`.
        headers: See `HttpClient.post`.
        seconds: See `HttpClient.post`.

    Raises:
        MissingExtraError: httpx is not installed.
        HttpError: See `HttpClient.post`.
    """
    outcome: list[HttpResponse | BaseException] = []

    async def post() -> HttpResponse:
        async with HttpClient(feature, extra) as client:
            return await client.post(url, body, headers, seconds=seconds)

    def run() -> None:
        try:
            outcome.append(asyncio.run(post()))
        except BaseException as error:
            outcome.append(error)

    _httpx(feature, extra)  # import httpx on this thread, because the import is slow
    thread = threading.Thread(target=run, name="stageflow-http", daemon=True)
    thread.start()
    thread.join()
    (found,) = outcome
    if isinstance(found, BaseException):
        raise found
    return found


def check_http(feature: str, extra: str) -> None:
    """Raise an error if the packages are not installed.

    Raises:
        MissingExtraError: httpx is not installed.
    """
    _httpx(feature, extra)


_posting = ContextVar("posting", default=False)
"""True while an `HttpClient` sends a request."""


class _OwnRequests(logging.Filter):
    """Drops the log records of httpx for requests of an `HttpClient`: the URLs in them can be secret."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _posting.get()


_own_requests = _OwnRequests()


def _httpx(feature: str, extra: str) -> Any:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise MissingExtraError(feature, extra) from error
    logging.getLogger("httpx").addFilter(_own_requests)  # no effect if it was added before
    return httpx


def url_problem(url: str) -> str:
    """Return why a URL is not a valid HTTP URL, or "" if it is.

    Example:
        >>> url_problem("ftp://ops.example/hook")
        'expected an address that begins with https:// or http://'
    """
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
        _ = parts.port  # raises an error if it is not a number
    except ValueError:
        whole = False
    return "" if whole else "expected an address that begins with https:// or http://"


def without_secrets(url: str) -> str:
    """Return a URL without user, password, query and fragment, any of which can contain a secret.

    Example:
        >>> without_secrets("https://me:secret@ops.example:8443/hook?token=1")
        'https://ops.example:8443/hook'
    """
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
