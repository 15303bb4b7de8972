"""`configure` and `session`: the sources of settings, their effects, and the shutdown of a process."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Program
from export_receiver import ExportReceiver
from oracle import of_type, pipeline_wide

import stageflow
from stageflow import JournalSink, Pipeline, PipelineContext, Redact, session, set_event_sink
from stageflow.errors import SettingsError
from stageflow.events import FanoutEventSink, MemoryEventSink, get_event_sink
from stageflow.journal import Journal
from stageflow.observability import EventLimits
from stageflow.observability._resource import resource, service_name
from stageflow.observability.sanitize._detectors import DETECTORS
from stageflow.settings import settings as in_force

Start = Callable[[str], Program]


async def nothing(ctx: Any) -> None: ...


PIPELINE = Pipeline("p").with_stage("a", nothing)


@pytest.fixture(autouse=True)
def _an_empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(
            ("STAGEFLOW_", "OTEL_", "GIT_COMMIT", "GITHUB_SHA", "SOURCE_VERSION", "ENVIRONMENT")
        ):
            monkeypatch.delenv(name)
    resource.cache_clear()
    service_name.cache_clear()


# ------------------------------------------------------------ effects of settings


async def test_graphs_emit_after_configure_even_if_built_before(sink: MemoryEventSink) -> None:
    before, off = PIPELINE.build(), PIPELINE.build(emit_stage_wide_events=False)
    set_event_sink(sink)
    await before.run()
    assert sink.events == []
    stageflow.configure()
    await before.run()
    assert [type for type, _ in sink.events] == ["stage.wide", "pipeline.wide"]
    await off.run()
    assert [type for type, _ in sink.events[2:]] == ["pipeline.wide"]


async def test_events_name_service_version_and_environment(sink: MemoryEventSink) -> None:
    stageflow.configure(sink=sink, service="shop", version="1.2", environment="staging", commit="abc123")
    await PIPELINE.run()
    run = pipeline_wide(sink.events)
    assert run["pipeline_metadata"]["service"] == "shop"
    assert run["resource"]["service_version"] == "1.2"
    assert run["resource"]["environment"] == "staging"
    assert run["resource"]["commit"] == "abc123"
    assert run["process"]["uptime_s"] > 0
    assert run["process"]["memory_peak_bytes"] > 1_000_000
    sink.clear()
    await PIPELINE.run(PipelineContext(service="another"))
    assert pipeline_wide(sink.events)["pipeline_metadata"]["service"] == "another"


async def test_journal_and_sink_receive_every_event(sink: MemoryEventSink) -> None:
    stageflow.configure(journal="journal", sink=sink, journal_options={"fsync": "never"})
    assert isinstance(get_event_sink(), FanoutEventSink)
    await PIPELINE.run()
    assert len(sink.events) == 2
    assert len(Journal("journal").runs()) == 1


def test_configuring_the_same_settings_again_has_no_effect() -> None:
    first = stageflow.configure(journal="journal", service="shop")
    journal = get_event_sink()
    assert isinstance(journal, JournalSink)
    assert stageflow.configure(journal="journal", service="shop") == first
    assert get_event_sink() is journal
    stageflow.configure(journal="journal", service="other")
    assert get_event_sink() is journal  # only changed settings are applied again
    stageflow.configure(journal="elsewhere")
    assert get_event_sink() is not journal


async def test_redaction_and_limits_apply(sink: MemoryEventSink) -> None:
    async def work(ctx: Any) -> None:
        ctx.annotate(mail="a@example.com", text="x" * 100)

    stageflow.configure(sink=sink, redact=Redact(detect=("email",)), limits=EventLimits(text_chars=50))
    await Pipeline("p").with_stage("work", work).run()
    event = of_type(sink.events, "stage.wide")[0]
    assert event["attributes"]["mail"] == "[redacted:email]"
    assert len(event["attributes"]["text"]) == 50
    sink.clear()
    stageflow.configure(sink=sink, redact=False)
    await Pipeline("p").with_stage("work", work).run()
    assert of_type(sink.events, "stage.wide")[0]["attributes"]["mail"] == "a@example.com"


# ------------------------------------------------------------ sources of settings


def test_arguments_override_the_environment_which_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[tool.stageflow]\nservice = "file"\nversion = "file"\nenvironment = "file"\n'
        'health_seconds = 5\nredact = { detect = ["email"] }\nlimits = { fields = 7 }\n'
    )
    below = tmp_path / "src"
    below.mkdir()
    monkeypatch.chdir(below)
    monkeypatch.setenv("STAGEFLOW_VERSION", "environment")
    monkeypatch.setenv("STAGEFLOW_ENVIRONMENT", "environment")
    monkeypatch.setenv("STAGEFLOW_LIMITS", '{"fields": 8}')
    found = stageflow.configure(environment="argument")
    assert (found.service, found.version, found.environment) == ("file", "environment", "argument")
    assert found.health_seconds == 5
    assert found.redact == Redact(detect=("email",))
    assert found.limits == EventLimits(fields=8)
    file = f"{tmp_path / 'pyproject.toml'} [tool.stageflow]"
    assert found.origins["service"] == file
    assert found.origins["version"] == "STAGEFLOW_VERSION"
    assert found.origins["environment"] == "argument"


async def test_missing_settings_are_detected_from_the_platform(
    sink: MemoryEventSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-otel")
    monkeypatch.setenv(
        "OTEL_RESOURCE_ATTRIBUTES", "service.version=2.0,deployment.environment.name=blue%2Fgreen"
    )
    monkeypatch.setenv("GITHUB_SHA", "0123abc")
    stageflow.configure(sink=sink)
    await PIPELINE.run()
    run = pipeline_wide(sink.events)
    assert run["pipeline_metadata"]["service"] == "from-otel"
    assert run["resource"]["service_version"] == "2.0"
    assert run["resource"]["environment"] == "blue/green"
    assert run["resource"]["commit"] == "0123abc"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"jornal": "x"}, "unknown setting 'jornal'; did you mean 'journal'?"),
        ({"service": 7}, "service must be a string, got 7"),
        ({"redact": "all"}, "redact must be Redact(...) or False, got 'all'"),
        ({"health_seconds": 0}, "health_seconds must be more than 0 seconds, or None, got 0"),
        (
            {"journal": "j", "journal_options": {"fsink": "never"}},
            "journal_options: unknown option 'fsink' of JournalSink; did you mean 'fsync'?",
        ),
        (
            {"limits": {"fields": 0}},
            "limits: EventLimits: fields must be a positive integer, got 0",
        ),
        ({"health_seconds": True}, "health_seconds must be more than 0 seconds, or None, got True"),
        ({"journal": "/dev/null"}, "journal: [Errno 17] File exists: '/dev/null'"),
        (
            {"sink": MemoryEventSink},
            "sink: event sink must be an instance, got the class MemoryEventSink; use MemoryEventSink()",
        ),
        (
            {"redact": {"names": ["x"], "detect": ["mail"]}},
            (
                f"redact: Redact: detect must be one of {', '.join(DETECTORS)}, got 'mail'; "
                "did you mean 'email'?"
            ),
        ),
    ],
)
def test_invalid_setting_is_reported_with_its_origin(given: Any, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        stageflow.configure(**given)
    assert str(caught.value).removesuffix(" (from: argument)") == message
    assert caught.value.origin == "argument"


def test_invalid_setting_in_environment_or_file_is_reported_with_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGEFLOW_LIMITS", "{")
    with pytest.raises(SettingsError, match=r"limits: '\{' is invalid JSON .*\(from: STAGEFLOW_LIMITS\)"):
        stageflow.configure()
    for text in ("[" * 100_000, '"\udcff"'):
        monkeypatch.setenv("STAGEFLOW_LIMITS", text)
        with pytest.raises(SettingsError, match=r"is invalid JSON .*\(from: STAGEFLOW_LIMITS\)"):
            stageflow.configure()
    monkeypatch.delenv("STAGEFLOW_LIMITS")
    (tmp_path / "pyproject.toml").write_text('[tool.stageflow]\nservise = "x"\n')
    with pytest.raises(SettingsError, match=r"'servise'; did you mean 'service'\? \(from: .*pyproject.toml"):
        stageflow.configure()
    for text in ("[tool", "a = " + "[" * 10_000):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(SettingsError, match=r"cannot read the file: .*\(from: .*pyproject.toml\)"):
            stageflow.configure()
    for text in ("tool = 5", "[tool]\nstageflow = 5", "[[tool.stageflow]]\nservice = 'x'"):
        (tmp_path / "pyproject.toml").write_text(text)
        with pytest.raises(
            SettingsError, match=r"must be a table: write \[tool.stageflow\] \(from: .*pyproject.toml"
        ):
            stageflow.configure()
    (tmp_path / "pyproject.toml").write_text("[tool.stageflow]\nsink = 'x'")
    with pytest.raises(SettingsError, match=r"(?s)sink: str is not an event sink.*\(from: .*pyproject.toml"):
        stageflow.configure()


def test_invalid_sink_changes_no_settings(sink: MemoryEventSink, tmp_path: Path) -> None:
    before = stageflow.configure(sink=sink)
    with pytest.raises(SettingsError):
        stageflow.configure(sink=5, journal=tmp_path / "journal")
    assert in_force() is before
    assert not (tmp_path / "journal").exists()


# ------------------------------------------------------------ health events, and the shutdown of a process


async def test_health_event_contains_the_delivery_counters(sink: MemoryEventSink) -> None:
    async with session(sink=sink, health_seconds=1e-9):
        await PIPELINE.run()
    first, last = of_type(sink.events, "stageflow.health")
    assert [found["sink"] for found in first["sinks"]][-1] == "MemoryEventSink"
    mine = first["sinks"][-1]
    assert (mine["offered"], mine["delivered"], mine["pending"]) == (2, 2, 0)
    assert last["sinks"][-1]["offered"] == 3
    assert first["resource"]["pid"] == os.getpid()
    assert first["process"]["cpu_percent"] >= 0


async def test_health_event_is_not_emitted_without_configure(sink: MemoryEventSink) -> None:
    stageflow.configure(sink=sink, health_seconds=None)
    await PIPELINE.run()
    assert of_type(sink.events, "stageflow.health") == []


async def test_session_flushes_and_closes_the_journal(tmp_path: Path) -> None:
    async with session(journal=tmp_path / "journal") as found:
        assert found.journal == str(tmp_path / "journal")
        await PIPELINE.run()
    (writer,) = Journal(tmp_path / "journal").check().writers
    assert writer.state == "closed"


def test_sigterm_lets_every_run_write_its_record(program: Start) -> None:
    one = program(
        """
        import asyncio, sys, stageflow
        from stageflow import Pipeline

        async def wait(ctx):
            print("ready", flush=True)
            await asyncio.sleep(3600)

        async def main():
            async with stageflow.session(journal=sys.argv[1]):
                await Pipeline("p").with_stage("wait", wait).run()

        asyncio.run(main())
        """
    )
    one.wait_for("ready")
    one.process.send_signal(signal.SIGTERM)
    assert one.ended()[0] == 143
    assert pipeline_wide(one.events())["outcome"] == "cancelled"
    assert Journal(one.journal).check().writers[0].state == "closed"


def test_session_keeps_a_sigterm_handler_of_the_application(program: Start) -> None:
    one = program(
        """
        import asyncio, os, signal, sys, stageflow

        def mine(*_): ...

        async def main():
            signal.signal(signal.SIGTERM, mine)
            async with stageflow.session(journal=sys.argv[1]):
                assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.getsignal(signal.SIGTERM) is mine
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            async with stageflow.session():
                pass
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

        asyncio.run(main())
        """
    )
    status, _, err = one.ended()
    assert status == 0, err


REFUSING = """
    import asyncio, os, signal, sys, threading, stageflow
    from stageflow import Pipeline

    def stubborn(ctx):
        print("ready", flush=True)
        threading.Event().wait()

    async def refusing(ctx):
        print("ready", flush=True)
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def main(work):
        async with stageflow.session(journal=sys.argv[1], flush_timeout=1):
            await Pipeline("p").with_stage("wait", work).build(grace=0.1).run()
