"""Rewrite 3: what the image graph needs of a sentence, computed once.

A prompt (B,T,P) holds, for each stage in turn, the keys (C) and the values of each PWAM head through the output
projection, V'_h = Ww[:, h] V_h (C each): P is the sum of C_i (1 + h_i).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...reference.config import LAVTConfig
from ...reference.fusion import PWAM
from ...reference.lavt import LAVT
from .folding import linear, pointwise


def prompt_channels(config: LAVTConfig) -> int:
    """P, the numbers that a prompt holds per word."""
    return sum(c * (1 + h) for c, h in zip(config.channels, config.fusion_heads, strict=True))


class PromptReader(nn.Module):
    """Prompt (B,T,P), word mask (B,T) -> word bias (B,T), 0 or -1e4; each stage's keys (B,T,C), values (B,h*T,C)."""

    def __init__(self, config: LAVTConfig) -> None:
        super().__init__()
        self.stages = list(zip(config.channels, config.fusion_heads, strict=True))

    def forward(self, prompt: Tensor, word_mask: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        parts = prompt.split([c * n for c, h in self.stages for n in (1, h)], dim=-1)
        stages = []
        for i, (channels, heads) in enumerate(self.stages):
            value = parts[2 * i + 1]
            if heads > 1:
                value = value.unflatten(2, (heads, channels)).transpose(1, 2).flatten(1, 2)
            stages.append((parts[2 * i], value))
        return (word_mask - 1) * 1e4, stages


def word_projection(pwam: PWAM) -> Tensor:
    """Weight (C (1+h), L) that takes centred words to keys and values V' of one stage.

    Per head, Ww V = Ww (Wval l) = (Ww Wval) l: one matrix, multiplied out here in float64.
    """
    attention = pwam.image_lang_att
    channels, heads = attention.channels, attention.num_heads
    key_weight, value_weight, out_weight = (
        pointwise(conv)[0].double() for conv in (attention.f_key[0], attention.f_value[0], attention.W[0])
    )
    weights = [key_weight * channels**-0.5]
    weights += [out_weight[:, rows] @ value_weight[rows] for rows in torch.arange(channels).chunk(heads)]
    return torch.cat(weights).to(pointwise(attention.W[0])[0].dtype)


class PromptEncoder(nn.Module):
    """Word features (B,T,L) and mask (B,T) -> prompt (B,T,P); words beyond the sentence are zero.

    What all words share has no effect: it shifts every score of a pixel alike, which softmax ignores, and D V' drops
    it, as the rows of D sum to zero. So the words are centred first, and the biases of keys and values vanish. In
    float32 this keeps the digits that tell alike words apart.
    """

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        weights = [word_projection(stage.fusion) for stage in model.backbone.stages]
        self.project = linear(torch.cat(weights), None)

    def forward(self, words: Tensor, word_mask: Tensor) -> Tensor:
        mask = word_mask.to(words.dtype).unsqueeze(-1)
        mean = (words * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
        return self.project((words - mean) * mask)
