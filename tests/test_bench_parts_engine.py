"""Where the time of a TensorRT engine goes: fused layers shared among parts, and on a GPU the profiler itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.benchmarks.parts.engine import engine_part_times, share_layers
from lavt_edge.export.engines.layers import EngineLayer
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.tests.runtime_bundle import CHANNELS, HEIGHT, WIDTH, WORDS, write_bundle
from lavt_edge.tests.typed_bundle import copy_bundle


def test_a_fused_layer_is_shared_by_macs() -> None:
    parts = {
        "stage0.block0.mlp.fc1/MatMul": "stage0.mlp",
        "stage0.pwam.mix/MatMul": "stage0.pwam",
        "graph/Split": "words",
    }
    layers = [
        EngineLayer("fused", "gemm", "fp16", ("stage0.block0.mlp.fc1/MatMul", "stage0.pwam.mix/MatMul", "graph/Split")),
        EngineLayer("moves", "kgen", "fp16", ("stage0.pwam.mix/MatMul_1", "graph/Split")),
        EngineLayer("copy", "Reformat", "fp16", ()),
    ]
    macs = {"stage0.block0.mlp.fc1/MatMul": 300, "stage0.pwam.mix/MatMul": 100}
    seconds = {"copy": 0.5, "fused": 4.0, "moves": 2.0, "decoder.level1.conv/Conv": 0.25}
    shared = share_layers(seconds, layers, parts, macs)
    assert shared == {"stage0.mlp": 3.0, "stage0.pwam": 2.0, "words": 1.0, "decoder.level1": 0.25, "other": 0.5}
    assert list(shared)[-1] == "other"
    assert sum(shared.values()) == sum(seconds.values())


ADD_PARTS = """
import sys
sys.modules["onnxruntime"] = None  # a device with TensorRT alone
from dataclasses import replace
from pathlib import Path
from lavt_edge.benchmarks.parts import engine, measure
from lavt_edge.benchmarks.timing.result import Options, TimedPart
from lavt_edge.tests.report_pages import example, read

def stand_in(bundle, name, feeds):
    print(name, *(f"{key} {values.dtype} {values.shape}" for key, values in feeds.items()), sep="; ")
    return (TimedPart("stage0.mlp", 1, {"fp16": 1}, 2, 1, 1, seconds=0.5),)

engine.engine_part_times = stand_in
measure.run_in_subprocess = lambda function, *arguments: function(*arguments)
result = read(example())
side = replace(result.sides[0], file="segmenter.fp16.engine", device="cuda", precision="fp16")
result = replace(result, sides=(side,), parts=None)
(parts,) = measure.add_parts(result, Options(Path(sys.argv[1]), batch=3), lambda step: None).parts
print(parts.precision, parts.parts[0].seconds)
"""


def test_parts_of_an_engine_need_no_onnx_runtime(tmp_path: Path) -> None:
    """Its inputs are as the manifest has them."""
    bundle = write_bundle(tmp_path / "small", batch=None)
    done = subprocess.run([sys.executable, "-c", ADD_PARTS, str(bundle)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image, words = f"(3, {HEIGHT}, {WIDTH}, 3)", f"(3, {WORDS})"
    prompt = f"(3, {WORDS}, {CHANNELS})"
    said = f"segmenter.fp16.engine; image uint8 {image}; prompt float32 {prompt}; word_mask float32 {words}"
    assert done.stdout == f"{said}\nfp16 0.5\n"


@pytest.mark.gpu
@pytest.mark.skipif(cuda_device_count() == 0, reason="no CUDA device")
def test_an_engine_is_profiled_by_part(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(demo_bundle, tmp_path / "bundle")
    command = [sys.executable, "-c", "from lavt_edge.cli import export_main; export_main()", "trt", str(bundle)]
    subprocess.run(command, check=True)
    opened = open_bundle(bundle)
    name = next(name for name, entry in opened.manifest.engines.items() if entry["role"] == "segmenter")
    spec = opened.manifest.input
    feeds = {
        "image": np.zeros((1, spec.height, spec.width, 3), np.uint8),
        "prompt": np.zeros((1, spec.max_words, spec.prompt_channels), np.float32),
        "word_mask": np.ones((1, spec.max_words), np.float32),
    }
    rows = engine_part_times(opened, name, feeds, rounds=5)
    spent = {row.part: row.seconds for row in rows}
    assert spent["decoder.level0"] > 0
    assert spent.get("other", 0.0) < 0.3 * sum(spent.values())
    assert sum(row.macs for row in rows) == opened.manifest.model["macs"]["segmenter"]
