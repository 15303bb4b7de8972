"""The fixtures that pytest finds by itself where the library is installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ._capture import CapturedEvents, capture_events
from ._virtual_clock import VirtualClock

__all__ = ["stageflow_events", "virtual_clock"]


@pytest.fixture
def stageflow_events() -> Iterator[CapturedEvents]:
    """Take every event of this test; see `stageflow.testing.capture_events`."""
    with capture_events() as events:
        yield events


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that jumps: `virtual_clock.run(graph.run())` takes no time."""
    return VirtualClock()
