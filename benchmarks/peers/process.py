"""A contestant in a process of its own, asked one thing at a time."""

from __future__ import annotations

import json
import os
import select
import subprocess
from typing import Any

from .contestants import ROOT, Contestant

__all__ = ["NoAnswerError", "Process"]

# Nothing reports to anybody: there may be no network, and a report would be measured too.
_QUIET = {
    "HAMILTON_TELEMETRY_ENABLED": "false",  # as of 1.89 it sends nothing, and knows no such switch
    "HAYSTACK_TELEMETRY_ENABLED": "false",
    "LANGSMITH_TRACING": "false",
}


class NoAnswerError(Exception):
    """What was asked failed, took too long, or ended the process."""


class Process:
    """Runs `worker.py`. It is started when something is asked, and again after it was ended.

    Its temporary files are made in `folder`, for it is ended without a chance to remove them.
    """

    def __init__(self, contestant: Contestant, folder: str) -> None:
        self._contestant = contestant
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], within: float) -> dict[str, Any]:
        """Return the answer, or end the process when there is none `within` so many seconds.

        Raises:
            NoAnswerError: There is no answer, or it tells of an error.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            line = b""
        else:
            if not select.select([process.stdout], [], [], within)[0]:
                self.end()
                raise NoAnswerError(f"no answer within {within:g} s")
            line = process.stdout.readline()
        if not line:
            self.end()
            raise NoAnswerError(f"its process ended with {process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise NoAnswerError(answer["error"])
        return answer

    def end(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        contestant = self._contestant
        return subprocess.Popen(
            [
                contestant.python,
                "-m",
                f"{__package__}.worker",
                contestant.adapter,
                json.dumps(contestant.options),
            ],
            cwd=ROOT,
            env=os.environ | _QUIET | {"TMPDIR": self._folder},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
