"""Tests that every private CPython API that the library uses behaves as expected."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable

import pytest
from conftest import Program

from stageflow import _cpython


def test_running_loop_is_the_loop_of_this_thread() -> None:
    async def main() -> bool:
        return _cpython.running_loop() is asyncio.get_running_loop()

    assert _cpython.running_loop() is None
    assert asyncio.run(main())
    assert _cpython.running_loop() is None


def test_excluded_task_outlives_the_cancellation_at_the_end_of_asyncio_run() -> None:
    cancelled: list[str] = []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(name)
            raise

    async def main() -> asyncio.Task[None]:
        listed, excluded = asyncio.ensure_future(waits("listed")), asyncio.ensure_future(waits("excluded"))
        await asyncio.sleep(0)
        _cpython.exclude_from_all_tasks(excluded)
        assert {listed} == asyncio.all_tasks() - {asyncio.current_task()}
        return excluded

    excluded = asyncio.run(main())
    assert cancelled == ["listed"]
    assert not excluded.done()
    _cpython.forget_unfinished(excluded)


def test_forgotten_task_is_destroyed_without_a_report(caplog: pytest.LogCaptureFixture) -> None:
    async def main(forgets: bool) -> None:
        task = asyncio.ensure_future(asyncio.Event().wait())
        await asyncio.sleep(0)
        _cpython.exclude_from_all_tasks(task)
        if forgets:
            _cpython.forget_unfinished(task)

    for forgets in (True, False):
        caplog.clear()
        asyncio.run(main(forgets))
        gc.collect()
        assert bool(caplog.records) is not forgets


def test_marked_loop_and_task_can_take_another_step_in_a_forked_child() -> None:
    async def main() -> int:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        child = os.fork()
        if not child:
            assert _cpython.running_loop() is None
            _cpython.mark_running(loop, task)
            await asyncio.sleep(0)
            os._exit(7 if asyncio.current_task() is task else 1)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)

    assert asyncio.run(asyncio.wait_for(main(), 60)) == 7


def test_hook_before_threads_end_can_still_start_a_thread(program: Callable[[str], Program]) -> None:
    ended = program(
        """
        import threading
        from stageflow import _cpython

        def print_in_thread():
            thread = threading.Thread(target=print, args=["from a thread"])
            thread.start()
            thread.join()

        _cpython.register_before_threads_end(print_in_thread)
        """
    ).ended()
    if (3, 12) <= sys.version_info < (3, 12, 2):  # these releases start no thread at exit: CPython gh-113964
        assert ended[:2] == (0, "")
        assert "can't create new thread at interpreter shutdown" in ended[2]
    else:
        assert ended == (0, "from a thread\n", "")
