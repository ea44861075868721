"""lavt-serve's HTTP API, asked over a socket: its masks are the runtime's, its schema is true, its queue is bounded."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import openapi_spec_validator
import pytest
from lavt_edge.data.shapes import scene_at
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.images.coco import run_lengths
from lavt_edge.serving.guard import Guard
from lavt_edge.serving.metrics import Metrics
from lavt_edge.tests.photos import oriented
from lavt_edge.tests.served import Answer, Served, form, serve
from PIL import Image
from pycocotools import mask as coco
from websockets.sync.client import connect

pytest.importorskip("openapi_spec_validator")

SCENE = scene_at(0, "val", 2)
SENTENCES = [sentence.text for sentence in SCENE.sentences()][:3]


def encoded(pixels: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    pixels.save(file, kind, **options)
    return file.getvalue()


def turned() -> bytes:
    """A JPEG that its EXIF block says to turn by 90 degrees, larger than the model."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(SCENE.render()).resize((417, 311)), "JPEG", exif=exif)


IMAGES = {
    "png": encoded(Image.fromarray(SCENE.render()), "PNG"),
    "turned": turned(),
    "small": encoded(Image.fromarray(SCENE.render()).resize((31, 57)), "PNG"),
    "grey": encoded(Image.fromarray(SCENE.render()).convert("L"), "TIFF"),
}


@pytest.fixture(scope="module")
def served(demo_bundle: Path) -> Iterator[Served]:
    with serve(demo_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def segmenter(demo_bundle: Path) -> Iterator[Segmenter]:
    with Segmenter.load(demo_bundle, device="cpu") as opened:
        yield opened


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_are_cocos(seed: int) -> None:
    dice = np.random.default_rng(seed)
    mask = dice.random(tuple(dice.integers(1, 200, 2))) < dice.choice([0, 0.001, 0.5, 0.999, 1])
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert run_lengths(mask) == expected["counts"].decode()


@pytest.mark.parametrize("name", IMAGES)
def test_masks_are_those_of_the_runtime(name: str, served: Served, segmenter: Segmenter) -> None:
    answer = served.segment(IMAGES[name], *SENTENCES)
    assert answer.status == 200, answer.body
    results = segmenter.segment(IMAGES[name], SENTENCES)
    assert [one["sentence"] for one in answer.json["results"]] == SENTENCES
    assert answer.json["image"] == {"width": results[0].width, "height": results[0].height}
    assert any(result.mask.any() for result in results)
    for one, result in zip(answer.json["results"], results, strict=True):
        assert np.array_equal(coco.decode(one["rle"]), result.mask)
        assert one["area"] == result.mask.sum() == coco.area(one["rle"])
        assert one["score"] == pytest.approx(result.score, abs=5e-5)
        box = coco.toBbox(one["rle"]).tolist()
        assert one["box"] == (box if result.mask.any() else None)
    png = served.segment(IMAGES[name], SENTENCES[0], Accept="image/png")
    assert png.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png.body))), results[0].mask * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_gives_the_masks_of_the_upright_one(orientation: int, served: Served) -> None:
    pixels = SCENE.render()[:200]  # not square: the sides change places
    upright = served.segment(encoded(Image.fromarray(pixels), "PNG"), *SENTENCES).json
    turned = served.segment(oriented(pixels, orientation), *SENTENCES).json
    assert turned["image"] == upright["image"] == {"width": 240, "height": 200}
    assert turned["results"] == upright["results"]
    assert any(one["area"] for one in upright["results"])


def test_the_schema_is_valid_and_answers_are_as_it_says(served: Served) -> None:
    schema = served.ask("GET", "/openapi.json").json
    openapi_spec_validator.validate(schema)

    def check(answer: Answer, path: str, method: str = "get") -> None:
        said = schema["paths"][path][method]["responses"][str(answer.status)]
        content = said["content"]["application/json"]["schema"]
        jsonschema.Draft202012Validator({**content, "components": schema["components"]}).validate(answer.json)

    check(served.segment(IMAGES["png"], *SENTENCES), "/v1/segment", "post")
    for answer, status in (
        (served.segment(b"no image", "a dog"), 422),
        (served.ask("POST", "/v1/segment", b"x", {"Content-Type": "multipart/form-data; boundary=b"}), 400),
        (served.ask("POST", "/v1/segment", b"{}", {"Content-Type": "application/json"}), 415),
        (served.segment(IMAGES["png"], "a dog", Host="other.example"), 421),
        (served.segment(IMAGES["png"], "a dog", Origin="http://other.example"), 403),
    ):
        assert answer.status == status
        check(answer, "/v1/segment", "post")
    check(served.ask("GET", "/v1/info"), "/v1/info")
    check(served.ask("GET", "/v1/health"), "/v1/health")
    assert served.ask("GET", "/v1/info").json["manifest"]["input"]["height"] == 240


