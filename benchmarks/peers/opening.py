"""Opens a side: the one place that knows which module is for which kind."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ...errors import LavtError
from .sides import Side, SideSpec

# Kind to the module and class that open it, and the extra that brings what it needs.
ADAPTERS: Mapping[str, tuple[str, str, str]] = {
    "bundle": ("onnx", "BundleSide", "cpu"),
    "onnx": ("onnx", "OnnxSide", "cpu"),
    "torch": ("pytorch", "TorchSide", "export"),
    "openvino": ("openvino", "OpenVINOSide", "bench"),
    "tensorrt": ("tensorrt", "TensorRTSide", "trt"),
}


def open_side(spec: SideSpec) -> Side:
    """The side of a specification, loaded. Raises LavtError if it, or what it needs, is missing."""
    module, name, extra = ADAPTERS[spec.kind]
    try:
        adapter = getattr(importlib.import_module(f".{module}", __package__), name)
        side: Side = adapter(spec)
    except ModuleNotFoundError as error:
        remedy = f"pip install 'lavt-edge[{extra}]'"
        raise LavtError(f"{spec.name}: {error.name} is not installed: {remedy}") from error
    return side
