"""Intervals hold what they should on a noisy machine, see what is there, and orders of turns are balanced."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from lavt_edge._base.timing import (
    Ratio,
    block_length,
    divided,
    paired_ratio,
    student_factor,
    summarise,
    turns,
    unpaired_ratio,
)


def noisy_run(
    rng: np.random.Generator, rounds: int, sides: int, correlation: float, ratio: float = 1.0
) -> npt.NDArray[np.float64]:
    """Seconds (rounds,sides) of equal sides, the second times `ratio`: a machine that drifts from call to call by 10 %
    (autoregressive), 2 % of each side's own that lasts for rounds, spikes in one call of ten, and two carry-overs:
    later turns are 1 % slower, and what runs right after side 0 is 2 % slower."""
    seconds = np.zeros((rounds, sides))
    level, own, before = 0.1 * rng.standard_normal(), np.zeros(sides), -1
    orders = turns(sides)
    for number in range(rounds):
        for turn, side in enumerate(orders[number % len(orders)]):
            level = correlation * level + 0.1 * np.sqrt(1 - correlation**2) * rng.standard_normal()
            own[side] = 0.5 * own[side] + 0.02 * np.sqrt(0.75) * rng.standard_normal()
            spike = rng.exponential(0.3) if rng.random() < 0.1 else 0.0
            seconds[number, side] = 0.1 * np.exp(level + own[side] + spike + 0.01 * turn + 0.02 * (before == 0))
            before = side
    seconds[:, 1] *= ratio
    return seconds


@pytest.mark.parametrize("correlation", [0.0, 0.7, 0.95, 0.99])
@pytest.mark.parametrize(("rounds", "sides"), [(10, 2), (20, 2), (20, 3), (20, 5), (40, 2)])
def test_a_side_beside_itself_is_equal_in_19_of_20_runs(rounds: int, sides: int, correlation: float) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        seconds = noisy_run(rng, rounds, sides, correlation)
        held += not paired_ratio(seconds[:, 1], seconds[:, 0], period=sides, draws=400).excludes(1.0)
    assert held >= 190


@pytest.mark.parametrize(("ratio", "correlation"), [(0.8, 0.95), (1.25, 0.95), (0.7, 0.7)])
def test_a_real_difference_is_seen_and_measured(ratio: float, correlation: float) -> None:
    rng = np.random.default_rng(2)
    found = []
    for _ in range(100):
        seconds = noisy_run(rng, 20, 2, correlation, ratio)
        found.append(paired_ratio(seconds[:, 1], seconds[:, 0], draws=400))
    assert sum(one.excludes(1.0) for one in found) >= 90
    assert sum(not one.excludes(ratio) for one in found) >= 95
    assert np.median([one.ratio for one in found]) == pytest.approx(ratio, rel=0.02)


def test_pairing_takes_out_what_slows_all_sides() -> None:
    drift = np.linspace(1, 3, 20)
    first, second = 0.1 * drift, 0.2 * drift
    paired = paired_ratio(second, first)
    assert (paired.low, paired.ratio, paired.high) == pytest.approx((2, 2, 2))
    assert unpaired_ratio(second, first).low < 1.9


def test_the_ratio_is_of_medians_and_lies_in_its_interval() -> None:
    rng = np.random.default_rng(3)
    for rounds in (2, 3, 5, 9):
        first, second = rng.exponential(size=(2, rounds)) + 0.1
        found = paired_ratio(first, second, draws=200)
        assert found.ratio == pytest.approx(np.median(first) / np.median(second))
        assert found.low <= found.ratio <= found.high


def test_what_gives_no_interval_is_refused() -> None:
    for first, second in (([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, 0.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match=r"rounds|time"):
            paired_ratio(first, second)


def test_blocks_are_whole_periods_and_never_too_few() -> None:
    assert [block_length(rounds, 2) for rounds in (2, 10, 20, 40)] == [1, 2, 4, 6]
    assert block_length(20, 5) == 5
    assert all(rounds // block_length(rounds, period) >= 4 for rounds in range(4, 60) for period in range(1, 9))


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182446), (4, 2.776445), (9, 2.262157), (100, 1.983972)])
def test_student_factor_is_the_tables(freedom: int, quantile: float) -> None:
    assert student_factor(freedom) * 1.959964 == pytest.approx(quantile, rel=0.01)


def test_a_ratio_of_ratios_adds_their_doubts() -> None:
    found = divided(Ratio(0.9, 0.9 / 1.03, 0.9 * 1.03), Ratio(0.6, 0.6 / 1.04, 0.6 * 1.04))
    width = np.exp(np.hypot(np.log(1.03), np.log(1.04)))
    assert (found.low, found.ratio, found.high) == pytest.approx((1.5 / width, 1.5, 1.5 * width))


def test_summary_counts_images() -> None:
    summary = summarise([0.1] * 90 + [0.2] * 10, batch=4)
    assert (summary.median, summary.throughput) == pytest.approx((0.1, 40))
    assert summary.p99 == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no rounds"):
        summarise([])


@pytest.mark.parametrize("sides", range(1, 8))
def test_each_side_has_each_place_and_follows_each_other_equally_often(sides: int) -> None:
    orders = turns(sides)
    assert all(sorted(order) == list(range(sides)) for order in orders)
    places = Counter((place, side) for order in orders for place, side in enumerate(order))
    followers = Counter(pair for order in orders for pair in pairwise(order))
    assert len(set(places.values())) == 1
    assert len(followers) == sides * (sides - 1)
    assert len(set(followers.values())) <= 1
