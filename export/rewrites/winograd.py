"""A 3x3 convolution as Winograd products F(4x4, 3x3): a quarter of its multiplications, for CPUs in FP32.

For each tile of 4x4 results, with the points 0, 1, -1, 2, -2 and infinity (Lavin and Gray, arXiv 1509.09308):
`conv(d) = A^T [(G g G^T) * (B^T d B)] A`, where d is the tile's 6x6 pixels, g the 3x3 taps, and the middle product sums
over channels. B^T and A^T act along one axis each, and tiles along an axis do not mix: for a whole axis they are one
constant matrix each, with the convolution's zero padding in it. The identity is exact in real arithmetic; its constants
up to 8 cost FP32 one digit, FP16 most of what it has, and INT8 has no use for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE, POINTS = 4, 6

_BT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
       (0, 4, 0, -5, 0, 1))  # fmt: skip
_G = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
      (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
_AT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def input_transform(size: int) -> Tensor:
    """B^T of every tile along an axis of `size` pixels: (6 tiles, size), rows in the order (point, tile), float64."""
    pixels = torch.eye(size, dtype=torch.float64)
    # A tile's first pixel lies one before its first result.
    tiles = F.pad(pixels, (0, 0, 1, 1 + -size % TILE)).unfold(0, POINTS, TILE)
    return torch.einsum("pk,tsk->pts", torch.tensor(_BT, dtype=torch.float64), tiles).flatten(0, 1)


def output_transform(size: int) -> Tensor:
    """A^T of every tile along an axis of `size` results: (size, 6 tiles), columns as `input_transform`'s rows."""
    tiles = [torch.tensor(_AT, dtype=torch.float64)] * -(-size // TILE)
    matrix = torch.block_diag(*tiles).unflatten(1, (-1, POINTS)).transpose(1, 2)
    return matrix.flatten(1)[:size].contiguous()


class WinogradConv(nn.Module):
    """conv3x3 with padding 1 and a bias, on rows of pixels: (B,H*W,C) -> (B,H*W,C'), from weight (C',C,3,3)."""

    def __init__(self, weight: Tensor, bias: Tensor, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size
        self.tiles = tuple(-(-side // TILE) for side in size)
        taps = torch.tensor(_G, dtype=torch.float64)
        products = torch.einsum("ay,ocyx,bx->abco", taps, weight.detach().double(), taps).flatten(0, 1)

        def constant(value: Tensor) -> nn.Parameter:
            return nn.Parameter(value.to(weight.dtype).contiguous(), requires_grad=False)

        self.weight, self.bias = constant(products), constant(bias.detach())  # (36,C,C'), (C',)
        self.rows_in, self.columns_in = (constant(input_transform(side)) for side in size)
        self.rows_out, self.columns_out = (constant(output_transform(side)) for side in size)

    def forward(self, x: Tensor) -> Tensor:
        (height, width), (rows, columns) = self.size, self.tiles
        x = self.rows_in @ x.unflatten(1, (height, width)).flatten(2)  # (B, 6 rows, W C)
        x = self.columns_in @ x.unflatten(2, (width, -1))  # (B, 6 rows, 6 columns, C)
        x = x.unflatten(2, (POINTS, columns)).unflatten(1, (POINTS, rows)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2) @ self.weight  # (B, 36, rows columns, C')
        x = x.unflatten(2, (rows, columns)).unflatten(1, (POINTS, POINTS)).transpose(2, 3)
        x = self.columns_out @ x.flatten(3, 4).flatten(1, 2)  # (B, 6 rows, W, C')
        return (self.rows_out @ x.flatten(2)).unflatten(2, (width, -1)).flatten(1, 2) + self.bias
