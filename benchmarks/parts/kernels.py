"""What a GPU runs for a graph: the kernels that TensorRT for RTX compiles, and the bytes that they read and write.

It compiles without a GPU, for the compute capability of the smallest Ampere GPU; other versions and GPUs fuse other
nodes. Bytes are those of every tensor that a kernel reads or writes, as if there were no caches.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from ..._base.exits import needs
from ...export.engines.build import build_engine
from ...export.engines.layers import EngineLayer
from ...export.engines.options import BuildPlan, EngineOptions
from ...export.macs import count_macs
from ...export.rewrites.names import OTHER, part_of, product_type
from ...runtime.tensorrt.flavor import find_flavor
from ..timing.result import DeviceFloor, Kernels, PartKernels, PureMoves
from .costs import cost_rows
from .devices import DEVICES, estimate

TARGET = "sm86"
# Kernels are named after what they fuse; these operations move numbers and compute none.
_MOVES = re.compile(r"__my[a-z]*_(?:Tran|Resh|Move|Conc|Slic|Cast|Gath|Pad)+_")
_LEAST = 5_000_000


def compile_layers(graph: Path, batch: int = 1) -> tuple[list[EngineLayer], str]:
    """The kernels of a typed image graph for `batch` images, and what compiled them.

    Raises LavtError if TensorRT for RTX is not installed, ExportError if it cannot build the graph.
    """
    with needs("rtx"):
        import tensorrt_rtx  # noqa: F401
    flavor = find_flavor("tensorrt_rtx")
    options = EngineOptions(targets=(TARGET,))
    plan = BuildPlan(options, flavor.name, flavor.version, None, (TARGET,), batch, None)
    with TemporaryDirectory() as folder:
        static = Path(folder) / graph.name
        model = ir.load(graph)
        for value in model.graph.inputs:
            assert value.shape is not None
            value.shape = ir.Shape([batch, *value.shape[1:]])
        ir.save(model, static)
        layers = build_engine(static, plan, flavor).layers
    return [layer for layer in layers if layer.is_kernel], plan.describe()


def measure_kernels(graph: Path, precision: str, batch: int = 1) -> Kernels:
    """The kernels of an image graph by part, those that only move numbers, and both lower bounds on each device."""
    layers, compiler = compile_layers(graph, batch)
    macs = count_macs(graph)
    moved = sum((layer.moved or 0) + (layer.constants or 0) for layer in layers)
    only_moving = [layer for layer in layers if _MOVES.match(layer.name) and (layer.moved or 0) > _LEAST]
    compute = {device.key: estimate(cost_rows(graph, batch), device, precision).compute_seconds for device in DEVICES}
    return Kernels(
        compiler=compiler,
        parts=tuple(_rows(layers, macs, batch)),
        moves=tuple(
            PureMoves(part, len(kernels), sum(layer.moved or 0 for layer in kernels))
            for part, kernels in _by_part(only_moving).items()
        ),
        fused_attentions=sum("_mha_" in layer.name for layer in layers if _part(layer).endswith(".attention")),
        floors=tuple(
            DeviceFloor(device.name, moved / device.bandwidth if device.bandwidth else None, compute[device.key])
            for device in DEVICES
        ),
    )


def _rows(layers: Iterable[EngineLayer], macs: dict[str, int], batch: int) -> Iterable[PartKernels]:
    """In the order of the first kernel of each part."""
    for part, kernels in _by_part(layers).items():
        products = {name for layer in kernels for name in layer.onnx if product_type(name)}
        yield PartKernels(
            part=part,
            kernels=len(kernels),
            moved_bytes=sum(layer.moved or 0 for layer in kernels),
            constant_bytes=sum(layer.constants or 0 for layer in kernels),
            macs=batch * sum(macs.get(name, 0) for name in products),
        )


def _by_part(layers: Iterable[EngineLayer]) -> dict[str, list[EngineLayer]]:
    parts: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        parts.setdefault(_part(layer), []).append(layer)
    return parts


def _part(layer: EngineLayer) -> str:
    """Of the first node that a kernel computes and whose name says; a kernel with no node is the compiler's own."""
    return next((part for name in layer.onnx if (part := part_of(name)) != OTHER), OTHER)
