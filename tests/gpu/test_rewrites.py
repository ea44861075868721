"""The benchmark of the rewrites on a GPU: it runs, on a CPU without graphs, and both sides of a pair agree in shape."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from lavt_edge.runtime.cuda import cuda_device_count

torch = pytest.importorskip("torch")
COMMAND = [sys.executable, "-m", "lavt_edge.benchmarks.runs.gpu_rewrites", "--rounds", "2", "--window", "7"]
LINE = r"(.+?) +published +[\d.]+ ms, rewritten +[\d.]+ ms, ratio [\d.]+, 95 % [\d.]+ to [\d.]+"


def lines(*options: str) -> list[str]:
    done = subprocess.run([*COMMAND, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_part_is_measured_on_a_cpu() -> None:
    names = [re.fullmatch(LINE, line) for line in lines("--swin", "demo", "--image-size", "64", "--device", "cpu")]
    assert all(names)
    assert [name[1] for name in names if name] == ["image model", "decoder", *(f"stage{i}.pwam" for i in range(4))]


@pytest.mark.skipif(cuda_device_count() > 0, reason="a CUDA device is here")
def test_without_a_device_it_says_so() -> None:
    done = subprocess.run([*COMMAND, "--swin", "demo"], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "finds no CUDA device" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_device_count(), reason="no CUDA device")
@pytest.mark.parametrize("half", [[], ["--half"]], ids=["fp32", "fp16"])
def test_every_part_is_captured_and_replayed(half: list[str]) -> None:
    machine, *measured = lines("--swin", "tiny", "--image-size", "224", *half)
    assert "PyTorch" in machine
    assert len(measured) == 6
