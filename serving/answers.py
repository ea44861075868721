"""What is said of a result: COCO's run lengths, the box, the area, the score; or the mask as a PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..runtime import Result

Described = dict[str, Any]


def describe(result: Result, score: float, warning: str | None = None) -> Described:
    """The result as JSON; see `openapi.json`, Result."""
    mask = result.mask
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = None
    if rows.size:
        top, left = int(rows[0]), int(columns[0])
        box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    found = {
        "sentence": result.sentence,
        "rle": {"size": [result.height, result.width], "counts": run_lengths(mask)},
        "box": box,
        "area": int(mask.sum()),
        "score": round(score, 4),
    }
    return found if warning is None else {**found, "warning": warning}


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


def png(mask: npt.NDArray[np.bool_]) -> bytes:
    """255 for the object, 0 elsewhere."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()
