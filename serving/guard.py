"""Who may ask: the right Host and Origin, the token where one is needed; and the headers that keep a page to itself."""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import socket
import sys
import traceback
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from .._base.exits import TRACEBACK, describe
from .metrics import Metrics

COOKIE = "lavt_token"
# What a browser needs to ask for the token, and what says nothing.
OPEN = frozenset(("/", "/app.js", "/style.css", "/favicon.svg", "/v1/login", "/v1/health"))
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """The ASGI application, behind the checks; counts what it answers."""

    def __init__(self, app: ASGIApp, host: str, token: str | None, metrics: Metrics) -> None:
        self._app, self._token, self._metrics = app, token, metrics
        self._any_address = not is_loopback(host)
        self._names = set(_LOOPBACK_NAMES) | {host.lower()}
        if self._any_address:
            name = socket.gethostname().lower()
            self._names |= {name, f"{name}.local"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(HTTPConnection(scope))

        async def answer(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self._metrics.count_answer(scope["path"], message["status"])
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if refusal is None:
            await self._run(scope, receive, answer)
        elif scope["type"] == "websocket":
            await WebSocket(scope, receive, answer).send_denial_response(refusal)
        else:
            await refusal(scope, receive, answer)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An error of ours is answered with 500, and told in a line; the server goes on."""
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            pass
        except Exception as error:
            if os.environ.get(TRACEBACK, "0") not in ("", "0"):
                traceback.print_exception(error)
            print(describe(error)[1], file=sys.stderr, flush=True)

    def _refusal(self, asked: HTTPConnection) -> JSONResponse | None:
        host = asked.headers.get("host", "")
        if not self._is_ours(host):  # a name of others that points here: DNS rebinding
            return _refused(421, f"the Host {host[:80]!r} is not this server's: use its address, or the name in --host")
        origin = asked.headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return _refused(403, "a page of another site may not ask here")
        if self._token is None or asked.scope["path"] in OPEN or self.knows(_given_token(asked)):
            return None
        return _refused(401, "give the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _is_ours(self, host: str) -> bool:
        if not re.fullmatch(r"[\w.\-\[\]:]+", host):
            return False
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._names:
                return True
            ipaddress.ip_address(name)  # which no other site's name can be
        except ValueError:
            return False
        return self._any_address

    def knows(self, token: str | None) -> bool:
        """Compares in constant time."""
        return self._token is not None and hmac.compare_digest((token or "").encode(), self._token.encode())


def _netloc(origin: str) -> str | None:
    """Host and port of an Origin; None for `null` and what is none."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _given_token(asked: HTTPConnection) -> str | None:
    kind, _, token = asked.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else asked.cookies.get(COOKIE)


def _refused(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": line}, status, headers)
