"""`lavt-export trt` with TensorRT for RTX, which builds without a GPU: what is built, recorded, refused and left."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lavt_edge import cli
from lavt_edge.errors import BundleError, ExportError
from lavt_edge.export.engines.bundle import build_engines
from lavt_edge.export.engines.options import EngineOptions
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.runtime.tensorrt.flavor import find_flavor
from lavt_edge.runtime.tensorrt.record import check_header, engine_record
from lavt_edge.tests.engine_builds import COMMAND, TARGETS, damage, refused, start_and_wait_for, state, trt
from lavt_edge.tests.typed_bundle import add_typed_graphs, copy_bundle, count_nodes

pytest.importorskip("tensorrt_rtx")
HAS_CUDA = cuda_device_count() > 0


@pytest.fixture(scope="module")
def typed(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = copy_bundle(demo_bundle, tmp_path_factory.mktemp("typed") / "bundle")
    add_typed_graphs(bundle)
    return bundle


@pytest.fixture
def bundle(typed: Path, tmp_path: Path) -> Path:
    return copy_bundle(typed, tmp_path / "bundle")


@pytest.fixture(scope="module")
def built(typed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the engines of all three precisions, FP16 and INT8 by the command."""
    bundle = copy_bundle(typed, tmp_path_factory.mktemp("built") / "bundle")
    for option in ("--fp16", "--int8"):
        done = trt(bundle, option, "--max-batch", "3")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # nothing is drawn where nobody watches
        assert done.stdout.count("\n") == 3
        if not HAS_CUDA:
            assert done.stdout.count("unverified: there is no CUDA device here") == 2
    build_engines(bundle, EngineOptions(precision="fp32", targets=TARGETS, max_batch=3, flavor="tensorrt_rtx"))
    return bundle


ENGINES = [("text_encoder", "fp16"), ("segmenter", "fp16"), ("segmenter", "int8")]


@pytest.mark.parametrize(("role", "precision"), ENGINES)
def test_the_manifest_says_what_was_built_from_what(built: Path, role: str, precision: str) -> None:
    manifest = open_bundle(built).manifest
    name = f"{role}.{precision}.engine"
    engine, entry = dict(manifest.engines[name]), manifest.files[name]
    layers, products, seconds = engine.pop("layers"), engine.pop("products"), engine.pop("build_seconds")
    verified, parity = engine.pop("verified"), engine.pop("parity")
    assert engine == {
        "role": role,
        "precision": precision,
        "flavor": "tensorrt_rtx",
        "version": find_flavor("tensorrt_rtx").version,
        "gpu": None,
        "compute_capability": None,
        "multiprocessors": None,
        "targets": list(TARGETS),
        "onnx_file": f"{role}.{precision}.onnx",
        "onnx_sha256": hashlib.sha256((built / f"{role}.{precision}.onnx").read_bytes()).hexdigest(),
        "max_batch": 3,
        "version_compatible": False,
        "hardware_compatible": False,
    }
    assert (entry.role, entry.precision) == ("engine", precision)
    assert (entry.sha256, entry.bytes) == (
        hashlib.sha256((built / name).read_bytes()).hexdigest(),
        (built / name).stat().st_size,
    )
    assert seconds > 0
    assert layers["fp16"] > 10
    assert (verified, parity) == (False, None) or HAS_CUDA
    # Each product of the graph runs in one engine layer, so that the counts must meet.
    nodes = count_nodes(built / f"{role}.{precision}.onnx")
    assert {kind: sum(counts.values()) for kind, counts in products.items()} == {
        kind: nodes[kind] for kind in ("Conv", "MatMul") if nodes[kind]
    }


def test_int8_runs_convolutions_and_matrix_products_in_int8(built: Path) -> None:
    engines = open_bundle(built).manifest.engines
    products = engines["segmenter.int8.engine"]["products"]
    assert products["Conv"]["int8"] >= 6
    assert products["MatMul"]["int8"] >= 90
    assert engines["segmenter.int8.engine"]["layers"]["int8"] >= 90
    assert "int8" not in engines["segmenter.fp16.engine"]["layers"]
    assert set(engines["segmenter.fp32.engine"]["layers"]) <= {"fp32", "other"}


def test_the_runtime_reads_what_was_built(built: Path) -> None:
    bundle = open_bundle(built)
    for role, precision in (*ENGINES, ("segmenter", "fp32")):
        record = engine_record(built, bundle.manifest, f"{role}.{precision}.engine")
        assert (record.targets, record.max_batch) == (TARGETS, 3)
        check_header(bundle.engine_bytes(record.name, record.rebuild), record, built / record.name)


def test_engines_shrink_with_their_graphs(built: Path) -> None:
    """An engine holds its weights once, and compiled code of the same size whatever the weights."""

    def size(precision: str, kind: str) -> int:
        return (built / f"segmenter.{precision}{kind}".replace(".fp32.onnx", ".onnx")).stat().st_size

    for precision in ("fp16", "int8"):
        saved_weights = size("fp32", ".onnx") - size(precision, ".onnx")
        assert size("fp32", ".engine") - size(precision, ".engine") > 0.7 * saved_weights


