"""Windows that hold padding, packed into fewer: part of rewrite 9. The function is the same.

A padded pixel's key and value are zero (rewrite 4), so all that it does to a query is to add exp(bias) to the softmax's
denominator, a constant. One slot more, whose key and value are zero and whose bias is the logarithm of the sum of those
terms, stands for all padding of a window. What is left of a window, its pixels, moves as one piece to where another
window has room: position bias depends on where two pixels lie to each other, so it moves along, and a mask takes all
weight between pixels of different windows.
"""

from __future__ import annotations

from itertools import product
from math import gcd, isqrt
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# What takes all weight, forty times the -100 of Swin's own mask. FP16 holds it with room to spare. Where scores are
# known to be farther apart than MOST_SPREAD, windows stay as they are; pairs of different windows may have others.
CLOSED = -4096.0
MOST_SPREAD = -CLOSED / 4
# How often a block reads or writes a row of its windows: the norm, queries, keys, values, what attention makes of them,
# and the projection of that.
_PASSES = 12


class Windows(NamedTuple):
    """n windows with s slots each, for attention with h heads."""

    pixels: Array  # (n,s): the pixel in each slot, -1 where there is none
    bias: Array  # (h,s,s)
    mask: Array | None  # (n,1,s,s)

    def numbers(self, channels: int) -> int:
        """How many numbers a block of so many channels moves for its attention."""
        return _PASSES * self.pixels.size * channels + self.bias.size + (0 if self.mask is None else self.mask.size)


def pack_windows(windows: Windows) -> Windows:
    """The same attention between pixels, in as few windows as a greedy search finds."""
    pixels, bias, mask = windows
    if (pixels >= 0).all():
        return windows
    slots = pixels.shape[1]
    if mask is None:
        mask = np.zeros((len(pixels), 1, slots, slots), bias.dtype)
    taken: list[Array] = []  # of each packed window: which slots are
    columns: list[Array] = []  # of each slot that stands for padding: its bias (h,s), NaN for queries that have none
    moves: list[tuple[int, Array, int, Array, int | None]] = []
    for i in np.argsort((pixels < 0).sum(axis=1), kind="stable"):
        old, padding = np.flatnonzero(pixels[i] >= 0), np.flatnonzero(pixels[i] < 0)
        place, new = _find_room(taken, old, isqrt(slots))
        column = None
        if len(padding):
            terms = (bias + mask[i])[:, old][:, :, padding].astype(np.float64)
            column = _find_column(columns, new, np.logaddexp.reduce(terms, axis=2), slots)
        moves.append((i, old, place, new, column))

    step = gcd(slots, 8)  # where rows of the bias are aligned for wide loads, they stay so
    width = slots + -(-len(columns) // step) * step
    packed_pixels = np.full((len(taken), width), -1)
    packed_bias = np.zeros((len(bias), width, width), bias.dtype)
    packed_bias[:, :slots, :slots] = bias
    for column, values in enumerate(columns):
        packed_bias[:, :slots, slots + column] = np.nan_to_num(values)
    packed_mask = np.full((len(taken), 1, width, width), CLOSED, bias.dtype)
    for i, old, place, new, column in moves:
        packed_pixels[place, new] = pixels[i, old]
        packed_mask[place, 0, new[:, None], new] = mask[i, 0, old[:, None], old]
        if column is not None:
            packed_mask[place, 0, new, slots + column] = 0
    return Windows(packed_pixels, packed_bias, packed_mask)


def _find_room(taken: list[Array], slots: Array, side: int) -> tuple[int, Array]:
    """Takes room for the slots of a window in the first packed one that has it: which one, and the slots there."""
    rows, columns = np.divmod(slots, side)
    rows, columns = rows - rows.min(), columns - columns.min()
    shifts = [(down, right) for down in range(side - rows.max()) for right in range(side - columns.max())]
    taken.append(np.zeros(side * side, bool))
    with_room = (i for i, slots_taken in enumerate(taken) if not slots_taken.all())
    for i, (down, right) in product(with_room, shifts):
        moved = (rows + down) * side + columns + right
        if not taken[i][moved].any():
            break
    taken[i][moved] = True
    if not taken[-1].any():
        taken.pop()
    return i, moved


def _find_column(columns: list[Array], queries: Array, bias: Array, slots: int) -> int:
    """A slot for padding whose bias (h,queries) is this: one that has it, or can have it, or a new one."""
    fits = (bool((np.isnan(column[:, queries]) | (column[:, queries] == bias)).all()) for column in columns)
    i = next((i for i, fit in enumerate(fits) if fit), len(columns))
    if i == len(columns):
        columns.append(np.full((len(bias), slots), np.nan))
    columns[i][:, queries] = bias
    return i
