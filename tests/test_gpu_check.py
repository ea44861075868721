"""`make gpu-check` where there is no GPU: it says so; and what it computes from reports and logits."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from lavt_edge.benchmarks.runs.gpu_check import compare, measure_bundle, summarise
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.tests.runtime_bundle import write_bundle
from lavt_edge.tests.runtime_engines import add_engine


@pytest.mark.skipif(cuda_device_count() > 0, reason="a CUDA device is here")
def test_gpu_check_without_a_device_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lavt_edge.benchmarks.runs.gpu_check", "--output", str(tmp_path / "x.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: no CUDA device was found: make gpu-check needs a CUDA machine or a Jetson"
    ]
    assert not (tmp_path / "x.json").exists()


def test_gpu_check_counts_what_pytest_reports() -> None:
    report = """<testsuites><testsuite tests="4" failures="1" errors="0" skipped="1">
    <testcase name="a"/><testcase name="b"><failure message="wrong&#10;more"/></testcase>
    <testcase name="c"><skipped message="no TensorRT"/></testcase><testcase name="d"/></testsuite></testsuites>"""
    summary = summarise(list(ElementTree.fromstring(report).iter("testsuite")))
    assert (summary["passed"], summary["failures"], summary["skipped"]) == (2, 1, 1)
    assert summary["problems"] == [
        {"test": "b", "kind": "failure", "message": "wrong"},
        {"test": "c", "kind": "skipped", "message": "no TensorRT"},
    ]


def test_gpu_check_measures_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (row,) = measure_bundle(bundle, rounds=2)
    assert (row["file"], row["precision"], row["verified"]) == ("segmenter.onnx", "fp32", None)
    assert row["relative_error"] < 1e-5
    assert row["pixel_agreement"] > 0.999
    assert row["milliseconds"]["image graph"]["median"] > 0
    add_engine(bundle, "segmenter.fp16.engine", b"ftrt" + bytes(100))
    assert "error" in measure_bundle(bundle, rounds=2)[1]


def test_gpu_check_compares_the_worst_case() -> None:
    wanted = [np.stack([np.zeros((4, 4)), np.ones((4, 4))]).astype(np.float32)] * 2
    found = [wanted[0], wanted[1].copy()]
    found[1][:, 0, 0] = (1, 0)
    figures = compare(found, wanted)
    assert figures["pixel_agreement"] == 15 / 16
    assert figures["relative_error"] == pytest.approx(np.sqrt(2) / 4)
