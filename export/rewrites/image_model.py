"""The rewritten image model: raw bytes and a prompt to logits and mask, the same function as `LAVT.segment`.

Pixels are rows throughout the backbone, (B,N,C); only the decoder's convolutions see maps. Submodules are named after
their place (`stage2.block5.attn.qkv`), stages and blocks counted from 0, and exported nodes carry those names.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...reference.config import IMAGENET_MEAN
from ...reference.decoder import Decoder
from ...reference.lavt import LAVT
from ...reference.swin import PatchEmbed, Stage, SwinBlock
from .folding import linear, patch_projection
from .pwam import FusedPWAM
from .upsampling import DecoderLevel, interpolation_matrix
from .windows import GatheredAttention, WindowLayout
from .words import PromptReader


class BytePatchEmbed(nn.Module):
    """Normalisation and patch embedding of raw RGB: uint8 (B,H,W,3) -> (B,N,E).

    Bytes are centred first, by whole numbers: FP16 holds what is left exactly, and its products do not cancel.
    """

    centre: Tensor

    def __init__(self, embed: PatchEmbed, height: int, width: int) -> None:
        super().__init__()
        self.patch = embed.patch
        self.padding = (0, 0, 0, -width % self.patch, 0, -height % self.patch)
        centre = (255 * torch.tensor(IMAGENET_MEAN)).round()
        self.register_buffer("centre", centre.to(embed.proj.weight.dtype), persistent=False)
        weight, offset = patch_projection(embed.proj, centre)
        assert embed.proj.bias is not None
        self.proj = linear(weight, None)
        self.bias = nn.Parameter(self._bias(embed.proj.bias.detach(), offset, height, width), requires_grad=False)
        self.norm = deepcopy(embed.norm)

    def _bias(self, bias: Tensor, offset: Tensor, height: int, width: int) -> Tensor:
        """The convolution's bias less the offsets of each patch's real pixels: (E,), or (N,E) with padding."""
        if not any(self.padding):
            return bias - offset.sum(dim=1)
        real = F.pad(bias.new_ones(1, 1, height, width), self.padding[2:])
        counted = F.conv2d(real, offset.view(-1, 1, self.patch, self.patch), stride=self.patch)
        return (bias - counted.flatten(2).squeeze(0).T).contiguous()

    def forward(self, image: Tensor) -> Tensor:
        # The cast is first: TensorRT takes bytes as an input, and does nothing but cast them.
        x = image.to(self.proj.weight.dtype) - self.centre
        x = F.pad(x, self.padding) if any(self.padding) else x
        batch, height, width, _ = x.shape
        p = self.patch
        x = x.reshape(batch, height // p, p, width // p, p * 3).transpose(2, 3)
        x = x.reshape(batch, (height // p) * (width // p), p * p * 3)
        return self.norm(self.proj(x) + self.bias)


class Mlp(nn.Module):
    """fc2(gelu(fc1(x))), with the exact GELU."""

    def __init__(self, block: SwinBlock) -> None:
        super().__init__()
        self.fc1 = linear(block.mlp.fc1.weight, block.mlp.fc1.bias)
        self.fc2 = linear(block.mlp.fc2.weight, block.mlp.fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A Swin block on rows of pixels: (B,N,C) -> (B,N,C)."""

    def __init__(self, block: SwinBlock, layout: WindowLayout) -> None:
        super().__init__()
        self.norm1 = deepcopy(block.norm1)
        self.attn = GatheredAttention(block, layout)
        self.norm2 = deepcopy(block.norm2)
        self.mlp = Mlp(block)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Gate(nn.Module):
    """x + tanh(W2 relu(W1 r)) r"""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.fc1 = linear(gate[0].weight, None)
        self.fc2 = linear(gate[2].weight, None)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + self.fc2(self.fc1(residual).relu()).tanh() * residual


class Merge(nn.Module):
    """Patch merging as a gather of rows: (B,N,C) -> (B,N/4,2C)."""

    rows: Tensor

    def __init__(self, stage: Stage, height: int, width: int) -> None:
        super().__init__()
        pixels = torch.arange(height * width).view(height, width)
        padded = F.pad(pixels, (0, width % 2, 0, height % 2), value=height * width)
        # Channels come in the order (column parity, row parity), as in the checkpoint.
        quads = padded.view(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2).permute(0, 2, 3, 1)
        self.padded = bool(height % 2 or width % 2)
        self.register_buffer("rows", quads.flatten(), persistent=False)
        downsample = stage.downsample
        assert downsample is not None
        self.norm = deepcopy(downsample.norm)
        self.reduction = linear(downsample.reduction.weight, None)

    def forward(self, x: Tensor) -> Tensor:
        if self.padded:
            x = F.pad(x, (0, 0, 0, 1))
        batch, _, channels = x.shape
        quads = x.index_select(1, self.rows).reshape(batch, -1, 4 * channels)
        return self.reduction(self.norm(quads))


