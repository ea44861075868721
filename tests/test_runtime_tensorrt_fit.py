"""Whether an engine fits, from its record: TensorRT's release, the device, the order, and records that were altered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lavt_edge.errors import BundleError
from lavt_edge.runtime.manifest import FileEntry
from lavt_edge.runtime.tensorrt.record import (
    CudaDevice,
    EngineRecord,
    check_header,
    device_misfit,
    engine_record,
    flavor_misfit,
    power_mode_misfit,
    preferred,
    text_engine_for,
)
from lavt_edge.tests.engine_records import ORIN, a_record
from lavt_edge.tests.runtime_bundle import manifest_for
from lavt_edge.tests.runtime_simulated_cuda import plan


@pytest.mark.parametrize(
    ("built", "compatible", "running", "fits"),
    [
        ("10.3.0", False, "10.3.0", True),
        ("10.3.0", False, "10.3.0.30", True),
        ("10.3.0", False, "10.3.1", False),
        ("10.3.0", False, "10.13.0", False),
        ("10.3.0", True, "10.13.0", True),
        ("10.13.0", True, "10.3.0", False),
        ("10.3.0", True, "11.0.0", True),
        ("11.1.0", True, "12.0.0", False),
        ("10.3.0", True, "10.3.0", True),
    ],
)
def test_versions(built: str, compatible: bool, running: str, fits: bool) -> None:
    record = a_record(version=built, version_compatible=compatible)
    misfit = flavor_misfit(record, "tensorrt", running)
    assert (misfit is None) == fits
    if misfit:
        assert built in misfit
        assert running in misfit
    assert flavor_misfit(record, "tensorrt_rtx", built) is not None
    assert (flavor_misfit(replace(record, flavor="tensorrt_rtx"), "tensorrt_rtx", running) is None) == (
        fits and running.startswith(built)
    )


@pytest.mark.parametrize(
    ("built", "compatible", "running", "fits"),
    [
        ("10.13.3.9.post1", False, "10.13.3.9", True),
        ("10.13.3.9", False, "10.13.3.9.post1", True),
        ("10.13.3.9.post1", False, "10.13.3.8.post1", False),
        ("10.7.0.post1", True, "10.14.1.48.post1", True),
        ("11.0.0b1", False, "11.0.0", True),
    ],
)
def test_post_releases(built: str, compatible: bool, running: str, fits: bool) -> None:
    """NVIDIA numbers some releases so: 10.13.3.9.post1 is in the package index."""
    assert (flavor_misfit(a_record(version=built, version_compatible=compatible), "tensorrt", running) is None) == fits


@pytest.mark.parametrize(
    ("changes", "device", "fits"),
    [
        ({}, ORIN, True),
        ({"gpu": None}, ORIN, True),
        ({"gpu": "AGX"}, ORIN, False),
        ({"multiprocessors": 16}, replace(ORIN, multiprocessors=8), True),
        ({"compute_capability": "8.6"}, ORIN, False),
        ({"compute_capability": None}, ORIN, False),
        ({"compute_capability": "8.6", "gpu": "A", "hardware_compatible": True}, ORIN, True),
        ({"hardware_compatible": True}, CudaDevice("Xavier", "7.2", True), False),
        ({"hardware_compatible": True}, CudaDevice("B", "12.0", False), True),
        ({"flavor": "tensorrt_rtx", "targets": ("sm86", "sm87")}, ORIN, True),
        ({"flavor": "tensorrt_rtx", "targets": ("sm86",)}, ORIN, False),
        ({"flavor": "tensorrt_rtx", "targets": ("sm120",)}, CudaDevice("B", "12.0", False), True),
        ({"flavor": "tensorrt_rtx", "compute_capability": None, "gpu": None}, ORIN, True),
    ],
)
def test_devices(changes: dict[str, Any], device: CudaDevice, fits: bool) -> None:
    misfit = device_misfit(a_record(**changes), device)
    assert (misfit is None) == fits
    assert misfit is None or f"{device.name} ({device.compute_capability})" in misfit


@pytest.mark.parametrize(
    ("changes", "here", "warned"),
    [
        ({"multiprocessors": 16}, None, False),
        ({"multiprocessors": 16}, 16, False),
        ({"multiprocessors": 16}, 8, True),
        ({"multiprocessors": 8}, 16, True),
        ({"multiprocessors": None}, 8, False),
        ({"multiprocessors": 16, "hardware_compatible": True}, 8, False),
        ({"multiprocessors": 16, "flavor": "tensorrt_rtx", "targets": ("sm87",)}, 8, False),
    ],
)
def test_another_power_mode_is_told(changes: dict[str, Any], here: int | None, warned: bool) -> None:
    """A Jetson's power modes turn multiprocessors off; the engine still runs."""
    message = power_mode_misfit(a_record(**changes), replace(ORIN, multiprocessors=here))
    assert (message is not None) == warned
    assert message is None or f"{changes['multiprocessors']} multiprocessors, {here} are on now" in message


