"""Frames of a camera, a GStreamer pipeline, a stream, a video file or a folder of images. Needs OpenCV."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from ..runtime import ImageError, LavtError, to_rgb_array

Frame: TypeAlias = npt.NDArray[np.uint8]

_USUAL_FPS, _LIKELY_FPS = 30.0, (1.0, 240.0)


class SourceError(LavtError):
    """A camera, video or pipeline that cannot be opened, or that stopped giving frames."""


class Source:
    """Frames, BGR (H, W, 3); a thread reads them ahead.

    Of a file or a folder every frame comes; of anything live only the newest, so that what is shown does not lag
    behind. The end of a file ends the frames; a live source that ends raises SourceError.

    Args:
        text: a camera's number, a video's path, a URL, a GStreamer pipeline, or a folder of images, one a second.
        as_live: show a file as if it were live: at its own rate, the newest frame alone, over and over.
    """

    def __init__(self, text: str, *, as_live: bool = False) -> None:
        stored = Path(text).is_file() or Path(text).is_dir()
        self.live, self._played = as_live or not stored, as_live and stored
        self._capture = _open(text)
        self.text = text
        # What streams and drivers say may be 0, no number, or the clock of their time stamps, such as 90000.
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if _LIKELY_FPS[0] <= fps <= _LIKELY_FPS[1] else _USUAL_FPS
        self.kind = "folder" if Path(text).is_dir() else "video" if stored else "camera"
        self._frames: queue.Queue[Frame | None] = queue.Queue(maxsize=1 if self.live else 4)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="camera source", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Frame]:
        while (frame := self._frames.get()) is not None:
            yield frame
        if self.live:
            raise SourceError(f"{_said_of(self.text)}: gives no more frames; see whether the camera is connected")

    def close(self) -> None:
        self._stopped.set()
        self._take()
        with suppress(queue.Full):
            self._frames.put_nowait(None)  # for who waits for a frame
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # a capture must not be released while it reads
            self._capture.release()

    def _read(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            frame = self._next_frame()
            if self._played:
                due = max(due + 1 / self.fps, time.monotonic() - 1)
                self._stopped.wait(max(0.0, due - time.monotonic()))
            if self.live:
                self._take()
            self._put(frame)
            if frame is None:
                return

    def _next_frame(self) -> Frame | None:
        """None if there is no more; what is played begins again."""
        with suppress(SourceError, cv2.error):
            read, frame = self._capture.read()
            if not read and self._played:
                self._capture.release()
                self._capture = _open(self.text)
                read, frame = self._capture.read()
            return np.asarray(frame, np.uint8) if read else None
        return None

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


class _Folder:
    """The images of a folder in the order of their names, over and over, as OpenCV's captures give frames."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(path for path in folder.iterdir() if path.is_file())
        self._next = cycle(self._paths)

    def isOpened(self) -> bool:  # noqa: N802
        return bool(self._paths)

    def get(self, _: int) -> float:
        return 1.0

    def read(self) -> tuple[bool, Frame | None]:
        for path, _ in zip(self._next, self._paths, strict=False):
            with suppress(ImageError):
                return True, np.ascontiguousarray(to_rgb_array(path)[:, :, ::-1])
        return False, None

    def release(self) -> None:
        pass


def _said_of(text: str) -> str:
    """Without what may hold passwords: /v1/health is open to anybody."""
    return re.sub(r"(://|user-pw=)\S*", r"\1...", text)


def _open(text: str) -> cv2.VideoCapture | _Folder:
    capture: cv2.VideoCapture | _Folder
    if "!" in text:
        if not re.search(r"GStreamer:\s+YES", cv2.getBuildInformation()):
            raise SourceError("this OpenCV was built without GStreamer: use JetPack's or the distribution's OpenCV")
        capture = cv2.VideoCapture(text, cv2.CAP_GSTREAMER)
    elif text.isascii() and text.isdigit() and len(text) < 4:
        capture = cv2.VideoCapture(int(text))
    elif Path(text).is_dir():
        capture = _Folder(Path(text))
    elif "://" in text or Path(text).exists():
        capture = cv2.VideoCapture(text)
    else:
        raise SourceError(f"no such video: {text}; a camera is a number, a pipeline holds '!'")
    if not capture.isOpened():
        raise SourceError(
            f"{_said_of(text)}: OpenCV cannot open it as a camera, a video or a pipeline that ends in appsink"
        )
    return capture
