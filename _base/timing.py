"""Sides that take turns: medians, percentiles, and ratios of medians whose intervals hold on a machine in use.

Sides are measured in turn, round by round, so that what slows the machine slows all of them; a round is resampled as a
whole (paired). Neighbouring rounds are alike, which an ordinary bootstrap takes for precision: whole blocks of rounds
are resampled instead (circular block bootstrap, Politis and Romano 1992). Few blocks underestimate the spread, so the
interval is widened as Student's t asks with one degree of freedom less than there are blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .progress import Progress, ignore

Seconds = Sequence[float] | npt.NDArray[np.float64]

DRAWS = 4000
MIN_BLOCKS = 4
_Z = 1.959964


def turns(sides: int) -> list[list[int]]:
    """The orders of the rounds, to be repeated: each side has each place, and follows each other, equally often.

    What ran before leaves its data in the caches and its heat in the core. Williams' design (1949): n orders for even
    n, 2n for odd.
    """
    zigzag = [(turn + 1) // 2 if turn % 2 else -turn // 2 for turn in range(sides)]
    orders = [[(place + shift) % sides for place in zigzag] for shift in range(sides)]
    return orders + ([order[::-1] for order in orders] if sides % 2 and sides > 1 else [])


class Timed(Protocol):
    """What can take turns: `run` makes one call and returns its seconds."""

    def run(self) -> float: ...


def interleave(sides: Sequence[Timed], warmup: int, rounds: int, progress: Progress = ignore) -> list[list[float]]:
    """Seconds of each side by round, (sides,rounds): in each round every side runs once, in the order of `turns`."""
    seconds: list[list[float]] = [[] for _ in sides]
    orders = turns(len(sides))
    for number in range(warmup + rounds):
        for side in orders[number % len(orders)]:
            elapsed = sides[side].run()
            if number >= warmup:
                seconds[side].append(elapsed)
        progress(number + 1, warmup + rounds)
    return seconds


@dataclass(frozen=True)
class Summary:
    """Seconds per call, and images per second at the median."""

    median: float
    p90: float
    p99: float
    throughput: float


def summarise(seconds: Seconds, batch: int = 1) -> Summary:
    """The summary of calls that each take `batch` images. Raises ValueError if there is no call."""
    if not len(seconds):
        raise ValueError("no rounds were measured")
    median, p90, p99 = (float(value) for value in np.percentile(np.asarray(seconds), (50, 90, 99)))
    return Summary(median, p90, p99, batch / median)


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians and its 95 % interval."""

    ratio: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the interval lies on one side of a value."""
        return not self.low <= value <= self.high


def paired_ratio(seconds: Seconds, against: Seconds, period: int = 2, draws: int = DRAWS) -> Ratio:
    """Median of `seconds` over median of `against`, both (rounds,) and measured in the same rounds.

    `period` is the number of rounds in which every side has had every turn; blocks are whole periods if the rounds
    allow MIN_BLOCKS of them.

    Raises ValueError for fewer than 2 rounds, or sides of different length.
    """
    first, second = _checked(seconds), _checked(against)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rounds against {len(second)}: sides are paired by round")
    length = block_length(len(first), period)
    rows = _blocks(len(first), length, draws, seed=0)
    logs = np.log(np.median(first[rows], axis=1)) - np.log(np.median(second[rows], axis=1))
    return _interval(float(np.log(np.median(first) / np.median(second))), logs, len(first) / length)


def unpaired_ratio(seconds: Seconds, against: Seconds) -> Ratio:
    """As `paired_ratio`, of two runs at different times: each is resampled by itself. Raises ValueError alike."""
    parts, blocks = [], []
    for number, run in enumerate((seconds, against)):
        values = _checked(run)
        length = block_length(len(values), 1)
        parts.append(np.log(np.median(values[_blocks(len(values), length, DRAWS, seed=number)], axis=1)))
        blocks.append(len(values) / length)
    return _interval(float(np.log(np.median(seconds) / np.median(against))), parts[0] - parts[1], min(blocks))


def divided(numerator: Ratio, denominator: Ratio) -> Ratio:
    """The ratio of two independent ratios; the logarithms' half widths add in squares."""
    centre = np.log(numerator.ratio / denominator.ratio)
    down = np.hypot(np.log(numerator.ratio / numerator.low), np.log(denominator.high / denominator.ratio))
    up = np.hypot(np.log(numerator.high / numerator.ratio), np.log(denominator.ratio / denominator.low))
    return Ratio(float(np.exp(centre)), float(np.exp(centre - down)), float(np.exp(centre + up)))


def block_length(rounds: int, period: int) -> int:
    """Rounds per block: about n^(1/2), whole periods, and short enough for MIN_BLOCKS blocks."""
    length = max(1, round(rounds**0.5))
    length += -length % max(1, period)
    return max(1, min(length, rounds // MIN_BLOCKS))


def student_factor(freedom: float) -> float:
    """Student's 97.5 % quantile over the normal one, by Cornish and Fisher's expansion; within 1 % from 3 degrees."""
    z, v = _Z, max(freedom, 1.0)
    terms = (
        (z**3 + z) / 4 / v,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / v**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / v**3,
    )
    return (z + sum(terms)) / z


def _checked(seconds: Seconds) -> npt.NDArray[np.float64]:
    values = np.asarray(seconds, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"an interval needs at least 2 rounds, not {values.shape}")
    if not (values > 0).all():
        raise ValueError("a call cannot take no time")
    return values


def _blocks(rounds: int, length: int, draws: int, seed: int) -> npt.NDArray[np.intp]:
    """Rounds of each draw, (draws,rounds): blocks of neighbours, the first round following the last."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, rounds, (draws, -(-rounds // length)))
    rows = (starts[:, :, None] + np.arange(length)) % rounds
    return np.asarray(rows.reshape(draws, -1)[:, :rounds])


def _interval(centre: float, logs: npt.NDArray[np.float64], blocks: float) -> Ratio:
    """The draws' percentiles, moved away from the centre as few blocks ask; the centre is always inside."""
    factor = student_factor(blocks - 1) * (blocks / max(blocks - 1, 0.5)) ** 0.5
    low, high = (float(value) - centre for value in np.percentile(logs, (2.5, 97.5)))
    # A median of few rounds takes few values: if the draws lie on one side alone, the other side is as wide.
    low, high = min(low, 0.0), max(high, 0.0)
    if low == 0.0 or high == 0.0:
        low, high = min(low, -high), max(high, -low)
    return Ratio(float(np.exp(centre)), float(np.exp(centre + factor * low)), float(np.exp(centre + factor * high)))
