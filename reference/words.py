"""The text encoder of a LAVT that was saved without one: BERT's weights, and the vocabulary that belongs to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from torch import Tensor

from .._base import strict_json
from ..errors import CheckpointError, reason_of
from ..runtime.tokenizer import SPECIAL_TOKENS, build_tokenizer
from .config import TextConfig
from .weights import read_weights, state_dict

BERT_VOCABULARY = Path(__file__).with_name("bert-base-uncased.vocab.txt")
_FILES = ("model.safetensors", "pytorch_model.bin")
_MOST_BYTES = 50_000_000
# Names of before transformers 0.4, which the published bert-base-uncased still has.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def read_bert(path: Path, text: TextConfig) -> dict[str, Tensor]:
    """The parameters of a BERT under the keys of transformers' BertModel, as the file has them.

    `path` is a folder in Hugging Face's layout, or a state dict: bare, or under `bert_model`, `model` or `state_dict`.
    A folder's config.json must agree with `text`, where shapes do not tell. Raises CheckpointError.
    """
    try:
        if path.is_dir():
            _check_config(path / "config.json", text)
        content = read_weights(bert_file(path))
        entries = content if isinstance(content, dict) else {}
        name = next((key for key in ("bert_model", "model", "state_dict") if key in entries), "")
        state = state_dict(name or "the file", entries[name] if name else content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if any(key.startswith("bert.") for key in state):  # the heads that it was trained with are beside it
        state = {key.removeprefix("bert."): value for key, value in state.items() if key.startswith("bert.")}
    for old, new in _RENAMED.items():
        state = {key.removesuffix(old) + new if key.endswith(old) else key: value for key, value in state.items()}
    return state


def bert_file(path: Path) -> Path:
    """The file of a BERT's parameters: `path`, or one in a folder of Hugging Face's. Raises CheckpointError."""
    files = [path / name for name in _FILES] if path.is_dir() else [path]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise CheckpointError(f"no such file; give a BERT's state dict, or a folder with {' or '.join(_FILES)}")
    return file


def _check_config(path: Path, text: TextConfig) -> None:
    """Raises CheckpointError if a config.json says another function than the BERT of LAVT has."""
    expected = {
        "model_type": "bert",
        "num_attention_heads": text.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
    }
    config = _read_json(path)
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{path.name} says {key} {str(config[key])[:40]!r}; LAVT's BERT has {value!r}")


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; an empty one if there is no file. Raises CheckpointError."""
    if not path.is_file():
        return {}
    try:
        content = strict_json.loads(_small(path))
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not valid JSON ({reason_of(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is not an object of JSON")
    return content


def _small(path: Path) -> bytes:
    """The bytes of a file that is to be small. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(data) > _MOST_BYTES:
        raise CheckpointError(f"{path}: larger than {_MOST_BYTES // 1_000_000} MB; expected a small text file")
    return data


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a file with one a line, in order; of a folder's `vocab.txt`. Raises CheckpointError."""
    try:
        text = _small(path / "vocab.txt" if path.is_dir() else path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a vocabulary in UTF-8, one token a line (byte {error.start})") from error
    tokens = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    missing = [token for token in SPECIAL_TOKENS if token not in tokens]
    if missing:
        raise CheckpointError(f"{path}: the vocabulary has no {missing[0]}; give a BERT's, one token a line")
    return tokens


def is_cased(path: Path, tokens: list[str]) -> bool:
    """Whether a vocabulary's BERT tells capitals apart.

    A tokenizer_config.json beside it says so, as Hugging Face's folders have it; else a token with a capital does.
    """
    folder = path if path.is_dir() else path.parent
    lower = _read_json(folder / "tokenizer_config.json").get("do_lower_case")
    if isinstance(lower, bool):
        return not lower
    return any(re.search("[A-Z]", token) for token in tokens if token[:1] != "[")


def words_tokenizer(vocabulary: Path | Sequence[str], text: TextConfig) -> Tokenizer:
    """The tokenizer of a vocabulary for a BERT of these sizes, with capitals if the vocabulary has them.

    Raises CheckpointError if it has more or fewer words than the BERT.
    """
    tokens = read_vocabulary(vocabulary) if isinstance(vocabulary, Path) else list(vocabulary)
    if len(tokens) != text.vocab_size:
        name = "bert-base-uncased's vocabulary" if vocabulary == BERT_VOCABULARY else "the vocabulary"
        raise CheckpointError(
            f"the text encoder has {text.vocab_size} words and {name} {len(tokens)}; give its own with --vocabulary"
        )
    tokenizer = build_tokenizer(tokens)
    if isinstance(vocabulary, Path) and vocabulary != BERT_VOCABULARY and is_cased(vocabulary, tokens):
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    return tokenizer