def test_the_reference_page_needs_nobody_else(served: Served) -> None:
    page = served.ask("GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page.body.decode())) == {"/style.css", "/openapi.json", "/"}
    assert all(path in page.body.decode() for path in served.ask("GET", "/openapi.json").json["paths"])


@pytest.mark.parametrize(
    ("image", "sentences", "line"),
    [
        (b"", ["a dog"], "it is not an image that Pillow knows"),
        (IMAGES["png"][:200], ["a dog"], "cannot be read as an image"),
        (IMAGES["png"], [" "], "the sentence is empty"),
        (IMAGES["png"], ["x" * 401], "the sentence has 401 characters: give at most 400"),
        (IMAGES["png"], ["a"] * 9, "9 sentences: give at most 8"),
        (IMAGES["png"], [], "at least one text `sentence`"),
        (encoded(Image.new("1", (9000, 9000)), "PNG"), ["a dog"], "exceeds limit of 50000000 pixels"),
    ],
)
def test_what_cannot_be_used_is_said_in_a_line(image: bytes, sentences: list[str], line: str, served: Served) -> None:
    answer = served.segment(image, *sentences)
    assert answer.status == 422
    assert line in answer.json["error"]
    assert "\n" not in answer.json["error"]


def test_a_long_sentence_is_cut_and_a_png_is_of_one(served: Served) -> None:
    (result,) = served.segment(IMAGES["png"], "red " * 30).json["results"]
    assert "too long" in result["warning"]
    (result,) = served.segment(IMAGES["png"], "the red qwxyz").json["results"]
    assert result["warning"] == "the model does not know 'qwxyz'"
    assert served.segment(IMAGES["png"], "a", "b", Accept="image/png").status == 422


def test_uploads_over_the_limit_are_refused(served: Served) -> None:
    big = served.segment(bytes(17 << 20), "a dog")
    assert big.status == 413
    with socket.create_connection(("127.0.0.1", served.port), timeout=120) as raw:  # one that does not say its length
        raw.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n")
        raw.sendall(b"Content-Type: multipart/form-data; boundary=b\r\n\r\n")
        raw.sendall(
            b'7a\r\n--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'.ljust(126) + b"\r\n"
        )
        for _ in range(17):
            raw.sendall(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def begun_upload(port: int) -> socket.socket:
    """A request whose body does not end."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=120)
    body, kind = form(IMAGES["png"], ["a dog"])
    head = (
        f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    raw.sendall(head.encode() + body[:-1])
    return raw


def test_a_full_queue_says_when_to_come_again(served: Served) -> None:
    limit = served.ask("GET", "/v1/info").json["limits"]["queue"]
    waiting = [begun_upload(served.port) for _ in range(limit)]
    try:
        deadline = time.monotonic() + 300
        while (refused := served.segment(IMAGES["png"], "a dog")).status == 200:
            assert time.monotonic() < deadline
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert served.ask("GET", "/v1/health").status == 200
        waiting[0].sendall(b"\n")
        assert waiting[0].recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        for raw in waiting:
            raw.close()
    while served.segment(IMAGES["png"], "a dog").status != 200:
        assert time.monotonic() < deadline


def test_what_takes_too_long_is_answered(demo_bundle: Path) -> None:
    with serve(demo_bundle, seconds=0.5) as server, begun_upload(server.port) as raw:
        assert raw.recv(100).startswith(b"HTTP/1.1 408 ")
    with serve(demo_bundle, seconds=0.0) as server:
        assert server.ask("GET", "/v1/health").status == 200
        assert server.segment(IMAGES["png"], "a dog").status in (408, 504)


def test_many_clients_at_once_get_their_masks_or_503(served: Served, segmenter: Segmenter) -> None:
    expected = [run_lengths(result.mask) for result in segmenter.segment(IMAGES["png"], SENTENCES)]
    assert len(set(expected)) == len(expected)

    def client(number: int) -> Counter[int]:
        statuses = Counter[int]()
        for turn in range(3):
            which = (number + turn) % len(SENTENCES)
            answer = served.segment(IMAGES["png"], SENTENCES[which])
            statuses[answer.status] += 1
            if answer.status == 200:
                assert answer.json["results"][0]["rle"]["counts"] == expected[which]
        return statuses

    with ThreadPoolExecutor(64) as pool:
        total = sum(pool.map(client, range(64)), Counter())
    assert set(total) <= {200, 503}
    assert total.total() == 192
    assert total[200] >= 16


def test_metrics_count_what_was_answered(served: Served) -> None:
    def count(name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", served.ask("GET", "/metrics").body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    names = ['lavt_answers_total{path="/v1/segment",status="200"}', "lavt_segment_seconds_count"]
    names += ['lavt_segment_seconds_bucket{le="+Inf"}', 'lavt_answers_total{path="other",status="404"}']
    before = [count(name) for name in names]
    assert served.segment(IMAGES["png"], "a dog").status == 200
    assert served.ask("GET", "/nothing/here").status == 404
    assert [count(name) for name in names] == [value + 1 for value in before]


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly_while_it_works(ended_by: signal.Signals, demo_bundle: Path) -> None:
    with serve(demo_bundle) as server, begun_upload(server.port), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.segment, IMAGES["png"], *SENTENCES)
        assert asked.result().status == 200
        server.process.send_signal(ended_by)
        assert server.process.wait(timeout=120) == 0


def test_a_source_that_is_lost_is_told_and_looked_for_again(demo_bundle: Path, tmp_path: Path) -> None:
    """A folder whose only image goes away and comes back, as a camera's plug; a signal then frees the camera."""
    (tmp_path / "a.png").write_bytes(IMAGES["png"])
    with (
        serve(demo_bundle, "--source", str(tmp_path)) as server,
        connect(f"ws://127.0.0.1:{server.port}/v1/live", max_size=None) as watching,
    ):

        def until(wanted: Callable[[str | bytes], bool]) -> None:
            deadline = time.monotonic() + 300
            while not wanted(message := watching.recv(timeout=120)):
                assert time.monotonic() < deadline
                if isinstance(message, bytes):
                    watching.send('{"ack": 1}')

        until(lambda message: isinstance(message, bytes))
        (tmp_path / "a.png").unlink()
        until(lambda message: isinstance(message, str) and str(tmp_path) in message)
        assert str(tmp_path) in server.ask("GET", "/v1/health").json["source_problem"]
        assert server.segment(IMAGES["png"], "the red circle").status == 200
        (tmp_path / "a.png").write_bytes(IMAGES["small"])
        until(lambda message: isinstance(message, bytes) and b'"width": 31' in message[:200])
        assert server.ask("GET", "/v1/health").json["source_problem"] is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=120) == 0


def test_a_source_that_is_none_is_said_in_a_line(demo_bundle: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"error: no such video: nothing\.mp4"),
        serve(demo_bundle, "--source", "nothing.mp4"),
    ):
        pass


