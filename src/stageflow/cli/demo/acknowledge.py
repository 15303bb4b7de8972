"""Says over a file descriptor which events are safe, for a test that kills this process."""

from __future__ import annotations

import os
from typing import Any

from ...events import EventSink

__all__ = ["Acknowledgements"]


class Acknowledgements(EventSink):
    """Writes the `event_id` of each event, a line each, to a file descriptor.

    In a `FanoutEventSink` behind the journal it has an event when the journal is done with it.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def try_emit(self, *, type: str, data: dict[str, Any] | None) -> None:
        if data is not None:
            os.write(self.descriptor, f"{data['event_id']}\n".encode())
