"""COCO segmentations as RefCOCO's evaluation rasterises and resizes them.

A segmentation is read once, when the annotations are, into a compact form, and rasterised when its mask is asked for.
Numbers from a file are checked before pycocotools' C code sees them: it trusts what it is given.
"""

from array import array
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image

from ..errors import DatasetError

MAX_PIXELS = 100_000_000
"""Largest image size a mask is made for, in pixels. COCO's images have at most 640x640."""
MAX_PARTS = 10_000
"""Most polygons in one segmentation. COCO has a few dozen at most."""
MAX_PERIMETER = 1_000_000
"""Longest outline of one polygon, in pixels; pycocotools allocates in proportion to it."""


@dataclass(frozen=True, slots=True)
class RunLengths:
    """COCO's run-length encoding: runs of 0 and 1 in turn, down the columns of an image of `height` x `width`."""

    counts: "array[int]"
    height: int
    width: int


Polygon: TypeAlias = "array[float]"
"""x, y, x, y, … in pixels."""
Segmentation: TypeAlias = tuple["Polygon | RunLengths", ...]


def parse_segmentation(value: object) -> Segmentation:
    """A segmentation as it stands in COCO's JSON: polygons, a run-length encoding, or a list of either.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    if isinstance(value, dict):
        return (_parse_run_lengths(value),)
    if not isinstance(value, list):
        raise ValueError("segmentation is neither polygons nor a run-length encoding")
    if len(value) > MAX_PARTS:
        raise ValueError(f"segmentation has more than {MAX_PARTS} polygons")
    return tuple(_parse_run_lengths(part) if isinstance(part, dict) else _parse_polygon(part) for part in value)


def rasterise(segmentation: Segmentation, height: int, width: int, *, union: bool = False) -> np.ndarray:
    """The mask of a segmentation, bool (height, width).

    Each part is rasterised by itself and the parts are summed; a pixel belongs to the mask if the sum is exactly 1.
    So where polygons overlap there is a hole, and published figures depend on it; with `union` a pixel belongs to the
    mask if it is in any part, as in gRefCOCO's evaluation. No parts give an empty mask.

    Raises:
        ValueError: coordinates or run lengths that do not fit the image.
        DatasetError: pycocotools is not installed.
    """
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"an image size of {width}x{height}")
    covered = np.zeros((height, width), np.uint16)
    polygons = []
    for part in segmentation:
        if isinstance(part, RunLengths):
            covered += _rasterise_run_lengths(part, height, width)
        else:
            _check_polygon(part, height, width)
            polygons.append(part.tolist())
    if polygons:
        _add_polygons(covered, polygons)
    return covered >= 1 if union else covered == 1


def resize_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A bool (H, W) mask at (height, width), by Pillow's nearest neighbour, which RefCOCO's evaluation uses."""
    image = Image.fromarray(np.ascontiguousarray(mask, np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)).astype(bool)


def _add_polygons(covered: np.ndarray, polygons: list[list[float]]) -> None:
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise DatasetError("RefCOCO masks need pycocotools; pip install 'lavt-edge[data]'") from error
    # pycocotools reads a list that starts with four numbers as boxes; a line with its end repeated is the same polygon.
    outlines = [polygon + polygon[2:] if len(polygon) == 4 else polygon for polygon in polygons]
    for encoded in coco_mask.frPyObjects(outlines, *covered.shape):
        covered += coco_mask.decode(encoded)


def _parse_polygon(value: object) -> Polygon:
    if not isinstance(value, list):
        raise ValueError("a polygon that is not a list of numbers")
    try:
        polygon = array("d", value)
    except (TypeError, OverflowError):
        raise ValueError("a polygon that is not a list of numbers") from None
    if len(polygon) < 4 or len(polygon) % 2:
        raise ValueError(f"a polygon of {len(polygon)} numbers")
    return polygon


def _check_polygon(polygon: Polygon, height: int, width: int) -> None:
    points = np.frombuffer(polygon).reshape(-1, 2)
    size = np.array([width, height])
    if not (np.isfinite(points).all() and (points >= -size).all() and (points <= 2 * size).all()):
        raise ValueError(f"a polygon that leaves the {width}x{height} image")
    if np.abs(np.diff(points, axis=0)).max(axis=1).sum() > MAX_PERIMETER:
        raise ValueError(f"a polygon with an outline of more than {MAX_PERIMETER} pixels")


def _parse_run_lengths(value: dict[str, object]) -> RunLengths:
    size, counts = value.get("size"), value.get("counts")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)):
        raise ValueError("a run-length encoding without size")
    if not isinstance(counts, (str, list)):
        raise ValueError("a run-length encoding without counts")
    try:
        return RunLengths(_decompress(counts) if isinstance(counts, str) else array("q", counts), *size)
    except (TypeError, OverflowError):
        raise ValueError("a run-length encoding without counts") from None


def _decompress(text: str) -> "array[int]":
    """Run lengths of COCO's compressed form: 5 bits a character from '0' on, bit 5 for 'more follows', the last bit 4
    the sign; from the third run on the difference to the run before the last (pycocotools' maskApi.c)."""
    runs: array[int] = array("q")
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise ValueError("a damaged compressed run-length encoding")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("a truncated compressed run-length encoding")
    return runs


def _rasterise_run_lengths(part: RunLengths, height: int, width: int) -> np.ndarray:
    counts = np.frombuffer(part.counts, np.int64) if part.counts else np.zeros(0, np.int64)
    fits = (part.height, part.width) == (height, width) and (counts >= 0).all() and (counts <= height * width).all()
    if not fits or counts.sum() != height * width:
        raise ValueError(f"a run-length encoding that does not fit the {width}x{height} image")
    values = np.arange(len(counts)) % 2
    return np.repeat(values.astype(np.uint8), counts).reshape(width, height).T
