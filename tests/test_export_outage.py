"""A receiver that is down for an hour, in simulated time; see `export_outage` for the long form."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path

import pytest
from export_outage import KINDS, SimulatedTimeLoop, outage, problems_of


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_or_miscounted_while_the_receiver_is_down_for_an_hour(
    tmp_path: Path, kind: str
) -> None:
    found = outage(tmp_path, kind)
    assert problems_of(found) == []
    # Four attempts until the circuit opens, then one per minute.
    least, most = 60, 65
    if kind == "status 500":  # the exporter also searches for an event that causes the failures
        least, most = 100, 125
    else:
        assert found.accepted == [event for event in found.written if not event.endswith("00")]
    assert least <= found.state.failures <= most
    assert (found.state.circuit, found.state.consecutive_failures) == ("closed", 0)


def test_simulated_time_skips_pauses_but_not_work() -> None:
    async def pause_and_work() -> tuple[float, float, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedTimeLoop)
        began = loop.time()
        await asyncio.sleep(600)
        paused = loop.time() - began
        done = threading.Event()
        threading.Timer(0.05, done.set).start()
        async with asyncio.timeout(600):
            assert await asyncio.to_thread(done.wait, 30)
        worked = loop.time() - began - paused
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.read()
        writer.close()
        await writer.wait_closed()
        return paused, worked, loop.time() - began - paused - worked

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        real = time.monotonic()
        with asyncio.Runner(loop_factory=SimulatedTimeLoop) as runner:
            paused, worked, read = runner.run(pause_and_work())
        assert time.monotonic() - real < 60
    assert paused == pytest.approx(600, abs=1)
    assert 0.04 < worked < 60
    assert 0.04 < read < 60
