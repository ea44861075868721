"""A graph on OpenVINO's CPU plugin as a side: the bundle's FP32 graph or the plain export, in float32
or bfloat16, or the bundle's INT8 graph for CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import BackendError, reason_of
from ...runtime.bundle import open_bundle
from ...runtime.openvino import tensor_spec
from ...runtime.signature import TensorSpec
from .sides import SideInfo, SideSpec, feeds_for, image_size

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8-cpu": "f32"}


class OpenVINOSide:
    """Compiled for latency. OpenVINO would choose bfloat16 by itself where the CPU has it: the precision is forced."""

    def __init__(self, spec: SideSpec) -> None:
        import openvino  # type: ignore[import-untyped]

        core = openvino.Core()
        properties = {"INFERENCE_PRECISION_HINT": _HINTS[spec.precision], "PERFORMANCE_HINT": "LATENCY"}
        if spec.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = str(spec.threads)
        if spec.precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError(f"{spec.name}: OpenVINO has no bfloat16 on this CPU; leave it out")
        graph = "int8-cpu" if spec.precision == "int8-cpu" else "fp32"
        path = spec.plain or open_bundle(spec.engine).file("segmenter", graph)
        self._request, inputs = _compile(core, path, spec, properties)
        self._feeds = feeds_for(inputs, spec.batch)
        runtime = f"OpenVINO {openvino.__version__.split('-')[0]}"
        self.about = SideInfo(spec.precision, image_size(self._feeds), spec.batch, "cpu", runtime)

    def run(self) -> object:
        return self._request.infer(self._feeds)


def _compile(core: Any, path: Path, spec: SideSpec, properties: dict[str, str]) -> tuple[Any, list[TensorSpec]]:
    """A request, and its inputs; a dynamic batch becomes `spec.batch`."""
    try:
        model = core.read_model(str(path))
        shapes = {}
        for port in model.inputs:
            shape = port.get_partial_shape()
            if shape[0].is_dynamic:
                shape[0] = spec.batch
            shapes[port.get_any_name()] = shape
        model.reshape(shapes)
        compiled = core.compile_model(model, "CPU", properties)
    except RuntimeError as error:
        raise BackendError(f"{spec.name}: OpenVINO refuses {path} ({reason_of(error)})") from error
    return compiled.create_infer_request(), [tensor_spec(port) for port in compiled.inputs]
