"""The command lavt-serve: the live page and the HTTP API."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._base.exits import needs
from ..errors import LavtError
from .common import Device, out, warnings_as_lines

if TYPE_CHECKING:
    from ..serving.source import Source

serve_app = typer.Typer(add_completion=False)


@serve_app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or one of its image graphs (.engine, .onnx).")],
    source: Annotated[
        str | None,
        typer.Option(help="A camera's number, a video, a URL, a GStreamer pipeline, or a folder of images."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; 0.0.0.0 for the whole network, which needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The port to listen on; 0 takes any that is free.")
    ] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="LAVT_TOKEN", help="The secret that clients must send; safer in the environment, as LAVT_TOKEN."
        ),
    ] = None,
    device: Device = "auto",
    precision: Annotated[str | None, typer.Option(help="fp32, fp16 or int8; by default what suits the device.")] = None,
) -> None:
    """Serve a live page that segments what sentences refer to, and an HTTP API; Ctrl-C stops it."""
    with needs("serve"):
        from ..serving.app import make_app
        from ..serving.engine import Limits
        from ..serving.server import listening_on, run_server, until_stopped
    from ..runtime import Segmenter, TruncationWarning, UnknownWordsWarning

    limits = Limits()
    _check_token(host, token)
    with listening_on(host, port) as listener:
        with warnings_as_lines():
            segmenter = Segmenter.load(bundle, device=device, precision=precision)
        opened = _open_source(source)
        for said_by_answers in (TruncationWarning, UnknownWordsWarning):
            warnings.simplefilter("ignore", said_by_answers)
        app = make_app(segmenter, opened, host=host, token=token, limits=limits)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        port = listener.getsockname()[1]
        with until_stopped():
            out.print(f"http://{shown}:{port}  on {segmenter.device} {segmenter.precision}; Ctrl-C ends it")
            sys.stdout.flush()
            run_server(app, listener, limits)


def _check_token(host: str, token: str | None) -> None:
    from ..serving.guard import is_loopback

    if token is None and not is_loopback(host):
        raise LavtError(
            f"--host {host} can be reached from the network: "
            f"set a token, such as LAVT_TOKEN={secrets.token_urlsafe(18)}"
        )
    if token is not None and not re.fullmatch(r"[A-Za-z0-9._~\-]{16,128}", token):
        raise LavtError("the token must be 16 to 128 letters, digits and . _ ~ -")


def _open_source(text: str | None) -> Source | None:
    if text is None:
        return None
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what goes wrong is said in one line
    with needs("camera"):
        import cv2

        from ..serving.source import Source
    if hasattr(cv2.utils, "logging"):  # not in older releases
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return Source(text, as_live=True)
