"""lavt-serve against those who mean it no good: other sites, other hosts, no token, floods, and damaged requests."""

from __future__ import annotations

import hmac
import io
import json
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.data.shapes import scene_at
from lavt_edge.serving.guard import Guard, is_loopback
from lavt_edge.serving.metrics import Metrics
from lavt_edge.tests.served import Served, form, serve
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

TOKEN = "a-token.that_nobody~knows"
GUARDED = ("/v1/info", "/metrics", "/docs", "/openapi.json")
OPEN = ("/", "/app.js", "/style.css", "/v1/health")


def photo() -> bytes:
    file = io.BytesIO()
    Image.fromarray(scene_at(0, "val", 2).render()).save(file, "PNG")
    return file.getvalue()


PHOTO = photo()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images as a source; no camera is needed."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "a.png").write_bytes(PHOTO)
    return folder


@pytest.fixture(scope="module")
def served(demo_bundle: Path, clip: Path) -> Iterator[Served]:
    with serve(demo_bundle, "--source", str(clip)) as server:
        yield server


@pytest.fixture(scope="module")
def locked(demo_bundle: Path) -> Iterator[Served]:
    with serve(demo_bundle, "--host", "0.0.0.0", token=TOKEN) as server:
        yield server


def watch(server: Served, **options: Any) -> ClientConnection:
    return connect(f"ws://127.0.0.1:{server.port}/v1/live", max_size=None, **options)


def refused_watch(server: Served, headers: dict[str, str], origin: str | None = None) -> int:
    with pytest.raises(InvalidStatus) as refused, watch(server, additional_headers=headers, origin=origin):
        pass
    return int(refused.value.response.status_code)


# who may ask


@pytest.mark.parametrize("token", [None, "short", "sixteen letters!", "x" * 129])
def test_the_network_needs_a_good_token(token: str | None, demo_bundle: Path) -> None:
    with pytest.raises(AssertionError, match=r"error: .*token"), serve(demo_bundle, "--host", "0.0.0.0", token=token):
        pass


def test_it_listens_on_loopback_alone(served: Served) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    assert [row[1] for row in rows if row[1].endswith(f":{served.port:04X}") and row[3] == "0A"] == [
        f"0100007F:{served.port:04X}"
    ]
    assert [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "127.8.8.8")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "localhost.example", "")] == [False] * 5


@pytest.mark.parametrize("path", GUARDED)
def test_without_the_token_nothing_is_said(path: str, locked: Served) -> None:
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Cookie": "lavt_token="}):
        assert locked.ask("GET", path, headers=headers).status == 401
    assert locked.ask("GET", f"{path}?token={TOKEN}").status == 401, "a URL gets into logs"
    for headers in ({"Authorization": f"Bearer {TOKEN}"}, {"Cookie": f"a=b; lavt_token={TOKEN}"}):
        assert locked.ask("GET", path, headers=headers).status == 200


def test_segmenting_and_watching_need_the_token(locked: Served) -> None:
    assert locked.segment(PHOTO, "a dog").status == 401
    assert locked.segment(PHOTO, "a dog", Authorization=f"Bearer {TOKEN}").status == 200
    assert refused_watch(locked, {}) == 401
    with watch(locked, additional_headers={"Cookie": f"lavt_token={TOKEN}"}) as socket_:
        assert json.loads(socket_.recv(timeout=120))["ready"] == []
    assert [locked.ask("GET", path).status for path in OPEN] == [200] * len(OPEN)


def test_the_page_trades_the_token_for_a_cookie_that_no_script_reads(locked: Served) -> None:
    wrong = locked.ask("POST", "/v1/login", json.dumps({"token": "x" * 20}).encode())
    assert wrong.status == 401
    assert "set-cookie" not in wrong.headers
    for body in (b"", b"[]", b"{}", b'{"token": 7}', b'{"token": null}', b"\xff", b"[" * 1000):
        assert locked.ask("POST", "/v1/login", body).status == 422
    assert locked.ask("POST", "/v1/login", bytes(2000)).status == 413
    right = locked.ask("POST", "/v1/login", json.dumps({"token": TOKEN}).encode())
    cookie = right.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict"} <= set(re.split("; ?", cookie))
    assert locked.ask("GET", "/v1/info", headers={"Cookie": cookie.split(";")[0]}).status == 200


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    whole = hmac.compare_digest

    def noted(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return whole(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    guard = Guard(None, "0.0.0.0", TOKEN, Metrics(frozenset()))  # type: ignore[arg-type]
    assert [guard.knows(token) for token in (TOKEN, TOKEN[:-1], "", None, "ü")] == [True, False, False, False, False]
    assert len(compared) == 5


HOSTS = (
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "",
    "evil.example:7860",
    "a b",
    "[::1",
    "@",
)


@pytest.mark.parametrize("host", HOSTS)
def test_other_names_for_this_address_are_refused(host: str, served: Served, locked: Served) -> None:
    for server, headers in ((served, {}), (locked, {"Authorization": f"Bearer {TOKEN}"})):
        for method, path in (("GET", "/"), ("GET", "/v1/info"), ("POST", "/v1/segment"), ("GET", "/v1/live")):
            assert server.ask(method, path, headers={"Host": host, **headers}).status in (400, 421)
    if host and " " not in host:
        assert refused_watch(served, {"Host": host}) in (400, 421)


def test_own_names_are_not(served: Served, locked: Served) -> None:
    for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{served.port}", "[::1]:80"):
        assert served.ask("GET", "/", headers={"Host": host}).status == 200
    assert served.ask("GET", "/", headers={"Host": "192.168.1.2"}).status == 421, "it listens on loopback alone"
    for host in ("192.168.1.2:7860", "[fe80::1]:7860", socket.gethostname(), f"{socket.gethostname()}.local:7860"):
        assert locked.ask("GET", "/", headers={"Host": host}).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "https://[", "file://", "x"])
