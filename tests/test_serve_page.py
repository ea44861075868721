"""lavt-serve's page in a real browser: masks that follow what moves, photos, saving, a server that comes back."""

from __future__ import annotations

import base64
import io
import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from lavt_edge.data.shapes import scene_at
from lavt_edge.runtime import Segmenter
from lavt_edge.tests.browser import Browser
from lavt_edge.tests.browser import browser as browser  # a fixture
from lavt_edge.tests.example_runs import example as example  # a fixture
from lavt_edge.tests.served import Served, serve
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

Mask = NDArray[np.bool_]
SCENE = scene_at(0, "val", 2)
ACCEPTED = 0.7
PATIENCE = 120.0
# What is drawn in a colour, of the picture's own size, as a text of 0 and 1.
DRAWN = """(colour => {
  const scale = view.width / shown.width, [red, green, blue] = rgb(colour);
  const copy = new OffscreenCanvas(view.width, view.height).getContext("2d", {willReadFrequently: true});
  copy.drawImage(view, 0, 0);
  const {data} = copy.getImageData(0, 0, view.width, view.height);
  let mask = "";
  for (let y = 0; y < shown.height; y++) for (let x = 0; x < shown.width; x++) {
    const at = 4 * (Math.floor((y + 0.5) * scale) * view.width + Math.floor((x + 0.5) * scale));
    mask += +(Math.abs(data[at] - red) + Math.abs(data[at + 1] - green) + Math.abs(data[at + 2] - blue) < 24);
  }
  return JSON.stringify([shown.height, shown.width, mask]);
})"""


# Texts and contrasts of the buttons that can be pressed and are hard to read.
FAINT = """(() => {
  const pixel = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
  const light = (colours) => {
    for (const colour of colours) { pixel.fillStyle = colour; pixel.fillRect(0, 0, 1, 1); }
    const [red, green, blue] = [...pixel.getImageData(0, 0, 1, 1).data].map(
      (value) => (value / 255 <= 0.04045 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
  };
  return [...document.querySelectorAll("button:enabled")].filter((one) => one.checkVisibility()).map((one) => {
    const {color, backgroundColor} = getComputedStyle(one);
    const under = getComputedStyle(one.closest(".card, .stage") ?? document.body).backgroundColor;
    const both = [light([under, backgroundColor]), light([under, backgroundColor, color])];
    return [one.textContent.trim() || one.title, Math.max(...both) / Math.min(...both)];
  }).filter(([, contrast]) => contrast < 4.5);
})()"""


def photo() -> bytes:
    file = io.BytesIO()
    Image.fromarray(SCENE.render()).save(file, "PNG")
    return file.getvalue()


