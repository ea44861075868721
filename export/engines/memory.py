"""What building a graph needs of the device's memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt

# tensorrt.DataType by name, in bytes
_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "FP8": 1, "UINT8": 1, "BOOL": 1, "INT32": 4, "INT64": 8}


@dataclass(frozen=True)
class NetworkLayer:
    """A layer before optimisation: the tensors it reads, and those it makes with their bytes."""

    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]


def peak_bytes(layers: Sequence[NetworkLayer]) -> int:
    """The most bytes of tensors that are alive at once, each until its last reader; layers in order."""
    last_use = {name: i for i, layer in enumerate(layers) for name in layer.inputs}
    alive: dict[str, int] = {}
    peak = 0
    for i, layer in enumerate(layers):
        alive.update(layer.outputs)
        peak = max(peak, sum(alive.values()))
        for name in (*layer.inputs, *(name for name, _ in layer.outputs)):
            if last_use.get(name, i) <= i:
                alive.pop(name, None)
    return peak


def network_layers(network: tensorrt.INetworkDefinition, batch: int) -> Iterable[NetworkLayer]:
    """A network's layers at a batch size, without its constants, which are weights."""
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        if layer.type.name == "CONSTANT":
            continue
        inputs = [layer.get_input(k) for k in range(layer.num_inputs)]
        outputs = [layer.get_output(k) for k in range(layer.num_outputs)]
        yield NetworkLayer(
            tuple(tensor.name for tensor in inputs if tensor is not None),
            tuple((tensor.name, tensor_bytes(_sizes(tensor.shape), tensor.dtype.name, batch)) for tensor in outputs),
        )


def _sizes(shape: tensorrt.Dims) -> tuple[int, ...]:
    return tuple(int(shape[i]) for i in range(len(shape)))


def tensor_bytes(shape: tuple[int, ...], dtype: str, batch: int) -> int:
    """Bytes of a tensor whose dynamic dimensions, -1, are the batch; types below a byte count one."""
    return math.prod(batch if size < 0 else size for size in shape) * _BYTES.get(dtype, 1)


def needed_bytes(weights: int, activations: int, workspace: int | None) -> int:
    """Roughly the device memory that a build takes: the weights twice (as read, as laid out), tensors, workspace."""
    return 2 * weights + activations + (workspace or 0)


def memory_message(name: str, needed: int, free: int) -> str:
    """A line that compares the two, and says what to do if it is too little."""
    line = f"{name} needs about {_shown(needed)} of device memory to build, {_shown(free)} are free"
    return line if free >= needed else f"{line}: close other programs, or lower --max-batch or --workspace"


def _shown(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
