"""Results as COCO's JSON has them, and the images that a folder holds: for tools that read masks from a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import ImageError
from .result import Result

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def image_files(folder: Path) -> list[Path]:
    """A folder's image files by their names' endings, sorted. Raises ImageError if there are none."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise ImageError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    if not found:
        raise ImageError(f"{folder} has no images: {', '.join(_SUFFIXES)}")
    return found


def coco_annotation(result: Result) -> dict[str, Any]:
    """A result as COCO has it: compressed RLE, area, box (x, y, width, height), and the score.

    All are 0 if nothing was found.
    """
    rows, columns = (np.flatnonzero(result.mask.any(axis)) for axis in (1, 0))
    box = [0, 0, 0, 0]
    if rows.size:
        box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {
        "segmentation": {"size": [result.height, result.width], "counts": _compressed(result.mask)},
        "area": int(np.count_nonzero(result.mask)),
        "bbox": [float(value) for value in box],
        "score": round(result.score, 4),
    }


def coco_entry(file_name: str, results: Sequence[Result]) -> dict[str, Any]:
    """An image and what its sentences refer to, for `coco_dataset`."""
    size = {"width": results[0].width, "height": results[0].height}
    return {"file_name": file_name, **size, "masks": [coco_annotation(result) for result in results]}


def coco_dataset(entries: Iterable[dict[str, Any]], sentences: Sequence[str]) -> dict[str, Any]:
    """A COCO data set that pycocotools reads: images and annotations numbered from 1, a category for each sentence."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, entry in enumerate(entries, start=1):
        images.append({"id": image_id, **{key: entry[key] for key in ("file_name", "width", "height")}})
        for category_id, mask in enumerate(entry["masks"], start=1):
            numbers = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
            annotations.append({**numbers, **mask})
    categories = [{"id": number, "name": text} for number, text in enumerate(sentences, start=1)]
    return {"images": images, "categories": categories, "annotations": annotations}


def _compressed(mask: npt.NDArray[np.bool_]) -> str:
    """COCO's string of runs down the columns, of 0 first: each from the third on as its difference to the last but one,
    5 bits a character from the lowest, 32 added where more follow, 48 to all."""
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs = np.diff(edges, prepend=0, append=pixels.size)
    if pixels[0]:
        runs = np.insert(runs, 0, 0)
    runs[3:] -= runs[1:-2].copy()
    text = bytearray()
    for value in runs.tolist():
        while not -16 <= value < 16:
            text.append(48 + 32 + (value & 31))
            value >>= 5
        text.append(48 + (value & 31))
    return text.decode("ascii")
