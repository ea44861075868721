"""Packed windows give each pixel what its own window gave it, from fewer slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from lavt_edge.export.rewrites.packing import CLOSED, Windows, pack_windows
from lavt_edge.export.rewrites.windows import window_slots
from lavt_edge.reference.swin import shift_mask

Array = npt.NDArray[Any]
HEADS, WIDTH = 3, 4


def windows_of(height: int, width: int, side: int, shift: int) -> Windows:
    """Windows of a grid, with a random position bias for each offset between two slots."""
    slots = window_slots(height, width, side, shift).numpy()
    place = np.stack(np.divmod(np.arange(side * side), side))
    down, right = place[:, :, None] - place[:, None] + side - 1
    table = np.random.default_rng(0).normal(size=(HEADS, (2 * side - 1) ** 2))
    mask = shift_mask(height + -height % side, width + -width % side, side, shift)[:, None].double().numpy()
    pixels = np.where(slots == height * width, -1, slots)
    return Windows(pixels, table[:, down * (2 * side - 1) + right], mask if shift else None)


def attend(windows: Windows, query: Array, key: Array, value: Array) -> Array:
    """Attention (h,pixels,d) whose keys and values (h,pixels,d) are zero in padding, as rewrite 4 has them."""
    padded = [np.pad(part, ((0, 0), (0, 1), (0, 0)))[:, windows.pixels] for part in (query, key, value)]
    scores = padded[0] @ padded[1].swapaxes(2, 3) + windows.bias[:, None]
    if windows.mask is not None:
        scores = scores + windows.mask[:, 0]
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    attended = weights / weights.sum(axis=-1, keepdims=True) @ padded[2]
    result = np.full(query.shape, np.nan)
    result[:, windows.pixels[windows.pixels >= 0]] = attended[:, windows.pixels >= 0]
    return result


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    ("grid", "side", "slots"),
    [
        ((30, 30), 12, (7 * 152, 7 * 152)),  # of 9 * 144: base's stages 2 and 3 at 480x480
        ((15, 15), 12, (3 * 152, 3 * 152)),  # of 4 * 144
        ((40, 30), 12, (9 * 152, 9 * 152)),  # of 12 * 144
        ((15, 15), 7, (6 * 51, 7 * 55)),  # of 9 * 49, a row of which is not aligned
        ((13, 13), 7, (4 * 52, 4 * 52)),  # of 4 * 49: nothing is won
        ((24, 24), 12, (4 * 144, 4 * 144)),
        ((5, 3), 7, (50, 50)),
    ],
    ids=str,
)
def test_attention_between_pixels_is_the_same(
    grid: tuple[int, int], side: int, slots: tuple[int, int], shift: bool
) -> None:
    windows = windows_of(*grid, side, side // 2 if shift else 0)
    packed = pack_windows(windows)
    assert packed.pixels.size == slots[shift]
    generator = np.random.default_rng(1)
    operands = generator.normal(size=(3, HEADS, grid[0] * grid[1], WIDTH)) * 2
    found, expected = attend(packed, *operands), attend(windows, *operands)
    assert not np.isnan(expected).any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_rows_of_aligned_windows_stay_aligned() -> None:
    """A kernel reads 8 numbers of FP16 at once."""
    assert pack_windows(windows_of(30, 30, 12, 0)).bias.shape == (HEADS, 152, 152)
    assert pack_windows(windows_of(15, 15, 7, 0)).bias.shape == (HEADS, 51, 51)


def test_no_slot_is_without_a_finite_score_and_fp16_holds_the_mask() -> None:
    packed = pack_windows(windows_of(15, 15, 12, 6))
    assert packed.mask is not None
    assert np.isfinite(packed.mask).all()
    assert np.isfinite(packed.bias).all()
    assert packed.mask.min() == CLOSED
    assert np.float16(CLOSED) == CLOSED
    assert np.exp(np.float32(CLOSED + 3900)) == 0  # scores may be so far apart


def test_numbers_count_what_packing_costs_too() -> None:
    """Packed windows need a mask; where they save few rows of few channels, that is more."""
    windows = windows_of(30, 30, 12, 0)
    packed = pack_windows(windows)
    assert packed.numbers(512) < windows.numbers(512)
    assert packed.numbers(16) > windows.numbers(16)
