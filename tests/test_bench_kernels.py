"""What a GPU runs for a graph, from the compiler's own report: every kernel, byte and product is in one part."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from lavt_edge.benchmarks.parts.kernels import measure_kernels
from lavt_edge.benchmarks.timing.result import Kernels
from lavt_edge.export.engines.layers import layers_from_log
from lavt_edge.export.macs import count_macs
from lavt_edge.tests.typed_bundle import add_typed_graphs, copy_bundle

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is for x86-64")

FUSED = 11  # of the 12 blocks of the demo model; the first is a pattern that this compiler does not know


@pytest.fixture(scope="module")
def typed(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = copy_bundle(demo_bundle, tmp_path_factory.mktemp("kernels") / "bundle")
    add_typed_graphs(root)
    return root


@pytest.fixture(scope="module")
def kernels(typed: Path) -> Kernels:
    return measure_kernels(typed / "segmenter.fp16.onnx", "fp16")


def test_bytes_are_those_of_the_tensors_in_the_report() -> None:
    def tensor(dims: str, kind: str) -> str:
        return (
            f"{{ Name: t, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], Datatype: {kind}, Format: (Linear) x }}"
        )

    inputs = ", ".join([tensor("1,900,512", "Half"), tensor("1,20", "Float")])
    constants = ", ".join([tensor("512,3", "Int8"), tensor("", "Float")])
    line = (
        f"Name: a, LayerType: gemm, Inputs: [ {inputs}], Constants: [ {constants}], "
        f"Outputs: [ {tensor('7,9', 'Int32')}, {tensor('2,2', 'UInt8')}], TacticName: t, Metadata: [ONNX Layer: x]"
    )
    (layer,) = layers_from_log(line)
    assert layer.moved == 900 * 512 * 2 + 20 * 4 + 63 * 4 + 4
    assert layer.constants == 512 * 3 + 4


def test_every_kernel_and_every_product_is_in_a_part(typed: Path, kernels: Kernels) -> None:
    assert "sm86" in kernels.compiler
    assert sum(row.macs for row in kernels.parts) == sum(count_macs(typed / "segmenter.fp16.onnx").values())
    assert sum(row.kernels for row in kernels.parts if row.part == "other") <= 2
    assert kernels.fused_attentions == FUSED


def test_no_kernel_of_the_decoder_only_moves(kernels: Kernels) -> None:
    assert not [move for move in kernels.moves if move.part.startswith("decoder")]


def test_floors_are_bytes_over_bandwidth_and_products_over_their_rate(kernels: Kernels) -> None:
    moved = sum(row.moved_bytes + row.constant_bytes for row in kernels.parts)
    nano = next(floor for floor in kernels.floors if "Nano" in floor.device)
    assert nano.memory_seconds == pytest.approx(moved / 102e9)
    assert nano.compute_seconds == pytest.approx(sum(row.macs for row in kernels.parts) / (17e12 / 2))


def test_the_command_shows_them_for_its_batch(typed: Path, kernels: Kernels, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    options = ("--engine", typed / "segmenter.fp16.onnx", "--device", "cpu", "--rounds", "2", "--batch", "2")
    code = "from lavt_edge.cli import bench_main; bench_main()"
    command = [sys.executable, "-c", code, *map(str, options), "--kernels", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parts = json.loads(file.read_text())["kernels"]["parts"]
    assert f"{sum(row['kernels'] for row in parts)} kernels" in " ".join(done.stdout.split())
    assert "Jetson Orin Nano" in done.stdout
    assert sum(row["macs"] for row in parts) == 2 * sum(row.macs for row in kernels.parts)
    moved = [sum(row.moved_bytes for row in kernels.parts), sum(row["moved_bytes"] for row in parts)]
    assert 1.8 < moved[1] / moved[0] < 2.2
