"""Engine files that are damaged, foreign or for another machine: refused before anything deserialises them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import BackendError, BundleError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.runtime.tensorrt.flavor import Flavor, find_flavor
from lavt_edge.runtime.tensorrt.loading import ask_rtx
from lavt_edge.runtime.tensorrt.record import check_header
from lavt_edge.tests.engine_records import a_record
from lavt_edge.tests.runtime_bundle import image_graph, text_graph, write_bundle
from lavt_edge.tests.runtime_engines import add_engine, build
from lavt_edge.tests.runtime_simulated_cuda import plan

TARGETS = ("sm86", "sm89")


@pytest.fixture(scope="module")
def rtx() -> Flavor:
    try:
        return find_flavor("tensorrt_rtx")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def plans(rtx: Flavor) -> dict[str, bytes]:
    """Real engines: of both graphs, for one target and for two."""
    return {
        "segmenter": build(image_graph(1), rtx, TARGETS),
        "text_encoder": build(text_graph(1), rtx, TARGETS),
        "one target": build(image_graph(1), rtx, ("sm80",)),
        "free batch": build(image_graph(None), rtx, ("sm86",)),
    }


@pytest.fixture(scope="module")
def pristine(plans: dict[str, bytes], rtx: Flavor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = write_bundle(tmp_path_factory.mktemp("engines") / "bundle")
    for role in ("segmenter", "text_encoder"):
        add_rtx(bundle, plans[role], rtx, role)
    return bundle


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "bundle"))


def add_rtx(bundle: Path, data: bytes, rtx: Flavor, role: str = "segmenter", **fields: Any) -> Path:
    record = {
        "flavor": "tensorrt_rtx",
        "version": rtx.version,
        "gpu": None,
        "compute_capability": None,
        "targets": list(TARGETS),
        "verified": False,
    }
    return add_engine(bundle, f"{role}.fp16.engine", data, **{**record, **fields})


def test_the_header_of_real_engines(plans: dict[str, bytes], rtx: Flavor) -> None:
    record = a_record(flavor="tensorrt_rtx", version=rtx.version)
    for data in plans.values():
        assert data[:4] == b"vtrt"
        assert int.from_bytes(data[16:24], "little") == len(data)
        assert list(data[24:28]) == [int(part) & 0xFF for part in rtx.version.split(".")][:4]
        check_header(data, record, Path("x"))
    size = getattr(rtx.module.Runtime(rtx.module.Logger(rtx.module.Logger.ERROR)), "engine_header_size", 64)
    assert size == 64


def test_what_is_no_engine_of_the_recorded_kind(plans: dict[str, bytes], rtx: Flavor) -> None:
    path = Path("segmenter.fp16.engine")
    classic, modern = a_record(), a_record(flavor="tensorrt_rtx", version=rtx.version)
    check_header(plan("segmenter", 1), classic, path)
    real = plans["segmenter"]
    for data, record, problem in (
        (b"", classic, "is not a TensorRT engine"),
        (b"ftrt", classic, "is not a TensorRT engine"),
        (b"\x10\0\0\0" + b'{"task": "x"}' + bytes(100), classic, "is not a TensorRT engine"),
        (real, classic, "is an engine of TensorRT for RTX"),
        (plan("segmenter", 1), modern, r"is an engine of TensorRT, lavt\.json says TensorRT for RTX"),
        (plan("segmenter", 1, version="10.4.0"), classic, r"was built with 10\.4\.0\.0, lavt\.json says 10\.3\.0"),
        (real[:-1], modern, "its header says otherwise"),
        (real + b"\0", modern, "its header says otherwise"),
    ):
        with pytest.raises(BundleError, match=problem) as caught:
            check_header(data, record, path)
        assert str(caught.value).endswith(": lavt-export trt bundle --fp16")


def test_a_later_major_may_have_another_magic_but_none_of_another_flavour() -> None:
    later = a_record(version="11.2.0")
    check_header(b"what" + bytes(100), later, Path("x"))
    with pytest.raises(BundleError, match="is an engine of TensorRT for RTX"):
        check_header(b"vtrt" + bytes(100), later, Path("x"))


def test_a_real_engine_gets_as_far_as_the_device(bundle: Path) -> None:
    if cuda_device_count():
        pytest.skip("a CUDA device is here")
    with pytest.raises(BackendError, match="no usable CUDA device"):
        Segmenter.load(bundle / "segmenter.fp16.engine")


def test_rtx_itself_is_asked_before_it_deserialises(plans: dict[str, bytes], rtx: Flavor) -> None:
    """Its judgement comes from the header alone, and without a GPU it finds every engine invalid."""
    record = a_record(flavor="tensorrt_rtx", version=rtx.version)
    runtime = rtx.module.Runtime(rtx.module.Logger(rtx.module.Logger.INTERNAL_ERROR))
    for data, problem in (
        (plans["segmenter"][:20], "MALFORMED_ENGINE"),
        (b"what" + plans["segmenter"][4:], "MALFORMED_ENGINE"),
        (plans["segmenter"], None if cuda_device_count() else "no reason given"),
    ):
        if problem is not None:
            with pytest.raises(BackendError, match=rf"finds it invalid here \({problem}\): lavt-export trt"):
                ask_rtx(data, record, rtx, runtime)


def test_every_tensorrt_call_exists_in_the_bindings(rtx: Flavor) -> None:
    names = {
        "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed", "get_engine_validity"),
        "ICudaEngine": (
            *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape"),
            *("get_tensor_profile_shape", "create_execution_context", "create_runtime_config"),
        ),
        "IExecutionContext": ("set_input_shape", "set_tensor_address", "execute_async_v3"),
        "IRuntimeConfig": ("cuda_graph_strategy",),
        "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE",),
        "EngineValidity": ("VALID", "INVALID"),
        "EngineInvalidityDiagnostics": ("VERSION_MISMATCH",),
        "ILogger": ("log",),
    }
    for kind, members in names.items():
        assert [name for name in members if not hasattr(getattr(rtx.module, kind), name)] == []
    assert {"INTERNAL_ERROR", "ERROR", "WARNING"} <= set(rtx.module.ILogger.Severity.__members__)
    assert {"FLOAT", "HALF", "INT64", "UINT8"} <= set(rtx.module.DataType.__members__)
    assert set(rtx.module.TensorIOMode.__members__) >= {"INPUT", "OUTPUT"}


def test_an_engine_of_another_release_names_both_and_the_command(bundle: Path, rtx: Flavor) -> None:
    data = bytearray((bundle / "segmenter.fp16.engine").read_bytes())
    data[24:28] = bytes([1, 6, 0, 27])
    path = add_rtx(bundle, bytes(data), rtx, version="1.6.0.27")
    with pytest.raises(BackendError) as caught:
        Segmenter.load(path)
    assert str(caught.value) == (
        "segmenter.fp16.engine was built with TensorRT for RTX 1.6.0.27, "
        f"this machine has TensorRT for RTX {rtx.version}: lavt-export trt {bundle} --fp16"
    )


FUZZ = """
import json, hashlib, sys, warnings
from pathlib import Path
from lavt_edge.errors import LavtError
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.tensorrt import backend

