"""Official LAVT checkpoints, read without running anything that they contain."""

from __future__ import annotations

import argparse
import logging
import math
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, InputError, reason_of
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
    try:
        content = _read(path)
        state, variant = _model_state(content)
        heads = _fusion_heads(content.get("args"), fusion_heads)
        model = LAVT(LAVTConfig(_swin_type(state), _window(state), heads, variant)).eval()
        _fill(model, state)
    except (CheckpointError, InputError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    if fusion_heads is None and not isinstance(content.get("args"), argparse.Namespace):
        logger.warning("%s: no training arguments inside; assuming PWAM heads 1-1-1-1", path)
    return model


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError("no such file; give the path of an official LAVT checkpoint (.pth)")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's format; a file that matters is refused below
            # Only torch's zip format can be memory-mapped; files from before torch 1.6 are plain pickles.
            mmap = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = _offender(error)
        raise CheckpointError(
            f"refused, it holds more than tensors and plain values ({reason}); nothing was run"
        ) from error
    except Exception as error:  # a damaged archive surfaces as almost any type
        reason = reason_of(error)
        raise CheckpointError(f"not a readable torch checkpoint ({reason}); is the download complete?") from error
    if not isinstance(content, dict) or "model" not in content:
        raise CheckpointError("key 'model' is missing; expected an official LAVT checkpoint")
    return content


def _offender(error: BaseException) -> str:
    """The part of torch's long refusal that names the global or opcode."""
    for line in str(error).splitlines():
        for mark in ("Unsupported global", "Unsupported operand", "Unsupported class", "GLOBAL"):
            if mark in line:
                return line[line.index(mark) :].strip().split(" was not")[0][:160]
    return reason_of(error)


def _model_state(content: dict[str, Any]) -> tuple[dict[str, Tensor], Variant]:
    """All parameters under LAVT's own keys, the text encoder's included."""
    state = _tensors("model", content["model"])
    if any(key.startswith(_TEXT) for key in state):
        return state, "lavt_one"
    if "bert_model" not in content:
        raise CheckpointError(
            "key 'bert_model' is missing, and 'model' holds no text_encoder; expected an official checkpoint"
        )
    bert = _tensors("bert_model", content["bert_model"])
    return {**state, **{_TEXT + key: value for key, value in bert.items()}}, "lavt"


def _tensors(name: str, entry: object) -> dict[str, Tensor]:
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"'{name}' is a {type(entry).__name__}; expected a dict of tensors")
    for key, value in entry.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(key, str) or not dense:
            raise CheckpointError(f"'{name}' entry {str(key)[:100]!r} is not a dense tensor")
    return dict(entry)


def _length(state: Mapping[str, Tensor], key: str, dimensions: int) -> int:
    """The first side of a tensor that must have so many dimensions."""
    if key not in state:
        raise CheckpointError(f"key '{key}' is missing; expected an official LAVT checkpoint")
    if state[key].ndim != dimensions:
        raise CheckpointError(f"key '{key}' has shape {list(state[key].shape)}; expected {dimensions} dimensions")
    return len(state[key])


def _swin_type(state: Mapping[str, Tensor]) -> str:
    embed_dim = _length(state, _EMBED, 4)
    depth = len({key.split(".")[4] for key in state if key.startswith("backbone.layers.2.blocks.")})
    matching = {name: swin for name, swin in SWIN.items() if swin.embed_dim == embed_dim}
    if not matching:
        raise CheckpointError(f"key '{_EMBED}' has {embed_dim} channels; no Swin type has that many")
    # A depth that fits none is left to the key check, which names the first block that is missing or too many.
    return min(matching, key=lambda name: abs(matching[name].depths[2] - depth))


def _window(state: Mapping[str, Tensor]) -> int:
    rows = _length(state, _BIAS_TABLE, 2)
    side = math.isqrt(rows)
    if side * side != rows or side % 2 == 0 or not 3 <= side < 2 * MAX_WINDOW:
        raise CheckpointError(
            f"key '{_BIAS_TABLE}' has {rows} rows; expected (2 * window - 1)^2, windows up to {MAX_WINDOW}"
        )
    return (side + 1) // 2


def _fusion_heads(args: object, given: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
    if not isinstance(args, argparse.Namespace):
        return given or (1, 1, 1, 1)
    mha = getattr(args, "mha", None)
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


def _fill(model: LAVT, state: Mapping[str, Tensor]) -> None:
    """Copies `state` into `model` after checking every key, shape and value."""
    own = model.state_dict()
    apart = model.config.variant == "lavt"  # the file keeps BERT under `bert_model`

    def spelt(key: str) -> str:
        return "bert_model: " + key.removeprefix(_TEXT) if apart and key.startswith(_TEXT) else key

    for key, parameter in own.items():
        reason = _mismatch(state.get(key), parameter)
        if reason:
            raise CheckpointError(f"key '{spelt(key)}' {reason}")
    for key in state:
        if key not in own and not key.endswith(_COMPUTED) and not key.startswith(_TEXT + "pooler."):
            raise CheckpointError(f"key {spelt(key)[:200]!r} is not part of LAVT {model.config.swin}")
    model.load_state_dict({key: state[key] for key in own})


def _mismatch(value: Tensor | None, parameter: Tensor) -> str | None:
    """What keeps a value from being a parameter's."""
    if value is None:
        return "is missing"
    if value.shape != parameter.shape:
        return f"has shape {list(value.shape)}; expected {list(parameter.shape)}"
    if value.dtype not in (_FLOATS if parameter.is_floating_point() else (parameter.dtype,)):
        return f"has type {value.dtype}"
    return None if torch.isfinite(value).all() else "holds NaN or infinity"
