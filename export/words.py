"""Rewrite 3: what the image graph needs of a sentence, computed once.

A prompt (B,T,P) holds, for each stage in turn, the keys (C) and the values of each PWAM head through the output
projection, V'_h = Ww[:, h] V_h (C each): P is the sum of C_i (1 + h_i).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..reference.config import LAVTConfig
from ..reference.fusion import PWAM
from ..reference.lavt import LAVT
from .folding import linear, pointwise


class StagePrompt(NamedTuple):
    """Keys (B,T,C) and values (B,h*T,C) of one stage."""

    key: Tensor
    value: Tensor


def prompt_channels(config: LAVTConfig) -> int:
    """P, the numbers that a prompt holds per word."""
    return sum(c * (1 + h) for c, h in zip(config.channels, config.fusion_heads, strict=True))


class PromptReader(nn.Module):
    """Prompt (B,T,P) and word mask (B,T) -> word bias (B,T), 0 or -1e4, and the four stages' parts."""

    def __init__(self, config: LAVTConfig) -> None:
        super().__init__()
        self.stages = list(zip(config.channels, config.fusion_heads, strict=True))

    def forward(self, prompt: Tensor, word_mask: Tensor) -> tuple[Tensor, list[StagePrompt]]:
        parts = prompt.split([c * n for c, h in self.stages for n in (1, h)], dim=-1)
        stages = []
        for i, (channels, heads) in enumerate(self.stages):
            value = parts[2 * i + 1]
            if heads > 1:
                value = value.unflatten(2, (heads, channels)).transpose(1, 2).flatten(1, 2)
            stages.append(StagePrompt(parts[2 * i], value))
        return (word_mask - 1) * 1e4, stages


def word_projection(pwam: PWAM) -> tuple[Tensor, Tensor]:
    """Weight (C (1+h), L) and bias that take words to keys and values V' of one stage.

    Per head, Ww V = Ww (Wval l + bval) = (Ww Wval) l + Ww bval: one matrix, multiplied out here in float64.
    """
    attention = pwam.image_lang_att
    channels, heads = attention.channels, attention.num_heads
    key_weight, key_bias = (t.double() for t in pointwise(attention.f_key[0]))
    value_weight, value_bias = (t.double() for t in pointwise(attention.f_value[0]))
    out_weight = pointwise(attention.W[0])[0].double()
    scale = channels**-0.5
    weights, biases = [key_weight * scale], [key_bias * scale]
    for rows in torch.arange(channels).chunk(heads):
        weights.append(out_weight[:, rows] @ value_weight[rows])
        biases.append(out_weight[:, rows] @ value_bias[rows])
    dtype = attention.W[0].weight.dtype
    return torch.cat(weights).to(dtype), torch.cat(biases).to(dtype)


class PromptEncoder(nn.Module):
    """Word features (B,T,L) and mask (B,T) -> prompt (B,T,P); words beyond the sentence are zero."""

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        weights, biases = zip(*(word_projection(stage.fusion) for stage in model.backbone.layers), strict=True)
        self.project = linear(torch.cat(weights), torch.cat(biases))

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        out: Tensor = self.project(words) * word_mask.to(words.dtype).unsqueeze(-1)
        return out
