"""`EventStreams`: responses that stream the runs of a graph as server-sent events."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ...context import PipelineContext, StageContext
from ...errors import invalid_argument
from ...pipeline import StageGraph, StreamedRun
from ._live_run import Event, LiveRun
from ._wire import KEEP_ALIVE, Encode, chunk_encoder, encode_json, event_id, event_text, json_lines

__all__ = ["EventStreamResponse", "EventStreams"]

_END = "end"
"""The last part of the id of an event after which a client must not reconnect."""

_RECONNECT = b"retry: 1000\n\n"
"""Milliseconds after which a browser reconnects; its default is longer."""

_UNKNOWN = 404, "this run is unknown, has been discarded, or belongs to another user"
_DISCARDED = 410, "the events after this id are no longer available"
_CLOSED = 503, "the server is shutting down"

Owner = tuple[str | None, str | None]


class EventStreams:
    """Streams runs of a graph to browsers and other clients as server-sent events.

    Create one for each endpoint, next to the graph, and return `response(ctx)` from the endpoint. With
    `linger`, enter it in the lifespan of the application, after the session: when the application shuts down,
    the runs without a client are cancelled, and their records are written.

    A run that loses its client is cancelled (outcome `cancelled`). With `linger`, it first waits for the
    client to reattach: a request to the same endpoint of the same process, with the id of the last event in
    the header `Last-Event-ID`, which `EventSource` sends automatically. Until then, the run continues until
    `buffer` chunks wait for the client. The response to such a request contains all later events.

    Args:
        graph: The graph to run.
        stages: Names of the stages whose chunks to send; default all stages that are generator functions.
        buffer: Maximum number of chunks that wait for the client. While that many do, the stages that send
            further ones wait.
        keep_alive: Seconds without an event after which a comment is sent, so that proxies do not close the
            connection; None for no comments.
        linger: Seconds for which a run without a client waits for the client to reattach; 0 (the default)
            cancels it at once. Events that were sent are also kept for this time after the end of the run.
        replay_bytes: Maximum size of the events of one run that are kept after they were sent, because they
            may not have reached the client; default 256 KiB. Used only with `linger`.
        max_lingering: Maximum number of runs that are kept without a client. If another one loses its client,
            the oldest is discarded, preferably one that has ended.
        send_timeout: Seconds after which a client that accepts no data counts as disconnected; None for
            no limit.
        deadline: Maximum duration of a run in seconds; default no limit.
        encode: Called with each `Chunk` when it is sent; returns the data of its event. Default
            `encode_json`. If it raises an exception, the stage that sent the chunk fails.

    Raises:
        InvalidArgumentError: A stage does not exist, or an argument is invalid.

    Example:
        chat = EventStreams(graph, linger=15)


        @app.get("/chat")
        async def ask(question: str):
            return chat.response(PipelineContext(data={"question": question}))
    """

    def __init__(
        self,
        graph: StageGraph,
        *,
        stages: str | Iterable[str] | None = None,
        buffer: int = 64,
        keep_alive: float | None = 15.0,
        linger: float = 0.0,
        replay_bytes: int = 256 << 10,
        max_lingering: int = 1000,
        send_timeout: float | None = 60.0,
        deadline: float | None = None,
        encode: Encode = encode_json,
    ) -> None:
        for name, seconds in (("keep_alive", keep_alive), ("send_timeout", send_timeout)):
            if seconds is not None:
                _check(name, seconds, _is_number(seconds) and seconds > 0, "more than 0 seconds, or None")
        _check("linger", linger, _is_number(linger) and linger >= 0, "0 or more seconds")
        for name, number in (("replay_bytes", replay_bytes), ("max_lingering", max_lingering)):
            _check(name, number, _is_number(number) and number == int(number) >= 1, "a positive integer")
        _check("encode", encode, callable(encode), "a function")
        self.keep_alive = keep_alive
        self.send_timeout = send_timeout
        self.linger = linger
        self._graph = graph
        self._options: dict[str, Any] = {
            "stages": stages if stages is None or isinstance(stages, str) else tuple(stages),
            "buffer": buffer,
            "deadline": deadline,
            "encode": chunk_encoder(encode),
        }
        self._replay_bytes = replay_bytes if linger else 1
        self._max_lingering = max_lingering
        self._runs: dict[str, LiveRun] = {}
        self._lingering: dict[str, LiveRun] = {}
        self._keepers: set[asyncio.Task[None]] = set()
        self._entered = self._closed = False
        graph.stream(**self._options)  # checks the options

    async def __aenter__(self) -> EventStreams:
        self._entered, self._closed = True, False
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel the runs that have not ended, and wait for their records; refuse new ones."""
        self._closed = True
        for live in list(self._runs.values()):
            self.discard(live)
        if self._keepers:
            await asyncio.wait(self._keepers)

    def response(
        self, ctx: PipelineContext | None = None, *, background: BackgroundTask | None = None
    ) -> EventStreamResponse:
        """Return the response of an endpoint: it starts a run, or attaches to the run that the client lost.

        A client can only attach to a run whose context has the same `user_id` and `org_id`, and needs the id
        of an event of this run, which contains a random key.

        Args:
            ctx: Ids, labels and input of the run. A client that reattaches gets its run, whatever the input.
            background: A task that runs after the response, as in Starlette.

        Raises:
            InvalidArgumentError: `ctx` is not a `PipelineContext`.
            RuntimeError: `linger` is used, and the lifespan of the application did not enter this object.
        """
        if self.linger and not self._entered:
            raise RuntimeError(
                f"pipeline {self._graph.name!r}: EventStreams with linger= must be entered in the lifespan of"
                " the application, after the session; otherwise a shutdown loses the records of runs without"
                " a client\n  hint: async with stageflow.session(...), streams: yield"
            )
        return EventStreamResponse(self, self._graph.stream(ctx, **self._options), owner_of(ctx), background)

    async def start(self, stream: StreamedRun, owner: Owner) -> LiveRun:
        """Start a run for a client."""
        live = LiveRun(stream, owner, self._replay_bytes)
        self._runs[live.key] = live
        self._keepers.add(live.keeper)
        live.keeper.add_done_callback(self._keeper_done)
        try:
            await live.start()
        except BaseException:
            self.discard(live)
            raise
        return live

    def _keeper_done(self, keeper: asyncio.Task[None]) -> None:
        self._keepers.discard(keeper)
        if not keeper.cancelled():
            keeper.exception()  # raised for the client by `LiveRun.next`

    def find(self, last_event_id: str, owner: Owner) -> tuple[LiveRun, int] | None:
        """Return the run of an event and the number of the event; None unless it belongs to this owner."""
        _, _, rest = last_event_id.partition("/")
        digits, _, key = rest.partition("/")
        live = self._runs.get(key)
        if live is None or live.owner != owner or not (digits.isascii() and digits.isdigit()):
            return None
        number = int(digits[:18])
        return (live, number) if live.has_sent(number) else None

    def id_of(self, live: LiveRun, event: Event) -> str:
        """Return the id of an event, with which its client can reattach."""
        if event.name == "end":
            return event_id(live.run_id, event.number, _END)
        return event_id(live.run_id, event.number, live.key if self.linger else "")

    def attach(self, live: LiveRun, reader: asyncio.Task[None]) -> None:
        """Let this task read the events of a run, instead of the one that reads them now."""
        if live.reader is not None:
            live.reader.cancel()
        live.reader = reader
        self._lingering.pop(live.key, None)
        if live.expiry is not None:
            live.expiry.cancel()

    def detach(self, live: LiveRun) -> None:
        """Record that the client of a run has left, or has received all events."""
        live.reader = None
        if not self.linger or self._closed:
            self.discard(live)
            return
        live.expiry = asyncio.get_running_loop().call_later(self.linger, self.discard, live)
        self._lingering[live.key] = live
        if len(self._lingering) > self._max_lingering:
            waiting = list(self._lingering.values())
            self.discard(next((each for each in waiting if each.is_complete), waiting[0]))

    def discard(self, live: LiveRun) -> None:
        """Cancel a run unless it has ended, and forget its events."""
        self._runs.pop(live.key, None)
        self._lingering.pop(live.key, None)
        live.cancel()

    @property
    def is_closed(self) -> bool:
        """True after the application has shut down."""
        return self._closed


