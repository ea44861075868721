"""The code against the real bindings of TensorRT and CUDA, whose libraries need a GPU: each name that it uses is there.

The bindings of TensorRT come from the package index and import over stub libraries that `cc` builds; those of CUDA need
no library to be imported. The names are collected from the source.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tests" / "bindings"
# Of JetPack 6, of the last 10.x with what 11 removed, and of the newest; the number is that of the libraries.
TENSORRT = {"10.3.0": 10, "10.13.3.9": 10, "11.4.0.106": 11}
LOG_SLOT = {10: 0, 11: 4}  # of ILogger::log in the table of virtual functions
CUDA = ("12.8.0", "12.9.*", "13.*")
SOURCES = sorted(
    [*ROOT.glob("runtime/tensorrt/*.py"), *ROOT.glob("export/engines/*.py"), *ROOT.glob("benchmarks/p*/*.py")]
)


def install(target: Path, *packages: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{', '.join(packages)} cannot be had here: {done.stderr.strip().splitlines()[-1]}")


@pytest.fixture(scope="module")
def tensorrt_home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `tensorrt` of a version, over stub libraries in `lib`."""
    version, home = request.param, tmp_path_factory.mktemp("tensorrt")
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the stub libraries")
    install(home, f"tensorrt-cu12-bindings=={version}")
    (home / "lib").mkdir()
    for name in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
        library = f"lib{name}.so.{TENSORRT[version]}"
        options = (
            f"-DLOG={LOG_SLOT[TENSORRT[version]]}",
            "-shared",
            "-fPIC",
            f"-Wl,-soname,{library}",
            "-o",
            str(home / "lib" / library),
        )
        subprocess.run(["cc", *options, str(HERE / "tensorrt_stubs.c")], check=True)
    (home / "tensorrt.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")
    return home


def run(home: Path, *command: str | Path) -> str:
    """What a Python process prints that sees the packages in `home` first."""
    environment = {**os.environ, "PYTHONPATH": str(home), "LD_LIBRARY_PATH": str(home / "lib")}
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def look_up(home: Path, module: str = "tensorrt") -> dict[str, list[str]]:
    return dict(json.loads(run(home, HERE / "lookup.py", module, *SOURCES)))


@pytest.mark.parametrize("tensorrt_home", TENSORRT, indirect=True)
def test_every_name_of_tensorrt_is_there(tensorrt_home: Path) -> None:
    names = look_up(tensorrt_home)
    print(f"{len(names['found'])} names of TensorRT found, {len(names['guarded'])} not there and asked for first")
    assert names["missing"] == []
    assert {"ICudaEngine.num_io_tensors", "IExecutionContext.execute_async_v3", "Runtime"} <= set(names["found"])
    assert len(names["found"]) > 45


def test_every_name_of_tensorrt_for_rtx_is_there(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    names = look_up(tmp_path, "tensorrt_rtx")
    assert (names["missing"], names["guarded"]) == ([], [])
    assert "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE" in names["found"]


@pytest.mark.parametrize("tensorrt_home", ["11.4.0.106"], indirect=True)
@pytest.mark.parametrize("name", ["ICudaEngine.get_tensor_profile_shape", "MemoryPoolType", "ILayer.num_outputs"])
def test_a_name_that_is_gone_is_noticed(tensorrt_home: Path, name: str, tmp_path: Path) -> None:
    owner, _, attribute = name.rpartition(".")
    gone = f"del {name}" if not owner else f"delattr({owner}, {attribute!r})"
    shutil.copytree(tensorrt_home, tmp_path / "home")
    with (tmp_path / "home" / "tensorrt.py").open("a") as module:
        module.write(f"{gone}\n")
    assert look_up(tmp_path / "home")["missing"] == [name]


RUNTIME = """
from lavt_edge.errors import BackendError
from lavt_edge.runtime.tensorrt.flavor import find_flavor
from lavt_edge.runtime.tensorrt.loading import deserialise
from lavt_edge.tests.engine_records import a_record
try:
    deserialise(b"", a_record(), find_flavor("tensorrt"))
except BackendError as error:
    print(error)
"""
BUILDER = """
from pathlib import Path
from lavt_edge.errors import ExportError
from lavt_edge.export.engines.build import build_engine
from lavt_edge.export.engines.options import EngineOptions, plan_build
from lavt_edge.runtime.manifest import InputSpec
from lavt_edge.runtime.tensorrt.flavor import find_flavor
from lavt_edge.tests.engine_records import ORIN
flavor, spec = find_flavor("tensorrt"), InputSpec(24, 32, 1, 20, 8)
plan = plan_build(
    Path("bundle"), EngineOptions(), spec, flavor="tensorrt", version=flavor.version, device=ORIN, known_targets=()
)
try:
    build_engine(Path("segmenter.onnx"), plan, flavor)
except ExportError as error:
    print(error)
"""


@pytest.mark.parametrize("tensorrt_home", TENSORRT, indirect=True)
@pytest.mark.parametrize("start", [RUNTIME, BUILDER], ids=["runtime", "builder"])
def test_a_driver_that_is_too_old_is_told_in_one_line(tensorrt_home: Path, start: str) -> None:
    """The factories return null, which the bindings raise as TypeError; the logger has the reason."""
    said = run(tensorrt_home, "-c", start).splitlines()
    assert len(said) == 1
    assert "cannot start here (CUDA initialization failure with error: 35): update the GPU's driver" in said[0]


@pytest.mark.parametrize("version", CUDA)
def test_every_call_of_cuda_has_the_arguments_that_the_bindings_take(version: str, tmp_path: Path) -> None:
    install(tmp_path, f"cuda-bindings=={version}", "cuda-pathfinder")
    files = [path for path in SOURCES if path.parent.name == "tensorrt"]
    names = json.loads(run(tmp_path, HERE / "cuda_lookup.py", "cuda.bindings.runtime", *files))
    print(f"{len(names['found'])} names of cuda-bindings {version} found")
    assert (names["missing"], names["misfits"]) == ([], [])
    assert {"cudaMemcpyDeviceToHost", "cudaGraphInstantiate", "cudaHostAllocMapped"} <= set(names["found"])
    assert len(names["found"]) > 25


def test_a_call_of_cuda_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text('cuda.call("cudaMalloc")\ncuda.call("cudaMallocNothing", 1)\n')
    install(tmp_path / "home", "cuda-bindings==12.9.*", "cuda-pathfinder")
    names = json.loads(run(tmp_path / "home", HERE / "cuda_lookup.py", "cuda.bindings.runtime", tmp_path / "source.py"))
    assert names["found"] == ["cudaMalloc"]
    assert names["missing"] == ["cudaMallocNothing"]
    assert len(names["misfits"]) == 1
    assert "cudaMalloc with 0 arguments" in names["misfits"][0]
