"""Starts `stageflow ui` for a benchmark."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx

__all__ = ["Server", "serve"]


class Server:
    """A running server.

    Attributes:
        url: The URL with the token.
        pid: Its process id.
    """

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self.pid = pid

    def client(self) -> httpx.Client:
        """Return a client with the cookie that the URL sets."""
        cookies = httpx.get(self.url).cookies
        return httpx.Client(base_url=self.url.partition("/?")[0], cookies=cookies, timeout=300)

    @property
    def peak_mb(self) -> float:
        """The peak memory of the process in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        return int(found[1]) / 1000 if found is not None else 0.0


@contextlib.contextmanager
def serve(journal: str) -> Generator[Server]:
    """Start the server over a journal, and stop it at the end of the block."""
    command = [sys.executable, "-m", "stageflow", "ui", "--journal", journal, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None
            yield Server(found[0], process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(20)
