"""The pytest plugin of the library; pytest loads its fixtures automatically."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ._capture import CapturedEvents, capture_events
from ._virtual_clock import VirtualClock

__all__ = ["stageflow_events", "virtual_clock"]


@pytest.fixture
def stageflow_events() -> Iterator[CapturedEvents]:
    """Capture all events of this test; see `stageflow.testing.capture_events`."""
    with capture_events() as events:
        yield events


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """A clock that skips waits: `virtual_clock.run(graph.run())` takes no real time."""
    return VirtualClock()
