"""Files of tensors, torch's and safetensors', read without running anything that they contain."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError, reason_of

# Components that torch's wrappers (DataParallel, torch.compile) put into the keys of what they wrap.
_WRAPPERS = {"module", "_orig_mod"}
_MOST_HEADER = 100_000_000  # bytes of JSON that safetensors allows


class Unread:
    """Stands for an object of another package that a file holds: nothing of it is kept, nothing of it runs."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Dtype:
    """A numpy type as a file spells it: `f8`, then its byte order."""

    def __init__(self, name: object, *_: object) -> None:
        self.name, self.order = str(name), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])


def _scalar(dtype: _Dtype, data: object = b"") -> object:
    """The plain number of a numpy scalar; Unread for what is no number."""
    number = re.fullmatch(r"b1|[iu][1248]|f[248]", dtype.name)
    if number is None or dtype.order not in ("<", ">", "=", "|") or not isinstance(data, bytes):
        return Unread()
    return np.frombuffer(data, dtype.order + dtype.name, count=1)[0].item()


def _path(*parts: str) -> str:
    return "/".join(parts)


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_PATHS = ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
# What else than tensors and plain values a file may name, and what stands for it; numpy and pathlib are never called.
_ALLOWED: list[Any] = [
    argparse.Namespace,
    (_Dtype, "numpy.dtype"),
    (Unread, "numpy.ndarray"),
    *((_scalar, f"{module}.scalar") for module in _NUMPY),
    *((Unread, f"{module}._reconstruct") for module in _NUMPY),
    *((_path, f"{module}.{kind}") for module in ("pathlib", "pathlib._local") for kind in _PATHS),
]


def read_weights(path: Path) -> Any:
    """What a file holds that torch.save or safetensors wrote, on the CPU and memory-mapped where its form allows it.

    Numbers of numpy come as Python's, paths as text. Raises CheckpointError.
    """
    form = "torch checkpoint"
    try:
        with path.open("rb") as file:
            head = file.read(512)
        _refuse_text(head)
        is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _MOST_HEADER
        if is_safetensors or path.suffix == ".safetensors":
            form = "safetensors file"
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the file's format; a file that matters is refused below
            # Only torch's zip format can be memory-mapped; files from before torch 1.6 are plain pickles.
            mmap = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        reason = _offender(error)
        raise CheckpointError(
            f"refused, it holds more than tensors and plain values ({reason}); nothing was run"
        ) from error
    except Exception as error:  # a damaged archive surfaces as almost any type
        reason = reason_of(error)
        raise CheckpointError(f"not a readable {form} ({reason}); is the download complete?") from error


def _refuse_text(head: bytes) -> None:
    """Refuses what a download leaves in place of a file of weights."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.startswith(b"<"):
        raise CheckpointError(
            "a web page, not a checkpoint: the download is incomplete, the page is a notice such as a quota's or a "
            "login's; open the address in a browser and download the file again"
        )
    if begin.startswith(b"version https://git-lfs"):
        raise CheckpointError("a pointer of Git LFS, not a checkpoint: fetch the file itself with git lfs pull")
    if len(begin) > 16 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in begin):
        text = " ".join(begin[:60].decode().split())
        raise CheckpointError(f"a text, not a checkpoint (it begins with {text!r}); is the download complete?")


def _offender(error: BaseException) -> str:
    """The part of torch's long refusal that names the global or opcode."""
    for line in str(error).splitlines():
        for mark in ("Unsupported global", "Unsupported operand", "Unsupported class", "GLOBAL"):
            if mark in line:
                return line[line.index(mark) :].strip().split(" was not")[0][:160]
    return reason_of(error)


def state_dict(name: str, entry: object) -> dict[str, Tensor]:
    """An entry's tensors, by their keys without what wrappers added. Raises CheckpointError for anything else."""
    if not isinstance(entry, Mapping):
        raise CheckpointError(f"'{name}' is a {type(entry).__name__}; expected a dict of tensors")
    state: dict[str, Tensor] = {}
    for key, value in entry.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(key, str) or not dense:
            raise CheckpointError(f"'{name}' entry {str(key)[:100]!r} is not a dense tensor")
        plain = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if plain in state:
            raise CheckpointError(f"'{name}' holds {plain[:100]!r} twice, with and without a wrapper's prefix")
        state[plain] = value
    return state