class ImageStage(nn.Module):
    """Blocks, PWAM and gate of one stage: x (B,N,C) -> the decoder's map as rows (B,N,C), and the next stage's x."""

    def __init__(self, stage: Stage, norm: nn.Module, height: int, width: int) -> None:
        super().__init__()
        layouts: dict[int, WindowLayout] = {}
        for i, block in enumerate(stage.swin_blocks):
            if block.shift not in layouts:
                layouts[block.shift] = WindowLayout(height, width, block.window, block.shift, block.attn.num_heads)
            self.add_module(f"block{i}", Block(block, layouts[block.shift]))
        self.depth = len(stage.swin_blocks)
        self.pwam = FusedPWAM(stage.fusion)
        self.norm = deepcopy(norm)
        self.gate = Gate(stage.res_gate) if stage.downsample is not None else None
        self.merge = Merge(stage, height, width) if stage.downsample is not None else None

    def forward(self, x: Tensor, key: Tensor, value: Tensor, word_bias: Tensor) -> tuple[Tensor, Tensor]:
        for i in range(self.depth):
            x = self.get_submodule(f"block{i}")(x)
        residual = self.pwam(x, key, value, word_bias)
        if self.gate is not None and self.merge is not None:
            x = self.merge(self.gate(x, residual))
        return self.norm(residual), x


class ImageDecoder(nn.Module):
    """Four maps as rows (B,N_i,C_i), finest first -> logits (B,2,H,W) and mask uint8 (B,H,W)."""

    def __init__(
        self, decoder: Decoder, sizes: list[tuple[int, int]], image_size: tuple[int, int], *, winograd: bool = False
    ) -> None:
        super().__init__()
        self.sizes = sizes
        for i, level in enumerate(Decoder.levels):
            made = DecoderLevel(decoder, level, sizes[3 - i], sizes[2 - i], winograd=winograd)
            self.add_module(f"level{2 - i}", made)
        self.classifier = decoder.conv1_1
        dtype = decoder.conv1_1.weight.dtype
        self.rows = nn.Parameter(interpolation_matrix(sizes[0][0], image_size[0]).to(dtype), requires_grad=False)
        columns = interpolation_matrix(sizes[0][1], image_size[1]).T.contiguous().to(dtype)
        self.columns = nn.Parameter(columns, requires_grad=False)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = maps[3]
        for i in (2, 1, 0):
            skip = maps[i].unflatten(1, self.sizes[i]).permute(0, 3, 1, 2)
            y = self.get_submodule(f"level{i}")(x, skip)
            x = y.permute(0, 2, 3, 1).flatten(1, 2)
        logits = self.rows @ (self.classifier(y) @ self.columns)
        background, foreground = logits.split(1, dim=1)
        # By way of floats: TensorRT makes bytes of floats alone, of booleans only in some versions.
        return logits, (foreground > background).squeeze(1).to(logits.dtype).to(torch.uint8)


class ImageModel(nn.Module):
    """uint8 image (B,H,W,3), prompt (B,T,P), word mask (B,T) -> logits (B,2,H,W) and mask uint8 (B,H,W).

    Made from a LAVT in eval mode, for one image size; it shares no storage that the rewrites change. With `winograd`,
    the second convolution of each decoder level is made of Winograd products, for CPUs in FP32.
    """

    def __init__(self, model: LAVT, height: int, width: int, *, winograd: bool = False) -> None:
        super().__init__()
        self.prompt = PromptReader(model.config)
        self.patch_embed = BytePatchEmbed(model.backbone.patch_embed, height, width)
        sizes = stage_sizes(height, width)
        for i, stage in enumerate(model.backbone.stages):
            self.add_module(f"stage{i}", ImageStage(stage, model.backbone.get_submodule(f"norm{i}"), *sizes[i]))
        self.decoder = ImageDecoder(model.classifier, sizes, (height, width), winograd=winograd)
        self.eval().requires_grad_(False)

    def forward(self, image: Tensor, prompt: Tensor, word_mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch_embed(image)
        word_bias, parts = self.prompt(prompt, word_mask)
        maps = []
        for i, (key, value) in enumerate(parts):
            mapped, x = self.get_submodule(f"stage{i}")(x, key, value, word_bias)
            maps.append(mapped)
        logits, mask = self.decoder(maps)
        return logits, mask


def stage_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Height and width of the four stages' grids."""
    return [(-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)]
