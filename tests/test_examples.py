"""The examples are real: they run as a user would run them, and the camera's masks follow an object that moves."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from lavt_edge.runtime import Segmenter
from lavt_edge.serving import source as source_module
from lavt_edge.tests.example_runs import EXAMPLES, Run, refusal, run
from lavt_edge.tests.example_runs import example as example  # a fixture
from lavt_edge.tests.test_examples_ros import MESSAGES, FakeNode, StringMessage, image_message
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

FRAMES = 40


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each frame, from masks (n, H, W)."""
    return (one & other).sum((1, 2)) / np.maximum((one | other).sum((1, 2)), 1)


def frames_of(path: Path) -> NDArray[np.uint8]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    capture.release()
    return np.stack(frames).astype(np.uint8)


def centres(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of each frame's mask, (n, 2) as x, y."""
    return np.array([np.argwhere(mask).mean(0)[::-1] for mask in masks])


@dataclass
class Recorded:
    """A generated clip, its sentences with the true masks, and what camera.py made of it."""

    folder: Path
    truth: dict[str, NDArray[np.bool_]]
    done: Run = field(repr=False)

    @property
    def sentence(self) -> str:
        return next(iter(self.truth))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> Recorded:
    folder = tmp_path_factory.mktemp("camera")
    made = run("generate_clip.py", "clip.mp4", "--truth", "truth.npz", "--frames", str(FRAMES), cwd=folder)
    assert made.returncode == 0, made.stderr
    sentences = made.stdout.splitlines()
    stored = np.load(folder / "truth.npz")
    files = ("--output", "overlay.mp4", "--masks", "masks.npz", "--headless", "--device", "cpu")
    done = run("camera.py", demo_bundle, "--source", "clip.mp4", "--text", sentences[0], *files, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Recorded(folder, {sentence: stored[sentence] for sentence in sentences}, done)


def test_the_masks_follow_the_object_that_moves(recorded: Recorded) -> None:
    truth = recorded.truth[recorded.sentence]
    masks = np.load(recorded.folder / "masks.npz")["masks"]
    assert masks.shape == truth.shape == (FRAMES, 240, 320)
    of_each = iou(masks, truth)
    assert of_each.mean() > 0.90  # docs/jetson.md says so
    assert of_each.min() > 0.50
    # The object crosses more than half of the picture; where it is, the mask is, and a mask that stood still is not.
    path, wanted = centres(masks), centres(truth)
    assert np.ptp(wanted[:, 0]) > 160
    assert np.abs(path - wanted).max() < 6
    for still in (masks[0], masks[FRAMES // 2]):
        assert iou(np.broadcast_to(still, truth.shape), truth).mean() < 0.3


def test_the_video_shows_the_masks_where_the_object_is(recorded: Recorded) -> None:
    truth = recorded.truth[recorded.sentence]
    clip, shown = frames_of(recorded.folder / "clip.mp4"), frames_of(recorded.folder / "overlay.mp4")
    assert len(shown) == len(clip) == FRAMES
    assert shown.shape[2] == clip.shape[2] == 320
    assert shown.shape[1] > clip.shape[1] == 240
    # The tint takes green away and the outline is white; what is outside of the object stays as it was.
    change = np.abs(shown[:, :240].astype(int) - clip.astype(int)).sum(-1) > 60
    assert iou(change, truth).mean() > 0.70
    assert change[~truth].mean() < 0.01
    text = shown[:, 240:].astype(int).min(-1) > 150
    assert text.sum((1, 2)).min() > 100, "a frame has no sentence and figures below it"
    capture = cv2.VideoCapture(str(recorded.folder / "overlay.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(25)
    assert sorted(path.name for path in recorded.folder.iterdir()) == [
        *("clip.mp4", "masks.npz", "overlay.mp4", "truth.npz")
    ]


def test_a_line_a_second_says_what_was_found_and_how_fast(recorded: Recorded) -> None:
    lines = recorded.done.stdout.splitlines()
    assert 1 <= len(lines) <= 30
    for line in lines:
        assert line.startswith(f"'{recorded.sentence}': ")
        assert line.endswith(" fps, cpu fp32")
        assert "ms, p90" in line


def test_a_sentence_typed_while_it_runs_counts_from_then_on(recorded: Recorded, demo_bundle: Path) -> None:
    first, second = list(recorded.truth)[:2]
    arguments = [demo_bundle, "--source", "clip.mp4", "--text", first, "--masks", "two.npz", "--headless"]
    command = [sys.executable, EXAMPLES / "camera.py", *arguments, "--device", "cpu"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [str(part) for part in command], cwd=recorded.folder, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert first in process.stdout.readline()  # the first frame is done
        process.stdin.write(f"...\n \n{second}\n")
        process.stdin.flush()
        assert process.wait(60) == 0
        problems = process.stderr.read().splitlines()
    assert problems
    assert all(line.startswith("warning: ") for line in problems)
    stored = np.load(recorded.folder / "two.npz")
    sentences = stored["sentences"].tolist()
    change = sentences.index(second)
    assert 0 < change < FRAMES - 5
    assert sentences == [first] * change + [second] * (FRAMES - change)
    for sentence, part in ((first, slice(change)), (second, slice(change, None))):
        assert iou(stored["masks"][part], recorded.truth[sentence][part]).mean() > 0.70


def test_a_window_takes_typed_sentences_and_escape(
    recorded: Recorded,
    demo_bundle: Path,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    camera = example("camera")
    first, second = list(recorded.truth)[:2]
    shown: list[NDArray[np.uint8]] = []
    keys = iter([*map(ord, f"{second}x"), 8, 13, -1, -1, 27])
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "namedWindow", lambda name: None)
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: next(keys))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: shown.append(np.empty(0, np.uint8)))
    arguments = [str(demo_bundle), "--source", str(recorded.folder / "clip.mp4"), "--text", first, "--device", "cpu"]
    masks = recorded.folder / "window"
    camera.run(camera.parse([*arguments, "--masks", str(masks)]))

    count = len(second) + 6
    assert len(shown) == count + 1, "a picture for each key, and the window is closed"
    assert shown[-1].size == 0
    assert len({picture.shape for picture in shown[:-1]}) == 1, "the picture changes its size"
    saved = np.stack([np.asarray(Image.open(path)) for path in sorted(masks.iterdir())])
    assert len(saved) == count
    entered = len(second) + 3  # the frame after Enter
    for sentence, part in ((first, slice(0, entered)), (second, slice(entered, count))):
        assert iou(saved[part], recorded.truth[sentence][part]).mean() > 0.70
    assert not iou(saved[:entered], recorded.truth[second][:entered]).any()


def test_live_sources_give_the_newest_frame_and_say_when_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    behind = 30

    class Camera:
        """Gives numbered frames as fast as they are taken, then none."""

        taken = 0
        released = False

        def __init__(self, number: int) -> None:
            assert number == 0

        def isOpened(self) -> bool:  # noqa: N802
            return True

        def get(self, what: int) -> float:
            return 0.0

        def read(self) -> tuple[bool, NDArray[np.uint8] | None]:
            Camera.taken += 1
            return (True, np.full((2, 2, 3), Camera.taken, np.uint8)) if Camera.taken <= behind else (False, None)

        def release(self) -> None:
            Camera.released = True

    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    source = source_module.Source("0")
    assert source.live
    assert source.fps == 30
    source._thread.join(10)
    with pytest.raises(source_module.SourceError, match="gives no more frames"):
        list(source)
    assert Camera.taken == behind + 1
    source.close()
    assert Camera.released


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--source", "none.mp4"), "no such video: none.mp4"),
        (("--source", "text.mp4"), "cannot open it"),
        (("--source", "videotestsrc ! appsink"), "without GStreamer"),
        (("--source", "clip.mp4", "--output", "none/out.mp4"), "cannot write it"),
        (("--source", "clip.mp4", "--text", ""), "the sentence is empty"),
        (("--source", "clip.mp4", "--precision", "int8"), "int8"),
    ],
)
def test_refusals_are_one_line(recorded: Recorded, demo_bundle: Path, arguments: tuple[str, ...], said: str) -> None:
    if "GStreamer" in said and "GStreamer:                   YES" in cv2.getBuildInformation():
        pytest.skip("this OpenCV has GStreamer")
    (recorded.folder / "text.mp4").write_text("no video")
    done = run("camera.py", demo_bundle, "--text", "the circle", "--headless", *arguments, cwd=recorded.folder)
    (recorded.folder / "text.mp4").unlink()
    assert said in refusal(done)


@pytest.fixture(scope="module")
def photos(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three frames of the clip, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photos")
    for index in (0, 13, 26):
        cv2.imwrite(str(folder / f"{index:02d}.png"), frames_of(recorded.folder / "clip.mp4")[index])
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_a_folder_becomes_a_coco_file(recorded: Recorded, demo_bundle: Path, photos: Path, tmp_path: Path) -> None:
    sentences = list(recorded.truth)[:2]
    done = run("folder.py", demo_bundle, photos, *sentences, "--output", "masks.json", "--device", "cpu", cwd=tmp_path)
    assert "broken.jpg cannot be read" in refusal(done)
    assert [path.name for path in tmp_path.iterdir()] == ["masks.json"]

    coco = COCO(str(tmp_path / "masks.json"))
    assert [coco.imgs[number]["file_name"] for number in coco.getImgIds()] == ["00.png", "13.png", "26.png"]
    assert [coco.cats[number]["name"] for number in coco.getCatIds()] == sentences
    assert len(coco.anns) == 6
    segmenter = Segmenter.load(demo_bundle, device="cpu")
    for annotation in coco.anns.values():
        name = coco.imgs[annotation["image_id"]]["file_name"]
        sentence = coco.cats[annotation["category_id"]]["name"]
        mask = coco.annToMask(annotation).astype(bool)
        wanted = segmenter.segment(photos / name, sentence)
        np.testing.assert_array_equal(mask, wanted.mask)
        assert annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        assert mask[int(y) : int(y + height), int(x) : int(x + width)].sum() == mask.sum()
        assert annotation["score"] == pytest.approx(wanted.probability[mask].mean(), abs=1e-3)
        assert iou(mask[None], recorded.truth[sentence][int(name[:2])][None]) > 0.70


def test_embed_is_ten_lines_and_says_where_the_object_is(
    recorded: Recorded, demo_bundle: Path, photos: Path, tmp_path: Path
) -> None:
    code = [line for line in (EXAMPLES / "embed.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 10
    done = run("embed.py", demo_bundle, photos / "00.png", recorded.sentence, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    mask = Segmenter.load(demo_bundle, device="auto").segment(photos / "00.png", recorded.sentence).mask
    y, x = mask.nonzero()
    expected = f"{recorded.sentence}: {len(x)} pixels, x {x.min()} to {x.max()}, y {y.min()} to {y.max()}\n"
    assert done.stdout == expected


def test_the_ros_node_publishes_the_mask_of_what_was_asked_for(
    recorded: Recorded, demo_bundle: Path, photos: Path, example: Callable[[str], ModuleType]
) -> None:
    assert importlib.util.find_spec("rclpy") is None, "this test is for machines without ROS"
    ros = example("ros2_node")
    node = FakeNode()
    pixels = np.asarray(Image.open(photos / "13.png"))
    with Segmenter.load(demo_bundle, device="cpu") as segmenter:
        ros.SegmentNode(node, segmenter, MESSAGES)
        node.callbacks["image"](image_message(pixels, "rgb8"))
        assert not node.published, "there is no sentence yet"
        node.callbacks["sentence"](StringMessage(recorded.sentence))
        node.callbacks["image"](image_message(pixels[:, :, ::-1], "bgr8", padding=3))
        node.callbacks["sentence"](StringMessage(" "))
        node.callbacks["image"](image_message(pixels, "yuv422"))
        node.callbacks["image"](image_message(pixels, "rgb8"))
    assert len(node.errors) == 2
    assert "yuv422" in node.errors[1]
    first, second = node.published
    for message in (first, second):
        assert (message.encoding, message.height, message.width, message.step) == ("mono8", 240, 320, 320)
        assert message.header == "header"
        mask = np.frombuffer(message.data, np.uint8).reshape(240, 320)
        assert set(np.unique(mask)) == {0, 255}
        assert iou(mask[None] == 255, recorded.truth[recorded.sentence][13][None]) > 0.70