def test_pages_of_other_sites_are_refused(origin: str, served: Served) -> None:
    assert served.segment(PHOTO, "a dog", Origin=origin).status == 403
    assert served.ask("POST", "/v1/login", b"{}", {"Origin": origin}).status == 403
    assert refused_watch(served, {}, origin) == 403


def test_its_own_page_may_ask_and_watch(served: Served) -> None:
    assert served.segment(PHOTO, "a dog", Origin=served.url).status == 200
    with watch(served, origin=served.url) as socket_:
        assert json.loads(socket_.recv(timeout=120))["problems"] == {}


# what gets out, and what gets to the disk


def test_every_answer_keeps_to_itself(served: Served) -> None:
    for path in (*OPEN, *GUARDED, "/nothing"):
        headers = served.ask("GET", path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control") or name == "server"]


PATHS = (
    "/../lavt.json",
    "/..%2f..%2fetc/passwd",
    "//etc/passwd",
    "/page/index.html",
    "/static/../app.py",
    "/%00",
    "/.env",
)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_reaches_the_disk(path: str, served: Served) -> None:
    assert served.ask("GET", path).status == 404


def test_an_upload_is_not_written_to_the_disk(served: Served) -> None:
    body, kind = form(PHOTO + bytes(4 << 20), ["a dog"])
    descriptors = Path(f"/proc/{served.process.pid}/fd")
    with socket.create_connection(("127.0.0.1", served.port), timeout=120) as raw:
        head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-1])
        deadline = time.monotonic() + 1  # in which most of it has been taken
        while time.monotonic() < deadline:
            names = [os.readlink(one) for one in descriptors.iterdir() if one.is_symlink()]
            assert not [name for name in names if "(deleted)" in name or name.startswith("/tmp/tmp")]
            time.sleep(0.05)
        raw.sendall(body[-1:])
        assert raw.recv(100).startswith(b"HTTP/1.1 200 ")


def test_sentences_come_back_as_text(served: Served) -> None:
    markup = "<img src=x onerror=alert(1)>"
    answer = served.segment(PHOTO, markup)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["results"][0]["sentence"] == markup


# limits


def test_watchers_and_their_messages_are_limited(served: Served) -> None:
    limits = served.ask("GET", "/v1/info").json["limits"]
    with ExitStack() as stack:
        watching = [stack.enter_context(watch(served)) for _ in range(limits["watchers"])]
        assert refused_watch(served, {}) == 503
        watching[0].send("x" * (limits["message"] + 1))
        assert closed_with(watching[0]) == 1009


def closed_with(watching: ClientConnection) -> int | None:
    """The code with which the server ends the connection; 20 seconds are given."""
    try:
        while True:
            watching.recv(timeout=120)
    except ConnectionClosed as closed:
        return None if closed.rcvd is None else int(closed.rcvd.code)


@pytest.mark.parametrize(
    "message", ["", "{}", "[]", "null", '{"ack": 2}', '{"sentences": 1}', '{"sentences": [1]}', b"\0"]
)
def test_a_message_that_is_none_ends_the_connection(message: str | bytes, served: Served) -> None:
    with watch(served) as socket_:
        socket_.send(message)
        assert closed_with(socket_) == 1008


def test_connections_are_limited_and_idle_ones_end(demo_bundle: Path) -> None:
    with serve(demo_bundle, connections=20) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), timeout=120) for _ in range(30)]
        idle[0].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        deadline = time.monotonic() + 300
        while server.ask("GET", "/v1/health").status != 503:  # they have not all come yet
            assert time.monotonic() < deadline
        assert [raw.recv(1) for raw in idle] == [b""] * len(idle), "they did not come to a request"
        assert server.ask("GET", "/v1/health").status == 200
        for raw in idle:
            raw.close()


def test_sentences_of_all_watchers_are_limited(served: Served) -> None:
    with watch(served) as first, watch(served) as second:
        first.send(json.dumps({"sentences": [f"the object {i}" for i in range(6)]}))
        assert problems(first, 6) == {}
        second.send(json.dumps({"sentences": [f"the thing {i}" for i in range(4)] + ["", "x" * 500]}))
        said = problems(second, 4)
        assert sorted(said) == ["", "the thing 2", "the thing 3", "x" * 500]
        assert "8 sentences at once" in said["the thing 3"]


