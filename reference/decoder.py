"""LAVT's convolutional decoder: top-down, one level for each of the three finer maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def upsample(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with aligned corners: (B,C,h,w) -> (B,C,height,width)"""
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Four maps (B,C_i,H_i,W_i), finest first -> logits (B,2,H_0,W_0)."""

    levels = (4, 3, 2)  # named after the map that each starts from, counted from 1

    def __init__(self, channels: tuple[int, int, int, int]) -> None:
        super().__init__()
        hidden = channels[3] // 2
        for level in self.levels:
            below = channels[3] if level == 4 else hidden
            self.add_module(f"conv1_{level}", nn.Conv2d(below + channels[level - 2], hidden, 3, padding=1, bias=False))
            self.add_module(f"bn1_{level}", nn.BatchNorm2d(hidden))
            self.add_module(f"conv2_{level}", nn.Conv2d(hidden, hidden, 3, padding=1, bias=False))
            self.add_module(f"bn2_{level}", nn.BatchNorm2d(hidden))
        self.conv1_1 = nn.Conv2d(hidden, 2, 1)

    def _conv(self, step: int, level: int, x: Tensor) -> Tensor:
        conv, bn = self.get_submodule(f"conv{step}_{level}"), self.get_submodule(f"bn{step}_{level}")
        return F.relu(bn(conv(x)))

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = maps[3]
        for level in self.levels:
            skip = maps[level - 2]
            height, width = skip.shape[-2:]
            if x.shape[-2] < height or x.shape[-1] < width:
                x = upsample(x, height, width)
            x = self._conv(2, level, self._conv(1, level, torch.cat([x, skip], dim=1)))
        out: Tensor = self.conv1_1(x)
        return out