def test_building_again_replaces_the_engine_of_that_name_alone(built: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(built, tmp_path / "bundle")
    done = trt(bundle, "--fp16", "--max-batch", "2")
    assert done.returncode == 0, done.stderr
    engines = open_bundle(bundle).manifest.engines
    assert engines["segmenter.fp16.engine"]["max_batch"] == 2
    assert engines["segmenter.int8.engine"]["max_batch"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_interrupted_leaves_the_bundle_as_it_was(bundle: Path, number: int) -> None:
    before = state(bundle)
    process = start_and_wait_for(bundle, "segmenter.fp16.engine: ")
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode in (1, 130, 128 + number), stderr  # no crash on the way out
    assert "Traceback" not in stderr
    assert state(bundle) == before


def test_a_build_that_is_killed_leaves_the_bundle_intact(bundle: Path) -> None:
    before = state(bundle)
    process = start_and_wait_for(bundle, "segmenter.fp16.engine: ")
    process.kill()
    process.communicate()
    left = {path.name for path in bundle.iterdir()} - before.keys()
    assert [name for name in left if not name.endswith(".partial")] == []
    assert left  # the text encoder's engine was being kept for the end
    assert {name: digest for name, digest in state(bundle).items() if name in before} == before
    done = trt(bundle)
    assert done.returncode == 0, done.stderr
    assert not list(bundle.glob(".*"))
    assert len(open_bundle(bundle).manifest.engines) == 2


def test_two_builds_at_once_do_not_meet(bundle: Path) -> None:
    process = start_and_wait_for(bundle, "segmenter.fp16.engine: ")
    try:
        assert "another command is changing this bundle" in refused(trt(bundle))
    finally:
        process.kill()
        process.communicate()


def test_progress_names_phases_and_never_falls(bundle: Path) -> None:
    told: list[tuple[str, float]] = []
    steps: list[str] = []
    build_engines(
        bundle,
        EngineOptions(targets=TARGETS, flavor="tensorrt_rtx"),
        report=steps.append,
        progress=lambda phase, share: told.append((phase, share)),
    )
    assert [step for step in steps if step.startswith("building")] == [
        "building text_encoder.fp16.engine",
        "building segmenter.fp16.engine",
    ]
    image = [(phase.partition(": ")[2], share) for phase, share in told if phase.startswith("segmenter.fp16.engine: ")]
    shares = [share for _, share in image]
    assert shares == sorted(shares)
    assert 0.5 < shares[-1] <= 1
    assert len({phase for phase, _ in image}) >= 3


def test_a_graph_that_tensorrt_cannot_read_is_one_line(bundle: Path) -> None:
    damage(bundle, "segmenter.fp16.onnx", b"\x08\x0a not a graph")
    before = state(bundle)
    assert "cannot build segmenter.fp16.onnx" in refused(trt(bundle))
    assert state(bundle) == before


def test_a_graph_that_tensorrt_cannot_compile_says_why(bundle: Path) -> None:
    before = state(bundle)
    message = refused(
        subprocess.run(
            [COMMAND, "trt", bundle, "--fp32", "--flavor", "tensorrt_rtx", "--compute-capability", "7.5"],
            capture_output=True,
            text=True,
        )
    )
    assert "cannot build" in message
    assert re.search("Turing|SM75", message)
    assert state(bundle) == before


def test_an_altered_graph_is_refused(bundle: Path) -> None:
    data = bytearray((bundle / "segmenter.fp16.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "segmenter.fp16.onnx").unlink()
    (bundle / "segmenter.fp16.onnx").write_bytes(data)
    with pytest.raises(BundleError, match="altered"):
        build_engines(bundle, EngineOptions(targets=TARGETS, flavor="tensorrt_rtx"))
    assert not list(bundle.glob("*.engine"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fp16", "--int8"], "--fp16 and --int8"),
        (["--workspace", "much"], "--workspace 'much'"),
        (["--workspace", "1k"], "--workspace"),
        (["--optimization-level", "6"], "--optimization-level 6"),
        (["--max-batch", "0"], "--max-batch 0"),
        (["--compute-capability", "ampere"], "--compute-capability 'ampere'"),
        (["--compute-capability", "sm87"], "an Orin takes TensorRT"),
        (["--flavor", "onnx"], "--flavor 'onnx'"),
        (["--version-compatible"], "--version-compatible has no meaning"),
        (["--hardware-compatible"], "--hardware-compatible has no meaning"),
        (["--timing-cache", "cache"], "--timing-cache has no meaning"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    bundle: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:

    before = state(bundle)
    flavor = [] if "--flavor" in arguments else ["--flavor", "tensorrt_rtx"]
    monkeypatch.setattr(sys, "argv", ["lavt-export", "trt", str(bundle), *flavor, *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.export_main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 1
    assert shown.startswith("error: ")
    assert said in shown
    assert shown.strip().count("\n") == 0
    assert state(bundle) == before


def test_building_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys, lavt_edge.export, lavt_edge.reference, lavt_edge.export.engines.bundle\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'tensorrt_rtx', 'polygraphy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_polygraphy_that_was_imported_for_the_other_flavour_is_replaced(bundle: Path) -> None:
    """A program that uses polygraphy already, which takes `tensorrt` then; both must work in one process."""
    code = f"""
from pathlib import Path
import numpy as np
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from lavt_edge.export.engines.bundle import build_engines
from lavt_edge.export.engines.options import EngineOptions
root = Path({str(bundle)!r})
feed = {{"input_ids": np.ones((1, 20), np.int64), "attention_mask": np.ones((1, 20), np.int64)}}
def run():
    with OnnxrtRunner(SessionFromOnnx(str(root / "text_encoder.onnx"))) as runner:
        return runner.infer(feed)["prompt"]
before = run()
build_engines(root, EngineOptions(targets=("sm86",), flavor="tensorrt_rtx"))
assert np.array_equal(before, run())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POLYGRAPHY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(open_bundle(bundle).manifest.engines) == 2


def test_graphs_that_are_missing_are_made_first(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the code of `lavt-export quantize`, for which types without calibration stand in here."""
    from lavt_edge.calibration import quantize

    asked = []

    def instead(root: Path, precision: str, *, report: Any) -> None:
        report(f"quantising to {precision}")
        asked.append(precision)
        if precision == "fp16":
            add_typed_graphs(root)

    monkeypatch.setattr(quantize, "quantize_bundle", instead)
    bundle = copy_bundle(demo_bundle, tmp_path / "bundle")
    options = EngineOptions(precision="int8", targets=TARGETS, flavor="tensorrt_rtx")
    with pytest.raises(ExportError, match=f"no graphs of precision fp16: run lavt-export quantize {bundle} --fp16"):
        build_engines(bundle, options)
    monkeypatch.setattr(
        sys, "argv", ["lavt-export", "trt", str(bundle), "--int8", "--flavor=tensorrt_rtx", "--compute-capability=sm86"]
    )
    for _ in range(2):
        with pytest.raises(SystemExit) as stopped:
            cli.export_main()
        assert stopped.value.code == 0
        assert asked == ["fp16", "int8"]
    assert sorted(open_bundle(bundle).manifest.engines) == ["segmenter.int8.engine", "text_encoder.fp16.engine"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8"])
def test_every_precision_is_built_by_its_option(precision: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["trt", str(bundle), f"--{precision}", "--flavor=tensorrt_rtx", "--compute-capability=sm86"]
    monkeypatch.setattr(sys, "argv", ["lavt-export", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.export_main()
    assert stopped.value.code == 0
    manifest = open_bundle(bundle).manifest
    text = "fp16" if precision == "int8" else precision
    assert sorted(manifest.engines) == [f"segmenter.{precision}.engine", f"text_encoder.{text}.engine"]
    record = engine_record(bundle, manifest, f"segmenter.{precision}.engine")
    assert record.rebuild == f"lavt-export trt {bundle} --{precision}"
    assert not record.verified
    assert manifest.engines[record.name]["layers"][precision] > 50


def test_two_precisions_at_once_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["lavt-export", "trt", str(bundle), "--fp32", "--bf16"])
    with pytest.raises(SystemExit) as stopped:
        cli.export_main()
    assert stopped.value.code == 1
    assert "give one of --bf16 and --fp32" in capsys.readouterr().err


def test_a_fixed_batch_is_the_engines_batch(bundle: Path) -> None:
    manifest = json.loads((bundle / "lavt.json").read_text())
    manifest["input"]["batch"] = 1
    (bundle / "lavt.json").unlink()
    (bundle / "lavt.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError, match="--batch dynamic"):
        build_engines(bundle, EngineOptions(max_batch=4, targets=TARGETS, flavor="tensorrt_rtx"))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_on_a_gpu_the_engine_is_compared_with_its_graph(bundle: Path, precision: str) -> None:
    outcome = build_engines(bundle, EngineOptions(precision=precision))
    for summary in outcome.engines:
        engine = outcome.manifest.engines[summary.name]
        if summary.unverified is not None:  # TensorRT for RTX, of another GPU than this
            assert "it is not for the" in summary.unverified
            continue
        assert engine["verified"] is True
        assert engine["parity"]["relative_error"] < 0.1
        assert engine["layers"]
    cache = outcome.plan.timing_cache
    if cache is not None:  # the next build reads it and keeps what it holds
        timed = cache.stat().st_size
        assert timed > 0
        build_engines(bundle, EngineOptions(precision=precision))
        assert cache.stat().st_size >= timed
