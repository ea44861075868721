"""Segment what a sentence refers to in a camera's or a video's frames, with the overlay live.

    python camera.py BUNDLE --text "the man in red"                                 # the first camera, in a window
    python camera.py BUNDLE --text "the red circle" --source clip.mp4 --headless --output overlay.mp4
    python camera.py BUNDLE --text "the man in red" --headless --source \
        "nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! nvvidconv ! \
         video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"

Another sentence can be typed while it runs: into the window, Enter takes it; with --headless, as a line of standard
input. Escape, Ctrl-C and SIGTERM end it, and a video that is being written is whole.

Needs OpenCV: the extra `camera` has it for --headless, opencv-python for a window; on a Jetson JetPack's own, since
pip's have no GStreamer.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
from camera_picture import INK, WARNING_INK, Clock, Masks, Recorder, overlay, strip
from lavt_edge.runtime import LavtError, PromptError, Result, Segmenter, run_main
from lavt_edge.serving.source import Source, SourceError
from video_file import FOURCC, Frame

REPORT_SECONDS = 1.0
WINDOW = "lavt-edge"
_STDIN = 0
ENTER, ESCAPE, BACKSPACES = (10, 13), 27, (8, 127)


class Sentence:
    """The sentence that counts, its prompt, and what is being typed; a bad sentence leaves the one before."""

    def __init__(self, segmenter: Segmenter, text: str) -> None:
        self._segmenter = segmenter
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.prompt = segmenter.encode(text)
        self.typed = ""
        self.problem = ""

    @property
    def text(self) -> str:
        return self.prompt.sentence

    def read_lines_of(self, descriptor: int) -> None:
        """A thread takes each line that comes there as the next sentence."""
        threading.Thread(target=self._read, args=(descriptor,), name="camera sentences", daemon=True).start()

    def _read(self, descriptor: int) -> None:
        # Of the descriptor, not of sys.stdin: Python could not end while a thread holds that one's lock.
        rest = b""
        with suppress(OSError):
            while data := os.read(descriptor, 4096):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._lines.put(line.decode(errors="replace"))

    def update(self) -> None:
        """Take what came in by lines since the last frame."""
        while not self._lines.empty():
            self.take(self._lines.get())

    def press(self, key: int) -> None:
        """Take one key of the window; -1 is none."""
        if key in ENTER:
            self.take(self.typed)
            self.typed = ""
        elif key in BACKSPACES:
            self.typed = self.typed[:-1]
        elif 32 <= key < 256:
            self.typed += chr(key)

    def take(self, text: str) -> None:
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.prompt = self._segmenter.encode(text.strip())
            self.problem = "; ".join(str(warning.message) for warning in caught)
        except PromptError as error:
            self.problem = str(error)
        if self.problem:
            print(f"warning: {self.problem}", file=sys.stderr)


class Show:
    """What becomes of each result: the window, the video, the masks and a line a second."""

    def __init__(self, options: argparse.Namespace, source: Source) -> None:
        self._headless: bool = options.headless
        self._recorder = Recorder(options.output, source.fps, source.live) if options.output else None
        self._masks = Masks(options.masks) if options.masks else None
        self._next_report = 0.0

    def add(self, frame: Frame, result: Result, sentence: Sentence, figures: str) -> bool:
        """Show one frame; false if the user wants to end."""
        if self._masks:
            self._masks.write(result)
        if self._headless and time.monotonic() >= self._next_report:
            print(f"{result.sentence!r}: {100 * result.mask.mean():.1f} % of the pixels; {figures}", flush=True)
            self._next_report = time.monotonic() + REPORT_SECONDS
        if self._headless and not self._recorder:
            return True
        state = sentence.problem or (f"> {sentence.typed}" if sentence.typed else "")
        ink = WARNING_INK if sentence.problem else INK
        lines = [(result.sentence, INK), (figures, INK), (state, ink)][: 2 if self._headless else 3]
        picture = np.vstack([overlay(frame, result.mask), strip(frame.shape[1], lines)])
        if self._recorder:
            self._recorder.write(picture)
        if self._headless:
            return True
        cv2.imshow(WINDOW, picture)
        key = cv2.waitKey(1)
        sentence.press(key)
        return key != ESCAPE

    def close(self, keep: bool) -> None:
        if self._recorder:
            self._recorder.close(keep)
        if self._masks and keep:
            self._masks.close()
        if not self._headless:
            cv2.destroyAllWindows()


@contextmanager
def kept_until_stopped(show: Show) -> Iterator[None]:
    """What was written is kept if the user ends it, and dropped on an error."""
    keep = False
    try:
        yield
        keep = True
    except (KeyboardInterrupt, SourceError):
        keep = True
        raise
    finally:
        show.close(keep)


def run(options: argparse.Namespace) -> None:
    """Segment frame after frame until the source, the user or --frames ends it.

    Raises LavtError, OSError and cv2.error.
    """
    if not options.headless:
        _check_window()
    with ExitStack() as stack:
        segmenter = Segmenter.load(options.bundle, device=options.device, precision=options.precision)
        stack.enter_context(segmenter)
        sentence = Sentence(segmenter, options.text)
        source = Source(options.source)
        stack.callback(source.close)
        show = Show(options, source)
        stack.enter_context(kept_until_stopped(show))
        if options.headless:
            sentence.read_lines_of(_STDIN)
        clock = Clock()
        for count, frame in enumerate(source, start=1):
            sentence.update()
            start = time.perf_counter()
            result = segmenter.segment(frame, sentence.prompt, pixels="bgr")
            _ = result.mask  # made when it is read; its time counts
            clock.add(start, time.perf_counter())
            figures = f"{clock}, {segmenter.device} {segmenter.precision}"
            if not show.add(frame, result, sentence, figures) or count == options.frames:
                break


def _check_window() -> None:
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise LavtError("there is no display for a window: add --headless")
    try:
        cv2.namedWindow(WINDOW)
    except cv2.error:
        raise LavtError("this OpenCV has no windows: add --headless, or pip install opencv-python") from None


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path, help="a bundle, or one of its image graphs (.engine, .onnx)")
    parser.add_argument("--text", required=True, help="what to segment first, such as 'the man in red'")
    parser.add_argument("--source", default="0", help="a camera's number, a video, a URL or a GStreamer pipeline")
    parser.add_argument("--output", type=Path, help="the overlay as a video, .mp4 or .avi")
    parser.add_argument("--masks", type=Path, help="a folder for a PNG per frame, or an .npz for a short clip")
    parser.add_argument("--headless", action="store_true", help="no window; sentences come by standard input")
    parser.add_argument("--frames", type=int, help="end after this many")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", help="fp32, fp16 or int8; by default what suits the device")
    options = parser.parse_args(arguments)
    if options.frames is not None and options.frames < 1:
        parser.error(f"--frames {options.frames}: give at least 1")
    if options.output and options.output.suffix not in FOURCC:
        parser.error(f"--output {options.output}: give a name that ends in .mp4 or .avi")
    if options.output and options.output.resolve() == Path(options.source).resolve():
        parser.error(f"--output {options.output} is the source itself: give another name")
    return options


def main() -> None:
    options = parse()
    if hasattr(cv2.utils, "logging"):  # not in older releases
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what goes wrong is said in one line, below
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(options)
    except KeyboardInterrupt:
        pass  # which is how a camera is ended
    except cv2.error as error:
        raise LavtError(" ".join(str(error).split())) from error


if __name__ == "__main__":
    run_main(main)
