"""LAVT checkpoints in the forms that people have, read without running anything that they contain."""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError
from .config import MAX_WINDOW, SWIN, Heads, LAVTConfig, TextConfig, Variant
from .lavt import LAVT
from .weights import read_weights, state_dict
from .words import read_bert

logger = logging.getLogger("lavt_edge")

_COMPUTED = ("relative_position_index", "position_ids")
_COUNTER = "num_batches_tracked"  # of training alone
_TEXT = "text_encoder."
_EMBED = "backbone.patch_embed.proj.weight"
_BIAS_TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
_WORDS = _TEXT + "embeddings.word_embeddings.weight"
# Entries of the official form, and what other training scripts call them.
_ENTRIES = {"model": ("state_dict", "model_state_dict"), "model_ema": ("state_dict_ema",)}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Other models by what their keys hold. RMSIN (arXiv 2312.10462) has a decoder of adaptive rotated convolutions.
_OTHER_MODELS = (
    ("RMSIN", r"\bfc_theta\b"),
    ("a Swin Transformer alone, such as the ImageNet weights that training begins from", r"^layers\.\d+\.blocks\."),
    ("a BERT alone", r"^(bert\.)?encoder\.layer\."),
    ("a model with CLIP's encoders, such as CRIS", r"(^|\.)visual\."),
    ("a model of Detectron2, such as ReLA", r"^sem_seg_head\."),
)


