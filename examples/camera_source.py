"""Frames for camera.py: of a camera, a GStreamer pipeline, a stream or a video file."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from lavt_edge.runtime import LavtError
from video_file import Frame

_USUAL_FPS, _LIKELY_FPS = 30.0, (1.0, 240.0)


class SourceError(LavtError):
    """A camera, video or pipeline that cannot be opened, or that stopped giving frames."""


class Source:
    """Frames of a camera, a GStreamer pipeline, a stream or a video file; a thread reads them ahead.

    Of a file every frame comes; of anything live only the newest, so that the overlay does not lag behind. The end of a
    file ends the frames; a live source that ends raises SourceError.
    """

    def __init__(self, text: str) -> None:
        self.live = not Path(text).is_file()
        self._capture = _open(text)
        self._text = text
        # What streams and drivers say may be 0, no number, or the clock of their time stamps, such as 90000.
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if _LIKELY_FPS[0] <= fps <= _LIKELY_FPS[1] else _USUAL_FPS
        self._frames: queue.Queue[Frame | None] = queue.Queue(maxsize=1 if self.live else 4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="camera source", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._frames.get()) is not None:
            yield frame
        if self.live:
            raise SourceError(f"{self._text}: gives no more frames; see whether the camera is connected")

    def close(self) -> None:
        self._stopped.set()
        self._take()
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # a capture must not be released while it reads
            self._capture.release()

    def _read(self) -> None:
        while not self._stopped.is_set():
            read, frame = self._capture.read()
            if self.live:
                self._take()
            self._put(np.asarray(frame, np.uint8) if read else None)
            if not read:
                return

    def _put(self, frame: Frame | None) -> None:
        while not self._stopped.is_set():
            try:
                self._frames.put(frame, timeout=0.1)
                return
            except queue.Full:
                continue

    def _take(self) -> None:
        with suppress(queue.Empty):
            self._frames.get_nowait()


def _open(text: str) -> cv2.VideoCapture:
    if "!" in text:
        if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
            raise SourceError("this OpenCV was built without GStreamer: use JetPack's or the distribution's OpenCV")
        capture = cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
    elif text.isascii() and text.isdigit() and len(text) < 4:
        capture = cv2.VideoCapture(int(text))
    elif "://" in text or Path(text).exists():
        capture = cv2.VideoCapture(text)
    else:
        raise SourceError(f"no such video: {text}; a camera is a number, a pipeline holds '!'")
    if not capture.isOpened():
        raise SourceError(f"{text}: OpenCV cannot open it as a camera, a video or a pipeline that ends in appsink")
    return capture
