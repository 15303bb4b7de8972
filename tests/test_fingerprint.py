"""Fingerprints of errors: what is the same error, and what is another one."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import Program
from oracle import of_type, pipeline_wide, stage_wide

from stageflow import Pipeline, PipelineResults, Retry, StageContext, StageOutput, _fingerprint
from stageflow.events import MemoryEventSink
from stageflow.executors import ProcessExecutor
from stageflow.journal import JournalReader
from stageflow.observability import WideEventEmitter
from stageflow.testing import capture_events


async def recorded(stage: Any, name: str = "s", **options: Any) -> dict[str, Any]:
    with capture_events() as events:
        await Pipeline("p").with_stage(name, stage, **options).run()
    return events.stage(name)


async def fingerprint(stage: Any, name: str = "s", **options: Any) -> str:
    event = await recorded(stage, name, **options)
    found: str = event["error_fingerprint"]
    assert re.fullmatch(r"1:[0-9a-f]{16}", found)
    return found


def raising(error: BaseException) -> Any:
    async def fails(ctx: StageContext) -> None:
        raise error

    return fails


async def fingerprint_of_message(message: str) -> str:
    return await fingerprint(raising(ValueError(message)))


# ------------------------------------------------------------ which part of a message counts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no object 'list.push'", "no object 'dict.has_key'"),
        ('no object "list.push"', "no object 'it\\'s \"quoted\"'"),
        ("no column `a`", "no column `a.b`"),
        ("no such user: b'\\x00ab'", "no such user: 'bob'"),
        ("took 12.5 s, limit 10 s", "took 1e+3 s, limit 7 s"),
        ("offset -3", "offset 14"),
        ("item 550e8400-e29b-abcd-abcd-446655440000 is gone", "item 7 is gone"),
        ("commit deadbeef01 is gone", "commit 0xff is gone"),
        ("no answer to req_7f3kd92", "no answer to req_8a"),
        ("cannot read /srv/a/b.txt", "cannot read ~/c.txt"),
        ("cannot read C:\\data\\x.csv", "cannot read data/x.csv"),
        ("GET https://a.example/x?y=1#z failed", "GET http://b.example failed"),
        ("ada@example.com is not known", "b.b+c@mail.example.org is not known"),
        ("no route to 10.0.0.7:8080", "no route to fe80::1ff:fe23:4567:890a"),
        ("no data since 2026-11-24T10:30:00.123Z", "no data since 2026-11-25 11:00:00+00:00"),
        ("no data since Tue, 24 Nov 2026 10:30:00 +0000", "no data since Mon, 1 Jan 2024 01:02:03 +0000"),
        ("ids [1, 2, 3] are missing", "ids [4] are missing"),
        ("bad row {'id': 7, 'name': 'x'}", "bad row {'id': 8}"),
        ("bad\n\n row", "bad row"),
        ("unclosed 'abc", "unclosed 'def ghi"),
    ],
)
async def test_messages_that_differ_in_variable_parts_have_the_same_fingerprint(one: str, other: str) -> None:
    assert await fingerprint_of_message(one) == await fingerprint_of_message(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("can't read users' data", "can't write users' data"),
        ("no object 'x' in the index", "no object 'x' in the cache"),
        ("connection refused", "connection reset"),
        ("", "x"),
    ],
)
async def test_other_messages_have_other_fingerprints(one: str, other: str) -> None:
    assert await fingerprint_of_message(one) != await fingerprint_of_message(other)


async def test_length_of_a_variable_part_does_not_affect_a_long_message() -> None:
    constant = "the answer does not match the schema; " * 200
    found = {await fingerprint_of_message(f"'{'x' * length}' {constant}") for length in (1, 50, 3000)}
    assert len(found) == 1


async def test_secrets_do_not_affect_fingerprints() -> None:
    first = await recorded(raising(ValueError("login failed: password=hunter-two")))
    second = await recorded(raising(ValueError("login failed: password=correct-horse")))
    assert "hunter" not in json.dumps(first)
    assert first["error_fingerprint"] == second["error_fingerprint"]


# ------------------------------------------------------------ type, stage and frame


async def test_type_and_stage_are_part_of_the_fingerprint() -> None:
    fails = raising(ValueError("x"))
    found = await fingerprint(fails)
    assert found == await fingerprint(fails)
    assert found != await fingerprint(fails, "other")
    assert found != await fingerprint(raising(TypeError("x")))


def parse(text: str) -> Any:
    return json.loads(text)


def parse_again(text: str) -> Any:
    return json.loads(text)


async def test_frame_is_the_innermost_function_of_the_application_and_not_of_a_library() -> None:
    async def calls(ctx: StageContext) -> None:
        parse("{")

    async def calls_through_another_function(ctx: StageContext) -> None:
        (lambda: parse("{"))()

    async def calls_another(ctx: StageContext) -> None:
        parse_again("{")

    found = await fingerprint(calls)
    assert found == await fingerprint(calls_through_another_function)
    assert found != await fingerprint(calls_another)


async def test_comprehension_is_not_a_frame() -> None:
    """Since Python 3.12, it is none for the interpreter either."""

    def parse_all(texts: list[str], *, with_comprehension: bool) -> None:
        if with_comprehension:
            [json.loads(text) for text in texts]
        for text in texts:
            json.loads(text)

    async def comprehends(ctx: StageContext) -> None:
        parse_all(["{"], with_comprehension=True)

    async def loops(ctx: StageContext) -> None:
        parse_all(["{"], with_comprehension=False)

    assert await fingerprint(comprehends) == await fingerprint(loops)


async def test_first_exception_of_a_group_counts() -> None:
    def grouped(number: int) -> Any:
        async def fails(ctx: StageContext) -> None:
            error = ValueError("bad row 3")
            raise ExceptionGroup("tasks failed", [error, *(KeyError(n) for n in range(number))])

        return fails

    found = await fingerprint(grouped(0))
    assert found == await fingerprint(grouped(1)) == await fingerprint(grouped(7))
    assert found == await fingerprint(lambda ctx: StageOutput.fail(ValueError("bad row 4")))


async def test_failure_without_an_exception_has_a_fingerprint_of_its_text() -> None:
    found = await fingerprint(lambda ctx: StageOutput.fail("no answer after 3 s"))
    assert found == await fingerprint(lambda ctx: StageOutput.fail("no answer after 10 s"))
    assert found != await fingerprint(lambda ctx: StageOutput.fail("no question"))


APPLICATION = """
    import asyncio, json
    from stageflow import Pipeline
    from stageflow.testing import capture_events

    def load(text):
        return json.loads(text)

    async def stage(ctx):
        load("{")

    async def main():
        with capture_events() as events:
            await Pipeline("p").with_stage("s", stage).run()
        print(events.stage("s")["error_fingerprint"])

    if __name__ == "__main__":
        asyncio.run(main())
