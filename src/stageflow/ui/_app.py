"""The ASGI application: the routes of the web API, the event stream and the page."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import shlex
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Literal

import msgspec
from msgspec import Struct, structs
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .. import __version__
from .._decodable import decodable
from .._files import absolute_path
from ..errors import (
    InvalidArgumentError,
    QueryError,
    RunNotFoundError,
    StageflowError,
)
from ..store import PinnedStore
from ._api import CursorStatus, Problem, SilenceRequest, SnapshotInfo, SqlResult, Status, WriterStatus
from ._completions import complete
from ._details import run_details
from ._differences import differences
from ._execution import Executor, Replaced
from ._facets import facets
from ._groups import error_groups, stages
from ._heatmap import heatmap
from ._overview import causes, overview
from ._page import page_routes
from ._question import Question
from ._rows import NewestRuns, runs_in_progress, runs_page
from ._security import Protection, problem_response
from ._series import series
from ._snapshots import Snapshot, SnapshotGone, Snapshots
from ._status import (
    alerts_of,
    alerts_version,
    archive_of,
    cursors_of,
    damage_of,
    dropped_of,
    incidents_of,
    is_writing,
    silence,
    writers_of,
)
from ._streams import EventStream

__all__ = ["WebUI"]


log = logging.getLogger("stageflow.ui")

_LIVE_INTERVAL_S = 1.0
"""Seconds between two messages about the runs in progress."""

_WRITING_INTERVAL_S = 5.0
"""Seconds between two checks whether a process has the journal open for writing."""

_PING_S = 15

_MAX_BODY = 10_000
"""Maximum number of bytes of the body of a request."""

Answer = Callable[[PinnedStore, Question, Snapshot], Struct]

_HEAVY = {"overview", "causes", "facets", "differences", "run", "sql"}
"""Endpoints whose queries are expensive. The others do not need a permit."""


class WebUI:
    """The web UI over a journal and its archive, as an ASGI application.

    Args:
        journal: Directory of the journal; None for an archive without its journal.
        archive: Address of the archive; default the archive of the journal.
        memory: Memory limit of DuckDB for each snapshot; default "2GB".
        timeout: Maximum duration of a query, in seconds; default 60.
        allow_actions: Whether users can silence alerts; default False. Each silence records the authenticated
            user (`request.user`, see Starlette's `AuthenticationMiddleware`), or "local".

    Example:
        app.mount("/stageflow", stageflow.ui.asgi("journal"))
    """

    def __init__(
        self,
        journal: str | os.PathLike[str] | None = None,
        archive: str | os.PathLike[str] | None = None,
        *,
        memory: str = "2GB",
        timeout: float = 60.0,
        allow_actions: bool = False,
    ) -> None:
        self._allow_actions = allow_actions
        self._journal = absolute_path(journal) if journal is not None else None
        given = (("--journal", journal), ("--archive", archive))
        self._options = shlex.join(
            word for name, value in given if value is not None for word in (name, os.fspath(value))
        )
        open_store = functools.partial(PinnedStore, journal, archive, memory=memory, timeout=timeout)
        self._snapshots = Snapshots(open_store, self._has_changed)
        self._executor: Executor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._newest: dict[int, NewestRuns] = {}
        self._refreshing: asyncio.Task[None] | None = None
        self._streams: set[EventStream] = set()
        self._infos: dict[int, SnapshotInfo] = {}
        self._live, self._live_seen = b"", b""
        self._writing: bool | None = None
        self._app: ASGIApp = Starlette(
            routes=[
                Route("/api/snapshot", self._endpoint("snapshot", self._snapshot)),
                Route("/api/overview", self._endpoint("overview", self._overview)),
                Route("/api/causes", self._endpoint("causes", self._causes)),
                Route("/api/runs", self._endpoint("runs", self._runs)),
                Route("/api/live", self._live_runs),
                Route("/api/run", self._endpoint("run", _run)),
                Route("/api/heatmap", self._endpoint("heatmap", _with_number(heatmap))),
                Route("/api/series", self._endpoint("series", _with_number(series))),
                Route("/api/facets", self._endpoint("facets", _with_number(facets))),
                Route("/api/differences", self._endpoint("differences", _with_number(differences))),
                Route("/api/errors", self._endpoint("errors", _with_number(error_groups))),
                Route("/api/stages", self._endpoint("stages", _with_number(stages))),
                Route("/api/complete", self._endpoint("complete", _with_number(complete))),
                Route("/api/sql", self._endpoint("sql", _sql)),
                Route("/api/status", self._status),
                Route("/api/silence", self._silence, methods=["POST"]),
                Route("/api/stream", self._stream),
                *page_routes(),
            ],
            exception_handlers={Exception: _internal_error, 404: _not_found, 405: _not_found},
            middleware=[
                Middleware(Protection),
                Middleware(GZipMiddleware, minimum_size=1_000, compresslevel=4),
            ],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] == "http":
            self._start()
        await self._app(scope, receive, send)

    def _start(self) -> None:
        # A mounted application does not receive lifespan events.
        if self._loop is not asyncio.get_running_loop():
            # The first request, or the first one after an event loop ended.
            self._end_queries()
            self._loop = asyncio.get_running_loop()
            self._executor = Executor()
            self._streams = set()
            self._snapshots.use_running_loop()
            self._refreshing = None
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._keep_current())

    async def _keep_current(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._snapshots.keep_current())
                tasks.create_task(self._send_live_runs())
                tasks.create_task(self._send_writing())
        except asyncio.CancelledError:
            # The event loop ends; a thread with a long query would keep the process alive.
            self._loop = None
            self._end_queries()
            raise

    def _end_queries(self) -> None:
        self._snapshots.interrupt()
        if self._executor is not None:
            self._executor.close()

    def close(self) -> None:
        """End the event streams and the running queries, and close the databases."""
        for stream in self._streams:
            stream.end()
        if self._refreshing is not None:
            self._refreshing.cancel()
        self._end_queries()
        self._snapshots.close()

    # ------------------------------------------------------------ requests

    def _endpoint(self, name: str, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of an endpoint whose response depends on a snapshot and a question."""

        async def handle(request: Request) -> Response:
            try:
                question = Question.parse(request.query_params)
                body = await self._answer(request, name, answer, question)
            except Exception as error:
                problem = _problem(error)
                if problem.reason == "internal":
                    log.exception("request %s failed", request.url.path)
                return problem_response(problem)
            return Response(body, media_type="application/json")

        return handle

    async def _answer(self, request: Request, name: str, answer: Answer, question: Question) -> bytes:
        number = _snapshot_number(request)
        key = _key(name, question)
        if name == "snapshot":  # whether a process writes changes without a new snapshot
            key += f" {await asyncio.to_thread(is_writing, self._journal)}"
        if name in ("overview", "causes") and self._journal is not None:
            # Alerts change without a new snapshot.
            key += f" {await asyncio.to_thread(alerts_version, self._journal)}"
        while True:
            snapshot = await self._snapshots.get(number)
            assert self._executor is not None
            try:
                return await self._executor.execute(
                    snapshot,
                    key,
                    functools.partial(_encoded, answer, question, snapshot),
                    heavy=name in _HEAVY,
                    panel=request.headers.get("x-stageflow-panel"),
                    disconnected=functools.partial(_disconnected, request),
                )
            except SnapshotGone:
                # While the query waited for a permit, newer snapshots replaced this one.
                if number is not None:
                    raise

    def _runs(self, store: PinnedStore, question: Question, snapshot: Snapshot) -> Struct:
        newest = self._newest.get(snapshot.number)
        if newest is None:
            newest = NewestRuns(store)
            self._newest = {**self._newest, snapshot.number: newest}
        return newest.page(question, snapshot.number) or runs_page(store, question, snapshot.number)

    def _overview(self, store: PinnedStore, question: Question, snapshot: Snapshot) -> Struct:
        alerts, _ = alerts_of(self._journal)
        incidents = incidents_of(self._journal, since=question.since)
        return overview(store, question, snapshot.number, alerts, incidents)

    def _causes(self, store: PinnedStore, question: Question, snapshot: Snapshot) -> Struct:
        alerts, _ = alerts_of(self._journal)
        return causes(store, question, snapshot.number, alerts)

    def _snapshot(self, store: PinnedStore, question: Question, snapshot: Snapshot) -> SnapshotInfo:
        writing = is_writing(self._journal)
        if (known := self._infos.get(snapshot.number)) is not None:
            return structs.replace(known, writing=writing)
        query = """select count(*), min(started_at), max(started_at) from runs"""
        names = """select pipeline_name from runs where pipeline_name is not null
            group by 1 order by count(*) desc, 1 limit 200"""
        counted, pipelines = store.query(
            lambda cursor: (cursor.execute(query).fetchone(), cursor.execute(names).fetchall()), query
        )
        runs, first, last = counted or (0, None, None)
        info = SnapshotInfo(
            number=snapshot.number,
            read_at=snapshot.read_at,
            source=self._source(store),
            runs=int(runs),
            in_progress=self._count_in_progress(),
            writing=writing,
            pipelines=tuple(name for (name,) in pipelines),
            first_at=first.isoformat().replace("+00:00", "Z") if first is not None else None,
            last_at=last.isoformat().replace("+00:00", "Z") if last is not None else None,
            estimated=store.weighted,
            archive_error=str(store.archive_error) if store.archive_error is not None else None,
            version=__version__,
            options=self._options,
            actions=self._allow_actions and self._journal is not None,
        )
        self._infos = {snapshot.number: info}
        return info

    def _count_in_progress(self) -> int:
        try:
            return int(runs_in_progress(self._journal, 0).total or 0)
        except (OSError, StageflowError):
            return 0  # the snapshot stays available without its journal

    def _source(self, store: PinnedStore) -> str:
        return self._journal or store.archive.address

    async def _live_runs(self, request: Request) -> Response:
        try:
            snapshot = await self._snapshots.get()
            runs = await asyncio.to_thread(runs_in_progress, self._journal, snapshot.number)
        except Exception as error:
            return problem_response(_problem(error))
        return Response(msgspec.json.encode(runs), media_type="application/json")

    async def _status(self, request: Request) -> Response:
        try:
            snapshot = await self._snapshots.get()
            body = await asyncio.to_thread(self._read_status, snapshot)
        except Exception as error:
            return problem_response(_problem(error))
        return Response(body, media_type="application/json")

    def _read_status(self, snapshot: Snapshot) -> bytes:
        alerts, alerts_error = alerts_of(self._journal)
        assert self._executor is not None
        with snapshot.reading() as store:
            errors = [self._snapshots.error] if self._snapshots.error is not None else []
            writers: tuple[WriterStatus, ...] = ()
            cursors: tuple[CursorStatus, ...] = ()
            dropped = 0
            try:
                writers, cursors = writers_of(self._journal), cursors_of(self._journal)
                dropped = dropped_of(store)
            except (OSError, StageflowError) as error:
                errors.append(str(error))
            status = Status(
                snapshot=snapshot.number,
                source=self._source(store),
                alerts=alerts,
                incidents=incidents_of(self._journal),
                alerts_error=alerts_error,
                writers=writers,
                cursors=cursors,
                damage=tuple(dict.fromkeys((*errors, *damage_of(store, self._journal)))),
                dropped=dropped,
                archive=archive_of(store),
                age_s=time.monotonic() - snapshot.read_monotonic,
                viewers=len(self._streams),
                queries=self._executor.running,
                cache_bytes=self._executor.cache_bytes,
            )
        return msgspec.json.encode(status)

    async def _silence(self, request: Request) -> Response:
        if not self._allow_actions or self._journal is None:
            return problem_response(
                Problem(
                    title="Actions are not allowed.",
                    status=403,
                    hint="Start `stageflow ui --allow-actions`.",
                    reason="invalid",
                )
            )
        try:
            if request.headers.get("content-type") != "application/json":
                raise InvalidArgumentError("the content type must be application/json")
            wanted = msgspec.json.decode(await _body_of(request), type=decodable(SilenceRequest))
            await asyncio.to_thread(silence, self._journal, wanted, _user_of(request))
        except Exception as error:
            return problem_response(_problem(error))
        return await self._status(request)

    # ------------------------------------------------------------ event stream

    async def _stream(self, request: Request) -> Response:
        try:
            snapshot = await self._snapshots.get()
            info = await asyncio.to_thread(self._read_info, snapshot)
        except Exception as error:
            return problem_response(_problem(error))

        if request.method == "HEAD":  # the events would be sent to nobody, until the client disconnects
            return Response(media_type="text/event-stream")
        stream = EventStream()
        stream.send("snapshot", info)

        async def events() -> AsyncGenerator[ServerSentEvent]:
            if not self._streams:
                # Nobody has watched the runs in progress since the last stream ended.
                self._live, self._live_seen = b"", b""
            if self._live:
                stream.send("live", self._live)
            self._streams.add(stream)
            try:
                async for event in stream:
                    yield event
            finally:
                self._streams.discard(stream)

        return EventSourceResponse(events(), ping=_PING_S)

    def _read_info(self, snapshot: Snapshot) -> bytes:
        with snapshot.reading() as store:
            return msgspec.json.encode(self._snapshot(store, Question(), snapshot))

    def _has_changed(self, snapshot: Snapshot) -> None:
        self._newest = {
            number: kept for number, kept in self._newest.items() if number >= snapshot.number - 1
        }
        if self._streams:
            task = asyncio.create_task(self._announce(snapshot))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _announce(self, snapshot: Snapshot) -> None:
        self._writing = await asyncio.to_thread(is_writing, self._journal)
        self._send("snapshot", await asyncio.to_thread(self._read_info, snapshot))

    def _send(self, kind: str, data: bytes) -> None:
        for stream in self._streams:
            stream.send(kind, data)

    async def _send_writing(self) -> None:
        """Send the information about the snapshot again when the first process starts or the last ends."""
        while True:
            await asyncio.sleep(_WRITING_INTERVAL_S)
            if self._streams and await asyncio.to_thread(is_writing, self._journal) != self._writing:
                with contextlib.suppress(StageflowError, OSError):  # the next snapshot is being built
                    await self._announce(await self._snapshots.get())

    async def _send_live_runs(self) -> None:
        """Send the runs in progress to the event streams whenever they change."""
        while True:
            await asyncio.sleep(_LIVE_INTERVAL_S)
            if not self._streams or self._journal is None:
                continue
            self._snapshots.stay_awake()
            try:
                runs = await asyncio.to_thread(runs_in_progress, self._journal, 0)
            except (OSError, StageflowError) as error:
                # `/api/status` shows the error of the journal.
                log.debug("cannot read the runs in progress: %s", error)
                continue
            seen = msgspec.json.encode([(row.run_id, row.running) for row in runs.rows])
            if seen != self._live_seen:
                self._live_seen = seen
                self._live = msgspec.json.encode(runs)
                self._send("live", self._live)


def _encoded(answer: Answer, question: Question, snapshot: Snapshot, store: PinnedStore) -> bytes:
    return msgspec.json.encode(answer(store, question, snapshot))


def _with_number(answer: Callable[[PinnedStore, Question, int], Struct]) -> Answer:
    return lambda store, question, snapshot: answer(store, question, snapshot.number)


def _run(store: PinnedStore, question: Question, snapshot: Snapshot) -> Struct:
    return run_details(store, question.id or "last", snapshot.number, explain=question.explain)


def _sql(store: PinnedStore, question: Question, snapshot: Snapshot) -> Struct:
    if question.query is None:
        raise InvalidArgumentError("query is missing")
    began = time.monotonic()
    found = store.sql(question.query, limit=question.limit)
    return SqlResult(
        snapshot=snapshot.number,
        columns=tuple(found.columns),
        rows=tuple(tuple(map(_as_json, row)) for row in found.rows),
        more=found.more,
        ms=(time.monotonic() - began) * 1e3,
    )


def _as_json(value: object) -> object:
    """Return a value of a result, as text if JSON cannot represent it, such as a map with boolean keys."""
    if value is None or isinstance(value, str | int | float):
        return value
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)
    return value