@dataclass(frozen=True)
class Checkpoint:
    """A LAVT in a file: its configuration, its parameters under LAVT's own keys, and its training arguments.

    `heads_assumed`: nothing says the PWAM heads, which do not show in shapes, and 1-1-1-1 is taken. `has_ema`: it
    has averaged parameters as well.
    """

    path: Path
    config: LAVTConfig
    state: Mapping[str, Tensor]
    args: Mapping[str, object]
    heads_assumed: bool
    has_ema: bool

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width that it was trained at, of `args.img_size`; None if the file does not say.

        Raises CheckpointError if that is not a size.
        """
        size = self.args.get("img_size")
        if size is None:
            return None
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        match sides:
            case (int(height), int(width)) if 32 <= height <= 4096 and 32 <= width <= 4096:
                return height, width
        raise CheckpointError(f"{self.path}: args.img_size is {str(size)[:40]!r}; say the size with --image-size")

    def model(self) -> LAVT:
        """The LAVT in eval mode, float32, on the CPU. Raises CheckpointError if a parameter is not finite."""
        for key, value in self.state.items():
            if not torch.isfinite(value).all():
                raise CheckpointError(f"{self.path}: key '{_spelt(key, self.config.variant)}' holds NaN or infinity")
        model = LAVT(self.config).eval()
        model.load_state_dict({**model.state_dict(), **self.state})
        return model


def load_checkpoint(
    path: str | Path, *, fusion_heads: Heads | None = None, bert: str | Path | None = None, ema: bool = False
) -> LAVT:
    """Reads a checkpoint of `lavt` or `lavt_one` into a LAVT in eval mode, float32, on the CPU.

    The file is torch.save's or safetensors'; the forms are listed in docs/checkpoints.md. Swin type, window and
    vocabulary size come from the shapes, the PWAM heads from the file's own `args.mha`, of a Namespace or a dict;
    `fusion_heads` gives them if the file does not. `bert` is the text encoder of a `lavt` that was saved without it: a
    folder in Hugging Face's layout, or a state dict. `ema` takes the averaged parameters, `model_ema`. The file is
    memory-mapped, so optimizer state costs no memory.

    Raises CheckpointError for anything that is not such a file, saying which keys are missing, foreign or mis-shaped.
    """
    checkpoint = open_checkpoint(path, fusion_heads=fusion_heads, bert=bert, ema=ema)
    if checkpoint.heads_assumed:
        logger.warning("%s: heads assumed 1-1-1-1: no training arguments inside say them", path)
    return checkpoint.model()


def open_checkpoint(
    path: str | Path, *, fusion_heads: Heads | None = None, bert: str | Path | None = None, ema: bool = False
) -> Checkpoint:
    """What `load_checkpoint` loads, with keys, shapes and types checked. Raises CheckpointError as that does."""
    path, text = Path(path), LAVTConfig().text
    words = None if bert is None else read_bert(Path(bert), text)
    try:
        if not path.is_file():
            raise CheckpointError("no such file; give the path of an official LAVT checkpoint (.pth)")
        entries = _entries(read_weights(path))
        state, variant = _model_state(entries, words, ema)
        args = _arguments(entries.get("args"))
        heads = _fusion_heads(args, fusion_heads)
        config = LAVTConfig(_swin_type(state), _window(state), heads, variant, text=_text(state, text))
        return Checkpoint(
            path,
            config,
            _checked(state, config),
            args,
            heads_assumed=fusion_heads is None and "mha" not in args,
            has_ema="model_ema" in entries,
        )
    except (CheckpointError, InputError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _entries(content: object) -> dict[str, Any]:
    """The content in the official form: `model`, and if they are there `bert_model`, `model_ema` and the rest."""
    if not isinstance(content, dict):
        raise CheckpointError("key 'model' is missing; expected an official LAVT checkpoint")
    entries = dict(content)
    for name, others in _ENTRIES.items():
        given = next((other for other in (name, *others) if other in content), None)
        if given is not None:
            entries[name] = content[given]
    if not {"model", "model_ema"} & entries.keys():
        if not any(isinstance(value, Tensor) for value in content.values()):
            raise CheckpointError("key 'model' is missing; expected an official LAVT checkpoint")
        entries = {"model": content}
    for name in ("model", "model_ema"):  # modules within a module, such as Lightning's, or two in one flat file
        state = entries.get(name)
        if isinstance(state, Mapping) and all(str(key).startswith(("model.", "bert_model.")) for key in state):
            for part in ("bert_model", "model"):
                inner = {key.removeprefix(f"{part}."): state[key] for key in state if key.startswith(f"{part}.")}
                entries |= {name.replace("model", part): inner} if inner else {}
    return entries


def _model_state(
    entries: Mapping[str, Any], words: dict[str, Tensor] | None, ema: bool
) -> tuple[dict[str, Tensor], Variant]:
    """All parameters under LAVT's own keys, the text encoder's included, where the file or `words` has it."""
    name = "model_ema" if ema else "model"
    if name not in entries:
        advice = "--ema is for files that have it" if ema else "there is 'model_ema', which --ema takes"
        raise CheckpointError(f"key '{name}' is missing; {advice}")
    state = state_dict(name, entries[name])
    state.pop("n_averaged", None)  # of torch's AveragedModel
    bert = next((part for part in (f"bert_{name}", "bert_model") if part in entries), None)
    variant: Variant = "lavt_one" if any(key.startswith(_TEXT) for key in state) else "lavt"
    if words is not None and (bert is not None or variant == "lavt_one"):
        raise CheckpointError("it holds the text encoder that was trained with it; leave --bert out")
    if variant == "lavt" and bert is not None:
        words = state_dict(bert, entries[bert])
    return {**state, **{_TEXT + key: value for key, value in (words or {}).items()}}, variant


def _arguments(args: object) -> dict[str, object]:
    """The training arguments by name, of a Namespace or a dict; none of anything else."""
    if isinstance(args, argparse.Namespace):
        return dict(vars(args))
    return dict(args) if isinstance(args, Mapping) else {}


def _length(state: Mapping[str, Tensor], key: str, dimensions: int) -> int | None:
    """The first side of a tensor that must have so many dimensions; None if it is not there."""
    if key not in state:
        return None
    if state[key].ndim != dimensions:
        raise CheckpointError(f"key '{key}' has shape {list(state[key].shape)}; expected {dimensions} dimensions")
    return len(state[key])


def _swin_type(state: Mapping[str, Tensor]) -> str:
    """The type by channels and depth; where one is missing, or fits none, the nearest: the keys are checked later."""
    embed_dim = _length(state, _EMBED, 4)
    depth = len({key.split(".")[4] for key in state if re.match(r"backbone\.layers\.2\.blocks\.\d", key)}) or 18
    matching = {name: swin for name, swin in SWIN.items() if embed_dim in (None, swin.embed_dim)}
    if not matching:
        raise CheckpointError(f"key '{_EMBED}' has {embed_dim} channels; no Swin type has that many")
    return min(matching, key=lambda name: abs(matching[name].depths[2] - depth))


def _window(state: Mapping[str, Tensor]) -> int:
    rows = _length(state, _BIAS_TABLE, 2)
    if rows is None:  # the check of the keys says so
        return LAVTConfig().window
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0 or not 3 <= side < 2 * MAX_WINDOW:
        raise CheckpointError(
            f"key '{_BIAS_TABLE}' has {rows} rows; expected (2 * window - 1)^2, windows up to {MAX_WINDOW}"
        )
    return (side + 1) // 2


def _text(state: Mapping[str, Tensor], text: TextConfig) -> TextConfig:
    """BERT with as many words as its embedding has: other languages' BERTs differ in nothing else."""
    return replace(text, vocab_size=_length(state, _WORDS, 2) or text.vocab_size)


