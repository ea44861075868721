"""Where the time of a TensorRT engine goes, by part of the model, from TensorRT's own layer profiler. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, InputError
from ...export.engines.layers import EngineLayer, layers_from_inspector
from ...export.macs import count_macs
from ...export.rewrites.names import OTHER, part_of
from ...runtime.bundle import Bundle
from ...runtime.tensorrt.backend import TensorRTBackend, load_engine
from ...runtime.tensorrt.flavor import find_flavor
from ...runtime.tensorrt.record import engine_record
from ..timing.result import TimedPart
from .costs import cost_rows, node_parts, timed_parts


def engine_part_times(
    bundle: Bundle, name: str, feeds: Mapping[str, npt.NDArray[Any]], rounds: int = 20
) -> tuple[TimedPart, ...]:
    """Seconds, MACs and bytes of each part of the engine `name` of a bundle, as `profile.part_times` has them.

    A layer that TensorRT fused from nodes of several parts is shared among them by their MACs, evenly if it has
    none. The engine runs layer by layer for this, without CUDA graphs: the whole takes longer than otherwise.

    Raises BundleError and BackendError as `load_engine` does, InputError for fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"rounds {rounds}: give 1 or more")
    record = engine_record(bundle.root, bundle.manifest, name)
    graph = bundle.file(record.role, record.precision)
    backend = load_engine(bundle, record, cuda_graphs=False)
    try:
        seconds, layers = _profile(backend, find_flavor(record.flavor).module, feeds, rounds)
    finally:
        backend.close()
    shared = share_layers(seconds, layers, node_parts(graph), count_macs(graph))
    return timed_parts(cost_rows(graph, max(map(len, feeds.values()))), shared)


def share_layers(
    seconds: Mapping[str, float], layers: Iterable[EngineLayer], parts: Mapping[str, str], macs: Mapping[str, int]
) -> dict[str, float]:
    """Seconds of engine layers, by layer name, as seconds of parts; `parts` and `macs` are by the graph's node names.

    A layer that the inspector does not list is known by its own name, or counts as "other".
    """
    made_from = {layer.name: layer.onnx for layer in layers}
    shared: dict[str, float] = {}
    for layer, spent in seconds.items():
        nodes = made_from.get(layer) or (layer,)
        weights = np.array([macs.get(node, 0) for node in nodes], float)
        if not weights.any():
            weights = np.ones(len(nodes))
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            part = parts.get(node) or part_of(node)
            shared[part] = shared.get(part, 0.0) + spent * float(weight)
    if OTHER in shared:  # last, as in the rows of `part_times`
        shared[OTHER] = shared.pop(OTHER)
    return shared


def _profile(
    backend: TensorRTBackend, module: ModuleType, feeds: Mapping[str, npt.NDArray[Any]], rounds: int
) -> tuple[dict[str, float], list[EngineLayer]]:
    """Mean seconds of each layer over `rounds` runs after a first, and what the inspector says of the layers."""
    held = backend._held
    engine = held.engine
    if engine is None:
        raise BackendError("the engine is closed: load it again")
    context = held.context

    class Profiler(module.IProfiler):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.IProfiler.__init__(self)
            self.seconds: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.seconds[layer_name] = self.seconds.get(layer_name, 0.0) + ms / 1e3

    outputs = [spec.name for spec in backend.signature.outputs]
    backend.run(feeds, outputs)
    context.profiler = profiler = Profiler()
    for _ in range(rounds):
        backend.run(feeds, outputs)
    if not profiler.seconds:
        raise BackendError("TensorRT reported no layer's time")
    text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return {layer: spent / rounds for layer, spent in profiler.seconds.items()}, layers_from_inspector(text)
