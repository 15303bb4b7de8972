"""The programs of docs/recipes.md, taken from the page and run: real servers, workers and signals."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from notebook import outputs_of
from test_docs import matches

from stageflow.journal import Journal

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text(encoding="utf-8")
# A fence with a file's name is one that tests/test_docs.py leaves to this file.
PROGRAM = re.compile(r"```python (?P<name>\S+\.py)\n(?P<code>.*?)```", re.DOTALL)
PROGRAMS = {block["name"]: block["code"] for block in PROGRAM.finditer(PAGE)}

BIN = Path(sys.executable).parent
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def until(true: Callable[[], Any], within: float = 60) -> Any:
    """Return what `true` gives once it gives something."""
    ends = time.monotonic() + within
    while time.monotonic() < ends:
        with contextlib.suppress(httpx.TransportError):
            if found := true():
                return found
        time.sleep(0.02)
    return pytest.fail(f"not within {within} s: {true}")


class Place:
    """A directory with programs of the page, and the processes that run there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal"
        self.started: list[subprocess.Popen[str]] = []

    def write(self, *names: str) -> None:
        for name in names:
            (self.path / name).write_text(PROGRAMS[name], encoding="utf-8")

    def start(self, shown: str, *more: str, **environment: str) -> subprocess.Popen[str]:
        """Run a command that the page shows, in a group of its own, with further arguments."""
        assert f"$ {shown}\n" in PAGE
        name, *arguments = shlex.split(shown)
        return self.run(str(BIN / name), *arguments, *more, **environment)

    def run(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        with (self.path / "log").open("a") as log:
            process = subprocess.Popen(
                command,
                cwd=self.path,
                env={**os.environ, "HOME": str(self.path), "PYTHONPATH": str(self.path), **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def runs(self) -> dict[str | None, dict[str, Any]]:
        """Return the runs by the id of their request."""
        runs = Journal(self.journal).runs(limit=None) if self.journal.is_dir() else []
        return {run["correlation_ids"]["request_id"]: run for run in runs}

    def outcomes(self) -> dict[str | None, str]:
        return {request: run["outcome"] for request, run in self.runs().items()}

    def told(self) -> dict[str | None, str]:
        """Return the outcomes as the command line tells them."""
        done = subprocess.run(
            [BIN / "stageflow", "runs", "--journal", "journal", "--json", "--limit", "0"],
            cwd=self.path,
            capture_output=True,
            text=True,
            timeout=20,
        )
        runs = [json.loads(line) for line in done.stdout.splitlines()]
        return {run["correlation_ids"]["request_id"]: run["outcome"] for run in runs}

    def is_under_way(self, request_id: str) -> bool:
        return self.outcomes().get(request_id) == "open"

    def attributes(self, run: dict[str, Any]) -> dict[str, Any]:
        stages = Journal(self.journal).run(run["event_id"]).stages
        return {stage["stage_name"]: stage["attributes"] for stage in stages}

    def log(self) -> str:
        return (self.path / "log").read_text()

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    yield place
    place.end()


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def gone(call: Callable[[], Any]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        call()


def test_fastapi_recipe_records_requests_and_disconnects(
    place: Place, port: int, background: ThreadPoolExecutor
) -> None:
    place.write("shop.py")
    command = "uvicorn shop:app --timeout-graceful-shutdown 20"
    # Less patient than the page, so that the test is too.
    server = place.start(command, "--timeout-graceful-shutdown", "1", "--port", str(port))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        until(lambda: client.get("/openapi.json").is_success)

        def ask(request_id: str, question: str, **more: Any) -> httpx.Response:
            headers = {
                "x-request-id": request_id,
                "x-user-id": f"user of {request_id}",
                "traceparent": CALLER,
            }
            return client.get("/ask", params={"question": question, **more}, headers=headers)

        answers = [ask(f"r{n}", "shoes " * n).json()["text"] for n in (1, 2, 3)]
        assert answers == ["SHOES", "SHOES SHOES", "SHOES SHOES SHOES"]
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(
                f"http://127.0.0.1:{port}/ask?question=a&seconds=30",
                headers={"x-request-id": "left"},
                timeout=0.3,
            )
        until(lambda: place.outcomes().get("left") == "cancelled")
        background.submit(gone, lambda: ask("slow", "a", seconds=30))
        ends = background.submit(ask, "ends", "a", seconds=0.8)
        until(lambda: place.is_under_way("slow") and place.is_under_way("ends"))
        server.send_signal(signal.SIGTERM)
        assert ends.result(10).json() == {"text": "A"}
    assert server.wait(10) == -signal.SIGTERM, place.log()
    runs = place.runs()
    assert place.told() == {
        "r1": "ok",
        "r2": "ok",
        "r3": "ok",
        "left": "cancelled",
        "ends": "ok",
        "slow": "cancelled",
    }
    for n in (1, 2, 3):
        run = runs[f"r{n}"]
        assert run["correlation_ids"]["user_id"] == f"user of r{n}"
        assert run["trace"]["trace_id"] == CALLER.split("-")[1]
        assert run["trace"]["parent_span_id"] == CALLER.split("-")[2]
        assert place.attributes(run) == {"search": {"hits": n, "cache_hit": False}, "answer": {}}
    assert [writer.state for writer in Journal(place.journal).check().writers] == ["closed"]


def test_fastapi_recipe_records_stages_that_end_slowly(
    place: Place, port: int, background: ThreadPoolExecutor
) -> None:
    """The lifespan waits for those that the server has cancelled."""
    place.write("shop.py")
    source = (place.path / "shop.py").read_text()
    waits = '    await asyncio.sleep(ctx.run.data["seconds"])'
    assert waits in source
    slow_end = f"    try:\n    {waits}\n    finally:\n        await asyncio.sleep(0.4)\n"
    (place.path / "shop.py").write_text(re.sub(re.escape(waits) + ".*\n", slow_end, source))
    server = place.run(
        str(BIN / "uvicorn"), "shop:app", "--timeout-graceful-shutdown", "1", "--port", str(port)
    )
    url = f"http://127.0.0.1:{port}"
    until(lambda: httpx.get(f"{url}/openapi.json").is_success)
    ask = f"{url}/ask?question=a&seconds=30"
    background.submit(gone, lambda: httpx.get(ask, headers={"x-request-id": "slow"}, timeout=60))
    until(lambda: place.is_under_way("slow"))
    server.send_signal(signal.SIGTERM)
    server.wait(10)
    assert place.outcomes() == {"slow": "cancelled"}


def test_chat_recipe_streams_and_reattaches(place: Place, port: int) -> None:
    place.write("chat.py")
    server = place.start("uvicorn chat:app --timeout-graceful-shutdown 5", "--port", str(port))
    (printed,) = re.findall(r"curl -N .*?\n```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, cookies={"user": "u1"}) as client:
        assert "EventSource" in until(lambda: client.get("/")).text
        answer = client.get("/chat", params={"question": "why"}).text
        assert matches(printed, answer), answer

        received = ""
        slow = {"question": "why", "pause": 0.3}
        with client.stream("GET", "/chat", params=slow) as response:
            for text in response.iter_text():
                received += text
                if '"are "' in received:
                    break
        last = re.findall("id: (.*)", received)[-1]
        headers = {"last-event-id": last}
        stranger = httpx.get(f"http://127.0.0.1:{port}/chat?question=why", headers=headers, timeout=60)
        assert stranger.status_code == 404
        received += client.get("/chat", params=slow, headers=headers).text
        words = [json.loads(data)["value"] for data in re.findall('data: (.*"value".*)', received)]
        assert words == ["Streams ", "are ", "bounded, ", "see ", "streams.md"]

        with client.stream("GET", "/chat", params={"question": "why", "pause": 60}) as response:
            next(response.iter_text())  # leaves, and does not reattach before the server stops
    server.send_signal(signal.SIGTERM)
    server.wait(20)
    runs = Journal(place.journal).runs(limit=None)
    assert [run["outcome"] for run in runs] == ["cancelled", "ok", "ok"], place.log()
    usage = [run["attributes"].get("gen_ai.usage.output_tokens") for run in runs]
    assert usage == [None, 5, 5]
    assert runs[0]["attributes"]["usage_incomplete"] is True


@pytest.mark.parametrize("worker", ["", "asgi"], ids=["uvicorn", "asgi"])
def test_gunicorn_recipe_records_runs_of_every_worker(
    place: Place, port: int, background: ThreadPoolExecutor, worker: str
) -> None:
    place.write("desk.py", "gunicorn.conf.py")
    # Less patient than the page, so that the test is too.
    patience = '"timeout_graceful_shutdown": 2'
    settings = (place.path / "gunicorn.conf.py").read_text()
    assert patience in settings
    (place.path / "gunicorn.conf.py").write_text(settings.replace(patience, '"timeout_graceful_shutdown": 1'))
    options = ["-k", worker] if worker else []
    master = place.start("gunicorn desk:app", "-b", f"127.0.0.1:{port}", *options)
    # A connection each: so both workers get some.
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"connection": "close"}, timeout=60, verify=False
    )

    def work(request_id: str, seconds: float = 0) -> int:
        answer = client.get("/work", params={"seconds": seconds}, headers={"x-request-id": request_id})
        return answer.json()["pid"]

    until(lambda: work("first"))
    pids = {work(f"r{n}") for n in range(4)}
    # Two at once, until each worker has had one.
    while len(pids) < 2:
        pids |= set(background.map(lambda n: work(f"both{n}", 0.05), range(8)))
    names = [path.name for path in place.journal.glob("*.ndjson")]
    assert sorted(int(re.search(r"-p(\d+)-", name)[1]) for name in names) == sorted(pids)
    assert master.pid not in pids

    background.submit(gone, lambda: work("killed", 30))
    until(lambda: place.is_under_way("killed"))
    os.kill(place.runs()["killed"]["resource"]["pid"], signal.SIGKILL)
    until(lambda: place.outcomes()["killed"] == "crashed")
    until(lambda: work("again"))  # by whichever worker
    if not worker:
        background.submit(gone, lambda: work("cut", 30))
        until(lambda: place.is_under_way("cut"))
    master.send_signal(signal.SIGTERM)
    assert master.wait(15) == 0, place.log()
    outcomes = place.told()
    assert outcomes.pop("killed") == "crashed"
    assert outcomes.pop("cut", "cancelled") == "cancelled"
    assert set(outcomes.values()) == {"ok"}
    states = sorted(writer.state for writer in Journal(place.journal).check().writers)
    assert states == ["closed"] * (len(states) - 1) + ["completed"]


class Received(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append(json.loads(body))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Received) as server:
        server.bodies = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


RUNTIME = """
    # What Lambda does: import once, then call the handler for each event, and wait.
    import json, sys, time
    from lambda_function import handler

    class Context:
        def __init__(self, request_id, seconds):
            self.aws_request_id = request_id
            self.ends = time.monotonic() + seconds

        def get_remaining_time_in_millis(self):
            return int((self.ends - time.monotonic()) * 1000)

    for line in sys.stdin:
        request_id, event = json.loads(line)
        print(json.dumps(handler(event, Context(request_id, 10))), flush=True)
"""


def test_lambda_recipe_delivers_events_before_it_returns(
    place: Place, collector: ThreadingHTTPServer
) -> None:
    place.write("lambda_function.py")
    machine = place.run(
        sys.executable,
        "-c",
        textwrap.dedent(RUNTIME),
        STAGEFLOW_JOURNAL=str(place.journal),
        COLLECTOR=f"http://127.0.0.1:{collector.server_port}/",
    )
    bodies = collector.bodies  # type: ignore[attr-defined]
    for n, question in enumerate(["red shoes", "blue suede shoes"], 1):
        machine.send_signal(signal.SIGCONT)
        machine.stdin.write(json.dumps([f"r{n}", {"question": question}]) + "\n")
        machine.stdin.flush()
        assert json.loads(machine.stdout.readline()) == {"text": question.upper()}
        machine.send_signal(signal.SIGSTOP)  # frozen as it returns
        assert [body["type"] for body in bodies] == ["stage.wide", "pipeline.wide"] * n
        assert bodies[-1]["data"]["correlation_ids"]["request_id"] == f"r{n}"
        assert bodies[-2]["data"]["attributes"] == {"words": len(question.split())}
        time.sleep(0.2)
    machine.kill()  # no goodbye
    machine.wait(5)
    assert place.told() == {"r1": "ok", "r2": "ok"}


@pytest.mark.parametrize("pool", ["--pool=solo", "--pool=prefork --concurrency=2"], ids=["solo", "prefork"])
def test_celery_recipe_records_tasks(place: Place, pool: str) -> None:
    place.write("tasks.py", "celeryconfig.py")
    (place.path / "queue").mkdir()
    worker = place.start(f"celery -A tasks worker {pool}", "--without-gossip", "--without-mingle")

    def call(request_id: str, seconds: float) -> str:
        return f"ask.apply_async(['red shoes', {seconds}], task_id={request_id!r})"

    def send(*calls: str) -> None:
        program = "\n".join(["from tasks import ask", *calls])
        assert place.run(sys.executable, "-c", program).wait(20) == 0, place.log()

    if "prefork" in pool:
        send(call("killed", 30), call("r1", 0), call("r2", 0.5))
        until(lambda: place.is_under_way("killed"))
        pid = place.runs()["killed"]["resource"]["pid"]
        assert pid != worker.pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: place.outcomes() == {"killed": "crashed", "r1": "ok", "r2": "ok"})
        assert worker.pid not in {run["resource"]["pid"] for run in place.runs().values()}
    else:
        command = """celery -A tasks call tasks.ask --args '["red shoes"]'"""
        assert place.start(command).wait(20) == 0, place.log()
        send(call("ends", 0.5))
        until(lambda: place.is_under_way("ends"))
        worker.send_signal(signal.SIGTERM)
        until(lambda: not place.is_under_way("ends"))
        assert list(place.outcomes().values()) == ["ok", "ok"]
        assert {run["resource"]["pid"] for run in place.runs().values()} == {worker.pid}


CELL = re.compile(r"```python cell\n(?P<code>.*?)```\n\n```text\n(?P<prints>.*?)```", re.DOTALL)


def test_jupyter_recipe_prints_the_documented_output(tmp_path: Path) -> None:
    cells = list(CELL.finditer(PAGE))
    assert len(cells) == PAGE.count("```python cell")
    for cell, outputs in zip(cells, outputs_of((cell["code"] for cell in cells), tmp_path), strict=True):
        texts = [output.get("text") or output["data"]["text/plain"] for output in outputs]
        printed = re.sub(r"\x1b\[\d*m", "", "".join(line for text in texts for line in text))
        assert matches(cell["prints"], printed), printed
