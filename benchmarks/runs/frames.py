"""What a frame costs on the CPU around the image graph, by its size: a table of the standing comparison."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np

from ...runtime import Segmenter
from ..report.standing import FrameCost
from ..timing.latency import measure_split

SIZES = ((480, 640), (720, 1280), (1080, 1920), (2160, 3840))
_PARTS = ("preprocess", "image", "postprocess")
_WITHOUT = "lavt_edge.runtime.images.result._opencv"


def measure_frames(root: Path, rounds: int) -> tuple[FrameCost, ...]:
    """Every size, with OpenCV and without it in turn. Raises LavtError."""
    import cv2

    cv2.setNumThreads(1)
    costs = []
    with Segmenter.load(root, device="cpu", precision="fp32", threads=1, prompt_cache=1) as segmenter:
        for size in SIZES:
            frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
            splits: dict[bool, list[dict[str, list[float]]]] = {True: [], False: []}
            for _ in range(rounds):
                for opencv, parts in splits.items():
                    with nullcontext() if opencv else patch(_WITHOUT, return_value=None):
                        parts.append(measure_split(segmenter, frame, "the circle", rounds=1).parts)
            for opencv, parts in splits.items():
                medians = (float(np.median([split[part] for split in parts])) for part in _PARTS)
                costs.append(FrameCost(size, opencv, *(round(seconds, 6) for seconds in medians)))
    return tuple(costs)
