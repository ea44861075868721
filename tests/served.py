"""A lavt-serve in a process of its own, as a user starts it, and what asks it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOUNDARY = "lavt-boundary"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Served:
    """A server that runs; `ask` makes one request on a connection of its own."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def segment(self, image: bytes, *sentences: str, **headers: str) -> Answer:
        body, kind = form(image, sentences)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", "/v1/segment", body, {"Content-Type": kind, **named})


def form(image: bytes, sentences: Sequence[str]) -> tuple[bytes, str]:
    """The body of a multipart form, and its content type."""
    parts = [_part('name="image"; filename="../../etc/passwd"', image)]
    parts += [_part('name="sentence"', text.encode()) for text in sentences]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def _part(disposition: str, content: bytes) -> bytes:
    return f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"


@contextmanager
def serve(bundle: Path, *options: str, port: int = 0, token: str | None = None, **limits: float) -> Iterator[Served]:
    """Starts it, waits for its line, and ends it with Ctrl-C; it must then end with 0 and have said nothing else."""
    narrowed = f"import functools, lavt_edge.serving.engine as e; e.Limits = functools.partial(e.Limits, **{limits})"
    code = f"{narrowed}; from lavt_edge.cli import serve_main; serve_main()"
    command = [sys.executable, "-c", code, str(bundle)]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--device", "cpu", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **({} if token is None else {"LAVT_TOKEN": token})},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"http://\S+:(\d+) ", line)
    assert found, process.communicate()[1]
    try:
        yield Served(process, int(found[1]))
    except BaseException:
        process.kill()
        print(process.communicate()[1], file=sys.stderr)
        raise
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    said, problems = process.communicate(timeout=120)
    assert (process.returncode, said, problems) == (0, "", ""), problems
