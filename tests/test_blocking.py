"""The check that nothing of ours blocks the loop would notice if something did."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from blockbuster import BlockingError

import stageflow


async def test_blocking_call_in_the_library_is_detected() -> None:
    ours = str(Path(stageflow.__file__).parent / "pretended.py")
    names = {"time": time}
    exec(compile("def blocks(): time.sleep(0.001)", ours, "exec"), names)
    with pytest.raises(BlockingError):
        names["blocks"]()  # type: ignore[operator]
    time.sleep(0)  # the same call in a file of the application is its own affair