def reached(*arguments, **options):
    raise SystemExit(f"{name} came as far as the device")

backend.Cuda = backend.TensorRTBackend = reached
bundle = Path(sys.argv[1])
engine, text = bundle / "segmenter.fp16.engine", (bundle / "lavt.json").read_text()
for case in sorted(Path(sys.argv[2]).iterdir()):
    name, listed = case.name, case.name.startswith("listed")
    data = case.read_bytes()
    engine.write_bytes(data)
    manifest = json.loads(text)
    if listed:  # the manifest says that this is the file
        manifest["files"][engine.name] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "lavt.json").write_text(json.dumps(manifest))
    try:
        Segmenter.load(engine)
    except LavtError as error:
        print(json.dumps([name, type(error).__name__, str(error)]))
    else:
        sys.exit(f"{name} was accepted")
"""


def mutations(data: bytes) -> dict[str, bytes]:
    """Files by name; those that begin with "listed" shall be met by a manifest that takes them for genuine."""
    rng = np.random.default_rng(0)
    made: dict[str, bytes] = {}

    def changed(*changes: tuple[int, int]) -> bytes:
        copy = bytearray(data)
        for place, value in changes:
            copy[place] = value
        return bytes(copy)

    for number, place in enumerate(rng.integers(0, len(data), 100)):
        made[f"bit {number}"] = changed((place, data[place] ^ (1 << int(rng.integers(8)))))
    for number in range(20):
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 4096))
        made[f"hole {number}"] = data[:start] + bytes(len(data[start : start + length])) + data[start + length :]
        made[f"cut {number}"] = data[:start]
        made[f"gap {number}"] = data[:start] + data[start + length :]
        made[f"listed cut {number}"] = data[:start]
        made[f"listed gap {number}"] = data[:start] + data[start + length :]
    for place in (0, 1, 2, 3, *range(16, 28)):
        for bit in (0, 3, 7):
            made[f"listed header {place} {bit}"] = changed((place, data[place] ^ (1 << bit)))
    foreign = {
        "empty": b"",
        "magic alone": b"vtrt",
        "header alone": data[:64],
        "longer": data + bytes(8),
        "twice": data + data,
        "zeros": bytes(len(data)),
        "noise": rng.bytes(len(data)),
        "onnx": image_graph(1).SerializeToString(),
        "elf": Path(sys.executable).read_bytes()[:100_000],
        "json": json.dumps({"task": "segment"}).encode(),
        "wrapped": len(data).to_bytes(4, "little") + data,
        "tensorrt": b"ftrt" + data[4:],
        "ptrt": b"ptrt" + data[4:],
    }
    for name, content in foreign.items():
        made[f"foreign {name}"] = made[f"listed {name}"] = content
    return {name: content for name, content in made.items() if content != data}


def test_no_damaged_or_foreign_engine_is_accepted_or_crashes(bundle: Path, tmp_path: Path) -> None:
    cases = mutations((bundle / "segmenter.fp16.engine").read_bytes())
    assert len(cases) > 250
    folder = tmp_path / "cases"
    folder.mkdir()
    for name, content in cases.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", FUZZ, str(bundle), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    refusals = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, _, _ in refusals} == set(cases)
    for name, kind, message in refusals:
        assert kind == "BundleError", (name, message)
        assert message.endswith(f": lavt-export trt {bundle} --fp16")
        assert len(message.splitlines()) == 1
    by_header = [message for name, _, message in refusals if name.startswith("listed")]
    assert len(by_header) > 80
    assert not any("SHA-256" in message for message in by_header)


def test_an_engine_file_must_be_within_the_bundle(bundle: Path, tmp_path: Path) -> None:
    engine = bundle / "segmenter.fp16.engine"
    shutil.move(engine, tmp_path / "outside.engine")
    with pytest.raises(BundleError, match=r"no such bundle"):
        Segmenter.load(engine)
    engine.symlink_to(tmp_path / "outside.engine")
    with pytest.raises(BundleError, match=r"is a link that leaves the bundle: lavt-export trt"):
        Segmenter.load(engine)
