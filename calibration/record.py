"""`calibration.json`: what a calibration found, enough to place scales by any method without running it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._base import strict_json
from ..errors import BundleError
from .half import Range
from .smoothing import ChannelStatistics
from .thresholds import BINS, Histogram, clipped_range

RECORD_NAME = "calibration.json"
FORMAT_VERSION = 1
_MAX_BYTES = 256 * 2**20
_MAX_FLOAT = float(np.finfo(np.float32).max)  # the graphs compute in FP32
_MAX_COUNT = 2**52  # whose sums are exact


@dataclass(frozen=True)
class Calibration:
    """Ranges and histograms of tensors, by name, over a sample.

    `key` names the graphs and the data (see calibrate.py). `ranges` are those of the unchanged image and text graph;
    `channels` belong to LayerNorm nodes, `strengths` to those that are smoothed; `histograms` are of the
    smoothed graph.
    """

    key: Mapping[str, Any]
    ranges: Mapping[str, Mapping[str, Range]]
    channels: Mapping[str, ChannelStatistics]
    strengths: Mapping[str, float]
    histograms: Mapping[str, Histogram]

    def clipped(self, method: str) -> dict[str, Range]:
        """The range of each tensor with a histogram, by a method of thresholds.METHODS."""
        return {name: clipped_range(histogram, method) for name, histogram in self.histograms.items()}

    def to_json(self) -> bytes:
        fields = {
            "format_version": FORMAT_VERSION,
            "key": dict(self.key),
            "ranges": {role: {name: list(pair) for name, pair in found.items()} for role, found in self.ranges.items()},
            "channels": {
                name: {"amax": one.amax.tolist(), "square": one.square.tolist()} for name, one in self.channels.items()
            },
            "strengths": dict(self.strengths),
            "histograms": {
                name: {"low": one.low, "high": one.high, "bound": one.bound, "counts": one.counts.tolist()}
                for name, one in self.histograms.items()
            },
        }
        return json.dumps(fields, allow_nan=False, separators=(",", ":")).encode()


def read_calibration(path: Path) -> Calibration | None:
    """The calibration in a file; None where there is no file, or one of another format version.

    Raises BundleError where the file is damaged.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path}: larger than {_MAX_BYTES} bytes, no calibration; delete it")
        fields = strict_json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise TypeError("not an object")
        if fields.get("format_version") != FORMAT_VERSION:
            return None
        return Calibration(
            key=dict(fields["key"]),
            ranges={
                role: {name: _range(*pair) for name, pair in found.items()} for role, found in fields["ranges"].items()
            },
            channels={
                name: ChannelStatistics(_vector(one["amax"], _MAX_FLOAT), _vector(one["square"], _MAX_FLOAT**2))
                for name, one in fields["channels"].items()
            },
            strengths={name: _number(value, 0, 1) for name, value in fields["strengths"].items()},
            histograms={name: _histogram(one) for name, one in fields["histograms"].items()},
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path}: damaged ({type(error).__name__}: {str(error)[:80]}); delete it") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from None


def _number(value: object, low: float = -_MAX_FLOAT, high: float = _MAX_FLOAT) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"not a number from {low:g} to {high:g}")
    return float(value)


def _range(low: object, high: object) -> Range:
    pair = _number(low), _number(high)
    if pair[0] > pair[1]:
        raise ValueError("a range that ends before it begins")
    return pair


def _vector(values: object, high: float) -> np.ndarray:
    if not isinstance(values, list) or not values:
        raise TypeError("not a list of numbers")
    return np.array([_number(value, 0, high) for value in values])


def _histogram(fields: Mapping[str, Any]) -> Histogram:
    counts = np.array(fields["counts"])
    if (
        counts.shape != (BINS,)
        or counts.dtype != np.int64
        or counts.min() < 0
        or not 0 < counts.sum(dtype=float) < _MAX_COUNT
    ):
        raise ValueError(f"a histogram is {BINS} counts")
    low, high = _range(fields["low"], fields["high"])
    return Histogram(low, high, _number(fields["bound"], 0), counts)
