"""`calibration.json`: what a calibration found, enough to place scales by any method without running it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .._base import strict_json
from ..data.sentences import GENERATED
from ..errors import BundleError, ExportError
from ..runtime.bundle import Bundle
from .half import Range
from .sample import DataOptions
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
    smoothed graph, over part of the sample.
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
        fields = {"format_version": FORMAT_VERSION, **asdict(self)}
        return json.dumps(fields, allow_nan=False, separators=(",", ":"), default=np.ndarray.tolist).encode()


def read_calibration(path: Path) -> Calibration | None:
    """The calibration in a file; None if there is no file, or one of another format version.

    Raises BundleError if the file is damaged.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise BundleError(f"{path}: larger than {_MAX_BYTES} bytes, not a calibration; delete it")
        fields = strict_json.loads(path.read_bytes())
        if not isinstance(fields, dict):
            raise TypeError("not an object")
        if fields.get("format_version") != FORMAT_VERSION:
            return None
        return Calibration(
            key=dict(fields["key"]),
            ranges={
                role: {name: _range(*pair) for name, pair in ranges.items()}
                for role, ranges in fields["ranges"].items()
            },
            channels={name: _statistics(**parts) for name, parts in fields["channels"].items()},
            strengths={name: _numbers([strength], 0, 1)[0] for name, strength in fields["strengths"].items()},
            histograms={name: _histogram(**parts) for name, parts in fields["histograms"].items()},
        )
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise BundleError(f"{path}: damaged ({type(error).__name__}: {str(error)[:80]}); delete it") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror or error})") from None


def kept_calibration(bundle: Bundle) -> Calibration | None:
    """The bundle's own; None if it has none, or one that is damaged or old: it is made again."""
    with suppress(BundleError):
        return read_calibration(bundle.file("calibration", None)) if bundle.has("calibration") else None
    return None


def recorded_data(bundle: Bundle) -> DataOptions:
    """The options that draw the sample of the bundle's own calibration again; if it has none, the usual ones.

    Raises ExportError if that is not of generated scenes: a bundle does not say where other data lies.
    """
    recorded = kept_calibration(bundle)
    try:
        data = {} if recorded is None else recorded.key["data"]
        dataset = str(data.get("dataset", GENERATED))
        options = DataOptions(samples=int(data.get("samples", DataOptions.samples)), seed=int(data.get("seed", 0)))
    except (ExportError, AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return DataOptions()
    if dataset != GENERATED:
        raise ExportError(
            f"the calibration of {bundle.root} is of {dataset}: run lavt-export quantize {bundle.root} --int8 --tune "
            f"--force --dataset {dataset} --calibration-data ROOT, then lavt-export trt {bundle.root} --int8"
        )
    return options


def _numbers(values: object, low: float, high: float) -> list[float]:
    """`values`, if they are a list of one number or more within these limits."""
    if not isinstance(values, list) or not values:
        raise TypeError("not a list of numbers")
    if not all(type(value) in (int, float) and low <= value <= high for value in values):
        raise ValueError(f"not numbers from {low:g} to {high:g}")
    return [float(value) for value in values]


def _range(low: object, high: object) -> Range:
    smallest, largest = _numbers([low, high], -_MAX_FLOAT, _MAX_FLOAT)
    if smallest > largest:
        raise ValueError("a range that ends before it begins")
    return smallest, largest


def _statistics(amax: object, square: object) -> ChannelStatistics:
    return ChannelStatistics(np.array(_numbers(amax, 0, _MAX_FLOAT)), np.array(_numbers(square, 0, _MAX_FLOAT**2)))


def _histogram(low: object, high: object, bound: object, counts: object) -> Histogram:
    numbers = np.array(_numbers(counts, 0, _MAX_COUNT))
    if len(numbers) != BINS or (numbers % 1).any() or not 0 < numbers.sum() < _MAX_COUNT:
        raise ValueError(f"a histogram is {BINS} counts")
    (limit,) = _numbers([bound], 0, _MAX_FLOAT)
    return Histogram(*_range(low, high), limit, numbers.astype(np.int64))
