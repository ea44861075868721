"""Rewrite 4: pad, shift, window and head split as one constant gather, and back as another.

The norm's output is zero in padded pixels, so their queries, keys and values are the projection's bias. The keys' bias
adds the same to all scores of a query, which softmax ignores; the values' bias passes through, as a query's weights sum
to one, and goes into the output projection's. Without these two a padded pixel's key and value are zero, its query is
of no use, and one row of zeros behind the projection stands for them all. Both projections run on real pixels only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.swin import SwinBlock, shift_mask, window_partition
from .folding import linear, scaled_qkv


def window_slots(height: int, width: int, window: int, shift: int) -> Tensor:
    """The pixel, row by row, that each slot of each window holds; height*width where it is padding: (nW, w*w)"""
    pixels = torch.arange(height * width).view(1, height, width, 1)
    padded = F.pad(pixels, (0, 0, 0, -width % window, 0, -height % window), value=height * width)
    return window_partition(padded.roll((-shift, -shift), dims=(1, 2)), window).squeeze(-1)


class WindowLayout(nn.Module):
    """Index constants of one grid and shift, shared by the blocks that use them.

    `split` indexes rows of head_dim in a (pixels * 3 * heads, head_dim) view of qkv and gives queries, keys or values
    as (nW, heads, w*w); `merge` indexes rows of that form and gives (pixels, heads).
    """

    mask: Tensor | None
    merge_rows: Tensor

    def __init__(self, height: int, width: int, window: int, shift: int, num_heads: int) -> None:
        super().__init__()
        slots = window_slots(height, width, window, shift)
        self.num_windows, self.slots = slots.shape
        self.padded = bool((slots == height * width).any())
        head = torch.arange(num_heads)
        for part, name in enumerate(("query", "key", "value")):
            rows = (slots[:, None, :] * 3 + part) * num_heads + head[None, :, None]
            self.register_buffer(f"{name}_rows", rows.flatten(), persistent=False)
        position = torch.empty(height * width + 1, dtype=torch.long)
        position[slots.flatten()] = torch.arange(slots.numel())
        window_index, slot = position[:-1] // self.slots, position[:-1] % self.slots
        back = (window_index[:, None] * num_heads + head[None, :]) * self.slots + slot[:, None]
        self.register_buffer("merge_rows", back.flatten(), persistent=False)
        mask = None
        if shift:
            mask = shift_mask(height + -height % window, width + -width % window, window, shift)[:, None]
        self.register_buffer("mask", mask, persistent=False)


class GatheredAttention(nn.Module):
    """Window attention of a SwinBlock on (B,N,C) pixels, which must come from its norm: (B,N,C) -> (B,N,C)."""

    def __init__(self, block: SwinBlock, layout: WindowLayout) -> None:
        super().__init__()
        attn = block.attn
        self.num_heads = attn.num_heads
        self.layout = layout
        query_bias, _, value_bias = attn.qkv.bias.detach().chunk(3)
        no_bias = torch.zeros_like(query_bias)
        self.qkv = scaled_qkv(attn.qkv.weight, torch.cat([query_bias, no_bias, no_bias]), attn.scale)
        self.proj = linear(attn.proj.weight, attn.proj.bias + attn.proj.weight @ value_bias)
        index = torch.as_tensor(attn.relative_position_index)
        bias = attn.relative_position_bias_table.detach()[index.flatten()].view(*index.shape, -1).permute(2, 0, 1)
        self.position_bias = nn.Parameter(bias.contiguous(), requires_grad=False)

    def _split(self, rows: Tensor, index: Tensor) -> Tensor:
        """(B, pixels*3*heads, d) -> (B,nW,heads,w*w,d)"""
        shape = (self.layout.num_windows, self.num_heads, self.layout.slots)
        return rows.index_select(1, index).unflatten(1, shape)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, channels = x.shape
        rows = self.qkv(x)
        if self.layout.padded:
            rows = F.pad(rows, (0, 0, 0, 1))
        rows = rows.reshape(batch, -1, channels // self.num_heads)
        query, key, value = (self._split(rows, self.layout.get_buffer(f"{n}_rows")) for n in ("query", "key", "value"))
        similarity = query @ key.transpose(-2, -1) + self.position_bias
        if self.layout.mask is not None:
            similarity = similarity + self.layout.mask
        attended = similarity.softmax(dim=-1) @ value
        merged = attended.flatten(1, 3).index_select(1, self.layout.merge_rows)
        return self.proj(merged.reshape(batch, -1, channels))
