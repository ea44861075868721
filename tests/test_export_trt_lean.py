"""`lavt-export trt` as on a device: a copied bundle, and no torch, onnx or onnxruntime."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.tests.test_setup import make_python, run
from lavt_edge.tests.typed_bundle import add_typed_graphs, copy_bundle

pytest.importorskip("tensorrt_rtx")

PACKAGES = ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs")
ABSENT = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "timm", "modelopt", "cuda")
CODE = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"


@pytest.fixture(scope="module")
def device_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, its own dependencies, polygraphy and TensorRT for RTX alone."""
    folder = tmp_path_factory.mktemp("device")
    python = make_python(folder, wheel, "polygraphy>=0.53.4")
    (site,) = folder.glob("lib/python*/site-packages")
    for name in PACKAGES:  # as large as they are, they are linked instead of installed
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        (site / name).symlink_to(spec.submodule_search_locations[0])
    return python


def test_engines_are_built_from_a_copied_bundle(device_python: Path, demo_bundle: Path, tmp_path: Path) -> None:
    assert run(device_python, "-c", CODE, cwd=tmp_path).stdout.strip() == "[]"
    typed = copy_bundle(demo_bundle, tmp_path / "typed")
    add_typed_graphs(typed)
    shutil.copytree(typed, tmp_path / "copied")
    command = [device_python.parent / "lavt-export", "trt", "copied", "--compute-capability", "sm86,sm89"]
    for option in ("--fp16", "--int8"):
        done = run(*command, option, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
    engines = open_bundle(tmp_path / "copied").manifest.engines
    assert sorted(engines) == ["segmenter.fp16.engine", "segmenter.int8.engine", "text_encoder.fp16.engine"]
    assert engines["segmenter.int8.engine"]["products"]["MatMul"]["int8"] > 0


def test_a_bundle_without_typed_graphs_says_where_to_make_them(
    device_python: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = copy_bundle(demo_bundle, tmp_path / "bundle")
    before = sorted(path.name for path in bundle.iterdir())
    done = run(device_python.parent / "lavt-export", "trt", "bundle", "--int8", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "run lavt-export quantize bundle --" in done.stderr
    assert "where lavt-edge[export] is installed" in done.stderr
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_without_polygraphy_or_tensorrt_it_says_what_to_install(
    device_python: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = copy_bundle(demo_bundle, tmp_path / "bundle")
    add_typed_graphs(bundle)
    for name, said in (("polygraphy", "lavt-edge[rtx]"), ("tensorrt_rtx", "no TensorRT can be imported")):
        code = (
            f"import sys; sys.modules[{name!r}] = None\n"
            "sys.argv = ['lavt-export', 'trt', 'bundle', '--compute-capability', 'sm86']\n"
            "from lavt_edge import cli; cli.export_main()"
        )
        done = run(device_python, "-c", code, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert said in done.stderr
