"""Server-sent events from real servers: their text, disconnects, slow readers and clients that reattach."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pydantic
import pytest
import uvicorn
from event_source import EventParser, ReceivedEvent
from fastapi import FastAPI
from oracle import check_record, of_type, recorded, stage_wide
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from stageflow import Pipeline, PipelineContext, Retry, StageContext
from stageflow.errors import InvalidArgumentError
from stageflow.events import MemoryEventSink
from stageflow.integrations.starlette import EventStreams, encode_json
from stageflow.journal import Journal
from stageflow.stages import Chunk

pytestmark = pytest.mark.timeout(60)

PARSERS = ["h11", "httptools"]


def sends(*values: Any, every: float = 0.0) -> Callable[[StageContext], AsyncIterator[Any]]:
    async def write(ctx: StageContext) -> AsyncIterator[Any]:
        for value in values:
            await asyncio.sleep(every)
            yield value

    return write


class Numbers:
    """A stage that sends numbers, with usage, until it is stopped; it knows how many it has sent."""

    def __init__(self, size: int = 0, every: float = 0.0) -> None:
        self.sent = 0
        self.stop = threading.Event()
        self._padding = "x" * size
        self._every = every

    async def __call__(self, ctx: StageContext) -> AsyncIterator[Any]:
        call = ctx.record_llm("m", input_tokens=7)
        while not self.stop.is_set():
            await asyncio.sleep(self._every)
            yield [self.sent, self._padding] if self._padding else self.sent
            self.sent += 1
            call.update(output_tokens=self.sent)


def until(true: Callable[[], Any], within: float = 20) -> Any:
    ends = time.monotonic() + within
    while time.monotonic() < ends:
        if found := true():
            return found
        time.sleep(0.01)
    return pytest.fail(f"not within {within} s: {true}")


class Server:
    """A uvicorn server in a thread, with an application that returns `streams.response(ctx)`."""

    def __init__(self, streams: EventStreams | None, app: Any = None, **options: Any) -> None:
        self.streams = streams
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        options = {"timeout_graceful_shutdown": 1, "ws": "none", "log_config": None, **options}
        self._server = uvicorn.Server(
            uvicorn.Config(app or self._application(), host="127.0.0.1", port=self.port, **options)
        )
        self.loop: asyncio.AbstractEventLoop | None = None
        self.left: list[str] = []
        self._clients: list[Client] = []
        self._thread = threading.Thread(target=self._run)

    def _application(self) -> Starlette:
        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            async with self.streams:
                yield

        return Starlette(routes=[Route("/", self.endpoint, methods=["GET", "POST"])], lifespan=lifespan)

    async def endpoint(self, request: Request) -> Response:
        user = request.headers.get("x-user")
        return self.streams.response(PipelineContext(user_id=user, data=dict(request.query_params)))

    def _run(self) -> None:
        async def main() -> None:
            self.loop = asyncio.get_running_loop()
            await self._server.serve()
            await asyncio.sleep(0.05)
            this = asyncio.current_task()
            self.left = [repr(task) for task in asyncio.all_tasks() if task is not this]

        asyncio.run(main())

    def __enter__(self) -> Server:
        self._thread.start()
        until(lambda: self._server.started)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        assert not self.left, "tasks were left running:\n" + "\n".join(self.left)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        for client in self._clients:
            client.close()
        assert not self._thread.is_alive()

    def tasks(self) -> int:
        """Return the number of tasks on the loop of the server."""
        return len(asyncio.all_tasks(self.loop))

    def connect(
        self, last_event_id: str = "", *, user: str | None = None, receive_buffer: int | None = None
    ) -> Client:
        headers = {} if user is None else {"x-user": user}
        if last_event_id:
            headers["last-event-id"] = last_event_id
        self._clients.append(Client(self.port, headers, receive_buffer))
        return self._clients[-1]


class Client:
    """A client on a plain socket, which reads when it is asked to."""

    def __init__(self, port: int, headers: dict[str, str], receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        lines = [
            "GET / HTTP/1.1",
            "host: localhost",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        self.socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        self.parser = EventParser()
        self.head = b""
        self._events: list[ReceivedEvent] = []
        self._rest = b""
        self.has_ended = False
        while b"\r\n\r\n" not in self.head:
            part = self.socket.recv(1)
            assert part, self.head
            self.head += part

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    def events(self) -> Iterator[ReceivedEvent]:
        while not self.has_ended:
            if self._events:
                yield self._events.pop(0)
                continue
            received = self.socket.recv(65536)
            if not received:
                self.has_ended = True
            self._rest += received
            self._dechunk()
        yield from self._events
        self._events.clear()

    def _dechunk(self) -> None:
        while b"\r\n" in self._rest:
            size_text, _, rest = self._rest.partition(b"\r\n")
            size = int(size_text, 16)
            if len(rest) < size + 2:
                return
            self._rest = rest[size + 2 :]
            if not size:
                self.has_ended = True
                return
            self._events += self.parser.feed(rest[:size])

    def read(self, count: int) -> list[ReceivedEvent]:
        events = self.events()
        return [next(events) for _ in range(count)]

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def values(events: list[ReceivedEvent]) -> list[Any]:
    return [event.json["value"] for event in events if event.name == "chunk"]


def outcome(sink: MemoryEventSink) -> str | None:
    runs = of_type(sink.events, "pipeline.wide")
    return runs[0]["outcome"] if runs else None


@dataclass
class Answer:
    response: httpx.Response
    parser: EventParser
    events: list[ReceivedEvent]


def ask(url: str, **options: Any) -> Answer:
    """Read a response to its end."""
    parser = EventParser()
    response = httpx.get(url, timeout=20, **options)
    return Answer(response, parser, list(parser.feed(response.content)))


@pytest.fixture
def sink() -> MemoryEventSink:
    return MemoryEventSink()


# ---------------------------------------------------------------- the text of the events


@pytest.mark.parametrize("http", PARSERS)
def test_response_contains_numbered_chunks_and_the_outcome(sink: MemoryEventSink, http: str) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a", "b\nc", 3)), sink)
    with Server(EventStreams(graph), http=http) as server:
        answer = ask(server.url)
    run_id = of_type(sink.events, "pipeline.wide")[0]["event_id"]
    assert [(event.name, event.json) for event in answer.events] == [
        ("start", {"run_id": run_id}),
        ("chunk", {"stage": "write", "value": "a"}),
        ("chunk", {"stage": "write", "value": "b\nc"}),
        ("chunk", {"stage": "write", "value": 3}),
        ("end", {"run_id": run_id, "outcome": "ok"}),
    ]
    assert [event.id for event in answer.events] == [
        *(f"{run_id}/{number}" for number in range(4)),
        f"{run_id}/4/end",
    ]
    headers = answer.response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    check_record(sink.events, ["write"])


HOSTILE = [
    "",
    " leading space",
    "a\rb\nc\r\nd\n\re",
    "\n\nevent: end\ndata: {}\n\n",
    "data: x\r\rid: 7\r\r",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\0 \x1b[31m \ufeff",
    "emoji \U0001f600 \ud83d alone",
    "x" * 1_000_000,
    "</script><script>alert(1)</script>",
]


def test_hostile_text_arrives_unchanged(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends(*HOSTILE)), sink)
    with Server(EventStreams(graph)) as server:
        answer = ask(server.url)
    assert values(answer.events) == HOSTILE
    assert [event.name for event in answer.events] == ["start", *["chunk"] * len(HOSTILE), "end"]


def test_encode_sends_text_of_several_lines(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends(*HOSTILE)), sink)
    with Server(EventStreams(graph, encode=lambda chunk: chunk.value)) as server:
        answer = ask(server.url)
    # The format cannot represent the kind of a line break, or half of a surrogate pair.
    expected = [text.replace("\r\n", "\n").replace("\r", "\n").replace("\ud83d ", "? ") for text in HOSTILE]
    assert [event.data for event in answer.events[1:-1]] == expected
    assert answer.events[-1].name == "end"


def test_id_of_a_run_cannot_break_the_stream(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a")), sink)
    hostile = "r\n\ndata: injected/\0é"
    streams = EventStreams(graph)

    async def endpoint(request: Request) -> Response:
        return streams.response(PipelineContext(pipeline_run_id=hostile))

    with Server(None, Starlette(routes=[Route("/", endpoint)])) as server:
        answer = ask(server.url)
    assert [event.name for event in answer.events] == ["start", "chunk", "end"]
    assert answer.events[0].json == {"run_id": hostile}
    assert all("\0" not in event.id and event.id.isascii() for event in answer.events)


def test_values_of_many_types_are_encoded() -> None:
    class Point(pydantic.BaseModel):
        x: int

    class Shape(msgspec.Struct):
        points: list[Point]

    assert json.loads(encode_json(Chunk("s", 0, Shape([Point(x=1)]))))["value"] == {"points": [{"x": 1}]}
    assert json.loads(encode_json(Chunk("s", 0, b"\xff")))["value"] == "/w=="
    with pytest.raises(TypeError, match="JSON cannot represent a value of type object"):
        encode_json(Chunk("s", 0, object()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "JSON cannot represent a value of type object"),
        ({"encode": lambda chunk: chunk.value}, "encode= must return str or bytes, got object"),
        ({"encode": lambda chunk: 1 / 0}, "division by zero"),
    ],
)
def test_value_that_cannot_be_encoded_fails_its_stage(
    sink: MemoryEventSink, options: Any, message: str
) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends(object())), sink)
    with Server(EventStreams(graph, **options)) as server:
        answer = ask(server.url)
    assert [event.name for event in answer.events] == ["start", "end"]
    assert answer.events[-1].json["outcome"] == "failed"
    event = stage_wide(sink.events, "write")
    assert event["error_type"] == "StageOutputError"
    assert message in event["error"]
    check_record(sink.events, ["write"])


def test_end_reports_no_internals(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        yield "a"
        raise ValueError("secret")

    graph = recorded(Pipeline("p").with_stage("write", write), sink)
    with Server(EventStreams(graph)) as server:
        answer = ask(server.url)
    run_id = of_type(sink.events, "pipeline.wide")[0]["event_id"]
    assert answer.events[-1].json == {"run_id": run_id, "outcome": "failed"}
    assert "secret" not in answer.response.text


def test_restart_is_an_event(sink: MemoryEventSink) -> None:
    read = threading.Event()

    async def write(ctx: StageContext) -> AsyncIterator[str]:
        yield f"attempt {ctx.attempt}"
        while ctx.attempt == 1 and not read.is_set():
            await asyncio.sleep(0.01)
        if ctx.attempt == 1:
            raise ConnectionError

    pipeline = Pipeline("p").with_stage("write", write, retry=Retry(attempts=2), restart=True)
    with Server(EventStreams(recorded(pipeline, sink))) as server:
        client = server.connect()
        client.read(2)
        read.set()
        events = list(client.events())
    assert [event.name for event in events] == ["restart", "chunk", "end"]
    assert events[0].json == {"stage": "write"}
    assert values(events) == ["attempt 2"]


def test_stages_selects_the_streams(sink: MemoryEventSink) -> None:
    pipeline = Pipeline("p").with_stage("think", sends("hm")).with_stage("write", sends("a"))
    with Server(EventStreams(recorded(pipeline, sink), stages="write")) as server:
        assert values(ask(server.url).events) == ["a"]


def test_comments_are_sent_while_there_is_no_event(sink: MemoryEventSink) -> None:
    async def after(ctx: StageContext) -> None:
        await asyncio.sleep(0.3)

    pipeline = (
        Pipeline("p")
        .with_stage("write", sends("a", every=0.3))
        .with_stage("after", after, dependencies=("write",))
    )
    with Server(EventStreams(recorded(pipeline, sink), keep_alive=0.1)) as server:
        client = server.connect()
        assert [event.name for event in client.read(2)] == ["start", "chunk"]
        before = len(client.parser.comments)
        assert [event.name for event in client.events()] == ["end"]
    assert before >= 1
    assert len(client.parser.comments) > before
    assert set(client.parser.comments) == {"keep-alive"}


# ---------------------------------------------------------------- the response


def test_response_works_in_fastapi_with_headers_cookies_and_a_background_task(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a")), sink)
    streams = EventStreams(graph)
    app = FastAPI()
    done = threading.Event()

    @app.post("/ask")
    async def endpoint(question: dict[str, str]) -> Any:
        response = streams.response(PipelineContext(data=question), background=BackgroundTask(done.set))
        response.headers["x-model"] = "m"
        response.set_cookie("seen", "1")
        return response

    with Server(None, app) as server:
        response = httpx.post(f"{server.url}/ask", json={"q": "why?"}, timeout=20)
        assert done.wait(10)
    assert response.headers["x-model"] == "m"
    assert response.cookies["seen"] == "1"
    assert values(list(EventParser().feed(response.content))) == ["a"]


def test_head_starts_no_run(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a")), sink)
    with Server(EventStreams(graph)) as server:
        response = httpx.head(server.url, timeout=20)
    assert (response.status_code, response.content) == (200, b"")
    assert not sink.events


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linger": -1}, "linger must be 0 or more seconds"),
        ({"linger": float("inf")}, "linger must be 0 or more seconds"),
        ({"keep_alive": 0}, "keep_alive must be more than 0 seconds"),
        ({"send_timeout": True}, "send_timeout must be more than 0 seconds"),
        ({"replay_bytes": 0}, "replay_bytes must be a positive integer"),
        ({"max_lingering": 1.5}, "max_lingering must be a positive integer"),
        ({"encode": "json"}, "encode must be a function"),
        ({"stages": "wrte"}, "did you mean 'write'"),
        ({"buffer": 0}, "buffer must be a positive integer"),
        ({"deadline": 0}, "deadline must be more than 0 seconds"),
    ],
)
def test_invalid_arguments_are_reported(options: Any, message: str) -> None:
    graph = Pipeline("p").with_stage("write", sends("a")).build()
    with pytest.raises(InvalidArgumentError, match=message):
        EventStreams(graph, **options)


def test_missing_starlette_names_the_extra() -> None:
    program = (
        "import sys; sys.modules['starlette'] = None\n"
        "try:\n    import stageflow.integrations.starlette\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert 'pip install "stageflow[starlette]"' in done.stdout, done.stderr


# ---------------------------------------------------------------- disconnects and slow readers


@pytest.mark.parametrize("leave", [Client.close, Client.reset])
@pytest.mark.parametrize("http", PARSERS)
def test_disconnect_cancels_the_run_and_keeps_its_usage(
    sink: MemoryEventSink, http: str, leave: Callable[[Client], None]
) -> None:
    numbers = Numbers(every=0.01)
    with Server(
        EventStreams(recorded(Pipeline("p").with_stage("write", numbers), sink)), http=http
    ) as server:
        before = server.tasks()
        client = server.connect()
        assert values(client.read(4)) == [0, 1, 2]
        leave(client)
        until(lambda: outcome(sink) == "cancelled")
        until(lambda: server.tasks() == before)
    event = stage_wide(sink.events, "write")
    assert event["attributes"]["gen_ai.usage.output_tokens"] >= 2
    assert event["stream"]["abandoned"] is True
    check_record(sink.events, ["write"])


def test_disconnect_before_the_first_chunk_cancels_the_run(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a", every=60)), sink)
    with Server(EventStreams(graph)) as server:
        client = server.connect()
        client.read(1)
        client.close()
        until(lambda: outcome(sink) == "cancelled")
    check_record(sink.events, ["write"])


def test_disconnect_after_the_stream_cancels_the_stages_that_follow(sink: MemoryEventSink) -> None:
    async def after(ctx: StageContext) -> None:
        await asyncio.sleep(60)

    pipeline = (
        Pipeline("p").with_stage("write", sends("a")).with_stage("after", after, dependencies=("write",))
    )
    with Server(EventStreams(recorded(pipeline, sink))) as server:
        client = server.connect()
        client.read(2)
        time.sleep(0.1)
        client.close()
        until(lambda: outcome(sink) == "cancelled")
    assert stage_wide(sink.events, "write")["status"] == "OK"


@pytest.mark.parametrize("http", PARSERS)
def test_httpx_client_that_leaves_cancels_the_run(sink: MemoryEventSink, http: str) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink)
    with Server(EventStreams(graph), http=http) as server:
        with httpx.stream("GET", server.url, timeout=20) as response:
            next(response.iter_bytes())
        until(lambda: outcome(sink) == "cancelled")


def test_disconnect_is_noticed_behind_a_middleware(sink: MemoryEventSink) -> None:
    streams = EventStreams(recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink))

    class Passes(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            return await call_next(request)

    async def endpoint(request: Request) -> Response:
        return streams.response()

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(Passes)])
    with Server(None, app) as server:
        client = server.connect()
        client.read(3)
        client.close()
        until(lambda: outcome(sink) == "cancelled")


@pytest.mark.parametrize("http", PARSERS)
def test_slow_reader_blocks_the_stage(sink: MemoryEventSink, http: str) -> None:
    numbers = Numbers(size=10_000)
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, buffer=8), http=http) as server:
        client = server.connect(receive_buffer=4096)
        client.read(2)
        until(lambda: is_blocked(numbers))
        blocked_at = numbers.sent
        received = [number for number, _ in values(client.read(blocked_at + 20))]
        assert received == list(range(1, len(received) + 1))
        assert numbers.sent > blocked_at
        numbers.stop.set()
        assert [event.name for event in client.events()][-1] == "end"
    event = stage_wide(sink.events, "write")
    assert event["stream"]["blocked_ms"] > 0
    check_record(sink.events, ["write"])


def is_blocked(numbers: Numbers) -> bool:
    before = numbers.sent
    time.sleep(0.3)
    return numbers.sent == before


def test_client_that_accepts_no_data_counts_as_disconnected(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(size=100_000)), sink)
    with Server(EventStreams(graph, send_timeout=0.3)) as server:
        client = server.connect(receive_buffer=4096)
        until(lambda: outcome(sink) == "cancelled")
        client.close()
    check_record(sink.events, ["write"])


# ---------------------------------------------------------------- clients that reattach


@pytest.mark.parametrize("leave", [Client.close, Client.reset])
@pytest.mark.parametrize("http", PARSERS)
def test_reattached_client_misses_nothing(
    sink: MemoryEventSink, http: str, leave: Callable[[Client], None]
) -> None:
    numbers = Numbers()
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, buffer=16, linger=30, replay_bytes=64 << 20), http=http) as server:
        received: list[ReceivedEvent] = []
        last = ""
        for _ in range(5):
            client = server.connect(last)
            assert client.status == 200
            received += client.read(7)
            assert client.parser.retry == 1000
            last = received[-1].id
            leave(client)  # the server has sent more events than the client has read
            until(lambda: is_blocked(numbers))
        assert outcome(sink) is None
        numbers.stop.set()
        received += server.connect(last).events()
    assert values(received) == list(range(numbers.sent))
    assert [event.name for event in received] == ["start", *["chunk"] * numbers.sent, "end"]
    assert len({event.id for event in received}) == len(received)
    assert outcome(sink) == "ok"
    assert stage_wide(sink.events, "write")["attributes"]["gen_ai.usage.output_tokens"] == numbers.sent
    check_record(sink.events, ["write"])


def test_run_without_a_client_waits_when_its_buffer_is_full(sink: MemoryEventSink) -> None:
    numbers = Numbers(every=0.001)
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, buffer=16, linger=30)) as server:
        client = server.connect()
        client.read(5)
        client.close()
        until(lambda: is_blocked(numbers))
        assert numbers.sent < 200
        assert outcome(sink) is None
    assert outcome(sink) == "cancelled"  # by the end of the lifespan


def test_run_is_cancelled_if_its_client_does_not_reattach(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink)
    with Server(EventStreams(graph, linger=0.3)) as server:
        before = server.tasks()
        client = server.connect()
        last = client.read(3)[-1].id
        client.close()
        until(lambda: outcome(sink) == "cancelled")
        until(lambda: server.tasks() == before)
        assert server.connect(last).status == 404
        assert stage_wide(sink.events, "write")["stream"]["abandoned"] is True
    check_record(sink.events, ["write"])


def test_run_that_ended_meanwhile_delivers_the_rest(sink: MemoryEventSink) -> None:
    numbers = Numbers(every=0.01)
    with Server(
        EventStreams(recorded(Pipeline("p").with_stage("write", numbers), sink), linger=30)
    ) as server:
        client = server.connect()
        first = client.read(4)
        client.close()
        time.sleep(0.1)
        numbers.stop.set()
        until(lambda: outcome(sink) == "ok")
        rest = list(server.connect(first[-1].id).events())
        assert values(first + rest) == list(range(numbers.sent))
        assert rest[-1].json["outcome"] == "ok"
        # The last events may have been lost as well: they are available until `linger` has passed.
        assert list(server.connect(first[-1].id).events()) == rest


def test_client_that_has_received_the_end_is_not_served_again(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a")), sink)
    for linger in (0, 30):
        with Server(EventStreams(graph, linger=linger)) as server:
            answer = ask(server.url)
            again = ask(server.url, headers={"last-event-id": answer.events[-1].id})
            assert (again.response.status_code, again.response.content) == (204, b"")
    assert len(of_type(sink.events, "pipeline.wide")) == 2


def test_client_without_linger_does_not_start_a_second_run(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink)
    with Server(EventStreams(graph)) as server:
        client = server.connect()
        last = client.read(3)[-1].id
        client.close()
        assert server.connect(last).status == 404
        until(lambda: outcome(sink) == "cancelled")
    assert len(of_type(sink.events, "pipeline.wide")) == 1


def test_only_the_client_that_knows_the_key_and_has_the_same_user_can_reattach(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink)
    with Server(EventStreams(graph, linger=30)) as server:
        client = server.connect(user="alice")
        event = client.read(3)[-1]
        run_id, number, key = event.id.split("/")
        assert len(key) >= 22
        wrong = [
            f"{run_id}/{number}",
            f"{run_id}/{number}/",
            f"{run_id}/{number}/{key[:-1]}",
            f"{run_id}/{number}/{run_id}",
            f"{run_id}/-1/{key}",
            f"{run_id}/{'9' * 5000}/{key}",
            f"{run_id}/x/{key}",
            f"{run_id}/{10**6}/{key}",
            key,
            "/",
            "x",
        ]
        for last in wrong:
            refused = server.connect(last, user="alice")
            assert refused.status == 404, last
        for user in ("bob", None):
            assert server.connect(event.id, user=user).status == 404
        client.read(3)  # is still attached
        assert server.connect(event.id, user="alice").status == 200


def test_keys_of_runs_differ(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", sends("a")), sink)
    with Server(EventStreams(graph, linger=30)) as server:
        ids = [ask(server.url).events[0].id for _ in range(5)]
    assert len({each.split("/")[2] for each in ids}) == 5


def test_events_that_were_discarded_are_reported(sink: MemoryEventSink) -> None:
    numbers = Numbers(every=0.001)
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, linger=30, replay_bytes=2000)) as server:
        client = server.connect()
        events = client.read(60)
        old = server.connect(events[1].id)
        assert old.status == 410
        assert client.read(2)  # is still attached
        client.close()
        recent = server.connect(client.parser.last_id)
        assert recent.status in (200, 410)  # 410 if many events were on the way


def test_second_client_replaces_the_first(sink: MemoryEventSink) -> None:
    numbers = Numbers(every=0.01)
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, linger=30)) as server:
        first = server.connect()
        received = first.read(4)
        second = server.connect(received[-1].id)
        rest = list(first.events())
        assert rest[-1].name == "replaced"
        assert server.connect(rest[-1].id).status == 204  # it does not replace the second one in turn
        received += second.read(5)
        numbers.stop.set()
        received += second.events()
        assert values(received) == list(range(numbers.sent))
    assert outcome(sink) == "ok"


def test_second_client_replaces_one_that_does_not_read(sink: MemoryEventSink) -> None:
    numbers = Numbers(size=10_000)
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, linger=30, replay_bytes=100_000_000)) as server:
        frozen = server.connect(receive_buffer=4096)
        event = frozen.read(3)[-1]
        until(lambda: is_blocked(numbers))
        second = server.connect(event.id)
        received = [number for number, _ in values(second.read(100))]
        assert received == list(range(2, 102))
        numbers.stop.set()
        assert list(second.events())[-1].json["outcome"] == "ok"
        frozen.close()


def test_many_clients_that_attach_at_once_leave_one_reader(sink: MemoryEventSink) -> None:
    numbers = Numbers(every=0.001)
    graph = recorded(Pipeline("p").with_stage("write", numbers), sink)
    with Server(EventStreams(graph, linger=30)) as server:
        event = server.connect().read(3)[-1]
        clients = [server.connect(event.id) for _ in range(20)]
        numbers.stop.set()
        ends = [list(client.events()) for client in clients]
        complete = [events for events in ends if events and events[-1].name == "end"]
        assert complete
        for events in complete:
            assert values(events) == list(range(2, numbers.sent))
    check_record(sink.events, ["write"])


def test_number_of_runs_without_a_client_is_bounded(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink)
    ended = recorded(Pipeline("p").with_stage("write", sends("a")), MemoryEventSink())
    streams = EventStreams(graph, linger=30, max_lingering=2)
    with Server(streams) as server:
        clients = [server.connect() for _ in range(3)]
        ids = [client.read(2)[-1].id for client in clients]
        for client in clients[:2]:
            client.close()
        until(lambda: len(streams._lingering) == 2)
        streams._graph = ended
        ask(server.url)  # a run that has ended is discarded first
        assert outcome(sink) is None
        clients[2].close()
        until(lambda: outcome(sink) == "cancelled")
        assert [server.connect(each).status for each in ids] == [404, 200, 200]


# ---------------------------------------------------------------- shutdown


def test_shutdown_cancels_runs_and_refuses_new_ones(sink: MemoryEventSink) -> None:
    graph = recorded(Pipeline("p").with_stage("write", Numbers(every=0.01)), sink)
    streams = EventStreams(graph, linger=60)
    server = Server(streams)
    with server:
        left, attached = server.connect(), server.connect()
        left.read(2)
        attached.read(2)
        left.close()
        until(lambda: len(streams._lingering) == 1)
    assert [event["outcome"] for event in of_type(sink.events, "pipeline.wide")] == ["cancelled"] * 2
    assert streams.is_closed

    async def endpoint(request: Request) -> Response:
        return streams.response()

    with Server(None, Starlette(routes=[Route("/", endpoint)])) as closed:
        assert httpx.get(closed.url, timeout=20).status_code == 503
    assert len(of_type(sink.events, "pipeline.wide")) == 2


def test_shutdown_waits_for_the_cleanup_of_runs(sink: MemoryEventSink) -> None:
    async def write(ctx: StageContext) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.3)
            ctx.annotate(cleaned_up=True)

    with Server(EventStreams(recorded(Pipeline("p").with_stage("write", write), sink), linger=60)) as server:
        client = server.connect()
        client.read(2)
        client.close()
    assert stage_wide(sink.events, "write")["attributes"] == {"cleaned_up": True}
    assert outcome(sink) == "cancelled"


PROGRAM = """
    import asyncio, contextlib, os, signal
    import stageflow, uvicorn
    from starlette.applications import Starlette
    from starlette.routing import Route
    from stageflow import Pipeline
    from stageflow.integrations.starlette import EventStreams

    async def write(ctx):
        number = 0
        while True:
            await asyncio.sleep(0.01)
            yield number
            number += 1

    streams = EventStreams(Pipeline("p").with_stage("write", write).build(), linger=60)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with stageflow.session(journal="journal", flush_timeout=1), streams:
            yield

    async def endpoint(request):
        return streams.response()

    app = Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)
    uvicorn.run(app, port={port}, timeout_graceful_shutdown=1, ws="none")
"""


def test_linger_requires_the_lifespan() -> None:
    streams = EventStreams(Pipeline("p").with_stage("write", sends("a")).build(), linger=1)
    with pytest.raises(RuntimeError, match="must be entered in the lifespan"):
        streams.response()


def test_server_that_stops_records_runs_with_and_without_a_client(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = textwrap.dedent(PROGRAM).format(port=port)
    with contextlib.ExitStack() as exits:
        errors = exits.enter_context((tmp_path / "errors").open("w+"))
        server = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=errors)
        exits.callback(server.wait)
        exits.callback(server.kill)
        until(lambda: answers(port))
        clients = [Client(port, {}), Client(port, {})]
        for client in clients:
            exits.callback(client.close)
            client.read(3)
        clients[0].close()
        clients[1].read(20)  # the server has noticed the disconnect
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    runs = Journal(tmp_path / "journal").runs(limit=None)
    assert [run["outcome"] for run in runs] == ["cancelled"] * 2, (tmp_path / "errors").read_text()
    assert [writer.state for writer in Journal(tmp_path / "journal").check().writers] == ["closed"]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False
