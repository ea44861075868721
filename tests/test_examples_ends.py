"""How the examples end: stopped, killed, or over what they read; what is written is whole, and a folder goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from lavt_edge._base.exits import run_main
from lavt_edge.data.shapes import scene_at
from lavt_edge.errors import ExitCode, LavtError
from lavt_edge.serving import source as source_module
from lavt_edge.tests.example_runs import EXAMPLES, run
from lavt_edge.tests.example_runs import example as example  # a fixture
from PIL import Image

Example = Callable[[str], ModuleType]
SENTENCE = "the red circle"


def start(name: str, *arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


# folder.py


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        Image.fromarray(scene_at(0, "val", index).render()).save(folder / f"{index}.png")
    return folder


class FolderRun:
    """Runs folder.py in this process, and says of which images it made masks."""

    def __init__(self, folder: ModuleType, monkeypatch: pytest.MonkeyPatch, bundle: Path, images: Path) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch
        output = images.parent / "masks.json"
        self.options = {"bundle": bundle, "images": images, "sentences": [SENTENCE], "output": output, "device": "cpu"}
        self.output, self.progress = output, images.parent / "masks.json.progress"

    def __call__(self, stop_after: int | None = None, **changed: Any) -> int:
        """How many images were segmented; it is stopped after some of them, or ends."""
        make, count = self._folder.coco_entry, 0

        def counted(*arguments: Any) -> Any:
            nonlocal count
            if count == stop_after:
                raise KeyboardInterrupt
            count += 1
            return make(*arguments)

        with self._monkeypatch.context() as patch:
            patch.setattr(self._folder, "coco_entry", counted)
            try:
                self._folder.run(SimpleNamespace(**{**self.options, **changed}))
            except KeyboardInterrupt:
                assert not self.output.exists()
        return count

    def written(self) -> Any:
        return json.loads(self.output.read_bytes())


@pytest.fixture
def folder_run(example: Example, monkeypatch: pytest.MonkeyPatch, demo_bundle: Path, photos: Path) -> FolderRun:
    return FolderRun(example("folder"), monkeypatch, demo_bundle, photos)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, ExitCode.INTERRUPTED, "interrupted\n"), (signal.SIGTERM, ExitCode.TERMINATED, "")],
)
def test_a_folder_that_was_stopped_goes_on(
    number: signal.Signals, code: ExitCode, said: str, folder_run: FolderRun, demo_bundle: Path, photos: Path
) -> None:
    total = 40
    for index in range(4, total):
        os.link(photos / f"{index % 4}.png", photos / f"{index}.png")
    arguments = (demo_bundle, photos, SENTENCE, "--output", folder_run.output, "--device", "cpu")
    with start("folder.py", *arguments, cwd=photos.parent) as process:
        wait_for(lambda: folder_run.progress.is_file() and folder_run.progress.read_bytes().count(b"\n") > 3, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (code, said)
    assert not folder_run.output.exists()
    done = folder_run.progress.read_bytes().count(b"\n") - 1
    with folder_run.progress.open("a") as stream:
        stream.write('{"file_name": "26.p')  # as a power cut leaves it

    assert folder_run() == total - done
    assert not folder_run.progress.exists()
    resumed = folder_run.written()
    assert len(resumed["annotations"]) == total
    folder_run.output.unlink()
    assert folder_run() == total
    assert folder_run.written() == resumed


def test_masks_of_another_run_are_not_taken(folder_run: FolderRun, photos: Path, tmp_path: Path) -> None:
    """Of a folder with files of the same names, other sentences, or another graph of the same checkpoint."""
    assert folder_run(stop_after=2) == 2
    second = tmp_path / "second"
    second.mkdir()
    for path in photos.iterdir():
        Image.fromarray(scene_at(1, "val", 0).render()).save(second / path.name)
    for changed in ({"images": second}, {"sentences": ["the blue square"]}):
        with pytest.raises(LavtError, match="is of another bundle, precision, folder or sentences"):
            folder_run(**changed)

    about, rest = folder_run.progress.read_text().split("\n", 1)
    graphs = json.loads(about)["files"]
    bundle = folder_run.options["bundle"]
    assert isinstance(bundle, Path)
    assert graphs == {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in graphs}
    assert len(graphs) == 2
    for name, digest in graphs.items():
        other = json.dumps({**json.loads(about), "files": {**graphs, name: "0" * len(digest)}})
        folder_run.progress.write_text(f"{other}\n{rest}")
        with pytest.raises(LavtError, match="is of another bundle"):
            folder_run()


def test_images_that_changed_meanwhile_are_segmented_again(folder_run: FolderRun, photos: Path) -> None:
    assert folder_run(stop_after=3) == 3
    Image.fromarray(scene_at(1, "val", 7).render()).save(photos / "0.png")
    (photos / "1.png").write_bytes(b"no image any more")
    assert folder_run() == 2  # 0.png, and 3.png for the first time
    resumed = folder_run.written()
    assert [one["file_name"] for one in resumed["images"]] == ["0.png", "2.png", "3.png"]
    folder_run.output.unlink()
    assert folder_run() == 3
    assert folder_run.written() == resumed


def test_a_damaged_progress_file_is_named(folder_run: FolderRun) -> None:
    assert folder_run(stop_after=1) == 1
    about = folder_run.progress.read_bytes().split(b"\n")[0] + b"\n"
    no_lines = (b"\xff\xfe", b"\0\0\0\0", b"{", b"[1]", b"[" * 100_000, b"")
    for content in (*(line + b"\n" for line in no_lines), *(about + line + b"\n" for line in (*no_lines, b"{}"))):
        folder_run.progress.write_bytes(content)
        with pytest.raises(LavtError, match=r"masks\.json\.progress is damaged: remove it"):
            folder_run()


# the camera


def test_a_killed_camera_leaves_no_half_file_and_the_next_one_removes_its_rest(
    demo_bundle: Path, tmp_path: Path, example: Example
) -> None:
    clip = example("generate_clip")
    clip.write_clip(tmp_path / "clip.avi", clip.make_clip(0, 120).frames)
    arguments = (demo_bundle, "--source", "clip.avi", "--text", SENTENCE, "--headless", "--device", "cpu")
    files = ("--output", "overlay.avi", "--masks", "masks")
    masks = tmp_path / "masks"
    with start("camera.py", *arguments, *files, cwd=tmp_path) as process:
        wait_for(lambda: (masks / "000003.png").exists(), process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".*")
    assert left.name == ".overlay.partial.avi"
    finished = list(masks.glob("*.png"))
    assert len(finished) >= 4
    assert all(np.asarray(Image.open(path)).shape == (240, 320) for path in finished)
    (masks / ".mask.partial.png").write_bytes(b"half")  # where it is killed while it writes

    done = run("camera.py", *arguments, *files, "--frames", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.avi", "masks", "overlay.avi"]
    assert not list(masks.glob(".*"))


def test_a_video_appears_when_it_is_closed_and_not_at_all_where_it_is_dropped(example: Example, tmp_path: Path) -> None:
    video_file = example("video_file")
    for keep in (False, True):
        video = video_file.VideoFile(tmp_path / "out.mp4", 25)
        for _ in range(3):
            video.write(np.zeros((48, 64, 3), np.uint8))
        assert not (tmp_path / "out.mp4").exists()
        video.close(keep)
        assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"] * keep
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    ("said", "taken"),
    [(0, 30), (-1, 30), (float("nan"), 30), (90000, 30), (241, 30), (240, 240), (29.97, 29.97), (1, 1)],
)
def test_the_rate_of_a_source_is_one_that_cameras_have(
    said: float, taken: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = SimpleNamespace(
        isOpened=lambda: True, get=lambda what: said, read=lambda: (False, None), release=lambda: None
    )
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture)
    source = source_module.Source("0")
    assert source.fps == taken
    source.close()


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc\n"), cv2.error("one\ntwo"), OSError("no disk")], ids=type
)
def test_a_camera_that_fails_says_so_in_one_line(
    error: Exception, example: Example, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = example("camera")

    def fail(options: Any) -> None:
        raise error

    monkeypatch.setattr(camera, "run", fail)
    monkeypatch.setenv("OPENCV_FFMPEG_LOGLEVEL", "-8")  # as main sets it
    monkeypatch.setattr(sys, "argv", ["camera.py", "bundle", "--text", "a dog"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_main(camera.main)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == ExitCode.REFUSED
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


@pytest.mark.parametrize("frames", ["0", "-1"])
def test_a_camera_has_at_least_one_frame_to_take(
    frames: str, example: Example, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        example("camera").parse(["bundle", "--text", "a dog", "--frames", frames])
    assert ended.value.code == ExitCode.USAGE
    assert f"--frames {frames}: give at least 1" in capsys.readouterr().err