"""


def run_application(folder: Path, *command: str, seed: str = "0", path: Path | None = None) -> str:
    """Run the application in another process, and return the fingerprint that it prints."""
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_fingerprint_does_not_depend_on_the_process_the_folder_or_the_line(tmp_path: Path) -> None:
    found = set()
    for number, lines in enumerate((0, 40)):
        folder = tmp_path / str(number) / "shop"
        folder.mkdir(parents=True)
        (folder / "checkout.py").write_text("\n" * lines + textwrap.dedent(APPLICATION))
        start = "import asyncio; from shop.checkout import main; asyncio.run(main())"
        found.add(run_application(folder.parent, "-c", start, seed=str(number)))
        found.add(run_application(folder.parent, "-m", "shop.checkout"))
    (one,) = found
    assert one.startswith("1:")
    (tmp_path / "checkout.py").write_text(textwrap.dedent(APPLICATION))
    script = run_application(tmp_path, str(tmp_path / "checkout.py"))
    assert script == run_application(
        tmp_path, "-c", "import asyncio, checkout; asyncio.run(checkout.main())", path=tmp_path
    )
    assert script != one  # another module


def test_installed_application_has_the_fingerprints_of_its_source(tmp_path: Path) -> None:
    start = "import asyncio; from shop.checkout import main; asyncio.run(main())"
    found = set()
    for folder in (tmp_path / "src", tmp_path / "lib" / "site-packages"):
        (folder / "shop").mkdir(parents=True)
        (folder / "shop" / "checkout.py").write_text(textwrap.dedent(APPLICATION))
        found.add(run_application(tmp_path, "-c", start, path=folder))
    assert len(found) == 1


def fails_in_library(ctx: StageContext) -> None:
    parse("{")


def test_worker_process_gives_the_same_fingerprint() -> None:
    here = asyncio.run(fingerprint(fails_in_library))
    with ProcessExecutor(1) as executor:
        assert asyncio.run(fingerprint(fails_in_library, executor=executor)) == here


# ------------------------------------------------------------ which events have one


async def run(*stages: tuple[str, Any, dict[str, Any]], **options: Any) -> tuple[PipelineResults, Any]:
    sink = MemoryEventSink()
    pipeline = Pipeline("p")
    for name, stage, more in stages:
        pipeline = pipeline.with_stage(name, stage, **more)
    graph = pipeline.build(
        emit_stage_wide_events=True,
        emit_pipeline_wide_event=True,
        wide_event_emitter=WideEventEmitter(sink),
        on_failure="continue",
    )
    return await graph.run(**options), sink.events


async def ok(ctx: StageContext) -> None: ...


async def test_failed_run_has_the_fingerprint_of_its_first_failed_stage() -> None:
    fails, later = raising(ValueError("no row 7")), raising(KeyError("b"))
    _, events = await run(
        ("ok", ok, {}),
        ("optional", raising(KeyError("a")), {"optional": True}),
        ("bad", fails, {"dependencies": ("optional",)}),
        ("later", later, {"dependencies": ("ok",), "when": lambda ctx: True}),
    )
    found = {name: stage_wide(events, name)["error_fingerprint"] for name in ("ok", "optional", "bad")}
    run_event = pipeline_wide(events)
    assert found["ok"] is None
    assert (
        run_event["error_fingerprint"]
        == stage_wide(events, run_event["first_failed_stage"])["error_fingerprint"]
    )
    assert found["optional"] not in (None, run_event["error_fingerprint"])


async def test_ok_and_degraded_runs_have_no_fingerprint() -> None:
    for stage in (ok, raising(ValueError("x"))):
        _, events = await run(("s", stage, {"optional": True}))
        assert pipeline_wide(events)["error_fingerprint"] is None


async def test_retried_attempt_and_last_attempt_have_the_same_fingerprint() -> None:
    _, events = await run(("s", raising(ConnectionError("refused")), {"retry": Retry(attempts=2, wait=0)}))
    first, last = of_type(events, "stage.wide")
    assert (first["status"], last["status"]) == ("RETRY", "FAIL")
    assert first["error_fingerprint"] == last["error_fingerprint"]


async def test_deadline_has_a_fingerprint_per_pipeline_that_its_length_does_not_affect() -> None:
    async def waits(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    async def found(pipeline: str, deadline: float) -> str:
        with capture_events() as events:
            await Pipeline(pipeline).with_stage("s", waits).build().run(deadline=deadline)
        event = events.run()
        assert event["outcome"] == "timeout"
        assert event["error_fingerprint"] is not None
        return str(event["error_fingerprint"])

    assert await found("a", 0.01) == await found("a", 0.02)
    assert await found("a", 0.01) != await found("b", 0.01)


KILLED = """
    import asyncio, sys
    import stageflow
    from stageflow import Pipeline

    async def hang(ctx):
        print("ready", flush=True)
        await asyncio.sleep(3600)

    stageflow.configure(journal=sys.argv[1], health_seconds=None)
    asyncio.run(Pipeline("killed").with_stage("s", hang).run())
