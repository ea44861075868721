"""Rewrite 6: constants that fold into weights. Every function returns new tensors and leaves its input alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...reference.config import IMAGENET_MEAN, IMAGENET_STD


class MatMul(nn.Module):
    """x W (+ b), with the weight stored (in,out) as the product reads it: (...,in) -> (...,out)."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.contiguous(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def linear(weight: Tensor, bias: Tensor | None) -> MatMul:
    """The product of a Linear with weight (out,in): x W^T + b."""
    return MatMul(weight.detach().T, None if bias is None else bias.detach())


def pointwise(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight (out,in) and bias (out,) of a convolution of width 1."""
    assert isinstance(conv, nn.Conv1d)
    assert conv.bias is not None
    return conv.weight.detach().squeeze(-1), conv.bias.detach()


def scaled_qkv(weight: Tensor, bias: Tensor, scale: float) -> MatMul:
    """The projection (3C,C) to queries, keys and values with the attention's scale in its query rows."""
    factor = torch.ones_like(bias)
    factor[: weight.shape[1]] = scale
    return linear(weight * factor[:, None], bias * factor)


def batch_norm_factors(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Per-channel factor and offset that a BatchNorm in eval mode applies: bn(x) = factor x + offset."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = bn.weight.detach() * torch.rsqrt(bn.running_var + bn.eps)
    return factor, bn.bias.detach() - bn.running_mean * factor


def patch_projection(proj: nn.Conv2d, centre: Tensor) -> tuple[Tensor, Tensor]:
    """A patch convolution over normalised RGB as a matrix over bytes 0..255 less `centre`, a number for each colour.

    With n = (x / 255 - mean) / std, the sum of W n is that of (W / (255 std)) (x - centre) less that of
    W (mean - centre / 255) / std. Returns the weight (E, p*p*3), columns in the order (row, column, colour) of an HxWx3
    image, and the offset (E, p*p) that each of a patch's pixels subtracts: a pixel of padding, zero after the norm and
    here, subtracts none.
    """
    mean, std = (proj.weight.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    weight = proj.weight.detach()
    scaled = (weight / (255 * std)).permute(0, 2, 3, 1).flatten(1)
    offset = (weight * (mean - centre.view(1, 3, 1, 1).to(weight.dtype) / 255) / std).sum(dim=1).flatten(1)
    return scaled, offset
