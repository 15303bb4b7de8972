"""Tests that written events reach the disk in time, even if other operations are slow or fail."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program

from stageflow import JournalSink, Pipeline, StageGraph
from stageflow._files import sync
from stageflow.events._delivery import DELIVERY
from stageflow.journal import Journal
from stageflow.journal._retention import RetentionPolicy
from stageflow.observability import WideEventEmitter

Start = Callable[[str], Program]

LATER = 20.0
"""Seconds after which an operation counts as hanging."""


class Disk:
    """Replaces the sync call of the journal, and fails while `failing` is set.

    A device whose `fsync` fails (dm-flakey) requires root and a loop device, and raises the same `OSError`
    from the same call.
    """

    def __init__(self) -> None:
        self.failing = False
        self.synced: list[int] = []
        self.failed: list[int] = []
        self._changed = threading.Condition()

    def __call__(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        with self._changed:
            (self.failed if self.failing else self.synced).append(inode)
            self._changed.notify_all()
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)

    def wait(self, reached: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(reached, LATER)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    # Real syncs take an unpredictable time; this test depends only on their order.
    found = Disk()
    monkeypatch.setattr("stageflow.journal._sink.sync", found)
    return found


@pytest.fixture
def sinks() -> Iterator[list[JournalSink]]:
    made: list[JournalSink] = []
    yield made
    for sink in made:
        sink.close()


async def nothing(ctx: Any) -> None: ...


def graph_on(sink: JournalSink) -> StageGraph:
    return (
        Pipeline("p")
        .with_stage("a", nothing)
        .build(
            emit_stage_wide_events=True,
            emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink),
        )
    )


async def test_syncing_does_not_wait_for_retention(
    tmp_path: Path, disk: Disk, sinks: list[JournalSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    began, end = threading.Event(), threading.Event()

    def make(room: RetentionPolicy, directory: str, should_stop: Any) -> None:
        began.set()
        assert end.wait(LATER)

    monkeypatch.setattr(RetentionPolicy, "apply", make)
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=0.01, segment_bytes=3_000))
    graph = graph_on(sink)
    await graph.run()
    assert began.wait(LATER)
    for _ in range(5):  # each in another interval, while retention is running, also in new segments
        before = len(disk.synced)
        await graph.run()
        disk.wait(lambda before=before: len(disk.synced) > before)  # type: ignore[misc]
    assert not end.is_set()
    end.set()


async def test_failed_sync_is_counted_and_retried(
    tmp_path: Path, disk: Disk, sinks: list[JournalSink], caplog: pytest.LogCaptureFixture
) -> None:
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=0.01))
    disk.failing = True
    await graph_on(sink).run()
    disk.wait(lambda: len(disk.failed) >= 3)  # repeatedly, without new events
    assert DELIVERY.channel_of(sink).stats().sync_failures >= 2
    assert DELIVERY.channel_of(sink).stats().dropped == {}
    disk.failing = False
    disk.wait(lambda: set(disk.synced) == set(disk.failed))
    told = [record for record in caplog.records if "could not be synced" in record.getMessage()]
    assert len(told) == 1
    sink.close()
    assert Journal(tmp_path).check().problems == []


async def test_full_segments_are_synced_after_failures_and_then_closed(
    tmp_path: Path, disk: Disk, sinks: list[JournalSink]
) -> None:
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=0.01, segment_bytes=1, max_bytes=None))
    open_before = len(os.listdir("/dev/fd"))
    disk.failing = True
    for _ in range(5):
        await graph_on(sink).run()
    inodes = {path.stat().st_ino for path in tmp_path.glob("*.ndjson")}
    assert len(inodes) == 15
    disk.wait(lambda: set(disk.failed) == inodes)
    disk.failing = False
    disk.wait(lambda: set(disk.synced) == inodes)
    sink.run_maintenance()
    assert len(os.listdir("/dev/fd")) <= open_before + 2, "what was synced is closed"
    assert sink._syncer.abandoned == 0


async def test_segment_without_a_successor_is_synced_and_stays_locked(
    tmp_path: Path, disk: Disk, sinks: list[JournalSink]
) -> None:
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=3600))
    await graph_on(sink).run()
    with sink._lock:
        sink._writer.retire()  # as after a disk error
    sink.run_maintenance()
    (inode,) = {path.stat().st_ino for path in tmp_path.glob("*-000001.ndjson")}
    assert inode in disk.synced
    assert Journal(tmp_path).check().writers[0].state == "live"


async def test_segment_deleted_by_retention_needs_no_sync(
    tmp_path: Path, disk: Disk, sinks: list[JournalSink]
) -> None:
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=3600, segment_bytes=1))
    disk.failing = True
    await graph_on(sink).run()
    sink.run_maintenance()
    for path in tmp_path.glob("*.ndjson"):
        path.unlink()
    disk.failed.clear()
    sink._syncer.sync()
    assert disk.failed == []


async def test_callers_sync_if_no_thread_can_be_started(
    tmp_path: Path,
    disk: Disk,
    sinks: list[JournalSink],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=0.02))
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("stageflow-journal"):
            raise RuntimeError("can't start new thread")
        start(thread)

    graph = graph_on(sink)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        deadline = time.monotonic() + LATER
        while len(disk.synced) < 3:
            await graph.run()
            assert time.monotonic() < deadline
        assert sink._sync_thread is None
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text for text in told if "cannot start a thread (can't start new thread)" in text] == told
    assert len(told) == 1
    # Once a thread can be started, callers no longer wait.
    deadline = time.monotonic() + LATER
    while sink._sync_thread is None:
        await graph.run()
        assert time.monotonic() < deadline
    before = len(disk.synced)
    await graph.run()
    disk.wait(lambda: len(disk.synced) > before)


async def test_failed_inline_sync_is_counted_and_loses_no_event(
    tmp_path: Path, disk: Disk, sinks: list[JournalSink], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    sinks.append(sink := JournalSink(tmp_path, fsync_interval=1e-6))
    disk.failing = True
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        await graph_on(sink).run()
    counted = DELIVERY.channel_of(sink).stats()
    assert (counted.delivered, counted.dropped) == (2, {})
    assert counted.sync_failures >= 2


def test_close_terminates_during_syncing_and_retention(tmp_path: Path, sinks: list[JournalSink]) -> None:
    sinks.append(sink := JournalSink(tmp_path, fsync_interval=0.001, segment_bytes=20_000, max_bytes=200_000))
    graph = graph_on(sink)
    threads = [
        threading.Thread(target=lambda: [graph.run_sync() for _ in range(40)], daemon=True) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sink.close()
    sink.close()
    counted = DELIVERY.channel_of(sink).stats()
    assert counted.delivered == counted.offered == 240
