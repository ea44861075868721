"""What is said of a result: COCO's run lengths, the box, the area, the score; or the mask as a PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..runtime import Result
from ..runtime.images.coco import coco_mask

Described = dict[str, Any]


def describe(result: Result, score: float, warning: str | None = None) -> Described:
    """The result as JSON; see `openapi.json`, Result."""
    mask = coco_mask(result.mask)
    described = {
        "sentence": result.sentence,
        "rle": mask["segmentation"],
        "box": mask["bbox"] if mask["area"] else None,
        "area": mask["area"],
        "score": round(score, 4),
    }
    return described if warning is None else {**described, "warning": warning}


def png(mask: npt.NDArray[np.bool_]) -> bytes:
    """255 for the object, 0 elsewhere."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG")
    return file.getvalue()
