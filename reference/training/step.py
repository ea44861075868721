"""One training step of the demo model: the losses, and gradients from several threads.

Beside the mask, small heads that are thrown away after training are asked what each object is (colour, shape, texture,
size), which objects the sentence's noun phrase fits, and which object it speaks of relative to: without these a model
this small needs far longer to find out what words mean.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MethodType

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from ..decoder import upsample
from ..fusion import apply_gate
from ..lavt import LAVT, normalise
from .batches import ATTRIBUTE_SIZES, HINTS, MEANING_SIZES, NOTHING, Batch


@dataclass(frozen=True)
class Phase:
    """What a step trains: so many scenes with so many sentences each, up to a level of the model.

    `level` 4 is the first three stages alone, which must tell attributes from each other before anything else can be
    learnt, and learn that many times faster without the rest; 3 is all but the decoder's last level, 2 is everything.
    """

    scenes: int
    sentences: int
    level: int


_HINTED = (1, 2)  # stages, from 0, whose features answer for attributes and hints
_COARSE_WEIGHT, _ATTRIBUTE_WEIGHT, _HINT_WEIGHT, _TEXT_WEIGHT = 0.4, 0.3, 1.0, 0.2


def mask_loss(difference: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy plus dice of the two classes' logit difference against a mask, both (B,h,w)."""
    probability = difference.sigmoid()
    overlap = (probability * target).sum((1, 2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)
    return F.binary_cross_entropy_with_logits(difference, target) * 4 + dice.mean()


def spread_heads(model: LAVT) -> None:
    """Start half of the attention heads (and all of the first stage's) with a look at one side of each token.

    A bias of `-|d - m|^2 / 2 s^2` by offset d, as in ConViT (arXiv 2103.10697), makes a head a soft convolution tap at
    m. From a flat start, offsets are learnt so slowly that no shape is told from another after an hour.
    """
    turn = 0
    for stage in model.backbone.stages:
        for block in stage.swin_blocks:
            table, window = block.attn.relative_position_bias_table, block.window
            rows, columns = torch.meshgrid(*[torch.arange(1 - window, window)] * 2, indexing="ij")
            with torch.no_grad():
                for head in range((table.shape[1] + 1) // 2):
                    angle, radius = 2.4 * turn, 1.0 + turn % 3  # the golden angle never repeats
                    away = (rows - radius * math.sin(angle)) ** 2 + (columns - radius * math.cos(angle)) ** 2
                    table[:, head] = (away / -4.5).clamp(min=-5.0).flatten()
                    turn += 1


def open_gates(model: LAVT) -> None:
    """Start the language pathway open: PyTorch's usual start lets a two-hundredth of it through, and no gradient."""
    with torch.no_grad():
        for stage in model.backbone.stages:
            for module in stage.fusion.modules():
                if isinstance(module, nn.Conv1d):
                    module.weight *= 3**0.5  # keeps the variance
            for layer, factor in ((0, 4), (2, 2)):
                torch.as_tensor(stage.res_gate[layer].weight).mul_(factor)


def _attend(self: WindowAttention, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """timm's window attention with its largest tensors in the type of the activations; autocast would widen them."""
    count, tokens, _ = x.shape
    q, k, v = self.qkv(x).view(count, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    with torch.autocast("cpu", enabled=False):
        bias = self._get_rel_pos_bias().to(q.dtype)
        attention = (q * self.scale) @ k.transpose(-2, -1)
        if mask is None:
            attention = attention + bias
        else:
            bias = bias + mask.to(q.dtype).unsqueeze(1)
            attention = (attention.unflatten(0, (-1, len(mask))) + bias).flatten(0, 1)
        attention = attention.softmax(-1)
        out = (attention @ v).transpose(1, 2).flatten(2)
    return torch.as_tensor(self.proj(out))


class Trainee(nn.Module):
    """A LAVT with the heads that it has during training only."""

    def __init__(self, model: LAVT) -> None:
        super().__init__()
        self.model = model
        spread_heads(model)
        open_gates(model)
        for module in model.modules():
            if isinstance(module, WindowAttention):
                setattr(module, "forward", MethodType(_attend, module))  # noqa: B010
        channels = model.config.channels
        self.coarse = nn.ModuleList(nn.Conv2d(channels[3] // 2, 1, 1) for _ in range(2))
        self.attributes = nn.ModuleList(nn.Linear(channels[stage], sum(ATTRIBUTE_SIZES)) for stage in _HINTED)
        width = model.config.text.hidden_size
        self.meanings = nn.Linear(width, sum(MEANING_SIZES))
        self.identity = nn.Linear(width, model.config.text.vocab_size)
        self.hints = nn.ModuleList(nn.Linear(channels[stage], HINTS) for stage in _HINTED)

    def _hint_losses(self, i: int, x: Tensor, fused: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of the features x (B,h,w,C) of a stage: attributes; of what the decoder gets of it (B,h,w,C): hints."""
        attributes = self.attributes[i](x).float().split(ATTRIBUTE_SIZES, dim=-1)
        hints = self.hints[i](fused).float()
        step = batch.hints.shape[-1] // x.shape[1]
        repeats = len(batch.hints) // len(batch.attributes)
        labels = batch.attributes[..., step // 2 :: step, step // 2 :: step].repeat_interleave(repeats, 0)
        truth = batch.hints[..., step // 2 :: step, step // 2 :: step].float()
        attribute_loss = sum(
            (F.cross_entropy(logits.flatten(0, 2), labels[:, i].flatten(), ignore_index=NOTHING))
            for i, logits in enumerate(attributes)
        )
        weight = 1 + 3 * truth  # objects cover little of the picture
        hint_loss = F.binary_cross_entropy_with_logits(hints.permute(0, 3, 1, 2), truth, weight)
        return torch.as_tensor(attribute_loss), hint_loss

    def _text_loss(self, batch: Batch) -> Tensor:
        """[CLS] must tell what a sentence says, and every other word which word it is.

        Without the latter the encoder makes all words alike while they mean nothing yet, and stays there.
        """
        features = self.model.encode_words(batch.said_ids, batch.said_mask).transpose(1, 2)
        said = self.meanings(features[:, 0]).float().split(MEANING_SIZES, dim=-1)
        losses = [F.cross_entropy(logits, batch.meanings[:, i]) for i, logits in enumerate(said)]
        real = batch.said_mask.bool()
        identity = F.cross_entropy(self.identity(features[real]).float(), batch.said_ids[real])
        return torch.stack(losses).sum() + identity

    def forward(self, batch: Batch, level: int) -> tuple[Tensor, Tensor]:
        """The loss, and the part of it that the last answer (hints or mask) contributes; see Phase for the level.

        Language enters after the first stage's blocks, so the sentences of a scene share those.
        """
        backbone, decoder = self.model.backbone, self.model.classifier
        repeats = len(batch.input_ids) // len(batch.images)
        words = self.model.encode_words(batch.input_ids, batch.attention_mask)
        word_mask = batch.attention_mask.unsqueeze(-1).to(words.dtype)
        x = backbone.patch_embed(normalise(batch.images))
        maps: list[Tensor] = []
        extra = last = _TEXT_WEIGHT * self._text_loss(batch)
        for i, stage in enumerate(backbone.stages[:3] if level == 4 else backbone.stages):
            for block in stage.swin_blocks:
                x = block(x)
            if i == 0:
                x = x.repeat_interleave(repeats, 0)
            residual = stage.fusion(x.flatten(1, 2), words, word_mask).view_as(x)
            x = apply_gate(stage.res_gate, x, residual)
            fused = backbone.get_submodule(f"norm{i}")(residual)
            maps.append(fused.permute(0, 3, 1, 2))
            if i in _HINTED:
                attribute_loss, hint_loss = self._hint_losses(_HINTED.index(i), x, fused, batch)
                last = _ATTRIBUTE_WEIGHT * attribute_loss + _HINT_WEIGHT * hint_loss
                extra = extra + last
            if stage.downsample is not None and not (level == 4 and i == 2):
                x = stage.downsample(x)
        if level == 4:
            return extra, last.detach()
        masks = batch.masks.float()
        y = maps[3].contiguous(memory_format=torch.channels_last)
        for i, at in enumerate(decoder.levels[: 5 - level]):
            y = upsample(y, *maps[at - 2].shape[-2:])
            y = decoder._conv(2, at, decoder._conv(1, at, torch.cat([y, maps[at - 2]], dim=1)))
            if i < 2:
                difference = self.coarse[i](y).float().squeeze(1)
                last = mask_loss(difference, F.adaptive_avg_pool2d(masks, difference.shape[-2:]))
                extra = extra + _COARSE_WEIGHT * last
        if level == 2:
            logits = decoder.conv1_1(y).float()
            last = mask_loss(upsample(logits[:, 1:] - logits[:, :1], *masks.shape[-2:]).squeeze(1), masks)
            extra = extra + last
        return extra, last.detach()


class Crew:
    """Threads that share a trainee's parameters and each take a part of the batch, on one core each.

    The gradients of the parts are added in order, so a step's result is the same every time.
    """

    def __init__(self, trainee: Trainee, threads: int) -> None:
        self.parameters = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
        shared = {id(parameter): parameter for parameter in trainee.parameters()}
        # Batch statistics are each replica's own; the first one's are the model's.
        self.replicas = [trainee, *(copy.deepcopy(trainee, dict(shared)) for _ in range(threads - 1))]
        self.pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def _work(self, index: int, batch: Batch, level: int, half: bool) -> tuple[float, Sequence[Tensor | None]]:
        parts = len(self.replicas)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, last = self.replicas[index](batch.part(index, parts), level)
        return float(last) / parts, torch.autograd.grad(loss / parts, self.parameters, allow_unused=True)

    def gradients(self, batch: Batch, *, level: int, half: bool) -> float:
        """Put the batch's gradients in the parameters; returns the last answer's loss."""
        jobs: list[Future[tuple[float, Sequence[Tensor | None]]]] = [
            self.pool.submit(self._work, index, batch, level, half) for index in range(len(self.replicas))
        ]
        results = [job.result() for job in jobs]
        for parameter, *grads in zip(self.parameters, *(grads for _, grads in results), strict=True):
            parts = [grad for grad in grads if grad is not None]
            parameter.grad = torch.stack(parts).sum(0) if parts else None
        return sum(loss for loss, _ in results)
