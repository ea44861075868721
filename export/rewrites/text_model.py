"""The text model: BERT and the four stages' word projections, from token ids to a prompt.

The same function as transformers' BertModel in eval mode, with position and type embeddings summed, query, key and
value in one product, and the attention's scale in the query weights.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.lavt import LAVT
from .folding import linear, scaled_qkv
from .words import PromptEncoder


class Embeddings(nn.Module):
    """Token ids (B,T) -> (B,T,L)."""

    def __init__(self, embeddings: Any, max_words: int) -> None:
        super().__init__()
        self.word = nn.Parameter(embeddings.word_embeddings.weight.detach(), requires_grad=False)
        place = embeddings.position_embeddings.weight[:max_words] + embeddings.token_type_embeddings.weight[0]
        self.place = nn.Parameter(place.detach(), requires_grad=False)
        self.norm = deepcopy(embeddings.LayerNorm)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.norm(F.embedding(input_ids, self.word) + self.place)


class SelfAttention(nn.Module):
    """(B,T,L) and word bias (B,1,1,T) -> (B,T,L)."""

    def __init__(self, attention: Any, num_heads: int) -> None:
        super().__init__()
        parts = [attention.self.query, attention.self.key, attention.self.value]
        weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
        self.num_heads = num_heads
        self.qkv = scaled_qkv(weight, bias, (weight.shape[1] // num_heads) ** -0.5)
        self.proj = linear(attention.output.dense.weight, attention.output.dense.bias)

    def forward(self, x: Tensor, word_bias: Tensor) -> Tensor:
        batch, words, channels = x.shape
        heads = (batch, words, self.num_heads, channels // self.num_heads)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in self.qkv(x).split(channels, dim=-1))
        attention = (query @ key.transpose(2, 3) + word_bias).softmax(dim=-1)
        attended = (attention @ value).transpose(1, 2).reshape(batch, words, channels)
        return self.proj(attended)


class TextLayer(nn.Module):
    """One layer of BERT, norms after the residuals: (B,T,L) -> (B,T,L)."""

    def __init__(self, layer: Any, num_heads: int) -> None:
        super().__init__()
        self.attn = SelfAttention(layer.attention, num_heads)
        self.norm1 = deepcopy(layer.attention.output.LayerNorm)
        self.fc1 = linear(layer.intermediate.dense.weight, layer.intermediate.dense.bias)
        self.fc2 = linear(layer.output.dense.weight, layer.output.dense.bias)
        self.norm2 = deepcopy(layer.output.LayerNorm)

    def forward(self, x: Tensor, word_bias: Tensor) -> Tensor:
        x = self.norm1(x + self.attn(x, word_bias))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class TextModel(nn.Module):
    """Token ids (B,T) and attention mask (B,T), int64 -> prompt (B,T,P) float32."""

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        config = model.config.text
        self.depth = config.num_layers
        self.embeddings = Embeddings(model.text_encoder.embeddings, model.config.max_words)
        for i, layer in enumerate(model.text_encoder.encoder.layer):
            self.add_module(f"layer{i}", TextLayer(layer, config.num_heads))
        self.prompt = PromptEncoder(model)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.to(self.embeddings.place.dtype)
        word_bias = ((mask - 1) * 1e4)[:, None, None]
        x = self.embeddings(input_ids)
        for i in range(self.depth):
            x = self.get_submodule(f"layer{i}")(x, word_bias)
        return self.prompt(x, mask)
