"""Rewrites 1 and 2: PWAM with its two InstanceNorms moved from pixels to words.

Output side. The norm's input is P (Ww V)^T + bw, with P the attention (N x T h) and V' = Ww V per head. bw cancels.
With p = mean_N(P), D = P - p and S = D^T D / N, its mean over pixels is p V' and its variance diag(V'^T S V'), so
`lang = D V' / sqrt(var + eps)`: nothing of size N x C is normalised, and nothing large is subtracted.

Query side. bq cancels too. With q = Wq x, its mean mu and variance s over pixels, the norm folds into the keys:
K' = K C^-0.5 / sqrt(s + eps) and `P = softmax(q K'^T - mu K'^T + word_bias)`: no centred copy of q is written.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.fusion import PWAM
from .folding import linear, pointwise

EPS = 1e-5


def scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """(B,N,C), (B,T,C) -> (B,N,T), or (B,h,N,T) with several heads."""
    if num_heads > 1:
        query, key = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key))
    return query @ key.transpose(-2, -1)


class QueryNorm(nn.Module):
    """The keys K' and the scores of the queries' mean: (B,N,C), (B,T,C) -> (B,T,C), (B,1,T) or (B,h,1,T)."""

    def forward(self, query: Tensor, key: Tensor, num_heads: int) -> tuple[Tensor, Tensor]:
        mean = query.mean(dim=1, keepdim=True)
        centred = query - mean
        variance = (centred * centred).mean(dim=1, keepdim=True)
        key = key * torch.rsqrt(variance + EPS)
        return key, scores(mean, key, num_heads)


class WordNorm(nn.Module):
    """(D, and V' divided by the output's deviation): P (B,N,hT), V' (B,hT,C) -> (B,N,hT), (B,hT,C)."""

    def forward(self, attention: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        centred = attention - attention.mean(dim=1, keepdim=True)
        moments = centred.transpose(1, 2) @ centred / centred.shape[1]
        variance = ((moments @ value) * value).sum(dim=1, keepdim=True)
        return centred, value * torch.rsqrt(variance + EPS)


class FusedPWAM(nn.Module):
    """PWAM on pixels (B,N,C) with a sentence's keys (B,T,C), values V' (B,h*T,C) and word bias (B,T) -> (B,N,C).

    The keys carry the factor C^-0.5 (see export/rewrites/words.py).
    """

    def __init__(self, pwam: PWAM) -> None:
        super().__init__()
        attention = pwam.image_lang_att
        self.channels, self.num_heads = attention.channels, attention.num_heads
        vis_weight, vis_bias = pointwise(pwam.vis_project[0])
        query_weight, _ = pointwise(attention.f_query[0])
        self.vis_query = linear(
            torch.cat([vis_weight, query_weight]), torch.cat([vis_bias, torch.zeros_like(vis_bias)])
        )
        self.query_norm = QueryNorm()
        self.word_norm = WordNorm()
        self.mix = linear(*pointwise(pwam.project_mm[0]))

    def _attend(self, query: Tensor, key: Tensor, word_bias: Tensor) -> Tensor:
        """(B,N,C), (B,T,C), (B,T) -> P (B,N,h*T)"""
        key, mean = self.query_norm(query, key, self.num_heads)
        similarity = scores(query, key, self.num_heads) - mean
        if self.num_heads == 1:
            return (similarity + word_bias.unsqueeze(1)).softmax(dim=-1)
        return (similarity + word_bias[:, None, None]).softmax(dim=-1).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, word_bias: Tensor) -> Tensor:
        vis, query = self.vis_query(x).split(self.channels, dim=-1)
        centred, value = self.word_norm(self._attend(query, key, word_bias), value)
        return F.gelu(self.mix(F.gelu(vis) * (centred @ value)))