def problems(watching: ClientConnection, least: int) -> dict[str, str]:
    """What the server says of the sentences, once frames come with results for them."""
    said: dict[str, str] = {}
    while True:
        message = watching.recv(timeout=120)
        if isinstance(message, str):
            said = json.loads(message)["problems"]
            continue
        watching.send('{"ack": 1}')
        head = json.loads(message[4 : 4 + int.from_bytes(message[:4], "big")])
        if len(head["results"]) + sum("at once" in one for one in said.values()) >= least:
            return said


def test_a_watcher_that_takes_nothing_holds_up_nobody(served: Served) -> None:
    with watch(served) as slow, watch(served) as quick:
        for _ in range(4):  # one a second
            while isinstance(quick.recv(timeout=120), str):
                pass
            quick.send('{"ack": 1}')
        time.sleep(0.2)
        taken = 0
        while True:
            try:
                taken += isinstance(slow.recv(timeout=0.05), bytes)
            except TimeoutError:
                break
        assert taken <= 2, "frames are dropped, not queued"


# damaged requests


def mutated(dice: random.Random) -> bytes:
    """A request that is damaged: its bytes, its parts, its headers or its length."""
    image = bytearray(PHOTO)
    for _ in range(dice.choice((0, 1, 20))):
        image[dice.randrange(len(image))] = dice.randrange(256)
    sentences = [
        dice.choice(("a dog", "", "\0", "é" * 50, "x" * 401, "<b>", "\r\n--x")) for _ in range(dice.randrange(4))
    ]
    body, kind = form(bytes(image[: dice.choice((0, 10, len(image), len(image)))]), sentences)
    kind = dice.choice(
        (kind, kind, kind, "text/plain", "multipart/form-data", f"{kind}x", "multipart/form-data; boundary=")
    )
    path = dice.choice(("/v1/segment",) * 6 + ("/v1/login", "/v1/live", "/v1/info", "/metrics", "/%ff", "*"))
    method = dice.choice(("POST",) * 6 + ("GET", "PUT", "OPTIONS", "HEAD", "G\0T"))
    length = len(body) + dice.choice((0, 0, 0, 0, -1, -100, 1))
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {dice.choice(('localhost',) * 5 + ('', 'x'))}\r\nContent-Type: {kind}\r\n"
    )
    head += dice.choice(
        ("", "", "Upgrade: websocket\r\nConnection: Upgrade\r\n", "Accept: image/png\r\n", "Cookie: =;\r\n")
    )
    whole = bytearray(f"{head}Content-Length: {max(length, 0)}\r\nConnection: close\r\n\r\n".encode() + body)
    for _ in range(dice.choice((0, 0, 1, 5))):
        whole[dice.randrange(min(len(whole), 500))] = dice.randrange(256)
    return bytes(whole)


def status_of(port: int, request: bytes) -> int | None:
    """None: it was not answered, as an upload that does not end."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as raw:
        try:
            raw.sendall(request)
            raw.shutdown(socket.SHUT_WR)
            found = re.match(rb"HTTP/1\.1 (\d{3}) ", raw.recv(64))
        except ConnectionError:
            return None
    return int(found[1]) if found else None


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.stress)])
def test_damaged_requests_and_messages_do_no_harm(count: int, demo_bundle: Path, clip: Path) -> None:
    """`serve` checks that nothing was said on stderr, and that it ends as it should."""
    dice = random.Random(count)
    statuses = Counter[int | None]()
    with serve(demo_bundle, "--source", str(clip)) as server, watch(server) as watching:
        for number in range(count):
            statuses[status_of(server.port, mutated(dice))] += 1
            if number % 4 == 0:
                _send_damaged(server, dice)
        print(statuses)
        assert not {status for status in statuses if status is not None and status >= 500} - {503}
        assert {200, 400, 415, 422} <= set(statuses)
        assert statuses[None] < count / 4
        for _ in range(3):
            while isinstance(watching.recv(timeout=120), str):
                pass
            watching.send('{"ack": 1}')
        assert served_mask(server).any()


def _send_damaged(server: Served, dice: random.Random) -> None:
    text = bytearray(
        dice.choice((b'{"sentences": ["a dog", "the red circle"]}', b'{"ack": 1}', b'{"sentences": [""]}'))
    )
    for _ in range(dice.randrange(3)):
        text[dice.randrange(len(text))] = dice.randrange(32, 127)
    if dice.random() < 0.1:
        text *= 2000
    try:
        with watch(server) as socket_:
            socket_.send(text.decode() if dice.random() < 0.8 else bytes(text))
            socket_.recv(timeout=120)
    except (ConnectionClosed, OSError):
        pass
    except InvalidStatus as refused:  # those before are still being looked at
        if refused.response.status_code != 503:
            raise


def served_mask(server: Served) -> np.ndarray:
    sentence = scene_at(0, "val", 2).sentences()[0].text
    return np.asarray(Image.open(io.BytesIO(server.segment(PHOTO, sentence, Accept="image/png").body)))