"""


def test_crashed_runs_have_the_same_fingerprint_in_every_process(program: Callable[[str], Program]) -> None:
    for _ in range(2):
        one = program(KILLED)
        one.wait_for("ready")
        one.process.send_signal(signal.SIGKILL)
        one.process.wait(10)
    with JournalReader(one.journal) as reader:
        events = [(entry.type, entry.data() or {}) for entry in reader]
    first, second = of_type(events, "pipeline.wide")
    assert first["error"] != second["error"]  # contains the process id
    assert first["error_fingerprint"] == second["error_fingerprint"] is not None
    assert {event["error_fingerprint"] for event in of_type(events, "stage.wide")} == {None}


# ------------------------------------------------------------ cost


async def test_successful_stages_do_not_compute_fingerprints() -> None:
    called = []

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename == _fingerprint.__file__:
            called.append(frame.f_code.co_qualname)

    sys.setprofile(profile)
    try:
        await run(("a", ok, {}), ("b", ok, {"dependencies": ("a",)}))
        assert called == []
        await run(("a", raising(ValueError("x")), {}))
        assert called
    finally:
        sys.setprofile(None)


MEGABYTE = 1_000_000


@pytest.mark.parametrize(
    "part",
    ["'a ", '"', "`", "'\\", "a.", "a@", "a/", "/", "::", "a:", "0", "a", "-", "x://", "b'", " ", "# ,"],
)
async def test_hostile_message_of_a_megabyte_takes_little_time(part: str) -> None:
    """The expected time is about one millisecond; without the limits, it would be minutes."""
    error = ValueError((part * (MEGABYTE // len(part) + 1))[:MEGABYTE])
    output = StageOutput.fail(error)
    sink = MemoryEventSink()
    started = time.process_time()
    graph = Pipeline("p").with_stage("s", lambda ctx: output).build(wide_event_emitter=WideEventEmitter(sink))
    await graph.run()
    assert time.process_time() - started < 5


async def test_hostile_exceptions_have_a_fingerprint() -> None:
    class Raises(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

        @property
        def __traceback__(self) -> Any:
            raise RuntimeError("no")

    assert await fingerprint(raising(Raises()))
    assert await fingerprint(raising(ValueError("lone surrogate \udcff")))
    assert await fingerprint(raising(ValueError("null\0byte")))
