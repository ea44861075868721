"""Rewrite 5: the decoder's first convolution of a level, done before the upsampling instead of after.

Bilinear interpolation U acts on pixels and a convolution's taps on channels, so they commute:
conv3x3(concat(U x, skip)) = conv3x3(skip) + sum over the 9 taps of shift_tap(U (W_tap x)).
Shift and U act along each axis alone: with M = [shift_-1 U | U | shift_+1 U], the sum is M_rows T M_columns^T, where T
holds the 9 products. The convolution's zero padding is in M: a row that reaches outside the map is zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.decoder import Decoder
from .folding import MatMul, batch_norm_factors
from .winograd import WinogradConv


def interpolation_matrix(size: int, target: int) -> Tensor:
    """U, bilinear interpolation with aligned corners along one axis: float64 (target, size)"""
    matrix = torch.zeros(target, size, dtype=torch.float64)
    position = torch.arange(target, dtype=torch.float64) * ((size - 1) / (target - 1) if target > 1 else 0.0)
    left = position.floor().long().clamp(max=max(size - 2, 0))
    fraction = position - left
    rows = torch.arange(target)
    matrix[rows, left] += 1 - fraction
    if size > 1:
        matrix[rows, left + 1] += fraction
    return matrix


def shifted_interpolation(size: int, target: int) -> Tensor:
    """[shift_-1 U | U | shift_+1 U] as (target, 3, size): entry t is what tap t of a padded convolution reads."""
    padded = F.pad(interpolation_matrix(size, target), (0, 0, 1, 1))
    return torch.stack([padded[:-2], padded[1:-1], padded[2:]], dim=1)


class UpsampledConv(nn.Module):
    """conv3x3 over U x without its bias: x (B,h*w,C) -> (B,H,W,C')."""

    def __init__(self, weight: Tensor, size: tuple[int, int], target: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        for i, row_taps in enumerate(weight.unbind(2)):  # (C', C, kx)
            self.add_module(f"taps{i}", MatMul(row_taps.permute(1, 2, 0).flatten(1), None))
        rows = shifted_interpolation(size[0], target[0]).flatten(1)
        columns = shifted_interpolation(size[1], target[1]).transpose(1, 2).flatten(1)  # (W, w*kx)
        self.rows = nn.Parameter(rows.to(weight.dtype), requires_grad=False)
        self.columns = nn.Parameter(columns.to(weight.dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.size
        # Each product lies as (h, w*kx, C'), ready for the columns; stacked over ky, ready for the rows.
        wide = [
            self.columns @ self.get_submodule(f"taps{i}")(x).reshape(x.shape[0], height, 3 * width, -1)
            for i in range(3)
        ]
        stacked = torch.cat(wide, dim=1)  # (B, ky*h, W, C')
        return (self.rows @ stacked.flatten(2)).unflatten(2, stacked.shape[2:])


class DecoderLevel(nn.Module):
    """One level: x (B,h*w,C) of the level below and skip (B,C_s,H,W) -> (B,C',H,W)."""

    def __init__(
        self, decoder: Decoder, level: int, size: tuple[int, int], target: tuple[int, int], *, winograd: bool = False
    ) -> None:
        super().__init__()
        self.size = target
        conv1, conv2 = (decoder.get_submodule(f"conv{i}_{level}") for i in (1, 2))
        assert isinstance(conv1, nn.Conv2d)
        weights, offsets = [], []
        for i, conv in ((1, conv1), (2, conv2)):
            bn = decoder.get_submodule(f"bn{i}_{level}")
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(bn, nn.BatchNorm2d)
            factor, offset = batch_norm_factors(bn)
            weights.append(conv.weight.detach() * factor[:, None, None, None])
            offsets.append(offset)
        below = (2 if level == 4 else 1) * conv1.out_channels
        self.upsampled = UpsampledConv(weights[0][:, :below], size, target)
        self.skip = _conv3x3(weights[0][:, below:], offsets[0])
        self.conv = WinogradConv(weights[1], offsets[1], target) if winograd else _conv3x3(weights[1], offsets[1])

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if isinstance(self.conv, WinogradConv):
            rows = (self.skip(skip).permute(0, 2, 3, 1) + self.upsampled(x)).relu().flatten(1, 2)
            return self.conv(rows).relu().unflatten(1, self.size).permute(0, 3, 1, 2)
        first = (self.skip(skip) + self.upsampled(x).permute(0, 3, 1, 2)).relu()
        return self.conv(first).relu()


def _conv3x3(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")
    conv.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    conv.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return conv
