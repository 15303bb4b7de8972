"""Serves the web UI to a single user on the local machine."""

from __future__ import annotations

import contextlib
import errno
import getpass
import os
import socket
from collections.abc import Callable

import uvicorn

from ..errors import InvalidArgumentError
from ._app import WebUI
from ._page import require_asset
from ._security import LocalAccess

__all__ = ["serve", "tunnel_command"]

_SHUTDOWN_S = 2


def serve(
    journal: str | os.PathLike[str] | None = None,
    archive: str | os.PathLike[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    allow_actions: bool = False,
    started: Callable[[str], None] = print,
) -> None:
    """Serve the web UI until the process is interrupted.

    Args:
        journal: Directory of the journal; None for an archive without its journal.
        archive: Address of the archive; default the archive of the journal.
        host: Address to listen on; default 127.0.0.1, so that only this machine can connect.
        port: Port; 0 for any free port. Default 8765.
        allow_actions: Whether users can silence alerts; default False.
        started: Called with the URL, which contains the token, when the server accepts connections.

    Raises:
        InvalidArgumentError: The address cannot be used, for example because the port is in use.
        StageflowError: This installation does not contain the page.
    """
    require_asset("index.html")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        raise InvalidArgumentError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            hint="choose another port: --port 0 selects any free port" if is_port else None,
        ) from None
    app = WebUI(journal, archive, allow_actions=allow_actions)
    access = LocalAccess(app, hosts=(host, socket.gethostname()) if host not in ("127.0.0.1", "::1") else ())
    name = f"[{host}]" if ":" in host else "localhost" if host == "127.0.0.1" else host
    url = f"http://{name}:{listener.getsockname()[1]}/?token={access.token}"
    config = uvicorn.Config(
        access,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=_SHUTDOWN_S,
        ws="none",
    )
    server = _Server(config, on_start=lambda: started(url), on_exit=app.close)
    with contextlib.closing(listener):
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, *, on_start: Callable[[], None], on_exit: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._on_exit = on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_exit()
        await super().shutdown(sockets)


def tunnel_command(port: int) -> str:
    """Return the SSH command that forwards the port of the UI to another machine."""
    return f"ssh -L {port}:localhost:{port} {getpass.getuser()}@{socket.gethostname()}"
