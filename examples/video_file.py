"""Videos for camera.py and generate_clip.py, which appear when they are whole."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from lavt_edge.runtime import LavtError
from numpy.typing import NDArray
from whole_file import finish, partial_name

Frame = NDArray[np.uint8]

FOURCC = {".mp4": "mp4v", ".avi": "MJPG"}


class VideoFile:
    """A video, .mp4 or .avi, that is written beside its name and gets it when it is closed."""

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._partial = partial_name(path)
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: Frame) -> None:
        """Add a picture, BGR (H, W, 3), of the first one's size. Raises LavtError."""
        if self._writer is None:
            self._writer = self._open(picture.shape[1], picture.shape[0])
        self._writer.write(picture)

    def close(self, keep: bool = True) -> None:
        """Give the video its name, or drop it. Raises OSError."""
        try:
            if self._writer is not None:
                self._writer.release()
                if keep:
                    finish(self._partial, self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        try:
            self._partial.touch()
        except OSError as error:
            raise LavtError(f"{self._path}: cannot write it ({error.strerror}); see that its folder exists") from error
        fourcc = cv2.VideoWriter.fourcc(*FOURCC[self._path.suffix])
        writer = cv2.VideoWriter(str(self._partial), fourcc, self._fps, (width, height))
        if not writer.isOpened():
            raise LavtError(f"{self._path}: OpenCV cannot write it; name an .avi instead of an .mp4")
        return writer
