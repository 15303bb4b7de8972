"""`StreamState`: the part of the state of a run that concerns streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..stages import StageResult, StageStatus
from ._plan import Node

__all__ = ["StreamState"]


class StreamState:
    """The streams of one run, as far as they affect which stages start, restart and end.

    Stages are numbers; the reader -1 is outside the run.

    Attributes:
        started: The stages that have sent a chunk, in any attempt.
        blocked: The running stages that wait for a reader. They do not count towards `max_concurrency`.
    """

    __slots__ = ("_consumed", "_detached", "_nodes", "blocked", "started")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        # Dicts with the value None, not sets: the garbage collector does not visit an empty dict.
        self.started: dict[int, None] = {}
        self._consumed: dict[int, dict[int, None]] = {}
        self._detached: dict[tuple[int, int], None] = {}
        self.blocked: dict[int, None] = {}

    def start(self, index: int) -> bool:
        """Record that a stage sent a chunk; return whether it is its first."""
        if index in self.started:
            return False
        self.started[index] = None
        return True

    def chunk_read(self, index: int, reader: int) -> None:
        """Record that a reader has received a chunk of the current attempt of a stage."""
        self._consumed.setdefault(index, {})[reader] = None

    def detach(self, index: int, reader: int) -> None:
        """Record that a stage has stopped reading a stream; its chunks count as read."""
        self.chunk_read(index, reader)
        self._detached[index, reader] = None

    def active_readers(self, index: int) -> Iterator[int]:
        """Yield the stages that read the stream of a stage, except those that have stopped."""
        for reader in self._nodes[index].stream_dependents:
            if (index, reader) not in self._detached:
                yield reader

    def why_incomplete(self, index: int, results: Sequence[StageResult | None]) -> str | None:
        """Return a reason if a stage reads a stream that ended before all chunks were sent, or None."""
        for sender in self._nodes[index].senders:
            result = results[sender]
            if (
                result is not None
                and result.status in (StageStatus.FAIL, StageStatus.CANCEL)
                and sender in self.started
                and (sender, index) not in self._detached
            ):
                return f"the stream of {result.name!r} was incomplete"
        return None

    def why_not_retryable(self, index: int) -> str | None:
        """Return why a failed attempt cannot be retried because of its streams, or None if it can be."""
        if not self._consumed:
            return None
        if self._consumed.get(index) and not self._nodes[index].restart:
            return "not retried: its chunks have been read, and the stage does not set restart=True"
        sender = self._sender_of(index)
        if sender is None:
            return None
        return f"not retried: the stage has read chunks of the stream of {sender!r}, which are not sent again"

    def restart(self, index: int) -> list[tuple[int, str, bool]]:
        """Forget the chunks of a stage that restarts.

        Returns:
            Each stage that has read some, the reason for which it is cancelled, and whether it restarts, too:
            not if it has read chunks of another stream.
        """
        name = self._nodes[index].name
        restarted = []
        for reader in self._consumed.pop(index, ()):
            if reader >= 0:
                other = self._sender_of(reader)
                but = "" if other is None else f", but that of {other!r} did not"
                restarted.append((reader, f"the stream of {name!r} restarted{but}", other is None))
        return restarted

    def _sender_of(self, reader: int) -> str | None:
        """Return the name of a stage whose chunks a reader stage has read, or None."""
        for sender, readers in self._consumed.items():
            if reader in readers:
                return self._nodes[sender].name
        return None
