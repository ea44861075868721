"""Official LAVT checkpoints, read without running anything that they contain."""

from __future__ import annotations

import argparse
import logging
import math
import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, reason_of
from .config import MAX_WINDOW, SWIN, LAVTConfig, Variant
from .lavt import LAVT

BERT_VOCABULARY = Path(__file__).with_name("bert-base-uncased.vocab.txt")
logger = logging.getLogger("lavt_edge")

_COMPUTED = ("relative_position_index", "position_ids")
_TEXT = "text_encoder."
_EMBED = "backbone.patch_embed.proj.weight"
_BIAS_TABLE = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_checkpoint(path: str | Path, *, fusion_heads: tuple[int, int, int, int] | None = None) -> LAVT:
    """Reads an official checkpoint (`lavt` or `lavt_one`) into a LAVT in eval mode, float32, on the CPU.

    Swin type and window come from the shapes, the PWAM heads from the checkpoint's own `args.mha`. `fusion_heads`
    says the heads if the file holds no `args`. The file is memory-mapped, so optimizer state costs no memory.

    Raises CheckpointError for anything that is not such a file, naming the first missing or mis-shaped key.
    """
    path = Path(path)
    content = _read(path)
    state, variant = _model_state(path, content)
    swin, window = _swin_type(path, state), _window(path, state)
    heads = _fusion_heads(path, content.get("args"), fusion_heads)
    try:
        config = LAVTConfig(swin=swin, window=window, fusion_heads=heads, variant=variant)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    model = LAVT(config).eval()
    _fill(path, model, state)
    if fusion_heads is None and not isinstance(content.get("args"), argparse.Namespace):
        logger.warning("%s: no training arguments inside; assuming PWAM heads 1-1-1-1", path)
    return model


def _read(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such file; give the path of an official LAVT checkpoint (.pth)")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's format; a file that matters is refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain values ({_offender(error)}); nothing was run"
        ) from error
    except Exception as error:  # a damaged archive surfaces as almost any type
        raise CheckpointError(
            f"{path}: not a readable torch checkpoint ({reason_of(error)}); is the download complete?"
        ) from error
    if not isinstance(content, dict) or "model" not in content:
        raise CheckpointError(f"{path}: key 'model' is missing; expected an official LAVT checkpoint")
    return content


def _is_zip(path: Path) -> bool:
    """Torch memory-maps its zip format; files from before torch 1.6 are plain pickles."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _offender(error: BaseException) -> str:
    """The part of torch's long refusal that names the global or opcode."""
    for line in str(error).splitlines():
        for mark in ("Unsupported global", "Unsupported operand", "Unsupported class", "GLOBAL"):
            if mark in line:
                return line[line.index(mark) :].strip().split(" was not")[0][:160]
    return reason_of(error)


def _model_state(path: Path, content: dict[str, Any]) -> tuple[dict[str, Tensor], Variant]:
    """All parameters under LAVT's own keys, the text encoder's included."""
    state = _tensors(path, "model", content["model"])
    if any(key.startswith(_TEXT) for key in state):
        return state, "lavt_one"
    if "bert_model" not in content:
        raise CheckpointError(
            f"{path}: key 'bert_model' is missing, and 'model' holds no text_encoder; expected an official checkpoint"
        )
    bert = _tensors(path, "bert_model", content["bert_model"])
    return {**state, **{_TEXT + key: value for key, value in bert.items()}}, "lavt"


def _tensors(path: Path, name: str, entry: object) -> dict[str, Tensor]:
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"{path}: '{name}' is a {type(entry).__name__}; expected a dict of tensors")
    for key, value in entry.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(key, str) or not dense:
            raise CheckpointError(f"{path}: '{name}' entry {str(key)[:100]!r} is not a dense tensor")
    return dict(entry)


def _shape(path: Path, state: Mapping[str, Tensor], key: str, dimensions: int) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"{path}: key '{key}' is missing; expected an official LAVT checkpoint")
    shape = tuple(state[key].shape)
    if len(shape) != dimensions:
        raise CheckpointError(f"{path}: key '{key}' has shape {list(shape)}; expected {dimensions} dimensions")
    return shape


def _swin_type(path: Path, state: Mapping[str, Tensor]) -> str:
    embed_dim = _shape(path, state, _EMBED, 4)[0]
    depth = len({key.split(".")[4] for key in state if key.startswith("backbone.layers.2.blocks.")})
    matching = {name: swin for name, swin in SWIN.items() if swin.embed_dim == embed_dim}
    if not matching:
        raise CheckpointError(f"{path}: key '{_EMBED}' has {embed_dim} channels; no Swin type has that many")
    # A depth that fits none is left to the key check, which names the first block that is missing or too many.
    return min(matching, key=lambda name: abs(matching[name].depths[2] - depth))


def _window(path: Path, state: Mapping[str, Tensor]) -> int:
    rows = _shape(path, state, _BIAS_TABLE, 2)[0]
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0 or not 3 <= side < 2 * MAX_WINDOW:
        raise CheckpointError(
            f"{path}: key '{_BIAS_TABLE}' has {rows} rows; expected (2 * window - 1)^2, windows up to {MAX_WINDOW}"
        )
    return (side + 1) // 2


def _fusion_heads(path: Path, args: object, given: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
    mha = getattr(args, "mha", None) if isinstance(args, argparse.Namespace) else None
    if not isinstance(args, argparse.Namespace):
        return given or (1, 1, 1, 1)
    if mha is not None and not isinstance(mha, str):
        raise CheckpointError(f"{path}: args.mha is a {type(mha).__name__}; expected text such as '4-4-4-4'")
    try:
        heads = tuple(int(part) for part in mha.split("-")) if mha else (1, 1, 1, 1)
    except ValueError:
        heads = ()
    if len(heads) != 4 or min(heads) < 1 or max(heads) > 1024:
        raise CheckpointError(f"{path}: args.mha is {str(mha)[:40]!r}; expected four numbers such as '4-4-4-4'")
    if given is not None and given != heads:
        raise CheckpointError(f"{path}: trained with PWAM heads {'-'.join(map(str, heads))}; leave the option out")
    return heads


def _fill(path: Path, model: LAVT, state: Mapping[str, Tensor]) -> None:
    """Copies `state` into `model` after checking every key, shape and value."""
    own = model.state_dict()
    for key, parameter in own.items():
        if key not in state:
            raise CheckpointError(f"{path}: key '{_file_key(key, model)}' is missing")
        shape, expected = list(state[key].shape), list(parameter.shape)
        if shape != expected:
            raise CheckpointError(f"{path}: key '{_file_key(key, model)}' has shape {shape}; expected {expected}")
        allowed = _FLOATS if parameter.is_floating_point() else (parameter.dtype,)
        if state[key].dtype not in allowed:
            raise CheckpointError(f"{path}: key '{_file_key(key, model)}' has type {state[key].dtype}")
        if not torch.isfinite(state[key]).all():
            raise CheckpointError(f"{path}: key '{_file_key(key, model)}' holds NaN or infinity")
    for key in state:
        if key not in own and not key.endswith(_COMPUTED) and not key.startswith(_TEXT + "pooler."):
            raise CheckpointError(
                f"{path}: key {_file_key(key, model)[:200]!r} is not part of LAVT {model.config.swin}"
            )
    model.load_state_dict({key: state[key] for key in own})


def _file_key(key: str, model: LAVT) -> str:
    """The key as the file spells it: `lavt` keeps BERT apart, under `bert_model`."""
    if model.config.variant == "lavt" and key.startswith(_TEXT):
        return "bert_model: " + key.removeprefix(_TEXT)
    return key
