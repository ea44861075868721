"""PWAM, the pixel-word attention module, and the gate of the language pathway (arXiv 2112.02244, section 3.2-3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PixelWordAttention(nn.Module):
    """Attention from pixels to words: (B,C,N), (B,L,T), (B,T,1) -> (B,C,N).

    Queries and output pass an InstanceNorm over pixels. The scale is C^-0.5 with any number of heads.
    """

    def __init__(self, channels: int, text_channels: int, num_heads: int) -> None:
        super().__init__()
        self.channels, self.num_heads = channels, num_heads
        self.f_key = nn.Sequential(nn.Conv1d(text_channels, channels, 1))
        self.f_query = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.InstanceNorm1d(channels))
        self.f_value = nn.Sequential(nn.Conv1d(text_channels, channels, 1))
        self.W = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.InstanceNorm1d(channels))

    def _heads(self, x: Tensor) -> Tensor:
        """(B,C,M) -> (B,h,C/h,M)"""
        return x.unflatten(1, (self.num_heads, -1))

    def forward(self, pixels: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        mask = word_mask.transpose(1, 2)  # (B,1,T)
        query = self._heads(self.f_query(pixels))
        key = self._heads(self.f_key(words) * mask)
        value = self._heads(self.f_value(words) * mask)
        similarity = query.transpose(2, 3) @ key * self.channels**-0.5  # (B,h,N,T)
        attention = (similarity + (1e4 * mask - 1e4).unsqueeze(1)).softmax(dim=-1)
        attended = value @ attention.transpose(2, 3)  # (B,h,C/h,N)
        out: Tensor = self.W(attended.flatten(1, 2))
        return out


class PWAM(nn.Module):
    """Multiplies projected pixels with attended words and projects again: (B,N,C), (B,L,T), (B,T,1) -> (B,N,C)."""

    def __init__(self, channels: int, text_channels: int, num_heads: int) -> None:
        super().__init__()
        self.vis_project = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.GELU())
        self.image_lang_att = PixelWordAttention(channels, text_channels, num_heads)
        self.project_mm = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.GELU())

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        pixels = x.transpose(1, 2)
        fused = self.vis_project(pixels) * self.image_lang_att(pixels, words, word_mask)
        out: Tensor = self.project_mm(fused).transpose(1, 2)
        return out


def language_gate(channels: int) -> nn.Sequential:
    """tanh(W2 relu(W1 r)), the weight of the language pathway per pixel and channel: (B,N,C) -> (B,N,C)."""
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False),
        nn.ReLU(),
        nn.Linear(channels, channels, bias=False),
        nn.Tanh(),
    )


def apply_gate(gate: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    """x + gate(r) * r"""
    return torch.addcmul(x, gate(residual), residual)
