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
    """The image files of a folder, by file extension, sorted. Raises ImageError if there are none."""
    try:
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise ImageError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    if not images:
        raise ImageError(f"{folder} has no images: {', '.join(_SUFFIXES)}")
    return images


def coco_mask(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """A mask, bool (H, W), as COCO has it: compressed RLE, area, and box (x, y, width, height), of zeros if empty."""
    rows, columns = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1] if rows else [0, 0, 0, 0]
    rle = {"size": list(mask.shape), "counts": run_lengths(mask)}
    return {"segmentation": rle, "area": int(np.count_nonzero(mask)), "bbox": box}


def coco_entry(file_name: str, results: Sequence[Result]) -> dict[str, Any]:
    """An image and what its sentences refer to, for `coco_dataset`."""
    size = {"width": results[0].width, "height": results[0].height}
    masks = [{**coco_mask(result.mask), "score": round(result.score, 4)} for result in results]
    return {"file_name": file_name, **size, "masks": masks}


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


def run_lengths(mask: npt.NDArray[np.bool_]) -> str:
    """COCO's compressed run lengths of a mask, bool (H, W), as `pycocotools.mask.decode` reads them.

    The runs go down the columns, background first. From the fourth on, each is the difference to the one two before;
    a number is written in groups of five bits, the lowest first, with a sixth that says that more follow.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff(changes, prepend=0, append=flat.size)
    values = runs.copy()
    values[3:] -= runs[1:-2]
    digits = np.empty((values.size, 8), np.uint8)
    present = np.zeros(digits.shape, bool)
    more = np.ones(values.size, bool)
    for place in range(digits.shape[1]):
        present[:, place] = more
        low, values = values & 31, values >> 5
        more = more & (values != np.where(low & 16, -1, 0))  # what is left is the sign alone
        digits[:, place] = low + 32 * more + 48
    return digits[present].tobytes().decode("ascii")
