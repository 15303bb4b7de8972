"""Tests that a forked child writes its own segments, inherits no lock, and records no run of its parent."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

import pytest
from conftest import Program
from oracle import check_record

from stageflow.journal import Journal, JournalReader

Start = Callable[[str], Program]

SETUP = """
    import asyncio, multiprocessing, os, signal, sys, threading
    from stageflow import *
    from stageflow.events import Event
    from stageflow.observability import WideEventEmitter

    async def nothing(ctx): ...

    def graph_on(sink, work=nothing):
        return Pipeline("p").with_stage("a", nothing).with_stage("b", work, dependencies=("a",)).build(
            emit_stage_wide_events=True, emit_pipeline_wide_event=True,
            wide_event_emitter=WideEventEmitter(sink))
"""


def check(one: Program, outcomes: list[str]) -> None:
    """Check that every run is recorded once, that the guarantees hold, and that no lock is left held."""
    with JournalReader(one.journal) as reader:
        events = [(entry.type, entry.data() or {}) for entry in reader]
    runs: dict[str, list] = {}
    for type, data in events:
        runs.setdefault(data["correlation_ids"]["pipeline_run_id"], []).append((type, data))
    assert max(Counter(data["event_id"] for _, data in events).values()) == 1
    found = [check_record(of_run, "ab")["outcome"] for of_run in runs.values()]
    assert sorted(found) == sorted(outcomes)
    assert {writer.state for writer in Journal(one.journal).check().writers} <= {"closed", "completed"}


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "pass", "raise ValueError('in the child')"])
def test_fork_in_a_stage_leaves_one_record_of_the_parent(program: Start, end: str) -> None:
    """However the child leaves the stage, the record of the run is its parent's alone."""
    one = program(
        SETUP
        + f"""
    async def fork(ctx):
        pid = os.fork()
        if not pid:
            ctx.emit_event("note", {{"from": "the child"}})
            {end}
            return
        os.waitpid(pid, 0)

    asyncio.run(graph_on(JournalSink(sys.argv[1]), fork).run())
    """
    )
    status, _, err = one.ended()
    assert status == 0, err
    check(one, ["ok"])


def test_custom_events_of_forked_children_have_their_own_ids(program: Start) -> None:
    """The children and their parent continue counting from the same number."""
    one = program(
        SETUP
        + """
    async def fork(ctx):
        ctx.emit_event("note", {"from": "parent"})
        children = []
        for _ in range(2):
            pid = os.fork()
            if not pid:
                for _ in range(2):
                    ctx.emit_event("note", {"from": "child"})
                grandchild = os.fork()
                ctx.emit_event("note", {"from": "grandchild" if not grandchild else "child"})
                if grandchild:
                    os.waitpid(grandchild, 0)
                os._exit(0)
            children.append(pid)
        for _ in range(2):
            ctx.emit_event("note", {"from": "parent"})
        for pid in children:
            os.waitpid(pid, 0)

    asyncio.run(graph_on(JournalSink(sys.argv[1]), fork).run())
    """
    )
    status, _, err = one.ended()
    assert status == 0, err
    with JournalReader(one.journal) as reader:
        notes = [entry.data() or {} for entry in reader if entry.type == "note"]
    assert Counter(note["from"] for note in notes) == {"parent": 3, "child": 6, "grandchild": 2}
    assert len({note["event_id"] for note in notes}) == 11


@pytest.mark.parametrize("end", ["sys.exit(0)", "return"])
def test_child_forked_in_a_synchronous_stage_exits_immediately(program: Start, end: str) -> None:
    one = program(
        SETUP
        + f"""
    def fork(ctx):
        read, write = os.pipe()
        pid = os.fork()
        if not pid:
            {end}
        os.close(write)
        signal.alarm(5)  # the exit of the child closes the pipe
        assert os.read(read, 1) == b""
        os.waitpid(pid, 0)

    asyncio.run(graph_on(JournalSink(sys.argv[1]), fork).run())
    """
    )
    status, _, err = one.ended()
    assert status == 0, err
    check(one, ["ok"])


