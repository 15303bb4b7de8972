"""A receiver of exported events on this machine, whose responses a test defines."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Self

Lines = list[dict[str, Any]]


class Request(NamedTuple):
    """One request that arrived completely."""

    headers: dict[str, str]
    content: bytes
    lines: Lines
    path: str = ""


class Answer(NamedTuple):
    """How to respond: a status, headers and a body; or `drop` to close the connection without a response."""

    status: int = 204
    body: bytes = b""
    headers: Mapping[str, str] = MappingProxyType({})
    drop: bool = False
    raw: bytes | None = None
    slow: float = 0.0  # seconds between two bytes of the response


class ExportReceiver:
    """Receives batches in threads until it is closed.

    Args:
        answer: Called with each request; returns the response. By default, every request is accepted.
        port: The port; default any.
        context: A TLS context, or None.
    """

    def __init__(
        self,
        answer: Callable[[Request], Answer] = lambda request: Answer(),
        port: int = 0,
        context: Any = None,
    ) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.accepted: Lines = []
        self.changed = threading.Condition()
        self._connections: list[socket.socket] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                content = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
                is_json = headers.get("content-type") in ("application/x-ndjson", "application/json")
                lines = [json.loads(line) for line in content.splitlines()] if is_json else []
                request = Request(headers, content, lines, self.path)
                answer = outer.answer(request)
                with outer.changed:
                    outer.requests.append(request)
                    is_answered = not answer.drop and answer.raw is None and not answer.slow
                    if 200 <= answer.status < 300 and is_answered:
                        refused = outer.refused(answer)
                        outer.accepted += [
                            line for number, line in enumerate(request.lines) if number not in refused
                        ]
                    outer.changed.notify_all()
                if answer.drop:
                    self.close_connection = True
                    return
                if answer.raw is not None:
                    self.wfile.write(answer.raw)
                    self.close_connection = True
                    return
                if answer.slow:
                    self.close_connection = True
                    for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + b"x" * 1000:
                        try:
                            self.wfile.write(bytes([byte]))
                        except OSError:
                            return
                        time.sleep(answer.slow)
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if answer.status != 204:
                    self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def get_request(self) -> tuple[socket.socket, Any]:
                found = super().get_request()
                outer._connections.append(found[0])
                return found

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that was killed

        self._server = Server(("127.0.0.1", port), Handler)
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.scheme = "http" if context is None else "https"
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @staticmethod
    def refused(answer: Answer) -> set[int]:
        try:
            return {each["index"] for each in json.loads(answer.body)["rejected"]}
        except (ValueError, KeyError, TypeError):
            return set()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/events"

    def wait(self, until: Callable[[], bool], seconds: float = 30.0) -> None:
        """Wait until a condition about the requests is true."""
        with self.changed:
            assert self.changed.wait_for(until, seconds), f"{len(self.accepted)} events accepted"

    def keys(self) -> Counter[tuple[str, int]]:
        """Return how often each event was accepted, by id and revision."""
        return Counter((line["event_id"], line["revision"]) for line in self.accepted)

    def close(self) -> None:
        """Stop, and drop all connections."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
