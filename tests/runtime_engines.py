"""Engines for the runtime's tests: built by the TensorRT that is installed, and entered in a bundle's manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavt_edge.runtime.manifest import FRAME_ROLES
from lavt_edge.runtime.tensorrt.flavor import Flavor

if TYPE_CHECKING:
    import onnx


def build(graph: onnx.ModelProto, flavor: Flavor, targets: tuple[str, ...] = (), max_batch: int = 4) -> bytes:
    """The plan of a graph, strongly typed; `targets` such as sm86 need TensorRT for RTX, and no GPU."""
    trt: Any = flavor.module
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(graph.SerializeToString()), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    if any(size < 0 for size in tuple(network.get_input(0).shape)):
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            rest = tuple(tensor.shape)[1:]
            profile.set_shape(tensor.name, (1, *rest), (1, *rest), (max_batch, *rest))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


def add_engine(bundle: Path, name: str, data: bytes, **fields: Any) -> Path:
    """Put an engine into a bundle as the builder does; `fields` change its record. Returns its path."""
    role, precision, *_ = name.split(".")
    graph = f"{role}.onnx"
    if role in FRAME_ROLES:
        graph, precision = name.replace(".engine", ".onnx"), "fp32"
    manifest = json.loads((bundle / "lavt.json").read_text())
    digest = hashlib.sha256(data).hexdigest()
    entry = {"role": "engine", "sha256": digest, "bytes": len(data)}
    if role not in FRAME_ROLES:
        entry["precision"] = precision
    record = {
        "role": role,
        "precision": precision,
        "flavor": "tensorrt",
        "version": "10.3.0",
        "gpu": "Simulated GPU",
        "compute_capability": "8.7",
        "targets": [],
        "onnx_file": graph,
        "onnx_sha256": manifest["files"][graph]["sha256"],
        "max_batch": 1,
        "version_compatible": False,
        "hardware_compatible": False,
        "layers": {},
        "build_seconds": 1.0,
        "verified": True,
        "parity": None,
        **fields,
    }
    manifest["files"][name] = entry
    manifest.setdefault("engines", {})[name] = record
    (bundle / "lavt.json").write_text(json.dumps(manifest))
    (bundle / name).write_bytes(data)
    return bundle / name
