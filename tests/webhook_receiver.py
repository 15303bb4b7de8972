"""A receiver of webhooks on this machine, that checks what is signed as Standard Webhooks says."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import threading
from types import TracebackType
from typing import Any, NamedTuple, Self

SECRET = b"0123456789abcdef0123456789abcdef"
AS_TEXT = "whsec_" + base64.b64encode(SECRET).decode()


class Delivery(NamedTuple):
    """One request that came."""

    path: str
    id: str
    signed: bool
    body: dict[str, Any]
    headers: dict[str, str]


class Receiver:
    """Takes webhooks in a thread until it is closed; `answer` is the status it answers with."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.answer = 204
        self.answer_headers: dict[str, str] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.deliveries.append(
                    Delivery(
                        self.path, headers["webhook-id"], signed(headers, body), json.loads(body), headers
                    )
                )
                self.send_response(outer.answer)
                for name, value in outer.answer_headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def kinds(self) -> list[str]:
        """What came, in order: "firing", "resolved"."""
        return [delivery.body["data"]["kind"] for delivery in self.deliveries]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def signed(headers: dict[str, str], body: bytes) -> bool:
    """Tell whether one of the signatures is right."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(SECRET, content, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(expected, given) for given in headers["webhook-signature"].split(" "))