"""


@pytest.mark.parametrize("work", ["refusing", "stubborn"])
def test_sigterm_ends_a_process_whose_stage_ignores_cancellation(program: Start, work: str) -> None:
    one = program(REFUSING + f"\n    asyncio.run(main({work}))")
    one.wait_for("ready")
    one.process.send_signal(signal.SIGTERM)
    assert one.ended(within=60)[0] == 143
    event = pipeline_wide(one.events())
    assert (event["outcome"], event["stages_abandoned"]) == ("cancelled", 1)
    assert Journal(one.journal).check().writers[0].state == "closed"


def test_second_sigterm_does_not_interrupt_the_shutdown(program: Start) -> None:
    one = program(
        """
        import asyncio, sys, stageflow
        from stageflow import EventSink, Pipeline

        class Slow(EventSink):
            async def emit(self, *, type, data):
                if type == "stageflow.health":
                    print("flushing", flush=True)
                    await asyncio.to_thread(sys.stdin.readline)
                print(type, flush=True)

        async def wait(ctx):
            print("ready", flush=True)
            await asyncio.sleep(3600)

        async def main():
            async with stageflow.session(sink=Slow(), journal=sys.argv[1], flush_timeout=20):
                await Pipeline("p").with_stage("wait", wait).run()

        asyncio.run(main())
        """
    )
    one.wait_for("ready")
    one.process.send_signal(signal.SIGTERM)
    for line in ("stage.wide", "pipeline.wide", "flushing"):
        one.wait_for(line)
    for _ in range(3):
        one.process.send_signal(signal.SIGTERM)
    assert one.process.stdin is not None
    one.process.stdin.write("\n")
    one.process.stdin.flush()
    status, out, err = one.ended(within=60)
    assert (status, out.split()) == (143, ["stageflow.health"]), err
    assert Journal(one.journal).check().writers[0].state == "closed"


async def test_cancellation_does_not_interrupt_the_shutdown_of_a_session(tmp_path: Path) -> None:
    may_end, runs = asyncio.Event(), asyncio.Event()

    async def wait(ctx: Any) -> None:
        runs.set()
        await may_end.wait()

    async def live() -> None:
        async with session(journal=tmp_path / "journal", flush_timeout=20):
            background.append(asyncio.create_task(Pipeline("p").with_stage("wait", wait).run()))
            await runs.wait()

    background: list[asyncio.Task[Any]] = []
    living = asyncio.create_task(live())
    await runs.wait()
    for _ in range(3):
        for _ in range(5):
            await asyncio.sleep(0)
        living.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await living
    assert background[0].done()
    (writer,) = Journal(tmp_path / "journal").check().writers
    assert writer.state == "closed"
    assert [entry["outcome"] for entry in Journal(tmp_path / "journal").runs()] == ["ok"]


async def test_session_waits_for_runs_only_until_its_timeout(sink: MemoryEventSink) -> None:
    forever, runs = asyncio.Event(), asyncio.Event()

    async def wait(ctx: Any) -> None:
        runs.set()
        await forever.wait()

    async with session(sink=sink, flush_timeout=0.05):
        running = asyncio.create_task(Pipeline("p").with_stage("wait", wait).run())
        await runs.wait()
    assert [type for type, _ in sink.events] == ["stageflow.health"]
    forever.set()
    assert (await running).ok


def test_sigterm_to_a_forked_child_ends_only_the_child(program: Start) -> None:
    """A loop is notified of signals through a socket that a forked child shares with its parent."""
    one = program(
        """
        import asyncio, os, signal, sys, stageflow
        from stageflow import Pipeline

        async def fork(ctx):
            pid = os.fork()
            if not pid:
                os.write(writes, b"x")
                signal.pause()
                os._exit(9)
            await asyncio.to_thread(os.read, reads, 1)
            os.kill(pid, signal.SIGTERM)
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            return {"ended_by": os.WTERMSIG(status)}

        async def main():
            global reads, writes
            reads, writes = os.pipe()
            async with stageflow.session(journal=sys.argv[1]):
                results = await Pipeline("p").with_stage("fork", fork).run()
                await asyncio.sleep(0.01)
                print(results.data("fork"), results.outcome)

        asyncio.run(main())
        """
    )
    status, out, err = one.ended()
    assert (status, out) == (0, "{'ended_by': 15} ok\n"), err
    assert pipeline_wide(one.events())["outcome"] == "ok"


def test_forked_child_can_leave_the_session(program: Start) -> None:
    one = program(
        """
        import asyncio, os, sys, stageflow
        from stageflow import Pipeline

        async def work(ctx):
            ctx.emit_event("note", {"pid": os.getpid()})

        async def fork(ctx):
            pid = os.fork()
            ctx.emit_event("note")
            if not pid:
                sys.exit(7)
            return {"status": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}

        async def main():
            async with stageflow.session(journal=sys.argv[1]):
                results = await Pipeline("p").with_stage("fork", fork).run()
                assert results.data("fork") == {"status": 7}, results
                pid = os.fork()
                if not pid:
                    sys.exit(8)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 8

        asyncio.run(main())
        """
    )
    status, _, err = one.ended()
    assert status == 0, err
    assert pipeline_wide(one.events())["outcome"] == "ok"
    assert len(of_type(one.events(), "note")) == 2
    assert {writer.state for writer in Journal(one.journal).check().writers} == {"closed"}


def test_configuring_from_several_threads_opens_one_journal(tmp_path: Path) -> None:
    at_once, found = threading.Barrier(8), []
    before = sys.getswitchinterval()

    def configure() -> None:
        at_once.wait(10)
        stageflow.configure(journal="journal", service="shop")
        found.append(get_event_sink())

    threads = [threading.Thread(target=configure) for _ in range(8)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    finally:
        sys.setswitchinterval(before)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1
    asyncio.run(PIPELINE.run())
    assert len(Journal(tmp_path / "journal").check().writers) == 1


@pytest.mark.parametrize("wrong", ["x", -1, math.nan])
async def test_invalid_flush_timeout_is_rejected_on_entry(wrong: Any, sink: MemoryEventSink) -> None:
    with pytest.raises(ValueError, match="flush_timeout must be 0 or more seconds, got"):
        async with stageflow.session(sink=sink, flush_timeout=wrong):
            pytest.fail("the session began")


# ------------------------------------------------------------ export


EXPORTING = """
import asyncio, sys, stageflow
from stageflow import Pipeline

