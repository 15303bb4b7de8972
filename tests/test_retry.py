"""Retry policies: attempts, waits, the deadline, and their record."""

from __future__ import annotations

from typing import Any

import pytest

from stageflow import Pipeline, Retry, StageStatus
from stageflow.retry import Exponential, Fixed, Linear
from stageflow.testing import CapturedEvents, VirtualClock, run_stage


async def down(ctx: Any) -> None:
    raise ConnectionError("down")


def test_attempts_and_waits_are_recorded(
    stageflow_events: CapturedEvents, virtual_clock: VirtualClock
) -> None:
    policy = Retry(attempts=3, wait=Linear(1, maximum=10), on=ConnectionError)
    virtual_clock.run(Pipeline("p").with_stage("s", down, retry=policy).run())
    values = [
        (event["status"], event["attempt"], event["retry_after_ms"], event["reason"])
        for event in [*stageflow_events.retries("s"), stageflow_events.stage("s")]
    ]
    assert values == [
        ("RETRY", 1, 1000, "attempt 1 of 3 failed, the next one in 1 s"),
        ("RETRY", 2, 2000, "attempt 2 of 3 failed, the next one in 2 s"),
        ("FAIL", 3, None, "no attempts left (3 of 3)"),
    ]
    assert stageflow_events.stage("s")["total_ms"] == 3000


def test_no_attempt_starts_past_the_deadline_of_the_policy(virtual_clock: VirtualClock) -> None:
    result = virtual_clock.run(run_stage(down, retry=Retry(10, wait=4, deadline=10)))
    assert (result.status, result.attempts) == (StageStatus.FAIL, 3)
    assert result.reason == (
        "attempt 3 of 10 failed after 8 s, and the next one in 4 s would be past the deadline of 10 s"
    )


def test_wait_policies_are_validated_values() -> None:
    assert [Fixed(2)(n) for n in (1, 2, 3)] == [2, 2, 2]
    assert [Linear(1, step=2, maximum=4)(n) for n in (1, 2, 3)] == [1, 3, 4]
    assert [Exponential(1, maximum=5, jitter=0)(n) for n in (1, 2, 3, 4)] == [1, 2, 4, 5]
    assert all(0.5 <= Exponential(1, jitter=0.5)(1) <= 1 for _ in range(100))
    with pytest.raises(ValueError, match=r"^Retry: attempts must be a positive integer, got 0$"):
        Retry(attempts=0)
    with pytest.raises(ValueError, match=r"^Retry: deadline must be 0 or more seconds, got -1$"):
        Retry(deadline=-1)
