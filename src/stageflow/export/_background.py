"""The exporters that run in the background of a process and stop when it exits."""

from __future__ import annotations

# The import registers an exit hook that stops the threads that resolve host names. It must be registered
# before the hook of this module, because hooks run in reverse order.
import concurrent.futures.thread  # noqa: F401
import contextlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .._cpython import register_before_threads_end
from ._exporter import Exporter
from ._runner import ExportRunner

if TYPE_CHECKING:
    from ..store import TailSampler

__all__ = ["BackgroundExport"]


class BackgroundExport:
    """Runs exporters on daemon threads until `stop` is called or the process exits.

    When the process exits, they send the remaining events of the journal, within a time limit. A forked child
    does not export: both processes write to the journal, and the parent exports the events of both.

    Args:
        journal: Directory of the journal.
        exporters: The targets.
        exit_seconds: Maximum time to send events when the process exits, in seconds.
        sampler: Selects the runs to export; default None, for all.
    """

    def __init__(
        self,
        journal: str,
        exporters: Sequence[Exporter],
        exit_seconds: float,
        sampler: TailSampler | None = None,
    ) -> None:
        self._pid = os.getpid()
        self._runners = [ExportRunner(journal, exporter, sampler=sampler) for exporter in exporters]
        self._exit_seconds = exit_seconds
        with contextlib.suppress(RuntimeError):  # the interpreter is already exiting
            register_before_threads_end(lambda: self.stop(self._exit_seconds))

    def start(self) -> None:
        """Start all exporters."""
        for runner in self._runners:
            runner.start()

    def stop(self, seconds: float, *, drain: bool = True) -> None:
        """Stop all exporters, and wait for them. Blocks.

        Args:
            seconds: Maximum total time, in seconds.
            drain: Whether to send the events that are in the journal now.
        """
        runners, self._runners = self._runners, []
        if os.getpid() != self._pid:
            return
        for runner in runners:
            runner.request_stop(seconds, drain=drain)
        for runner in runners:
            runner.join()
