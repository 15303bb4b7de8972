"""Starts `stageflow ui` in a process of its own."""

from __future__ import annotations

import contextlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import httpx

CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)

__all__ = ["Served", "serve", "serve_command"]


class Served:
    """A running server, and a client that knows its token.

    Attributes:
        url: The URL with the token.
        origin: The URL without path.
        port: The port.
        client: A client that has opened `url`.
        process: The process.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.origin = url.partition("/?")[0]
        self.port = int(self.origin.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.origin, timeout=50)
        assert self.client.get(url).status_code == 303

    def get(self, path: str, headers: Mapping[str, str] | None = None, **parameters: str) -> Any:
        """Return the JSON of a successful request to the API."""
        response = self.client.get(f"/api/{path}", params=parameters, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()

    def problem(self, path: str, **parameters: str) -> Any:
        """Return the JSON of a request to the API that is rejected."""
        response = self.client.get(f"/api/{path}", params=parameters)
        assert response.status_code >= 400, response.text
        assert response.headers["content-type"] == "application/problem+json"
        return response.json()


@contextlib.contextmanager
def serve(journal: Path, *options: str) -> Generator[Served]:
    """Start the server over a journal, and stop it with Ctrl-C at the end of the block."""
    command = [sys.executable, "-m", "stageflow", "ui", "--journal", str(journal), "--port", "0", *options]
    with serve_command(shlex.join(command)) as served:
        yield served


@contextlib.contextmanager
def serve_command(command: str, cwd: Path | None = None) -> Generator[Served]:
    """Start the server with a command line, and stop it with Ctrl-C at the end of the block."""
    with subprocess.Popen(
        shlex.split(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://\S+", line)
            assert found is not None, line + process.stdout.read()
            served = Served(process, found[0])
            with contextlib.closing(served.client):
                yield served
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            try:
                printed, _ = process.communicate(timeout=10)
            finally:
                process.kill()
        assert -process.returncode not in CRASHES, f"The server crashed: {process.returncode}\n{printed}"
        assert "Traceback" not in printed, printed
        assert "Warning" not in printed, printed