def test_forked_child_can_run_its_own_loop_before_it_returns_from_the_stage(program: Start) -> None:
    """The inherited loop is restored only when the child returns to it."""
    one = program(
        SETUP
        + """
    async def waits(ctx):
        await asyncio.sleep(0.01)

    async def fork(ctx):
        await asyncio.sleep(0.01)  # the stage is resumed by its task
        pid = os.fork()
        if not pid:
            own = graph_on(JournalSink(sys.argv[1]), waits)
            assert own.run_sync().ok
            return
        assert os.waitpid(pid, 0)[1] == 0

    asyncio.run(graph_on(JournalSink(sys.argv[1]), fork).run())
    """
    )
    status, _, err = one.ended()
    assert status == 0, err
    check(one, ["ok", "ok"])


def test_forked_child_runs_its_own_pipelines(program: Start) -> None:
    one = program(
        SETUP
        + """
    graph = graph_on(JournalSink(sys.argv[1]))
    graph.run_sync()
    children = []
    for _ in range(4):  # as gunicorn does it with preload
        pid = os.fork()
        if not pid:
            for _ in range(5):
                graph.run_sync()
            sys.exit(0)
        children.append(pid)
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    graph.run_sync()
    """
    )
    status, _, err = one.ended()
    assert status == 0, err
    check(one, ["ok"] * 22)
    assert len(Journal(one.journal).check().writers) == 5


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_workers_write_their_own_segments(program: Start, method: str, tmp_path) -> None:
    module = tmp_path / "workers.py"
    module.write_text(
        "from stageflow import *\n"
        "from stageflow.observability import WideEventEmitter\n"
        "async def nothing(ctx): ...\n"
        "def work(sink):\n"
        "    pipeline = Pipeline('p').with_stage('a', nothing)\n"
        "    pipeline = pipeline.with_stage('b', nothing, dependencies=('a',))\n"
        "    graph = pipeline.build(\n"
        "        emit_stage_wide_events=True, emit_pipeline_wide_event=True,\n"
        "        wide_event_emitter=WideEventEmitter(sink))\n"
        "    for _ in range(3):\n"
        "        graph.run_sync()\n"
    )
    one = program(
        SETUP
        + f"""
    sys.path.insert(0, {str(tmp_path)!r})
    import workers

    if __name__ == "__main__":
        sink = JournalSink(sys.argv[1])
        workers.work(sink)
        context = multiprocessing.get_context({method!r})
        processes = [context.Process(target=workers.work, args=(sink,)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
    """
    )
    status, _, err = one.ended()
    assert status == 0, err
    check(one, ["ok"] * 12)


def test_forked_child_does_not_keep_the_lock_of_its_dead_parent(program: Start) -> None:
    """The kernel frees a lock when the last who holds it is gone: a child must not hold it."""
    one = program(
        SETUP
        + """
    async def fork(ctx):
        read, write = os.pipe()
        if not os.fork():
            os.close(write)
            print(os.getpid(), flush=True)
            signal.pause()
        os.kill(os.getpid(), signal.SIGKILL)

    asyncio.run(graph_on(JournalSink(sys.argv[1]), fork).run())
    """
    )
    assert one.process.stdout is not None
    child = int(one.process.stdout.readline())
    try:
        one.process.wait(10)
        (crashed,) = Journal(one.journal).recover()
        assert Journal(one.journal).run(crashed).run["outcome"] == "crashed"
    finally:
        os.kill(child, signal.SIGKILL)


def test_fork_while_threads_write_loses_no_event(program: Start) -> None:
    """A lock that a thread held when the process was forked must not hang the child."""
    one = program(
        SETUP
        + """
    sink = JournalSink(sys.argv[1], fsync="always")
    stop = threading.Event()

    def write():
        graph = graph_on(sink)
        while not stop.is_set():
            graph.run_sync()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        pid = os.fork()
        if not pid:
            signal.alarm(10)  # or a hang would outlive the test
            graph_on(sink).run_sync()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    stop.set()
    for thread in threads:
        thread.join()
    """
    )
    status, _, err = one.ended(60)
    assert status == 0, err
    with JournalReader(one.journal) as reader:
        ids = Counter((entry.data() or {})["event_id"] for entry in reader)
    assert set(ids.values()) == {1}
