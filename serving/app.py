"""The routes: the page, its WebSocket, and the API that `page/openapi.json` describes."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket, WebSocketDisconnect

from .._base import strict_json
from .._base.records import to_plain
from ..errors import PromptError
from ..runtime import Segmenter
from .engine import Engine, Limits, check_sentence, segment, segment_png
from .guard import COOKIE, Guard
from .live import Live, Watcher
from .metrics import Metrics
from .reference import reference_page

if TYPE_CHECKING:
    from .source import Source

PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"),
    "/app.js": ("app.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
}
_LOGIN_BYTES = 1024


class _App:
    """The handlers, over one segmenter and perhaps one source."""

    def __init__(self, segmenter: Segmenter, source: Source | None, token: str | None, limits: Limits) -> None:
        schema = json.loads((PAGE / "openapi.json").read_bytes())
        schema["info"]["version"] = version("lavt-edge")
        fixed = {path: Response((PAGE / name).read_bytes(), media_type=kind) for path, (name, kind) in _FILES.items()}
        fixed |= {"/openapi.json": JSONResponse(schema), "/docs": HTMLResponse(reference_page(schema))}
        self.routes = [
            *(Route(path, answer, methods=["GET"]) for path, answer in fixed.items()),
            Route("/metrics", self.show_metrics),
            Route("/v1/health", self.health),
            Route("/v1/info", self.info),
            Route("/v1/login", self.login, methods=["POST"]),
            Route("/v1/segment", self.segment, methods=["POST"]),
            WebSocketRoute("/v1/live", self.watch),
        ]
        self.metrics = Metrics(frozenset(str(getattr(route, "path", "")) for route in self.routes))
        self._engine = Engine(segmenter, limits)
        self._live = Live(segmenter, source, self.metrics, limits)
        self._source_kind = None if source is None else source.kind
        self._segmenter, self._token, self._limits = segmenter, token, limits

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._live.start()
        yield
        self._live.stop()
        self._engine.close()

    async def show_metrics(self, _: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "source_problem": self._live.problem})

    async def info(self, _: Request) -> Response:
        segmenter = self._segmenter
        return JSONResponse(
            {
                "version": version("lavt-edge"),
                "device": segmenter.device,
                "precision": segmenter.precision,
                "runtime": segmenter.runtime,
                "files": list(segmenter.files),
                "source": self._source_kind,
                "limits": to_plain(self._limits),
                "manifest": to_plain(segmenter.manifest),
            }
        )

    async def login(self, request: Request) -> Response:
        """Puts the token into a cookie that no script reads, and no other site's page sends."""
        body = b"".join([part async for part in self._at_most(request, _LOGIN_BYTES)])
        try:
            given = strict_json.loads(body)["token"].encode()
        except (ValueError, TypeError, KeyError, AttributeError):
            raise HTTPException(422, 'expected {"token": "..."}') from None
        if self._token is None or not hmac.compare_digest(given, self._token.encode()):
            raise HTTPException(401, "that is not the token")
        answer = JSONResponse({"status": "ok"})
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", secure=secure)
        return answer

    async def segment(self, request: Request) -> Response:
        started = time.perf_counter()
        with self._engine.slot():
            image, sentences = await self._read_form(request)
            if "image/png" in request.headers.get("accept", ""):
                if len(sentences) != 1:
                    raise HTTPException(422, f"{len(sentences)} sentences: a PNG shows the mask of one")
                answer = Response(await self._engine.run(segment_png, image, sentences[0]), media_type="image/png")
            else:
                answer = JSONResponse(await self._engine.run(segment, image, sentences, started))
        self.metrics.time_answer(time.perf_counter() - started)
        return answer

    async def _read_form(self, request: Request) -> tuple[bytes, list[str]]:
        """The image's bytes and the sentences; nothing of it is written to the disk."""
        limits = self._limits
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
            raise HTTPException(415, "send multipart/form-data with the parts `image` and `sentence`")
        parser = MultiPartParser(
            request.headers,
            self._at_most(request, limits.upload),
            max_files=1,
            max_fields=4 * limits.sentences,
            max_part_size=limits.message,
        )
        parser.spool_max_size = limits.upload + 1
        try:
            form = await asyncio.wait_for(parser.parse(), limits.seconds)
        except (MultiPartException, FormParserError) as error:
            raise HTTPException(400, f"the form cannot be read: {' '.join(str(error).split())}") from None
        except asyncio.TimeoutError:
            raise HTTPException(408, f"the upload did not come within {limits.seconds:g} seconds") from None
        try:
            return await _checked_form(form, limits)
        finally:
            await form.close()

    async def _at_most(self, request: Request, limit: int) -> AsyncGenerator[bytes, None]:
        """The body in parts. Raises HTTPException 413 if it is longer than `limit` bytes."""
        length, line = 0, f"more than {limit} bytes: make the image smaller"
        said = request.headers.get("content-length", "0")
        if said.isdigit() and int(said[:20]) > limit:
            raise HTTPException(413, line)
        async for part in request.stream():
            length += len(part)
            if length > limit:
                raise HTTPException(413, line)
            yield part

    async def watch(self, socket: WebSocket) -> None:
        """Frames and the sentences' state out, sentences and acknowledgements in; see `Live.take_message`."""
        if len(self._live.watchers) >= self._limits.watchers:
            await socket.send_denial_response(JSONResponse({"error": "too many pages are open: close one"}, 503))
            return
        watcher = Watcher()
        self._live.join(watcher)
        try:
            await socket.accept()
            sender = asyncio.ensure_future(self._send(socket, watcher))
            try:
                await self._receive(socket, watcher)
            finally:
                sender.cancel()
                await asyncio.wait([sender])
        except (WebSocketDisconnect, RuntimeError):
            pass
        finally:
            self._live.leave(watcher)

    async def _receive(self, socket: WebSocket, watcher: Watcher) -> None:
        while True:
            message = await socket.receive()
            if message["type"] != "websocket.receive":
                return
            try:
                await self._live.take_message(watcher, message.get("text") or "")
            except ValueError:
                await socket.close(1008, "not understood")
                return

    async def _send(self, socket: WebSocket, watcher: Watcher) -> None:
        """A watcher that does not take a message in time is let go."""
        while True:
            message = await watcher.next_message(self._live.problem)
            send = socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
            try:
                await asyncio.wait_for(send, self._limits.seconds)
            except (asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
                return


async def _checked_form(form: FormData, limits: Limits) -> tuple[bytes, list[str]]:
    image = form.get("image")
    sentences = [text for text in form.getlist("sentence") if isinstance(text, str)]
    if not isinstance(image, UploadFile) or not sentences or {*form} != {"image", "sentence"}:
        raise HTTPException(422, "send a file `image` and at least one text `sentence`, nothing else")
    if len(sentences) > limits.sentences:
        raise HTTPException(422, f"{len(sentences)} sentences: give at most {limits.sentences}")
    for text in sentences:
        check_sentence(text, limits)
    return await image.read(), sentences


def make_app(
    segmenter: Segmenter, source: Source | None, *, host: str, token: str | None, limits: Limits | None = None
) -> ASGIApp:
    """The ASGI application; it closes the segmenter and the source when it is shut down."""
    app = _App(segmenter, source, token, limits or Limits())

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    async def refuse_sentence(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 422)

    inner = Starlette(
        routes=app.routes,
        lifespan=app.lifespan,
        exception_handlers={HTTPException: refuse, PromptError: refuse_sentence},
    )
    return Guard(inner, host, token, app.metrics)
