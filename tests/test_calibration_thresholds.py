"""From a histogram to a clipped range, by each method."""

from __future__ import annotations

import numpy as np
import pytest
from lavt_edge.calibration.thresholds import BINS, METHODS, Histogram, clipped_range


def histogram(values: np.ndarray) -> Histogram:
    bound = float(np.abs(values).max())
    counts = np.histogram(values, BINS, (-bound, bound))[0] if bound else np.full(BINS, 1)
    return Histogram(float(values.min()), float(values.max()), bound, counts)


def rounding_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / 127
    return float(((np.rint(values / step).clip(-127, 127) * step - values) ** 2).mean())


RNG = np.random.default_rng(0)
LONG_TAIL = RNG.standard_t(3, 300_000)


def test_minmax_is_the_range_itself() -> None:
    assert clipped_range(histogram(np.array([-0.5, 2.0, 1.0])), "minmax") == (-0.5, 2.0)


def test_percentile_leaves_one_in_ten_thousand_outside() -> None:
    low, high = clipped_range(histogram(LONG_TAIL), "percentile")
    outside = np.mean((low > LONG_TAIL) | (high < LONG_TAIL))
    assert 0.2e-4 < outside <= 1e-4


@pytest.mark.parametrize("values", [LONG_TAIL, RNG.normal(size=300_000), RNG.uniform(-1, 1, 300_000)])
def test_mse_is_within_a_percent_of_the_best_threshold_for_the_values_themselves(values: np.ndarray) -> None:
    low, high = clipped_range(histogram(values), "mse")
    bound = np.abs(values).max()
    best = min(rounding_error(values, bound * (i + 1) / 200) for i in range(200))
    assert rounding_error(values, max(-low, high)) <= 1.01 * best


def test_mse_clips_a_long_tail_and_keeps_a_uniform_range() -> None:
    assert clipped_range(histogram(LONG_TAIL), "mse")[1] < 0.7 * np.abs(LONG_TAIL).max()
    assert clipped_range(histogram(RNG.uniform(-1, 1, 100_000)), "mse")[1] > 0.98


def test_entropy_keeps_a_flat_range_and_drops_a_lone_outlier() -> None:
    flat = RNG.uniform(-1, 1, 300_000)
    assert clipped_range(histogram(flat), "entropy")[1] > 0.95
    assert clipped_range(histogram(np.append(flat, 7.0)), "entropy")[1] < 1.5


@pytest.mark.parametrize("method", METHODS)
def test_one_sided_values_keep_their_side(method: str) -> None:
    low, high = clipped_range(histogram(np.abs(LONG_TAIL) + 0.001), method)
    assert 0 <= low < 0.01 < high


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_a_range_of_zero(method: str) -> None:
    assert clipped_range(histogram(np.zeros(9)), method) == (0.0, 0.0)
