"""Segment every image of a folder for one or more sentences; the masks go into one COCO file.

    python folder.py BUNDLE photos/ "the man in red" "the dog" --output masks.json

The file is a COCO data set that pycocotools.coco.COCO reads: a category for each sentence, an annotation with a
compressed RLE mask for each image and sentence (area 0 if nothing was found), and `score`, the mean probability
within the mask. It appears when all is done. Until then finished images are kept beside it, in OUTPUT.progress, and the
same command goes on from there; an image that was changed meanwhile is segmented again. Exit code 1 if images could
not be read; they are named, and the others are done.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lavt_edge.runtime import (
    ImageError,
    LavtError,
    Segmenter,
    coco_dataset,
    coco_entry,
    image_files,
    run_main,
    to_rgb_array,
)
from numpy.typing import NDArray
from whole_file import whole_file

_ENTRY = {"file_name", "state", "width", "height", "masks"}


class Progress:
    """The finished images of a run, one JSON line each; the first line says what the run is about.

    `done` has those whose file is still as it was. Raises LavtError for a file of another run, or a damaged one.
    """

    def __init__(self, path: Path, run: dict[str, Any], images: list[Path]) -> None:
        self.path = path
        before, *entries = self._read() or [run]
        if before != run:
            raise LavtError(
                f"{path} is of another bundle, precision, folder or sentences: remove it, or give another --output"
            )
        states = {image.name: state_of(image) for image in images}
        self.done = {entry["file_name"]: entry for entry in entries if states.get(entry["file_name"]) == entry["state"]}
        kept = [json.dumps(run), *(json.dumps(entry) for entry in self.done.values())]
        with whole_file(path) as partial:
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._stream = path.open("a", encoding="utf-8")

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")  # the last may be cut off
        try:
            entries = [json.loads(line) for line in lines]
            if not all(isinstance(entry, dict) for entry in entries) or any(e.keys() != _ENTRY for e in entries[1:]):
                raise ValueError
        except (ValueError, RecursionError) as error:
            raise LavtError(f"{self.path} is damaged: remove it, and all images are segmented again") from error
        return entries

    def add(self, entry: dict[str, Any]) -> None:
        self.done[entry["file_name"]] = entry
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def state_of(path: Path) -> list[int]:
    """A file's size in bytes and the time of its last change in ns; nothing if it cannot be read."""
    try:
        status = path.stat()
    except OSError:  # reading the image says why
        return []
    return [status.st_size, status.st_mtime_ns]


class Readable:
    """The images that can be read, as arrays; the stream's thread reads them ahead. `read` has each one's name and
    state before it was read, in order."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self.read: list[tuple[str, list[int]]] = []
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for path in self._paths:
            state = state_of(path)
            try:
                pixels = to_rgb_array(path)
            except ImageError as error:
                self.problems.append(str(error))
                continue
            self.read.append((path.name, state))
            yield pixels


def run(options: argparse.Namespace) -> int:
    """Segment what is not done yet and write the file. Returns the exit code; raises LavtError and OSError."""
    images = image_files(options.images)
    with Segmenter.load(options.bundle, device=options.device) as segmenter:
        about = {
            "images": str(options.images.resolve()),
            "checkpoint": segmenter.manifest.checkpoint.sha256,
            "files": {name: segmenter.manifest.files[name].sha256 for name in segmenter.files},
            "sentences": options.sentences,
        }
        progress = Progress(options.output.with_name(f"{options.output.name}.progress"), about, images)
        readable = Readable([path for path in images if path.name not in progress.done])
        try:
            for index, results in enumerate(segmenter.stream(readable, options.sentences)):
                name, state = readable.read[index]
                progress.add({**coco_entry(name, results), "state": state})
        finally:
            progress.close()
    with whole_file(options.output) as partial:
        entries = [progress.done[path.name] for path in images if path.name in progress.done]
        partial.write_text(json.dumps(coco_dataset(entries, options.sentences)))
    progress.path.unlink()
    for problem in readable.problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{options.output}: {len(progress.done)} images, {len(options.sentences)} sentences, on {segmenter.device}")
    return 1 if readable.problems else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("sentences", nargs="+", help="what to segment, such as 'the man in red'")
    parser.add_argument("--output", type=Path, default=Path("masks.json"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    return parser.parse_args()


if __name__ == "__main__":
    run_main(lambda: sys.exit(run(parse())))
