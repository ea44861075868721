"""Segment every image of a folder for one or more sentences; the masks go into one COCO file.

    python folder.py BUNDLE photos/ "the man in red" "the dog" --output masks.json

The file is a COCO data set that pycocotools.coco.COCO reads: a category for each sentence, an annotation with a
compressed RLE mask for each image and sentence (area 0 where nothing was found), and `score`, the mean probability
within the mask. It appears when all is done. Until then finished images are kept beside it, in OUTPUT.progress, and the
same command goes on from there. Exit code 1 where images could not be read; they are named, and the others are done.

Needs pycocotools: pip install 'lavt-edge[data]'.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lavt_edge.runtime import ImageError, LavtError, Result, Segmenter
from lavt_edge.runtime.preprocess import to_rgb_array
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class Progress:
    """The finished images of a run, one JSON line each; the first line says what the run is about."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path = path
        self.done: dict[str, dict[str, Any]] = {}
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []  # the last may be cut off
        if lines and json.loads(lines[0]) != run:
            raise LavtError(f"{path} is of another bundle, precision or sentences: remove it, or give another --output")
        for line in lines[1:]:
            entry = json.loads(line)
            self.done[entry["file_name"]] = entry
        kept = [json.dumps(run), *(json.dumps(entry) for entry in self.done.values())]
        write_whole(path, "".join(line + "\n" for line in kept))
        self._stream = path.open("a", encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        self.done[entry["file_name"]] = entry
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()


def write_whole(path: Path, text: str) -> None:
    """Write a file by a temporary one beside it, so that it is never half there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def encode(result: Result) -> dict[str, Any]:
    """A result as COCO has it: compressed RLE, area, box (x, y, width, height), and the score."""
    rle = coco_mask.encode(np.asfortranarray(result.mask, np.uint8))
    score = float(result.probability[result.mask].mean()) if result.mask.any() else 0.0
    return {
        "segmentation": {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")},
        "area": int(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
        "score": round(score, 4),
    }


def dataset(images: list[Path], sentences: list[str], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All finished images as one COCO data set, numbered from 1 in the order given."""
    entries = [done[path.name] for path in images if path.name in done]
    annotations = [
        {**mask, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
        for image_id, entry in enumerate(entries, start=1)
        for category_id, mask in enumerate(entry["masks"], start=1)
    ]
    return {
        "images": [
            {"id": number, **{key: entry[key] for key in ("file_name", "width", "height")}}
            for number, entry in enumerate(entries, start=1)
        ],
        "categories": [{"id": number, "name": text} for number, text in enumerate(sentences, start=1)],
        "annotations": [{"id": number, **one} for number, one in enumerate(annotations, start=1)],
    }


class Readable:
    """The images that can be read, as arrays; the stream's thread reads them ahead. `names` are theirs, in order."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths
        self.names: list[str] = []
        self.problems: list[str] = []

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for path in self._paths:
            try:
                pixels = to_rgb_array(path)
            except ImageError as error:
                self.problems.append(str(error))
                continue
            self.names.append(path.name)
            yield pixels


def run(options: argparse.Namespace) -> int:
    """Segment what is not done yet and write the file. Returns the exit code; raises LavtError and OSError."""
    images = sorted(path for path in options.images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise LavtError(f"{options.images} has no images: {', '.join(SUFFIXES)}")
    with Segmenter.load(options.bundle, device=options.device) as segmenter:
        checkpoint = segmenter.manifest.checkpoint.sha256
        about = {"checkpoint": checkpoint, "files": segmenter.files, "sentences": options.sentences}
        progress = Progress(options.output.with_name(f"{options.output.name}.progress"), json.loads(json.dumps(about)))
        readable = Readable([path for path in images if path.name not in progress.done])
        try:
            for index, results in enumerate(segmenter.stream(readable, options.sentences)):
                height, width = results[0].mask.shape
                name = readable.names[index]
                masks = [encode(one) for one in results]
                progress.add({"file_name": name, "width": width, "height": height, "masks": masks})
        finally:
            progress.close()
    write_whole(options.output, json.dumps(dataset(images, options.sentences, progress.done)))
    progress.path.unlink()
    for problem in readable.problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{options.output}: {len(progress.done)} images, {len(options.sentences)} sentences, on {segmenter.device}")
    return 1 if readable.problems else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, help="a folder of images")
    parser.add_argument("sentences", nargs="+", help="what to segment, such as 'the man in red'")
    parser.add_argument("--output", type=Path, default=Path("masks.json"))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    try:
        return run(parser.parse_args())
    except (LavtError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
