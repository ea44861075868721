"""Videos for camera.py and generate_clip.py, which appear when they are whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
from lavt_edge._base.files import partial_of, remove_abandoned, sync
from lavt_edge.runtime import LavtError
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

FOURCC = {".mp4": "mp4v", ".avi": "MJPG"}


class VideoFile:
    """A video, .mp4 or .avi, that is written beside its name and gets it when it is closed.

    What a process that was killed left of the same video goes when this one begins.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self._path, self._fps = path, fps
        self._folder: Path | None = None
        self._writer: cv2.VideoWriter | None = None

    def write(self, picture: Frame) -> None:
        """Add a picture, BGR (H, W, 3), of the first one's size. Raises LavtError."""
        if self._writer is None:
            self._writer = self._open(picture.shape[1], picture.shape[0])
        self._writer.write(picture)

    def close(self, keep: bool = True) -> None:
        """Give the video its name, or drop it. Raises OSError."""
        if self._folder is None:
            return
        try:
            if self._writer is not None:
                self._writer.release()
                if keep:
                    part = self._part_in(self._folder)
                    sync(part)
                    part.replace(self._path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _part_in(self, folder: Path) -> Path:
        return folder / f"video{self._path.suffix}"

    def _open(self, width: int, height: int) -> cv2.VideoWriter:
        remove_abandoned(self._path)
        # A folder, since OpenCV tells the format by the end of the file's name.
        folder = partial_of(self._path)
        try:
            folder.mkdir()
        except OSError as error:
            raise LavtError(f"{self._path}: cannot write it ({error.strerror}); see that its folder exists") from error
        self._folder = folder
        fourcc = cv2.VideoWriter.fourcc(*FOURCC[self._path.suffix])
        writer = cv2.VideoWriter(str(self._part_in(folder)), fourcc, self._fps, (width, height))
        if not writer.isOpened():
            raise LavtError(f"{self._path}: OpenCV cannot write it; name an .avi instead of an .mp4")
        return writer
