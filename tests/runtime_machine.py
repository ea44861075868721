"""A simulated machine with a GPU for the runtime's tests, and bundles with engines that run on it: their fixtures."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.runtime import graphs
from lavt_edge.runtime.tensorrt import cuda as cuda_module
from lavt_edge.tests.runtime_bundle import write_bundle
from lavt_edge.tests.runtime_engines import add_engine
from lavt_edge.tests.runtime_simulated_cuda import SimulatedCuda, SimulatedTensorRT, plan


@dataclass
class Machine:
    """A simulated machine: what `import tensorrt` and cuda-python find there."""

    cuda: SimulatedCuda
    tensorrt: SimulatedTensorRT


def pretend(monkeypatch: pytest.MonkeyPatch, version: str = "10.3.0", **device: Any) -> Machine:
    cuda = SimulatedCuda(**device)
    tensorrt = SimulatedTensorRT(cuda, version)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr(graphs, "cuda_device_count", lambda: 1)
    monkeypatch.setattr(cuda_module, "find_device", cuda.described)
    return Machine(cuda, tensorrt)


@pytest.fixture(params=["discrete", "integrated"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = pretend(monkeypatch, integrated=request.param == "integrated")
    with made.cuda.all_given_back():
        yield made


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    return {"fixed": write_bundle(root / "fixed", 1), "free": write_bundle(root / "free", None)}


@pytest.fixture
def bundle(pristine: dict[str, Path], tmp_path: Path) -> Path:
    return with_engines(pristine["fixed"], tmp_path)


@pytest.fixture
def free(pristine: dict[str, Path], tmp_path: Path) -> Path:
    return with_engines(pristine["free"], tmp_path, max_batch=3)


def with_engines(pristine: Path, folder: Path, max_batch: int = 1, **fields: Any) -> Path:
    copy = Path(shutil.copytree(pristine, folder / "bundle"))
    batch = json.loads((copy / "lavt.json").read_text())["input"]["batch"]
    for role in ("segmenter", "text_encoder"):
        add_engine(copy, f"{role}.fp16.engine", plan(role, batch, max_batch), max_batch=max_batch, **fields)
    return copy


def photo(seed: int = 0, height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