def _fusion_heads(args: Mapping[str, object], given: Heads | None) -> Heads:
    if "mha" not in args:
        return given or LAVTConfig().fusion_heads
    mha = args["mha"]
    if not isinstance(mha, str | None):
        raise CheckpointError(f"args.mha is a {type(mha).__name__}; expected text such as '4-4-4-4'")
    try:
        heads = tuple(int(part) for part in (mha or "1-1-1-1").split("-"))
    except ValueError:
        heads = ()
    if len(heads) != 4 or min(heads) < 1 or max(heads) > 1024:
        raise CheckpointError(f"args.mha is {str(mha)[:40]!r}; expected four numbers such as '4-4-4-4'")
    if given is not None and given != heads:
        raise CheckpointError(f"trained with PWAM heads {'-'.join(map(str, heads))}; leave the option out")
    return heads


def _checked(state: Mapping[str, Tensor], config: LAVTConfig) -> dict[str, Tensor]:
    """LAVT's parameters in `state`, after checking every key, shape and type. No memory is taken before."""
    with torch.device("meta"):
        own = {key: value for key, value in LAVT(config).state_dict().items() if not key.endswith(_COUNTER)}
    with_words = any(key.startswith(_TEXT) for key in state)
    required = [key for key in own if with_words or not key.startswith(_TEXT)]
    missing = [key for key in required if key not in state]
    ignored = (*_COMPUTED, _COUNTER)
    foreign = [
        key for key in state if key not in own and not key.endswith(ignored) and not key.startswith(_TEXT + "pooler.")
    ]
    if missing or foreign:
        raise CheckpointError(_difference(missing, foreign, len(required), config))
    if not with_words:
        raise CheckpointError(
            "key 'bert_model' is missing, and 'model' holds no text_encoder: a LAVT without its text encoder; give "
            "the BERT that was trained with it with --bert"
        )
    wrong = [(key, reason) for key, parameter in own.items() if (reason := _mismatch(state[key], parameter))]
    if wrong:
        more = f" (and {len(wrong) - 1} more keys do not fit LAVT {config.swin})" if len(wrong) > 1 else ""
        raise CheckpointError(f"key '{_spelt(wrong[0][0], config.variant)}' {wrong[0][1]}{more}")
    return {key: state[key] for key in own}


def _difference(missing: list[str], foreign: list[str], total: int, config: LAVTConfig) -> str:
    """How far a state dict's keys are from LAVT's."""
    if len(missing) + len(foreign) == 1:
        key = _spelt((missing or foreign)[0], config.variant)[:200]
        return f"key '{key}' is missing" if missing else f"key {key!r} is not part of LAVT {config.swin}"
    parts = []
    if foreign:
        verb = "key is" if len(foreign) == 1 else "keys are"
        parts.append(f"{len(foreign)} {verb} not of LAVT{_families(foreign, config.variant)}")
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        parts.append(f"{len(missing)} of LAVT's {total} keys {verb} missing{_families(missing, config.variant)}")
    likely = [model for model, mark in _OTHER_MODELS if any(re.search(mark, key) for key in foreign)]
    return "; ".join([*parts, f"looks like {likely[0]}" if likely else "expected an official LAVT checkpoint"])


def _families(keys: Iterable[str], variant: Variant) -> str:
    """The most frequent kinds of keys, numbers and the parameter's own name left out, with how many each has."""
    count = Counter(re.sub(r"\d+", "*", _spelt(key, variant).rpartition(".")[0])[:80] for key in keys)
    shown = ", ".join(f"{family} ({number})" for family, number in count.most_common(3))
    return f", such as {shown}" if len(count) > 3 else f": {shown}"


def _spelt(key: str, variant: Variant) -> str:
    """A key as the file has it: that of `lavt` keeps BERT under `bert_model`."""
    return "bert_model: " + key.removeprefix(_TEXT) if variant == "lavt" and key.startswith(_TEXT) else key


def _mismatch(value: Tensor, parameter: Tensor) -> str | None:
    """What keeps a value from being a parameter's, but for its numbers."""
    if value.shape != parameter.shape:
        return f"has shape {list(value.shape)}; expected {list(parameter.shape)}"
    return None if value.dtype in _FLOATS else f"has type {value.dtype}"