@pytest.mark.parametrize(
    "url", ["rtsp://user:se/c@ret@127.0.0.1:9/x", "http://127.0.0.1:9/x?user=a&password=se/c@ret", "rtsp://ret@[::1]:9"]
)
def test_passwords_of_a_camera_are_not_told(url: str) -> None:
    pytest.importorskip("cv2")
    from lavt_edge.serving.source import Source, SourceError

    with pytest.raises(SourceError, match="OpenCV cannot open it") as refused:
        Source(url, as_live=True)
    assert str(refused.value).startswith(f"{url.split('//')[0]}//...: ")


def test_an_error_of_ours_is_one_line_and_the_server_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    async def broken(scope: object, receive: object, send: object) -> None:
        raise KeyError("two\nlines")

    guard = Guard(broken, "localhost", None, Metrics(frozenset()))
    scope = {"type": "http", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(guard(scope, None, None))  # type: ignore[arg-type]
    said = capsys.readouterr().err
    assert said.startswith("error: this is a bug in lavt-edge (KeyError")
    assert said.count("\n") == 1


def test_a_port_that_is_taken_is_said_in_a_line(served: Served, demo_bundle: Path) -> None:
    with (
        pytest.raises(AssertionError, match=rf"127.0.0.1, port {served.port} \(Address already in use\): give"),
        serve(demo_bundle, port=served.port),
    ):
        pass


def test_json_is_finite_and_small(served: Served) -> None:
    body = served.segment(IMAGES["turned"], *SENTENCES).body
    assert len(body) < 20_000
    json.loads(body, parse_constant=pytest.fail)


def test_commands_of_the_page(demo_bundle: Path, tmp_path: Path) -> None:
    """Those of docs/serve.md that need no other machine, on a folder of images for a camera, at a port that is free."""
    page = (Path(__file__).parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
    block = re.compile(r"<!-- run by tests/test_serve.py::test_commands_of_the_page -->\n```sh\n(.*?)```", re.DOTALL)
    start, asked = (found.strip().splitlines() for found in block.findall(page))
    assert start == ["lavt-serve bundle --source 0"]
    (tmp_path / "photo.jpg").write_bytes(encoded(Image.fromarray(SCENE.render()), "JPEG"))
    with serve(demo_bundle, "--source", str(tmp_path)) as server:
        printed = []
        for line in asked:
            command = line.replace("127.0.0.1:7860", f"127.0.0.1:{server.port}").replace("curl", "curl --silent", 1)
            done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
    (result,) = json.loads(printed[0])["results"]
    shown = json.loads(page.split("```json\n")[1].split("```")[0])
    assert set(shown["results"][0]) == set(result)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert np.array_equal(mask == 255, coco.decode(result["rle"]))
    assert json.loads(printed[2])["status"] == "ok"


def test_limits_on_the_page_are_those_of_the_code(served: Served) -> None:
    page = (Path(__file__).parent.parent / "docs" / "serve.md").read_text(encoding="utf-8")
    limits = served.ask("GET", "/v1/info").json["limits"]
    for text in (
        f"over {limits['upload'] >> 20} MB",
        f"{limits['pixels'] // 1_000_000} million pixels",
        f"{limits['queue']} requests",
        f"over {limits['seconds']:g} seconds",
        f"Connections ({limits['connections']})",
        f"watching pages ({limits['watchers']})",
        f"messages ({limits['message'] >> 10} KB)",
    ):
        assert text in " ".join(page.split()), text