@dataclass(frozen=True)
class Page:
    """The page in the browser, on a server that shows a clip whose truth is known."""

    browser: Browser
    served: Served
    clip: Path
    truth: dict[str, Mask]

    def until(self, expression: str) -> Any:
        """The expression's value once it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.browser.value(expression)):
            said = self.browser.value("banner.textContent")
            assert time.monotonic() < deadline, f"{expression} stays {value}; {said}"
            time.sleep(0.05)
        return value

    def open(self, url: str = "", width: int = 1280, dark: bool = False) -> None:
        """The page as at a first visit, with masks drawn so that they can be read."""
        self.browser.show(f"{url or self.served.url}/", width, dark)
        self.browser.value("keep = () => {}; localStorage.clear()")
        self.browser.show(f"{url or self.served.url}/", width, dark)

    def draw_plainly(self) -> None:
        self.browser.value("$('opacity').value = 100")
        for name in ("outline", "labels"):
            self.click(f"[data-draw={name}]")

    def click(self, selector: str) -> None:
        assert self.browser.value(f"document.querySelector({json.dumps(selector)})?.click() ?? true") is True

    def type(self, text: str) -> None:
        """Into the field for sentences, by keys; Enter adds it."""
        if self.browser.value("document.activeElement.id") != "sentence":
            self.press("/", "Slash")
        assert self.browser.value("document.activeElement.id") == "sentence"
        self.browser.call("Input.insertText", text=text)
        self.press("\r", "Enter")

    def press(self, text: str, code: str) -> None:
        key = "Enter" if code == "Enter" else text
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if kind == "keyDown" else {}
            self.browser.call(
                "Input.dispatchKeyEvent", type=kind, key="/" if code == "Slash" else key, code=code, **more
            )

    def give(self, event: str, content: bytes | None = None) -> None:
        """Drops or pastes the photo, or a file that says it is one."""
        data = base64.b64encode(content or photo()).decode()
        kind, field = {"drop": ("DragEvent", "dataTransfer"), "paste": ("ClipboardEvent", "clipboardData")}[event]
        self.browser.value(f"""(() => {{
            const held = new DataTransfer();
            const bytes = Uint8Array.from(atob("{data}"), one => one.charCodeAt(0));
            held.items.add(new File([bytes], "a.png", {{type: "image/png"}}));
            document.body.dispatchEvent(new {kind}("{event}", {{{field}: held, bubbles: true, cancelable: true}}));
        }})()""")

    def drawn(self, number: int) -> Mask:
        """What the canvas shows in the colour of the chip of this number."""
        height, width, mask = json.loads(self.browser.value(f"{DRAWN}(chips[{number}].colour)"))
        return np.array(list(mask)).reshape(height, width) == "1"

    def masked(self, sentence: str) -> str:
        """An expression that is true once the sentence has a mask."""
        return f"Boolean(shown?.results.find(one => one.sentence === {json.dumps(sentence)} && one.box))"


def iou(mask: Mask, truth: Mask) -> NDArray[np.float64]:
    """Of a mask (H, W) with each of (n, H, W)."""
    return (mask & truth).sum((1, 2)) / np.maximum((mask | truth).sum((1, 2)), 1)


@pytest.fixture(scope="module")
def page(
    browser: Browser, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory, clips: ModuleType
) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    clip = clips.make_clip(0, 96)  # of as many frames the demo model masks every one, with an IoU over 0.91
    clips.write_clip(path, clip.frames)
    with serve(demo_bundle, "--source", str(path)) as server:
        yield Page(browser, server, path, clip.truth)
        browser.call("Page.navigate", url="about:blank")


@pytest.fixture(scope="module")
def clips() -> Iterator[ModuleType]:
    load = example.__wrapped__()  # type: ignore[attr-defined]
    yield next(load)("generate_clip")
    next(load, None)


def test_masks_follow_what_sentences_name(page: Page) -> None:
    page.open()
    page.until("$('empty').hidden")
    page.draw_plainly()
    first, second = list(page.truth)[:2]
    page.type(first)
    page.until(page.masked(first))
    found: set[int] = set()
    deadline = time.monotonic() + PATIENCE
    while len(found) < 3:
        assert time.monotonic() < deadline, "the mask does not move"
        scores = iou(page.drawn(0), page.truth[first])
        assert scores.max() > ACCEPTED
        found.add(int(scores.argmax()))
        time.sleep(0.2)
    page.type(second)
    page.until(page.masked(second))
    assert iou(page.drawn(1), page.truth[second]).max() > ACCEPTED
    assert not iou(page.drawn(1), page.truth[first]).max() > 0.1
    page.click(".chip .remove")
    page.until(f"shown.results.length === 1 && chips.length === 1 && !({page.masked(first)})")
    assert iou(page.drawn(0), page.truth[second]).max() > ACCEPTED
    assert page.browser.value("document.querySelectorAll('.chip').length") == 1
    assert page.browser.problems(page.served.url) == []


@pytest.mark.parametrize("given", ["drop", "paste"])
def test_a_photo_is_segmented_and_its_mask_saved(given: str, page: Page, demo_bundle: Path, tmp_path: Path) -> None:
    page.open()
    sentence = SCENE.sentences()[0]
    page.draw_plainly()
    page.type(sentence.text)
    page.give(given)
    page.until(f"mode === 'photo' && shown.width === 240 && {page.masked(sentence.text)}")
    truth = SCENE.masks()[sentence.object_index]
    assert iou(page.drawn(0), truth[None]).max() > ACCEPTED
    page.browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click(".chip .save")
    page.click("#save-coco")
    page.click("#save-picture")
    deadline = time.monotonic() + PATIENCE
    while len([path for path in tmp_path.iterdir() if path.suffix in (".png", ".json")]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with Segmenter.load(demo_bundle, device="cpu") as segmenter:
        expected = segmenter.segment(photo(), sentence.text)
    (mask,) = [path for path in tmp_path.glob("*.png") if path.name != "picture.png"]
    assert np.array_equal(np.asarray(Image.open(mask).convert("L")), expected.mask * np.uint8(255))
    (annotation,) = json.loads((tmp_path / "masks.coco.json").read_bytes())["annotations"]
    assert np.array_equal(coco.decode(annotation["segmentation"]), expected.mask)
    assert annotation["score"] == pytest.approx(expected.score, abs=5e-5)
    assert Image.open(tmp_path / "picture.png").size == (960, 960)
    assert page.browser.problems(page.served.url) == []


def test_problems_of_a_sentence_stand_at_its_chip_as_text(page: Page) -> None:
    page.open()
    page.type(" ")
    assert "Type what to find" in page.browser.value("$('hint').textContent")
    markup = "<img src=x onerror=alert(1)> red circle"
    for text in (markup, "red " * 40):
        page.type(text)
    assert "too long" in page.until("document.querySelectorAll('.chip .problem')[1].textContent")
    page.browser.value("chips[1].item.querySelector('.text').value = ''")
    page.browser.value("chips[1].item.querySelector('.text').dispatchEvent(new Event('change'))")
    page.until("document.querySelector('.chip.refused .problem')?.textContent.includes('the sentence is empty')")
    assert page.browser.value("chips[0].item.querySelector('.text').value") == markup
    assert page.browser.value("document.querySelectorAll('main img').length") == 0
    assert page.browser.problems(page.served.url) == []


def test_freezing_stops_the_picture_and_the_frames(page: Page) -> None:
    page.open()
    page.until("shown && Boolean(window.before = shown.bitmap)")
    page.until("shown.bitmap !== window.before")
    page.press(" ", "Space")
    assert page.browser.value("frozen") is True
    page.browser.value("window.before = shown.bitmap")
    time.sleep(1)
    assert page.browser.value("[shown.bitmap === window.before, owed <= 2]") == [True, True]
    page.press(" ", "Space")
    page.until("shown.bitmap !== window.before")


def test_sentences_are_tried_on_a_frozen_picture(page: Page) -> None:
    page.open()
    page.until("shown")
    page.draw_plainly()
    page.click("#freeze")
    first = next(iter(page.truth))
    page.type(first)
    page.until(page.masked(first))
    assert page.browser.value("frozen") is True
    assert iou(page.drawn(0), page.truth[first]).max() > ACCEPTED
    page.click(".chip .remove")
    page.until("shown.results.length === 0")
    page.click("#freeze")
    page.browser.value("window.before = shown.bitmap")
    page.until("shown.bitmap !== window.before")


def test_a_photo_that_comes_before_the_servers_answer_waits_for_it(page: Page) -> None:
    held = "{const real = fetch; const held = new Promise((resolve) => { answer = resolve; });"
    held += "fetch = async (...given) => { await held; return real(...given); };}"
    script = page.browser.call("Page.addScriptToEvaluateOnNewDocument", source=held)["identifier"]
    try:
        page.browser.show(f"{page.served.url}/", 1280, False)
        page.give("drop")
        time.sleep(0.5)
        assert page.browser.value("mode !== 'photo' && banner.hidden") is True
        page.browser.value("answer()")
        page.until("mode === 'photo' && shown?.width === 240")
        assert page.browser.value("banner.hidden") is True
    finally:
        page.browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)


def test_what_is_no_image_is_said_until_there_is_one(page: Page) -> None:
    page.open()
    page.give("drop")
    page.until("mode === 'photo' && shown.width === 240")
    page.give("drop", b"no image")
    page.until("banner.textContent === 'a.png is not an image that this browser shows'")
    time.sleep(1)
    assert page.browser.value("[banner.hidden, $('empty').hidden, $('choose').hidden]") == [False, False, False]
    page.give("drop")
    page.until("banner.hidden && $('empty').hidden")


def test_photos_over_the_servers_limits_are_reduced(page: Page) -> None:
    page.open()
    page.type("the red circle")
    page.until("said.ready.length")
    page.browser.value("big = new OffscreenCanvas(8400, 6000); big.getContext('2d').fillRect(9, 9, 90, 90)")
    page.browser.value("big.convertToBlob().then(takePhoto); true")
    page.until("shown?.width === 4096 && shown.height === 2926 && shown.results.length === 1")
    page.browser.value("info.limits.upload = 5000")
    page.give("paste", photo() + bytes(9000))
    page.until("shown.width === 240 && photo.file.type === 'image/jpeg' && shown.results.length === 1")
    assert page.browser.problems(page.served.url) == []


def test_this_devices_camera_is_segmented_too(page: Page) -> None:
    page.open()
    page.type("the red circle")
    page.click("input[value=webcam]")
    page.until("mode === 'webcam' && shown?.results.length === 1 && shown.width === 960")
    page.click("input[value=live]")
    page.until("camera === null && shown.width === 320")
    assert page.browser.problems(page.served.url) == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_everything_has_a_name(width: int, dark: bool, page: Page) -> None:
    page.open(width=width, dark=dark)
    for text in ("something with a long name " * 9, "the red circle"):
        page.type(text)
    page.until("shown?.results.length === 2")
    assert page.browser.value("document.documentElement.scrollWidth") <= width
    nameless = page.browser.value(
        "[...document.querySelectorAll('button, input:not([hidden]), [role=img]')].filter(one =>"
        "!(one.getAttribute('aria-label') || one.labels?.[0]?.textContent.trim() || one.textContent.trim())).length"
    )
    assert nameless == 0
    for mode in ("live", "photo"):
        page.browser.value(f"setMode('{mode}')")
        assert page.browser.value(FAINT) == []
    light = page.browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
    assert light is not dark
    assert len(page.browser.screenshot()) > 10_000
    assert page.browser.problems(page.served.url) == []


def test_it_comes_back_when_the_server_does(page: Page, demo_bundle: Path) -> None:
    with serve(demo_bundle, "--source", str(page.clip)) as first:
        page.open(first.url)
        sentence = next(iter(page.truth))
        page.type(sentence)
        page.until(page.masked(sentence))
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(timeout=120)
        page.until("$('link').dataset.state === 'down'")
        page.browser.value("shown.results = []")
    with serve(demo_bundle, "--source", str(page.clip), port=first.port):
        page.until("$('link').dataset.state === 'up'")
        page.until(page.masked(sentence))
        page.browser.call("Page.navigate", url="about:blank")


def test_a_page_too_many_is_told(page: Page, demo_bundle: Path) -> None:
    with serve(demo_bundle, watchers=0) as full:
        page.open(full.url)
        page.until("$('link').textContent.startsWith('too many pages')")
        page.browser.call("Page.navigate", url="about:blank")


def test_the_token_is_asked_for_once(page: Page, demo_bundle: Path) -> None:
    token = "a-token.that_nobody~knows"
    with serve(demo_bundle, token=token) as locked:
        page.open(locked.url)
        page.until("$('login').open")
        for given in ("wrong", token):
            page.browser.value(f"$('token').value = {json.dumps(given)}; $('login-form').requestSubmit()")
            page.until("$('login-problem').textContent || !$('login').open")
        page.until("$('link').dataset.state === 'up'")
        assert page.browser.value("[mode, $('live-choice').hidden]") == ["photo", True]
        assert token not in page.browser.value("document.cookie + JSON.stringify(localStorage)")
        page.browser.show(f"{locked.url}/", 1280)
        page.until("$('link').dataset.state === 'up'")
        page.browser.call("Page.navigate", url="about:blank")


def test_the_page_is_light(page: Page) -> None:
    sizes = [len(page.served.ask("GET", path).body) for path in ("/", "/app.js", "/style.css", "/favicon.svg")]
    assert 10_000 < sum(sizes) < 60_000