async def work(ctx):
    return {}

graph = Pipeline("p").with_stage("work", work).build()

async def main():
    for _ in range(300):
        await graph.run()
"""


def test_process_exports_its_journal_in_the_background_and_the_rest_at_its_end(program: Start) -> None:
    with ExportReceiver() as receiver:
        configure = f"stageflow.configure(journal=sys.argv[1], export=[{receiver.url!r}])"
        one = program(f"{EXPORTING}\n{configure}\nasyncio.run(main())")
        assert one.ended()[:2] == (0, "")
        assert len(receiver.accepted) == len(receiver.keys()) == 600


def test_session_exports_everything_before_it_ends_and_a_second_one_exports_again(program: Start) -> None:
    session_twice = """
async def sessions():
    for number in range(2):
        async with stageflow.session(journal=sys.argv[1], export=[URL], health_seconds=None):
            await main()
        print("ended", flush=True)
        sys.stdin.readline()

asyncio.run(sessions())
"""
    with ExportReceiver() as receiver:
        one = program(f"URL = {receiver.url!r}\n{EXPORTING}\n{session_twice}")
        for number in (1, 2):
            one.wait_for("ended")
            wide = [line for line in receiver.accepted if line["type"] != "stageflow.health"]
            assert len(wide) == 600 * number
            assert one.process.stdin is not None
            one.process.stdin.write("\n")
            one.process.stdin.flush()
        assert one.ended()[0] == 0


def test_exporter_that_is_unavailable_does_not_delay_the_end_of_a_process(program: Start) -> None:
    configure = "stageflow.configure(journal=sys.argv[1], export=['http://127.0.0.1:1/'])"
    one = program(f"{EXPORTING}\n{configure}\nasyncio.run(main())")
    began = time.monotonic()
    code, _, err = one.ended()
    assert (code, "cannot send to http://127.0.0.1:1/" in err) == (0, True)
    assert time.monotonic() - began < 10


def test_forked_child_does_not_export_and_the_parent_exports_its_events(program: Start) -> None:
    forks = """
