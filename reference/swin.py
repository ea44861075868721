"""The Swin backbone with language fused in after each stage, as LAVT runs it.

Attention, MLP and patch merging are timm's (same parameters, same function). The block is not: LAVT pads first and
shifts second, so that the shifted windows and their masks are those of the padded grid.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers.mlp import Mlp
from timm.models.swin_transformer import PatchMerging, WindowAttention
from torch import Tensor, nn

from .config import LAVTConfig
from .fusion import PWAM, apply_gate, language_gate


class PatchEmbed(nn.Module):
    """Pad right and bottom to a multiple of 4, conv 4x4/4, LayerNorm: (B,3,H,W) -> (B,ceil(H/4),ceil(W/4),E)."""

    patch = 4

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=self.patch, stride=self.patch)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        x = self.proj(F.pad(image, (0, -width % self.patch, 0, -height % self.patch)))
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out


def window_partition(x: Tensor, window: int) -> Tensor:
    """(B,H,W,C) -> (B*windows, window*window, C); H and W are multiples of the window."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(-1, window * window, c)


def window_reverse(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `window_partition` for a grid of height x width."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def shift_regions(size: int, window: int, shift: int) -> Tensor:
    """Which of the slices (0,-window), (-window,-shift), (-shift,end) each position of an axis lies in: (size,)"""
    position = torch.arange(size)
    return (position >= size - window).long() + (position >= size - shift).long()


def shift_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """-100 between positions of a shifted, padded grid that lie in different regions: (windows, window^2, window^2)"""
    rows, columns = shift_regions(height, window, shift), shift_regions(width, window, shift)
    regions = window_partition((3 * rows[:, None] + columns[None, :])[None, :, :, None], window)[..., 0]
    return torch.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0)


class SwinBlock(nn.Module):
    """Window attention and MLP, each with LayerNorm before and residual after: (B,H,W,C) -> (B,H,W,C)."""

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads=num_heads, window_size=window, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=4 * dim)

    def _attend(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_height, padded_width = x.shape[1:3]
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
            mask = shift_mask(padded_height, padded_width, self.window, self.shift).to(x)
        windows = self.attn(window_partition(x, self.window), mask=mask)
        x = window_reverse(windows, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Stage(nn.Module):
    """Swin blocks, PWAM and gate: x (B,H,W,C) -> the fused r for the decoder (B,H,W,C), and the next stage's x."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, window: int, text_dim: int, fusion_heads: int, last: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(SwinBlock(dim, num_heads, window, shifted=i % 2 == 1) for i in range(depth))
        self.fusion = PWAM(dim, text_dim, fusion_heads)
        self.res_gate = language_gate(dim)
        self.downsample = None if last else PatchMerging(dim, 2 * dim)

    @property
    def swin_blocks(self) -> list[SwinBlock]:
        return [cast(SwinBlock, block) for block in self.blocks]

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            x = block(x)
        residual = self.fusion(x.flatten(1, 2), words, word_mask).view_as(x)
        x = apply_gate(self.res_gate, x, residual)
        return residual, x if self.downsample is None else self.downsample(x)


class Backbone(nn.Module):
    """(B,3,H,W), word features (B,L,T), word mask (B,T,1) -> four maps (B,C_i,H_i,W_i), finest first."""

    def __init__(self, config: LAVTConfig) -> None:
        super().__init__()
        swin = config.backbone
        self.patch_embed = PatchEmbed(swin.embed_dim)
        self.layers = nn.ModuleList(
            Stage(
                config.channels[i],
                swin.depths[i],
                swin.num_heads[i],
                config.window,
                config.text.hidden_size,
                config.fusion_heads[i],
                last=i == 3,
            )
            for i in range(4)
        )
        for i, channels in enumerate(config.channels):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))

    @property
    def stages(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.layers]

    def forward(self, image: Tensor, words: Tensor, word_mask: Tensor) -> list[Tensor]:
        x = self.patch_embed(image)
        outputs = []
        for i, stage in enumerate(self.layers):
            residual, x = stage(x, words, word_mask)
            outputs.append(self.get_submodule(f"norm{i}")(residual).permute(0, 3, 1, 2))
        return outputs
