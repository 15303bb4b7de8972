"""Checks server-sent events with many clients: `python -m tests.sse_storm --clients 1000`.

A uvicorn server in another process streams a run to each client. A third of the clients disconnect at
random moments, half of them reattach, and one in ten reads slowly. Every client that stays or reattaches must
receive each chunk once, every run must have its complete record with its usage, no task must be left, and the
memory of the server must be bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import httpx
import uvicorn
from event_source import EventParser, ReceivedEvent
from oracle import check_record
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import stageflow
from stageflow import Pipeline, PipelineContext, StageContext
from stageflow.integrations.starlette import EventStreams
from stageflow.journal import JournalReader

STAGES = ("search", "write", "rate")
LINGER = 15.0
MAX_MB_PER_CLIENT = 0.6
"""Maximum memory of a client, in MB: 256 KiB of sent events, the buffers, the connection and the run."""

MAX_GROWTH_MB = 40
"""Maximum growth of the memory from the end of the first wave to the end of the last one."""


# ---------------------------------------------------------------- the server


async def search(ctx: StageContext) -> None:
    await asyncio.sleep(0.01)


async def write(ctx: StageContext) -> AsyncIterator[str]:
    """Stream like a model: one in ten of them never reports the number of output tokens."""
    call = ctx.record_llm("m", input_tokens=ctx.run.data["chunks"])
    padding = "x" * ctx.run.data["size"]
    for number in range(ctx.run.data["chunks"]):
        await asyncio.sleep(ctx.run.data["every"])
        yield f"{number} {padding}"
        if ctx.run.data["reports"]:
            call.update(output_tokens=number + 1)


async def rate(ctx: StageContext) -> None:
    await asyncio.sleep(0.01)


def application(journal: str) -> Starlette:
    graph = (
        Pipeline("chat")
        .with_stage("search", search)
        .with_stage("write", write, dependencies=("search",))
        .with_stage("rate", rate, dependencies=("write",))
        .build()
    )
    streams = EventStreams(graph, linger=LINGER, max_lingering=10_000)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with stageflow.session(journal=journal), streams:
            yield

    async def ask(request: Request) -> Response:
        query = request.query_params
        data = {
            "chunks": int(query["chunks"]),
            "every": float(query["every"]),
            "size": int(query["size"]),
            "reports": query["reports"] == "True",
        }
        return streams.response(
            PipelineContext(request_id=query["id"], user_id=request.headers.get("x-user"), data=data)
        )

    async def status(request: Request) -> Response:
        gc.collect()
        left = sum(type(each).__name__ in ("LiveRun", "StreamedRun") for each in gc.get_objects())
        return JSONResponse({"runs": len(streams._runs), "objects": left, "tasks": len(asyncio.all_tasks())})

    return Starlette(routes=[Route("/ask", ask), Route("/status", status)], lifespan=lifespan)


def serve(port: int, journal: str, loop: str) -> None:
    uvicorn.run(
        application(journal),
        port=port,
        ws="none",
        access_log=False,
        log_level="error",
        backlog=4096,
        loop=loop,
        timeout_graceful_shutdown=5,
    )


# ---------------------------------------------------------------- the clients


@dataclass
class Client:
    """A client and what it received.

    Attributes:
        leaves_after: Number of events after which it disconnects; None if it stays.
        reattaches: Whether it reconnects with the id of the last event that it received.
    """

    id: str
    query: dict[str, Any]
    is_slow: bool
    leaves_after: int | None
    reattaches: bool
    events: list[ReceivedEvent] = field(default_factory=list, repr=False)
    statuses: list[int] = field(default_factory=list)
    problem: str | None = None

    @property
    def stays(self) -> bool:
        return self.leaves_after is None or self.reattaches

    async def run(self, port: int, rng: random.Random) -> None:
        await asyncio.sleep(rng.random() * 2)
        left = self.leaves_after
        last = ""
        try:
            while True:
                has_ended, last = await self._connect(port, last, left, rng)
                if has_ended or not self.reattaches or not last:
                    return
                left = None if rng.random() < 0.6 else rng.randrange(1, 40)
                await asyncio.sleep(rng.random() * 2)
        except (OSError, EOFError, ValueError) as error:
            self.problem = repr(error)

    async def _connect(self, port: int, last: str, left: int | None, rng: random.Random) -> tuple[bool, str]:
        """Read the events of one connection; return whether the stream has ended, and the last id."""
        sock = socket.socket()
        sock.setblocking(False)
        if self.is_slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=8192)
        query = "&".join(f"{name}={value}" for name, value in {"id": self.id, **self.query}.items())
        head = f"GET /ask?{query} HTTP/1.1\r\nhost: x\r\nx-user: user of {self.id}\r\n"
        if last:
            head += f"last-event-id: {last}\r\n"
        writer.write(f"{head}\r\n".encode())
        parser = EventParser()
        parser.last_id = last
        count = 0
        try:
            if left == 0:
                return False, last
            self.statuses.append(int((await reader.readuntil(b"\r\n\r\n")).split()[1]))
            if self.statuses[-1] != 200:
                return True, last
            while size := int(await reader.readuntil(b"\r\n"), 16):
                part = await reader.readexactly(size + 2)
                if self.is_slow:
                    await asyncio.sleep(0.02)
                for event in parser.feed(part[:-2]):
                    self.events.append(event)
                    count += 1
                    if event.name == "end":
                        return True, parser.last_id
                    if count == left:
                        return False, event.id
            raise ValueError("the response ended without the event `end`")
        finally:
            if rng.random() < 0.5:
                writer.transport.abort()
            writer.close()

    def check(self) -> str | None:
        """Return a violation, or None."""
        if self.problem is not None:
            return self.problem
        if set(self.statuses) - {200}:
            return f"statuses {self.statuses}"
        received = [int(event.json["value"].split()[0]) for event in self.events if event.name == "chunk"]
        if received != list(range(len(received))):
            return f"received {received[:50]}..."
        if self.stays and self.events:
            if self.events[-1].name != "end" or self.events[-1].json["outcome"] != "ok":
                return f"ended with {self.events[-1]}"
            if len(received) != self.query["chunks"]:
                return f"received {len(received)} of {self.query['chunks']} chunks"
        return None


def random_client(number: int, rng: random.Random) -> Client:
    leaves = rng.random() < 1 / 3
    is_slow = not leaves and rng.random() < 0.15  # one in ten of all
    chunks = rng.randrange(20, 300)
    return Client(
        f"c{number}",
        {
            "chunks": chunks,
            "every": round(rng.choice([0.0, 0.01, 0.02]), 3),
            "size": 4000 if is_slow else rng.choice([0, 5, 20]),
            "reports": rng.random() < 0.9,
        },
        is_slow,
        rng.randrange(0, chunks) if leaves else None,
        leaves and rng.random() < 0.5,
    )


# ---------------------------------------------------------------- the check


def resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6


async def status_of(port: int) -> dict[str, int]:
    async with httpx.AsyncClient(timeout=30) as client:
        return (await client.get(f"http://127.0.0.1:{port}/status")).json()


async def sample_memory(pid: int, peak: list[float]) -> None:
    while True:
        peak[0] = max(peak[0], resident_mb(pid))
        await asyncio.sleep(0.05)


async def settled(port: int, tasks: int) -> list[str]:
    """Wait until no run is left; return violations."""
    ends = time.monotonic() + LINGER + 10
    while time.monotonic() < ends:
        status = await status_of(port)
        if not status["runs"] and not status["objects"] and status["tasks"] <= tasks:
            return []
        await asyncio.sleep(0.5)
    return [f"after the clients left, {status}; before, {tasks} tasks"]


def check_journal(journal: Path, clients: dict[str, Client]) -> tuple[list[str], Counter[str]]:
    """Check the record of every run; return violations and counts."""
    by_run: dict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    with JournalReader(journal, "storm") as reader:
        while entries := reader.read(10_000):
            for entry in entries:
                data = entry.data()
                if entry.type in ("stage.wide", "pipeline.wide") and data is not None:
                    by_run[data["correlation_ids"]["pipeline_run_id"]].append((entry.type, data))
    broken, counts, requests = [], Counter[str](), set()
    for events in by_run.values():
        try:
            run = check_record(events, STAGES)
        except AssertionError as error:
            broken.append(f"record of {events[0][1]['correlation_ids']}: {error}")
            continue
        request = run["correlation_ids"]["request_id"]
        if request in requests:
            broken.append(f"{request} has two runs")
        requests.add(request)
        counts[run["outcome"]] += 1
        client = clients[request]
        if client.stays and client.events and run["outcome"] != "ok":
            broken.append(f"{request} ended as {run['outcome']} after {run['duration_ms']:.0f} ms: {client}")
        if run["outcome"] not in ("ok", "cancelled"):
            broken.append(f"{request} ended as {run['outcome']}: {run['error']}")
        (stage,) = (data for type, data in events if type == "stage.wide" and data["stage_name"] == "write")
        usage = stage["attributes"].get("gen_ai.usage.output_tokens")
        if usage is not None:
            counts["with usage"] += 1
            if run["outcome"] == "ok" and usage != client.query["chunks"]:
                broken.append(f"{request}: {usage} output tokens of {client.query['chunks']}")
        elif stage["attributes"].get("usage_incomplete"):
            counts["usage_incomplete"] += 1
        elif stage["attempts"]:
            broken.append(f"{request} has neither usage nor usage_incomplete")
        else:
            counts["cancelled before the model was called"] += 1
        if stage["stream"] and stage["stream"]["blocked_ms"] > 0:
            counts["blocked by the reader"] += 1
    started = {client.id for client in clients.values() if client.statuses}
    if missing := started - requests:
        broken.append(f"{len(missing)} runs have no record: {sorted(missing)[:5]}")
    return broken, counts


async def storm(port: int, server: subprocess.Popen[bytes], arguments: argparse.Namespace) -> tuple[Any, ...]:
    ends = time.monotonic() + 30
    while True:
        try:
            tasks = (await status_of(port))["tasks"]
            break
        except Exception:
            if time.monotonic() > ends:
                raise
            await asyncio.sleep(0.1)
    rng = random.Random(arguments.seed)
    clients: dict[str, Client] = {}
    broken: list[str] = []
    before = resident_mb(server.pid)
    peak, after = [before], []
    sampling = asyncio.create_task(sample_memory(server.pid, peak))
    for wave in range(arguments.waves):
        new = [random_client(wave * arguments.clients + number, rng) for number in range(arguments.clients)]
        clients.update({client.id: client for client in new})
        async with asyncio.timeout(300):
            await asyncio.gather(*(client.run(port, random.Random(client.id)) for client in new))
        broken += await settled(port, tasks)
        after.append(resident_mb(server.pid))
    sampling.cancel()
    return clients, broken, before, peak[0], after


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sse_storm", description=__doc__)
    parser.add_argument(
        "--clients", type=int, default=1000, help="number of concurrent clients (default 1000)"
    )
    parser.add_argument("--waves", type=int, default=3, help="how often they connect (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clients (default 0)")
    # uvloop accepts one connection per iteration: if the machine cannot keep up, clients reattach too late.
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio", help="of the server")
    parser.add_argument("--serve", nargs=2, metavar=("PORT", "JOURNAL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(int(arguments.serve[0]), arguments.serve[1], arguments.loop)
        return 0
    began = time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        journal = Path(directory) / "journal"
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.sse_storm",
                "--loop",
                arguments.loop,
                "--serve",
                str(port),
                str(journal),
            ],
            cwd=Path(__file__).parents[1],
        )
        try:
            clients, broken, before, peak, after = asyncio.run(storm(port, server, arguments))
            server.send_signal(signal.SIGTERM)
            server.wait(30)
        finally:
            server.kill()
            server.wait()
        found, counts = check_journal(journal, clients)
    broken += found
    broken += [f"client {client.id}: {problem}" for client in clients.values() if (problem := client.check())]
    if peak - before > MAX_MB_PER_CLIENT * arguments.clients:
        broken.append(f"the memory grew from {before:.0f} to {peak:.0f} MB")
    if after[-1] - after[0] > MAX_GROWTH_MB:
        broken.append(f"the memory grew from wave to wave: {[round(each) for each in after]} MB")
    received = sum(len(client.events) for client in clients.values())
    reattached = [client for client in clients.values() if len(client.statuses) > 1]
    print(
        f"{len(clients):,} clients ({arguments.clients:,} at once): {received:,} events in"
        f" {time.monotonic() - began:.0f} s\n"
        f"  {sum(client.leaves_after is not None for client in clients.values()):,} disconnected,"
        f" {len(reattached):,} of them reattached"
        f" ({sum(len(client.statuses) - 1 for client in reattached):,} times),"
        f" {sum(client.is_slow for client in clients.values()):,} read slowly"
        f" (median {statistics.median(client.query['chunks'] for client in clients.values()):.0f} chunks)\n"
        f"  record: {', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))}\n"
        f"  memory of the server: {before:.0f} MB before, {peak:.0f} MB peak"
        f" ({(peak - before) * 1000 / arguments.clients:.0f} kB per client),"
        f" {', '.join(f'{each:.0f}' for each in after)} MB after each wave\n"
        f"{len(broken)} violations"
    )
    for line in broken[:20]:
        print(f"  {line}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