import os
stageflow.configure(journal=sys.argv[1], export=[URL])
asyncio.run(main())
if (pid := os.fork()) == 0:
    asyncio.run(main())
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
"""
    with ExportReceiver() as receiver:
        assert program(f"URL = {receiver.url!r}\n{EXPORTING}\n{forks}").ended()[:2] == (0, "")
        assert len(receiver.accepted) == len(receiver.keys()) == 1200


def test_forked_child_that_configures_again_exports_after_the_end_of_its_parent(program: Start) -> None:
    daemon = """
import os
stageflow.configure(journal=sys.argv[1], export=[URL])
asyncio.run(main())
if os.fork() == 0:
    stageflow.configure(journal=sys.argv[1], export=[URL])
    sys.stdin.readline()  # the parent has ended
    asyncio.run(main())
    sys.exit()
"""
    with ExportReceiver() as receiver:
        one = program(f"URL = {receiver.url!r}\n{EXPORTING}\n{daemon}")
        assert one.process.wait(30) == 0
        assert one.process.stdin is not None
        one.process.stdin.write("\n")
        one.process.stdin.flush()
        receiver.wait(lambda: len(receiver.accepted) == 1200)
        assert len(receiver.keys()) == 1200


def test_targets_come_from_the_environment_and_pyproject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text("""
[tool.stageflow]
journal = "journal"

