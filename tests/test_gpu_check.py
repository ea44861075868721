"""`make gpu-check` where there is no GPU: it says so; and what it computes from reports and logits."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lavt_edge._base import strict_json
from lavt_edge._base.records import to_plain
from lavt_edge.benchmarks.runs.gpu_check import (
    Build,
    Check,
    GpuTests,
    Machine,
    Problem,
    Row,
    _logits,
    measure_bundle,
    measure_file,
    summarise,
)
from lavt_edge.data.metrics import relative_error
from lavt_edge.runtime import Segmenter
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
    tests = summarise(1, list(ElementTree.fromstring(report).iter("testsuite")))
    problems = (Problem("b", "failure", "wrong"), Problem("c", "skipped", "no TensorRT"))
    assert tests == GpuTests(1, tests=4, failures=1, errors=0, skipped=1, passed=2, problems=problems)


def test_gpu_check_measures_a_bundle(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (row,) = measure_bundle(bundle, rounds=2)
    assert (row.file, row.precision, row.verified) == ("segmenter.onnx", "fp32", None)
    assert row.relative_error is not None
    assert row.relative_error < 1e-5
    assert row.pixel_agreement is not None
    assert row.pixel_agreement > 0.999
    assert row.milliseconds is not None
    assert list(row.milliseconds) == ["image graph", "segment", "text graph"]
    assert all(0 < part["median"] <= part["p90"] <= part["p99"] for part in row.milliseconds.values())
    add_engine(bundle, "segmenter.fp16.engine", b"ftrt" + bytes(100))
    broken = measure_bundle(bundle, rounds=2)[1]
    assert broken.error
    assert to_plain(broken) == {"file": "segmenter.fp16.engine", "verified": None, "error": broken.error}


def test_gpu_check_compares_the_worst_scene(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle") / "segmenter.onnx"
    with Segmenter.load(path, device="cpu") as segmenter:
        expected = _logits(segmenter)
    expected[3] = expected[3] / 2
    expected[5] = expected[5][::-1].copy()
    row = measure_file(path, expected, rounds=2)
    assert row.relative_error == pytest.approx(max(1.0, relative_error(expected[5][::-1], expected[5])), rel=1e-4)
    assert row.pixel_agreement == pytest.approx(0, abs=0.1)


def test_an_infinite_error_is_written_as_strict_json_and_does_not_pass(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle") / "segmenter.onnx"
    with Segmenter.load(path, device="cpu") as segmenter:
        expected = _logits(segmenter)
    exact = measure_file(path, expected, rounds=2)
    expected[0][0, 0, 0] = np.inf
    infinite = measure_file(path, expected, rounds=2)
    machine = Machine("Orin", "8.7", True, {"flavor": "TensorRT", "version": "10.3"}, "Linux", "3.11", {"numpy": "2.0"})
    tests, builds = GpuTests(0, 1, 0, 0, 0, 1, ()), (Build("--fp16", 0, 1.5, "done"),)
    check = Check(machine, tests, "demo.pt", builds, (exact, infinite))
    assert not check.passed
    check.write(tmp_path / "gpu-check.json")
    written = strict_json.loads((tmp_path / "gpu-check.json").read_bytes())
    assert list(written) == ["machine", "tests", "checkpoint", "builds", "table"]
    assert written["machine"]["tensorrt"] == {"flavor": "TensorRT", "version": "10.3"}
    assert [row["relative_error"] for row in written["table"]] == [exact.relative_error, None]
    assert set(written["table"][0]["milliseconds"]["segment"]) == {"median", "p90", "p99"}
    passing = replace(check, table=(exact,))
    assert passing.passed
    assert not replace(passing, tests=replace(tests, passed=0)).passed
    assert not replace(passing, builds=(replace(builds[0], exit_code=1),)).passed
    assert not replace(passing, table=(Row("a.engine", error="refused"),)).passed
