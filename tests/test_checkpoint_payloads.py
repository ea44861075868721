"""Code in a checkpoint never runs, wherever it lies and however the file was written."""

from __future__ import annotations

import argparse
import builtins
import functools
import io
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from lavt_edge.tests.small_checkpoints import PROJECTION, Call, refusal, saved
from lavt_edge.tests.small_checkpoints import small_bert as small_bert  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


class Built:
    """Pickles as a plain object whose state is set by a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = Call(function, *arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return argparse.Namespace, (), {"mha": self.call}


def payloads(sentinel: Path) -> dict[str, object]:
    """Objects that create `sentinel` when they are unpickled."""
    touch = f"touch {sentinel}"
    code = f"__import__('pathlib').Path({str(sentinel)!r}).touch()"
    nested = io.BytesIO()
    torch.save(Call(os.system, touch), nested, _use_new_zipfile_serialization=False)
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "Popen": Call(subprocess.check_call, ["touch", str(sentinel)]),
        "partial": Call(functools.partial(os.system, touch)),
        "inside Namespace": Built(os.system, touch),
        "storage bytes": Call(torch.storage._load_from_bytes, nested.getvalue()),
        "pickle in a pickle": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
    }


def _scalar_of_numpy() -> Callable[..., object]:
    """What numpy's scalars are pickled as a call of."""
    function: Callable[..., object] = np.float64(0).__reduce__()[0]
    return function


FLOAT = np.dtype(np.float64)
PAYLOADS = tuple(payloads(Path("unused")))
PLACES: dict[str, Callable[[dict[str, Any], object], object]] = {
    "the whole file": lambda content, payload: payload,
    "args": lambda content, payload: {**content, "args": payload},
    "args as a dict": lambda content, payload: {**content, "args": {"mha": payload}},
    "model_ema": lambda content, payload: {**content, "model_ema": {PROJECTION: payload}},
    "a numpy scalar": lambda content, payload: {**content, "best_oIoU": Call(_scalar_of_numpy(), FLOAT, payload)},
    "a path": lambda content, payload: {**content, "output_dir": Call(PurePosixPath, "a", payload)},
    "args.mha": lambda content, payload: {**content, "args": argparse.Namespace(mha=payload)},
    "optimizer": lambda content, payload: {**content, "optimizer": {"state": {0: {"step": payload}}}},
    "model": lambda content, payload: {**content, "model": {**content["model"], PROJECTION: payload}},
}
WRITERS: dict[str, Callable[[Path, object], object]] = {
    "zip": lambda path, content: torch.save(content, path),
    "legacy": lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
    "plain pickle": lambda path, content: path.write_bytes(pickle.dumps(content, protocol=2)),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_payloads_are_real(tmp_path: Path, name: str) -> None:
    """Loaded as torch once did by default, each of them does what the next test says does not happen."""
    sentinel = tmp_path / "sentinel"
    path = saved(tmp_path / "malicious.pth", {"model": payloads(sentinel)[name]})
    torch.load(path, weights_only=False)
    assert sentinel.exists()


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.usefixtures("small_bert")
def test_nothing_in_a_checkpoint_runs(tmp_path: Path, name: str, place: str, writer: str) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "malicious.pth"
    content = {"model": {PROJECTION: torch.zeros(24, 3, 4, 4)}, "bert_model": {}}
    WRITERS[writer](path, PLACES[place](content, payloads(sentinel)[name]))
    message = refusal(path)
    assert not sentinel.exists()
    if writer != "plain pickle":  # a foreign pickle is refused for its form already
        assert "refused, it holds more than tensors and plain values" in message


def test_the_installed_command_runs_nothing_of_a_malicious_file(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    path = saved(tmp_path / "malicious.pth", {"model": {}, "args": Call(os.system, f"touch {sentinel}")})
    command = [
        Path(sys.executable).parent / "lavt-export",
        "onnx",
        "--checkpoint",
        path,
        "--output",
        tmp_path / "bundle",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [done.stderr.rstrip("\n")]
    assert done.stderr.startswith(f"error: {path}: refused")
    assert list(tmp_path.iterdir()) == [path]