def test_the_order_of_engines() -> None:
    names = [(precision, verified) for verified in (False, True) for precision in ("fp32", "int8", "fp16", "fp8")]
    records = [a_record(precision=precision, verified=verified) for precision, verified in names]
    assert [(one.precision, one.verified) for one in preferred(records)] == [
        (precision, verified) for verified in (True, False) for precision in ("fp16", "int8", "fp32", "fp8")
    ]


def test_the_text_engine_beside_an_image_engine() -> None:
    texts = [a_record(role="text_encoder", precision=precision) for precision in ("fp32", "fp16")]
    other = a_record(role="text_encoder", precision="int8", flavor="tensorrt_rtx")
    for image, wanted in (("int8", "fp16"), ("fp16", "fp16"), ("fp32", "fp32")):
        found = text_engine_for(a_record(precision=image), [other, *texts, a_record()])
        assert found is not None
        assert found.precision == wanted
    assert text_engine_for(a_record(), [other, a_record()]) is None


def test_a_record_is_read_as_it_was_written() -> None:
    record = a_record(targets=("sm86", "sm89"), multiprocessors=16, onnx_file="segmenter.onnx", onnx_sha256="a" * 64)
    written = json.loads(json.dumps(record.to_dict()))
    assert EngineRecord.read(record.name, record.rebuild, written) == record
    assert not {"name", "rebuild"} & written.keys()
    for key in ("gpu", "compute_capability", "multiprocessors", "onnx_file", "onnx_sha256"):
        assert getattr(EngineRecord.read("x", "y", {**written, key: None}), key) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("role", "tokenizer"),
        ("flavor", "tensorrt\n"),
        ("version", "10"),
        ("version", "10.3.0 or later"),
        ("compute_capability", "87"),
        ("targets", None),
        ("targets", "sm86"),
        ("targets", [86]),
        ("targets", ["sm86", "sm86a"]),
        ("max_batch", 0),
        ("max_batch", True),
        ("max_batch", 1.0),
        ("multiprocessors", "16"),
        ("verified", 1),
        ("verified", None),
        ("onnx_file", ["segmenter.onnx"]),
    ],
)
def test_a_malformed_field_of_a_record_is_named(key: str, value: object) -> None:
    with pytest.raises(BundleError, match=rf"engines\.x\.{key}(\[\d\])?: expected .*, found .*: build it again"):
        EngineRecord.read("x", "build it again", {**a_record().to_dict(), key: value})


FIELDS = ("role", "precision", "flavor", "version", "gpu", "compute_capability", "targets", "onnx_file", "onnx_sha256")
FIELDS += ("max_batch", "version_compatible", "hardware_compatible", "verified")
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.lists(st.text(max_size=5))


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(FIELDS), value=VALUES, remove=st.booleans())
def test_any_altered_record_is_read_or_refused(key: str, value: Any, remove: bool) -> None:
    sha = "a" * 64
    manifest = manifest_for(
        {
            "segmenter.onnx": FileEntry("segmenter", sha, 1, "fp32"),
            "segmenter.fp16.engine": FileEntry("engine", hashlib.sha256().hexdigest(), 0, "fp16"),
        }
    )
    values = (
        "segmenter",
        "fp16",
        "tensorrt",
        "10.3.0",
        "Orin",
        "8.7",
        [],
        "segmenter.onnx",
        sha,
        1,
        False,
        False,
        True,
    )
    record: dict[str, Any] = dict(zip(FIELDS, values, strict=True))
    assert engine_record(
        Path("b"), replace(manifest, engines={"segmenter.fp16.engine": record}), "segmenter.fp16.engine"
    )
    if remove:
        del record[key]
    else:
        record[key] = value
    problem = ""
    try:
        read = engine_record(
            Path("b"), replace(manifest, engines={"segmenter.fp16.engine": record}), "segmenter.fp16.engine"
        )
    except BundleError as error:
        problem = str(error)
    if problem:
        assert len(problem.splitlines()) == 1
        assert problem.endswith("lavt-export trt b --fp16")
        return
    assert read.max_batch >= 1
    assert read.role in ("segmenter", "text_encoder")
    flavor_misfit(read, "tensorrt", "10.3.0")
    device_misfit(read, ORIN)
    check_header(plan("segmenter", 1, version="10.3.0"), replace(read, version="10.3.0", flavor="tensorrt"), Path("x"))