def _snapshot_number(request: Request) -> int | None:
    text = request.query_params.get("snapshot", "")
    if not text:
        return None
    if text.isascii() and text.isdecimal():
        return int(text[:18])
    raise InvalidArgumentError("snapshot must be a number")


def _key(name: str, question: Question) -> str:
    return f"{name} {msgspec.json.encode(structs.asdict(question)).decode()}"


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise InvalidArgumentError(f"the body must not exceed {_MAX_BODY} bytes")
    return bytes(body)


def _user_of(request: Request) -> str:
    user = request.scope.get("user")
    name = getattr(user, "display_name", None) if getattr(user, "is_authenticated", False) else None
    return name if isinstance(name, str) and name else "local"


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _problem(error: Exception) -> Problem:
    hint = getattr(error, "hint", None)
    title = str(getattr(error, "message", None) or error)
    reason: Literal["replaced", "snapshot", "invalid", "timeout", "store", "internal"]
    if isinstance(error, Replaced):
        status, reason = 409, "replaced"
    elif isinstance(error, SnapshotGone):
        status, reason = 410, "snapshot"
    elif isinstance(error, RunNotFoundError):
        status, reason = 404, "invalid"
    elif isinstance(error, QueryError):
        status, reason = (504, "timeout") if title.startswith("no result within") else (400, "invalid")
        if title.startswith("interrupted: "):
            status, reason = 409, "replaced"
    elif isinstance(error, InvalidArgumentError | msgspec.MsgspecError):
        status, reason = 400, "invalid"
    elif isinstance(error, StageflowError | OSError):
        status, reason = 503, "store"
    else:
        status, reason, title, hint = (
            500,
            "internal",
            "The server could not process the request.",
            "See the server log.",
        )
    return Problem(title=title, status=status, hint=hint, reason=reason)


def _internal_error(request: Request, error: Exception) -> Response:
    return problem_response(_problem(error))


def _not_found(request: Request, error: Exception) -> Response:
    return problem_response(
        Problem(title=f"{request.url.path} does not exist.", status=404, reason="invalid")
    )
