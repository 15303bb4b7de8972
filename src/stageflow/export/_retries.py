"""The delay before the next attempt: exponential backoff with jitter, Retry-After, and a circuit breaker."""

from __future__ import annotations

import random
from typing import Literal

from msgspec import Struct

from ..errors import invalid_argument

__all__ = ["ExportSettings", "Retries"]


Circuit = Literal["closed", "open"]

_MAX_RETRY_AFTER = 3600.0


class ExportSettings(Struct, frozen=True, kw_only=True):
    """How a runner forms batches, retries them, and keeps rejected events.

    Attributes:
        batch_events: Maximum number of events in a batch; default 1,000.
        batch_bytes: Maximum total size of the JSON of these events, in bytes; default 1 MiB. A larger event
            is sent in a separate batch.
        batch_seconds: Maximum time to wait for a batch to fill; default 1 s.
        send_seconds: Maximum duration of one attempt to send a batch; default 60 s.
        retry_first: Delay in seconds after the first failed attempt; default 1. It doubles with each failure.
        retry_max: Maximum delay in seconds; default 60. A `Retry-After` header can request a longer
            delay, up to an hour.
        circuit_failures: Number of consecutive failures that opens the circuit; default 5.
        circuit_seconds: Time between attempts while the circuit is open; default 60 s.
        isolate_attempts: Number of failed attempts after which the runner suspects that one event causes the
            failures of a batch; default 10.
        isolate_seconds: Minimum time since the first of these attempts, in seconds; default 600. The
            runner then sends the batch in halves, until a single event fails. To verify that the target is
            available, it sends an event that the target accepted before, or one of the next events. If the
            target accepts it, the runner sends the failed event again, and rejects it if it fails again.
        rejected_max_age: Seconds after which rejected events are deleted; default 30 days.
        rejected_max_bytes: Maximum size of the rejected events that are kept, in bytes; default 100 MB.

    Raises:
        InvalidArgumentError: A value is not a positive number.

    Example:
        >>> ExportSettings(batch_events=100).batch_bytes
        1048576
    """

    batch_events: int = 1_000
    batch_bytes: int = 1 << 20
    batch_seconds: float = 1.0
    send_seconds: float = 60.0
    retry_first: float = 1.0
    retry_max: float = 60.0
    circuit_failures: int = 5
    circuit_seconds: float = 60.0
    isolate_attempts: int = 10
    isolate_seconds: float = 600.0
    rejected_max_age: float = 30 * 86_400.0
    rejected_max_bytes: int = 100_000_000

    def __post_init__(self) -> None:
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            kind = (int,) if isinstance(default, int) else (int, float)
            if not isinstance(value, kind) or isinstance(value, bool) or not value > 0:
                expected = "a positive integer" if isinstance(default, int) else "a positive number"
                raise invalid_argument("ExportSettings", name, value, expected)


_DEFAULTS = dict(
    zip(ExportSettings.__struct_fields__, ExportSettings.__struct_defaults__, strict=True)  # in this order
)


class Retries:
    """Counts consecutive failures, and returns the delay before the next attempt.

    While the circuit is open, each attempt is a trial: its success closes the circuit.

    Args:
        settings: The delays.
        seed: Seed of the jitter; default None, for a random one.

    Attributes:
        failures: Number of consecutive failures.

    Example:
        >>> retries = Retries(ExportSettings(circuit_failures=2, circuit_seconds=60.0))
        >>> 0.5 <= retries.failed() <= 1.0, retries.circuit
        (True, 'closed')
        >>> retries.failed(), retries.circuit
        (60.0, 'open')
    """

    def __init__(self, settings: ExportSettings, seed: int | None = None) -> None:
        self._settings = settings
        self._random = random.Random(seed)
        self.failures = 0

    @property
    def circuit(self) -> Circuit:
        """State of the circuit: "open" while attempts are limited to one per `circuit_seconds`."""
        return "open" if self.failures >= self._settings.circuit_failures else "closed"

    def succeeded(self) -> None:
        """Close the circuit."""
        self.failures = 0

    def failed(self, retry_after: float | None = None) -> float:
        """Count a failure, and return the delay in seconds before the next attempt.

        Args:
            retry_after: Minimum delay in seconds that the target requests; None if it does not request one.
        """
        self.failures += 1
        limits = self._settings
        delay = min(limits.retry_max, limits.retry_first * 2.0 ** min(self.failures - 1, 30))
        # Half of the delay is random, so that exporters that failed together do not retry together.
        delay *= 0.5 + self._random.random() / 2
        if self.circuit == "open":
            delay = max(delay, limits.circuit_seconds)
        return max(delay, min(retry_after or 0.0, _MAX_RETRY_AFTER))
