"""How the application listens: uvicorn on a socket of ours, with limits, ended by Ctrl-C or SIGTERM."""

from __future__ import annotations

import logging
import signal
import socket
import warnings
from asyncio import BaseTransport
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from PIL import Image
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import LavtError
from .engine import Limits

_REQUEST_SECONDS = 10.0  # in which a request's headers must come
_GOODBYE_SECONDS = 3


class _Protocol(H11Protocol):
    """Lets go of connections that do not come to a request."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(_REQUEST_SECONDS, self._watch, None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._timer.cancel()  # it would keep the request for as long

    def _watch(self, before: object) -> None:
        """`before` is the request that was the last one at the call before if it had ended then, else the protocol."""
        transport: BaseTransport = self.transport
        if transport.is_closing() or transport.get_protocol() is not self:  # closed, or a WebSocket by now
            return
        idle = self.cycle is None or self.cycle.response_complete
        if idle and before is self.cycle:
            transport.close()
        else:
            self._timer = self.loop.call_later(_REQUEST_SECONDS, self._watch, self.cycle if idle else self)


@contextmanager
def listening_on(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens. Raises LavtError in a line."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        why = (error.strerror or "").partition(" (while")[0]
        raise LavtError(f"cannot listen on {host}, port {port} ({why}): give another --host or --port") from error
    with listener:
        yield listener


@contextmanager
def until_stopped() -> Iterator[None]:
    """Ctrl-C and SIGTERM are how a server ends, and no errors; uvicorn raises them again when it has ended."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        yield


def run_server(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Serves until a signal ends it."""
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2  # Pillow refuses twice as many
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # who sent a damaged form is told
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="websockets-sansio",
        ws_max_size=limits.message,
        ws_per_message_deflate=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
        log_level="critical",  # the guard says what goes wrong
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[listener])