[[tool.stageflow.export]]
url_env = "TARGET"
name = "shop"
""")
    monkeypatch.setenv("TARGET", "http://127.0.0.1:1/")
    assert stageflow.configure().export == ({"url_env": "TARGET", "name": "shop"},)
    monkeypatch.setenv("STAGEFLOW_EXPORT", '["http://127.0.0.1:1/other"]')
    assert stageflow.configure().export == ("http://127.0.0.1:1/other",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"journal": "j", "export": "http://host"}, "export must be a list of URLs, got 'http://host'"),
        (
            {"journal": "j", "export": ["ftp://me:secret@host"]},
            "export: expected a URL that begins with http:, https:",
        ),
        ({"journal": "j", "export": [{"urll": "http://host"}]}, "unknown option 'urll'; did you mean 'url'?"),
        ({"journal": "j", "export": [{"url_env": "MISSING"}]}, "environment variable MISSING is not set"),
        ({"journal": "j", "export": [{}]}, "an exporter requires either url or url_env"),
        ({"journal": "j", "export": [7]}, "expected a URL, a table with url, or an Exporter, got int"),
        ({"journal": "j", "export": ["http://h", "http://h"]}, "more than one exporter is named 'http-h'"),
        ({"sink": MemoryEventSink(), "export": ["http://host"]}, "export requires a journal"),
    ],
)
def test_invalid_targets_raise_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError) as caught:
        stageflow.configure(**given)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
