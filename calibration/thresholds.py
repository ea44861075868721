"""From a histogram to the range that INT8 covers: minmax, percentile, entropy, mse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 2048
_LEVELS = 127
_PERCENTILE = 99.99
_MSE_CANDIDATES = 128


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts (BINS,) of a tensor's values in equal bins from -bound to bound, and its smallest and largest value."""

    low: float
    high: float
    bound: float
    counts: npt.NDArray[np.int64]

    def folded(self) -> npt.NDArray[np.int64]:
        """Counts of |x| in BINS / 2 equal bins from 0 to bound."""
        half = len(self.counts) // 2
        return self.counts[half:] + self.counts[:half][::-1]


def clipped_range(histogram: Histogram, method: str) -> tuple[float, float]:
    """The smallest and largest value that stay as they are; what is beyond saturates."""
    if histogram.bound == 0:
        return 0.0, 0.0
    threshold = _THRESHOLDS[method](histogram)
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _percentile(histogram: Histogram) -> float:
    """The bound that _PERCENTILE percent of |x| do not pass."""
    folded = histogram.folded()
    share = np.cumsum(folded) / folded.sum()
    index = int(np.searchsorted(share, _PERCENTILE / 100))
    return histogram.bound * (min(index, len(folded) - 1) + 1) / len(folded)


def _mse(histogram: Histogram) -> float:
    """The threshold with the least expected squared error.

    Within the range the error of a step s is s^2/12 (uniform), below half a step x^2; beyond it (|x| - T)^2.
    """
    folded = histogram.folded().astype(np.float64)
    centres = (np.arange(len(folded)) + 0.5) * (histogram.bound / len(folded))
    best, best_error = histogram.bound, np.inf
    for i in range(_MSE_CANDIDATES):
        threshold = histogram.bound * (1 - i / _MSE_CANDIDATES)
        step = threshold / _LEVELS
        error = np.where(centres < step / 2, centres**2, step**2 / 12)
        error = np.where(centres > threshold, (centres - threshold) ** 2, error)
        total = float(folded @ error)
        if total < best_error:
            best, best_error = threshold, total
    return best


def _entropy(histogram: Histogram) -> float:
    """The threshold whose quantised distribution has the least Kullback-Leibler divergence from the clipped one.

    The method of NVIDIA's calibrator (Migacz, 8-bit inference with TensorRT, GTC 2017), over |x|.
    """
    folded = histogram.folded().astype(np.float64)
    best, best_divergence = len(folded), np.inf
    for count in range(_LEVELS + 1, len(folded) + 1, 8):
        kept = folded[:count].copy()
        occupied = kept > 0
        kept[-1] += folded[count:].sum()
        level = np.arange(count) * (_LEVELS + 1) // count
        mass = np.bincount(level, folded[:count], _LEVELS + 1)
        shared = np.bincount(level, occupied, _LEVELS + 1)
        coarse = np.where(occupied, mass[level] / np.maximum(shared[level], 1), 0)
        p, q = kept / kept.sum(), coarse / max(coarse.sum(), 1.0)
        # A bin that the coarse form lost counts as nearly empty, which costs much.
        used = p > 0
        divergence = float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-9))).sum())
        if divergence < best_divergence:
            best, best_divergence = count, divergence
    return histogram.bound * best / len(folded)


_THRESHOLDS: dict[str, Callable[[Histogram], float]] = {
    "mse": _mse,
    "entropy": _entropy,
    "percentile": _percentile,
    "minmax": lambda histogram: histogram.bound,
}
METHODS = tuple(_THRESHOLDS)
