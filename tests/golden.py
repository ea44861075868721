"""The golden cases: outputs of the published LAVT in float64, and the rule that fills its weights.

`data/golden/NAME.json` holds a case's variant, sizes and every state-dict key with its shape, `NAME.npz` every fourth
logit and the whole mask. Inputs and weights are pure functions of seeds and keys, so neither is stored.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lavt_edge.reference import LAVT, LAVTConfig, TextConfig
from lavt_edge.reference.config import IMAGENET_MEAN, IMAGENET_STD
from lavt_edge.reference.swin import SwinBlock
from torch import Tensor, nn

DATA = Path(__file__).parent / "data" / "golden"
CASES = ("tiny_w7_224", "one_tiny_w7_224", "small_w12_heads_200x312", "base_w12_480")
COMPUTED = ("relative_position_index", "position_ids")
# For cases that start from word features: a BERT of the right width that costs nothing.
NO_TEXT = TextConfig(vocab_size=60, num_layers=1, intermediate_size=64, max_positions=20)


def golden_tensor(key: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The value of a state-dict entry; the rule that the golden outputs were made with, kept as it was handed over."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if key.endswith("relative_position_bias_table"):
        return rng.normal(0.0, 0.5, shape).astype(np.float32)
    if key.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) > 1:
        return rng.normal(0.0, 1.0 / math.sqrt(math.prod(shape[1:])), shape).astype(np.float32)
    if key.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.normal(0.0, 0.1, shape).astype(np.float32)  # biases, running means


def fill(module: nn.Module) -> nn.Module:
    """Gives every parameter and stored buffer its golden value; returns the module, in eval mode."""
    state = module.state_dict()
    for key, value in state.items():
        if not key.endswith(COMPUTED):
            value.copy_(torch.from_numpy(golden_tensor(key, tuple(value.shape))))
    return module.eval().requires_grad_(False)


def golden_lavt(config: LAVTConfig) -> LAVT:
    """A LAVT with golden weights, float32, in eval mode."""
    model = LAVT(config)
    fill(model)
    return model


@dataclass(frozen=True)
class Case:
    """One golden case: its configuration, inputs and expected outputs."""

    name: str
    config: LAVTConfig
    size: tuple[int, int]
    word_counts: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    published_float32_error: float

    @classmethod
    def load(cls, name: str) -> Case:
        data = json.loads((DATA / f"{name}.json").read_text())
        first, second, third, fourth = map(int, (data["mha"] or "1-1-1-1").split("-"))
        one = data["model"] == "lavt_one"
        config = LAVTConfig(
            swin=data["swin_type"],
            window=data["window"],
            fusion_heads=(first, second, third, fourth),
            variant=data["model"],
            text=TextConfig() if one else NO_TEXT,
        )
        shapes = {key: tuple(shape) for key, shape in data["keys"].items()}
        size, counts = (data["height"], data["width"]), tuple(data["word_counts"])
        assert len(counts) == data["batch"]
        return cls(name, config, size, counts, shapes, data["published_float32_error"])

    @property
    def float32_bound(self) -> float:
        """The error that a float32 computation may have: 2e-5, or twice the published code's own."""
        return max(2e-5, 2 * self.published_float32_error)

    @property
    def image(self) -> Tensor:
        """Normalised RGB (B,3,H,W)."""
        shape = (len(self.word_counts), 3, *self.size)
        return torch.from_numpy(np.random.default_rng(1).standard_normal(shape).astype(np.float32))

    @property
    def word_mask(self) -> Tensor:
        """int64 (B,20)"""
        return (torch.arange(20) < torch.tensor(self.word_counts)[:, None]).long()

    @property
    def words(self) -> Tensor:
        """Word features (B,768,20) of a `lavt` case."""
        shape = (len(self.word_counts), 768, 20)
        return torch.from_numpy(np.random.default_rng(2).standard_normal(shape).astype(np.float32))

    @property
    def input_ids(self) -> Tensor:
        """Token ids (B,20) of a `lavt_one` case."""
        ids = np.random.default_rng(3).integers(1, 30522, (len(self.word_counts), 20))
        return torch.from_numpy(ids) * self.word_mask

    @cached_property
    def _expected(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        with np.load(DATA / f"{self.name}.npz") as stored:
            batch, _, height, width = stored["shape"]
            mask = np.unpackbits(stored["mask"], count=batch * height * width).reshape(batch, height, width)
            return stored["logits_every_4th"], mask.astype(bool)

    def run(self, model: LAVT) -> Tensor:
        """The logits that `model`, in the type of its weights, gives for the case's inputs."""
        image = self.image.to(model.classifier.conv1_1.weight.dtype)
        with torch.inference_mode():
            if self.config.variant == "lavt_one":
                out: Tensor = model(image, self.input_ids, self.word_mask)
                return out
            return model.segment(image, self.words.to(image.dtype), self.word_mask.unsqueeze(-1))

    def compare(self, logits: npt.NDArray[Any]) -> tuple[float, float]:
        """Relative error (norm over norm) and mask agreement of logits (B,2,H,W)."""
        expected, mask = self._expected
        assert logits.shape == (len(self.word_counts), 2, *self.size)
        error = np.linalg.norm(logits[:, :, ::4, ::4].astype(np.float64) - expected) / np.linalg.norm(expected)
        return float(error), float(np.mean((logits[:, 1] > logits[:, 0]) == mask))


def byte_patches(image: Tensor) -> npt.NDArray[np.float32]:
    """A normalised image (B,3,H,W) as the exported graph's patches of centred values (B,N,48), here no whole numbers.

    H and W are multiples of 4. The inverse of the normalisation is done in float64.
    """
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (image.double() * std + mean) * 255 - (255 * mean).round()
    patches = pixels.unfold(2, 4, 4).unfold(3, 4, 4)  # (B,3,H/4,W/4,4,4)
    return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2).float().numpy()


def official_content(
    model: LAVT, *, pooler: bool = True, buffers: bool = True, mha: str | None = "", optimizer_bytes: int = 1000
) -> dict[str, Any]:
    """What the published training code saves for `model`: a dict for `torch.save`.

    With the buffers and the pooler that older versions of transformers and the published code store, optimizer state
    of about `optimizer_bytes`, and the training arguments; `mha` is their entry of that name.
    """
    state = dict(model.state_dict())
    if buffers:
        for name, module in model.named_modules():
            if isinstance(module, SwinBlock):
                state[f"{name}.attn.relative_position_index"] = module.attn.relative_position_index
    prefix = "text_encoder."
    text = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
    width = model.config.text.hidden_size
    if buffers:
        text["embeddings.position_ids"] = torch.arange(model.config.text.max_positions)[None]
    if pooler:
        text |= {"pooler.dense.weight": torch.zeros(width, width), "pooler.dense.bias": torch.zeros(width)}
    if model.config.variant == "lavt_one":
        content: dict[str, Any] = {"model": {**state, **{prefix + key: value for key, value in text.items()}}}
    else:
        content = {"model": state, "bert_model": text}
    moments = {name: torch.ones(optimizer_bytes // 8) for name in ("exp_avg", "exp_avg_sq")}
    return {
        **content,
        "optimizer": {"state": {0: {"step": 1000, **moments}}, "param_groups": [{"lr": 5e-5, "params": [0]}]},
        "lr_scheduler": {"last_epoch": 1000, "_last_lr": [5e-5]},
        "epoch": 39,
        "args": argparse.Namespace(model=model.config.variant, swin_type=model.config.swin, mha=mha, lr=5e-5),
    }
