"""Tests that the journal writes to, unlocks and closes only its own files, whoever closes its descriptors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program

Start = Callable[[str], Program]

PREAMBLE = """
import fcntl, json, os, sys
import stageflow
from stageflow import Journal, JournalReader, JournalSink, Pipeline
from stageflow.events import MemoryEventSink

journal = sys.argv[1]
folder = os.path.dirname(journal)

def reuse_descriptors():
    # Each of the new files gets a number that a file of the journal had. Other descriptors stay open: uvloop
    # needs its own in a forked child.
    files = [os.stat(os.path.join(path, name)) for path, _, names in os.walk(journal) for name in names]
    for number in range(3, 64):
        try:
            if any(os.path.samestat(os.fstat(number), file) for file in files):
                os.close(number)
        except OSError:
            pass  # not open
    return [open(os.path.join(folder, f"mine{number}.txt"), "w") for number in range(12)]

def written():
    return {file: os.path.getsize(os.path.join(folder, file)) for file in os.listdir(folder)
            if file.startswith("mine") and os.path.getsize(os.path.join(folder, file))}

async def work(ctx):
    return {}
"""


@pytest.fixture
def run(program: Start) -> Callable[[str], Any]:
    def run(script: str) -> Any:
        status, out, err = program(PREAMBLE + script).ended()
        assert status == 0, err
        return json.loads(out.splitlines()[-1])

    return run


def test_events_never_reach_a_file_that_reuses_the_descriptor_of_a_segment(run: Callable[[str], Any]) -> None:
    found = run("""
stageflow.configure(journal=journal, health_seconds=None)
graph = Pipeline("p").with_stage("w", work).build()
graph.run_sync()
mine = reuse_descriptors()
for _ in range(3):
    graph.run_sync()
stats = [(s.offered, s.delivered, s.dropped) for s in stageflow.events.stats().sinks]
print(json.dumps([written(), len(Journal(journal).runs()), stats]))
""")
    assert found == [{}, 4, [[8, 8, {}]]]


def test_closing_an_unused_descriptor_loses_no_event(run: Callable[[str], Any]) -> None:
    found = run("""
stageflow.configure(journal=journal, health_seconds=None)
graph = Pipeline("p").with_stage("w", work).build()
graph.run_sync()
os.closerange(3, 64)
graph.run_sync()
print(json.dumps([run["outcome"] for run in Journal(journal).runs()]))
""")
    assert found == ["ok", "ok"]


def test_closing_the_journal_neither_closes_nor_unlocks_files_of_the_application(
    run: Callable[[str], Any],
) -> None:
    found = run("""
stageflow.configure(journal=journal, health_seconds=None)
Pipeline("p").with_stage("w", work).build().run_sync()
mine = reuse_descriptors()
for file in mine:
    fcntl.flock(file, fcntl.LOCK_EX)
from stageflow.settings import close_journal
close_journal()
unlocked = []
for file in mine:
    file.write("intact")
    file.flush()
    with open(file.name) as again:
        try:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unlocked.append(file.name)
        except BlockingIOError:
            pass
print(json.dumps([unlocked, set(written().values()) == {6}]))
""")
    assert found == [[], True]


def test_full_segments_are_closed_without_touching_files_of_the_application(
    run: Callable[[str], Any],
) -> None:
    found = run("""
sink = JournalSink(journal, segment_bytes=1000, fsync_interval=3600.0)
stageflow.configure(sink=sink, health_seconds=None)
graph = Pipeline("p").with_stage("w", work).build()
for _ in range(5):
    graph.run_sync()
mine = reuse_descriptors()
graph.run_sync()
sink.run_maintenance()
sink.close()
for file in mine:
    file.write("intact")
    file.flush()
print(json.dumps([set(written().values()) == {6}, len(Journal(journal).runs())]))
""")
    assert found == [True, 6]


def test_forked_child_closes_no_file_of_the_application(run: Callable[[str], Any]) -> None:
    found = run("""
stageflow.configure(journal=journal, health_seconds=None)
graph = Pipeline("p").with_stage("w", work).build()
graph.run_sync()
mine = reuse_descriptors()
pid = os.fork()
if not pid:
    for file in mine:
        file.write("intact")
        file.flush()
    graph.run_sync()
    os._exit(0)
status = os.waitpid(pid, 0)[1]
print(json.dumps([status, set(written().values()) == {6}, len(Journal(journal).runs())]))
""")
    assert found == [0, True, 2]


def test_run_in_progress_is_not_recorded_as_crashed_after_its_lock_was_closed(
    run: Callable[[str], Any],
) -> None:
    found = run("""
import time
sink = JournalSink(journal, fsync_interval=0.01)
stageflow.configure(sink=sink, health_seconds=None)

def segments():
    return [name for name in os.listdir(journal) if name.endswith(".ndjson") and name[0] != "."]

def detaches(ctx):
    inodes = {os.stat(os.path.join(journal, name)).st_ino for name in segments()}
    for fd in range(3, 64):  # the event loop needs the others
        try:
            if os.fstat(fd).st_ino in inodes:
                os.close(fd)
        except OSError:
            pass
    deadline = time.monotonic() + 20
    while len(segments()) < 2 and time.monotonic() < deadline:  # the journal's thread begins another
        time.sleep(0.005)
    return {"seen": [run["outcome"] for run in Journal(journal).runs()]}

results = Pipeline("p").with_stage("w", detaches).build().run_sync()
outcomes = [run["outcome"] for run in Journal(journal).runs()]
print(json.dumps([results.data("w")["seen"], len(segments()), outcomes]))
""")
    assert found == [["open"], 2, ["ok"]]


def test_reader_whose_lock_was_closed_keeps_its_name_or_reports_the_new_owner(
    run: Callable[[str], Any],
) -> None:
    found = run("""
stageflow.configure(journal=journal, health_seconds=None)
Pipeline("p").with_stage("w", work).build().run_sync()
first = JournalReader(journal, "warehouse")
read = len(first.read())
mine = reuse_descriptors()
first.commit()  # nobody took the name
try:
    JournalReader(journal, "warehouse")
except stageflow.errors.CursorInUseError:
    claimed = True
more = reuse_descriptors()
second = JournalReader(journal, "warehouse")
try:
    first.commit()
except stageflow.errors.CursorInUseError as error:
    refused = "warehouse" in str(error)
first.close()
for file in more:
    file.write("intact")
    file.flush()
print(json.dumps([read, claimed, refused, set(written().values()) == {6}]))
""")
    assert found == [2, True, True, True]


def test_closed_descriptor_is_logged_once(program: Start, tmp_path: Path) -> None:
    status, _, err = program(
        PREAMBLE
        + """
stageflow.configure(journal=journal, health_seconds=None)
graph = Pipeline("p").with_stage("w", work).build()
graph.run_sync()
for _ in range(3):
    os.closerange(3, 64)
    graph.run_sync()
"""
    ).ended()
    assert status == 0
    assert err.count("other code in this process closed the file descriptor of a segment") == 1
