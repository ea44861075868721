"""What camera.py makes of its results: the overlay, the figures below it, the video and the masks."""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np
from lavt_edge.runtime import Result
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from video_file import Frame, VideoFile
from whole_file import partial_name, whole_file

TINT_BGR, OUTLINE_BGR, TINT_WEIGHT = (85, 45, 255), (255, 255, 255), 0.45
PAPER, INK, WARNING_INK = (28, 28, 32), (245, 245, 247), (255, 120, 110)
RECENT = 60  # frames that the figures are of


class Clock:
    """Frame times of the last frames: from taking a frame to its mask, and between masks."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=RECENT)
        self._ends: deque[float] = deque(maxlen=RECENT + 1)

    def add(self, start: float, end: float) -> None:
        self._seconds.append(end - start)
        self._ends.append(end)

    def __str__(self) -> str:
        median, slow = (1e3 * value for value in np.percentile(self._seconds, (50, 90)))
        spent = self._ends[-1] - self._ends[0]
        rate = f"{(len(self._ends) - 1) / spent:.1f} fps" if spent > 0 else "- fps"
        return f"{median:.1f} ms, p90 {slow:.1f} ms, {rate}"


def overlay(frame: Frame, mask: NDArray[np.bool_]) -> Frame:
    """The frame, BGR (H, W, 3), with the mask, bool (H, W), tinted and outlined."""
    drawn = frame.copy()
    drawn[mask] = (frame[mask] * (1 - TINT_WEIGHT) + np.array(TINT_BGR) * TINT_WEIGHT).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, OUTLINE_BGR, max(1, round(max(mask.shape) / 500)))
    return drawn


def strip(width: int, lines: list[tuple[str, tuple[int, int, int]]]) -> Frame:
    """Lines of text below a picture, BGR (h, width, 3); h depends on the width and the number of lines alone."""
    size = min(max(width // 32, 11), 28)
    font = ImageFont.load_default(size)
    step = round(size * 1.5)
    paper = Image.new("RGB", (width, step * len(lines) + size), PAPER)
    draw = ImageDraw.Draw(paper)
    for row, (text, ink) in enumerate(lines):
        shown = "".join(character for character in text if character.isprintable())
        while shown and font.getlength(shown) > width - size:
            shown = shown.rstrip("…")[:-1] + ("…" if len(shown) > 2 else "")
        draw.text((size // 2, size // 2 + row * step), shown, fill=ink, font=font)
    return np.asarray(paper)[:, :, ::-1]


class Recorder:
    """A video that appears when it is closed; a live source's frames are repeated or left out to keep its time."""

    def __init__(self, path: Path, fps: float, live: bool) -> None:
        self._video = VideoFile(path, fps)
        self._fps, self._live = fps, live
        self._written = 0
        self._start = time.monotonic()

    def write(self, picture: Frame) -> None:
        due = int((time.monotonic() - self._start) * self._fps) + 1 if self._live else self._written + 1
        for _ in range(due - self._written):
            self._video.write(picture)
        self._written = max(due, self._written)

    def close(self, keep: bool) -> None:
        self._video.close(keep)


class Masks:
    """The masks of all frames: PNG files in a folder, or one .npz with `masks`, bool (n, H, W), and `sentences`.

    No file is ever half there, even if the process is killed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._kept: list[tuple[NDArray[np.bool_], str]] = []
        self._count = 0
        self._partial = partial_name(path / "mask.png")  # of the PNG files, one after the other
        if path.suffix != ".npz":
            path.mkdir(parents=True, exist_ok=True)

    def write(self, result: Result) -> None:
        if self._path.suffix == ".npz":
            self._kept.append((result.mask, result.sentence))
            return
        try:
            Image.fromarray(result.mask).save(self._partial)
            self._partial.replace(self._path / f"{self._count:06d}.png")
        finally:
            self._partial.unlink(missing_ok=True)
        self._count += 1

    def close(self) -> None:
        if self._kept:
            masks, sentences = zip(*self._kept, strict=True)
            with whole_file(self._path) as partial, partial.open("wb") as stream:
                np.savez_compressed(stream, masks=np.stack(masks), sentences=np.array(sentences))