class EventStreamResponse(Response):
    """The response that `EventStreams.response` returns. Headers and cookies can be added to it."""

    media_type = "text/event-stream"

    def __init__(
        self, streams: EventStreams, stream: StreamedRun, owner: Owner, background: BackgroundTask | None
    ) -> None:
        self.status_code = 200
        self.background = background
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._streams = streams
        self._stream = stream
        self._owner = owner
        self._has_started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._send_start(send)
            await send({"type": "http.response.body", "body": b""})
            return
        last_event_id = Headers(scope=scope).get("last-event-id")
        if self._streams.is_closed:
            await self._refuse(_CLOSED, scope, receive, send)
        elif not last_event_id:
            await self._follow(await self._streams.start(self._stream, self._owner), -1, scope, receive, send)
        elif last_event_id.endswith(f"/{_END}"):  # `EventSource` reconnects also after the end
            await Response(status_code=204)(scope, receive, send)
        elif (found := self._streams.find(last_event_id, self._owner)) is None:
            await self._refuse(_UNKNOWN, scope, receive, send)
        elif found[0].replay(found[1]) is None:
            await self._refuse(_DISCARDED, scope, receive, send)
        else:
            await self._follow(*found, scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _refuse(self, reason: tuple[int, str], scope: Scope, receive: Receive, send: Send) -> None:
        status, text = reason
        response = PlainTextResponse(text, status, {"cache-control": "no-store"})
        await response(scope, receive, send)

    async def _follow(self, live: LiveRun, after: int, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events of a run until it has ended, the client leaves or another one attaches."""
        reading = asyncio.create_task(self._send_events(live, after, send))
        leaving = asyncio.create_task(_client_left(receive))
        self._streams.attach(live, reading)
        try:
            await asyncio.wait({reading, leaving}, return_when=asyncio.FIRST_COMPLETED)
            reading.cancel()
            leaving.cancel()
            await asyncio.wait({reading, leaving})
        except asyncio.CancelledError:  # the server is shutting down
            reading.cancel()
            leaving.cancel()
            if live.reader is reading:
                self._streams.discard(live)
            raise
        if live.reader is not reading:
            if reading.cancelled():
                await self._send_replaced(live, after, send)
            return
        self._streams.detach(live)
        if not self._streams.linger:
            await asyncio.wait({live.keeper})  # the record is complete before the response ends
        if not reading.cancelled() and (error := reading.exception()) is not None:
            if isinstance(error, _DiscardedError):
                await self._refuse(_DISCARDED, scope, receive, send)
            elif not isinstance(error, OSError):
                raise error

    async def _send_events(self, live: LiveRun, after: int, send: Send) -> None:
        """Send all events after a number.

        Raises:
            _DiscardedError: One of them is no longer available.
            OSError: The client has left, or accepts no data.
        """
        streams = self._streams
        async with live.reading:
            missed = live.replay(after)
            if missed is None:
                raise _DiscardedError
            await self._send_start(send)
            if streams.linger:
                await self._send(send, _RECONNECT)
            await self._send_all(live, missed, send)
            while not live.is_complete:
                events = await live.read(streams.keep_alive)
                if events:
                    await self._send_all(live, events, send)
                else:
                    await self._send(send, KEEP_ALIVE)
        await self._send(send, b"", more=False)

    async def _send_replaced(self, live: LiveRun, after: int, send: Send) -> None:
        """Report that another client has attached to the run: this one must not reconnect."""
        last = event_id(live.run_id, max(after, 0), _END)
        try:
            await self._send_start(send)
            await self._send(send, event_text(last, "replaced", json_lines({})))
            await self._send(send, b"", more=False)
        except OSError:
            pass

    async def _send_start(self, send: Send) -> None:
        if not self._has_started:
            self._has_started = True
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )

    async def _send_all(self, live: LiveRun, events: list[Event], send: Send) -> None:
        """Send events at once: a send for each of them would cost more than the events."""
        texts = [event_text(self._streams.id_of(live, each), each.name, each.data) for each in events]
        if texts:
            await self._send(send, b"".join(texts))

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        async with asyncio.timeout(self._streams.send_timeout):
            await send({"type": "http.response.body", "body": body, "more_body": more})


class _DiscardedError(Exception):
    """The events after the last one of a client are no longer available."""


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def owner_of(ctx: PipelineContext | StageContext | None) -> Owner:
    """Return the ids of the user of a run."""
    if isinstance(ctx, StageContext):
        ctx = ctx.run
    if ctx is None:
        return None, None
    return (
        None if ctx.user_id is None else str(ctx.user_id),
        None if ctx.org_id is None else str(ctx.org_id),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: object, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise invalid_argument("EventStreams", name, value, expected)
