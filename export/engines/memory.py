"""What building a graph needs of the device's memory, and what there is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.cuda import CudaDevice, free_device_memory

if TYPE_CHECKING:
    import tensorrt

# tensorrt.DataType by name, in bytes
_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "FP8": 1, "UINT8": 1, "BOOL": 1, "INT32": 4, "INT64": 8}
# What TensorRT's library of kernels to choose from takes of the host's memory while it builds: seen with 10.10.
BUILDER_BYTES = 1_700_000_000
MEMINFO = Path("/proc/meminfo")


def free_memory(device: CudaDevice) -> int | None:
    """Bytes that a build can have of the device's memory, or None if it is not known.

    A device that shares the host's memory gets what Linux would make free, swap included: CUDA's own figure leaves out
    the page cache and swap there (CUDA for Tegra, "Estimating Total Allocatable Device Memory").
    """
    if not device.shares_memory:
        return free_device_memory()
    try:
        sizes = dict(re.findall(r"^(MemAvailable|SwapFree):\s*(\d+) kB$", MEMINFO.read_text(), re.MULTILINE))
    except OSError:
        return None
    return 1024 * sum(map(int, sizes.values())) if "MemAvailable" in sizes else None


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
    """A network's layers at a batch size, without its weights: constants, and what is made of constants alone, such as
    dequantised ones."""
    constants: set[str] = set()
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        inputs = [layer.get_input(k) for k in range(layer.num_inputs)]
        outputs = [layer.get_output(k) for k in range(layer.num_outputs)]
        if all(tensor is None or tensor.name in constants for tensor in inputs):
            constants |= {tensor.name for tensor in outputs}
            continue
        yield NetworkLayer(
            tuple(tensor.name for tensor in inputs if tensor is not None),
            tuple((tensor.name, tensor_bytes(_sizes(tensor.shape), tensor.dtype.name, batch)) for tensor in outputs),
        )


def _sizes(shape: tensorrt.Dims) -> tuple[int, ...]:
    return tuple(int(shape[i]) for i in range(len(shape)))


def tensor_bytes(shape: tuple[int, ...], dtype: str, batch: int) -> int:
    """Bytes of a tensor whose dynamic dimensions, -1, are the batch; types below a byte count one."""
    return math.prod(batch if size < 0 else size for size in shape) * _BYTES.get(dtype, 1)


def needed_bytes(weights: int, activations: int, workspace: int | None, *, builder: bool = False) -> int:
    """Roughly the device memory that a build takes: the weights twice (as read, as laid out), tensors, workspace, and
    TensorRT's `builder` library if it lies in the same memory."""
    return 2 * weights + activations + (workspace or 0) + (BUILDER_BYTES if builder else 0)


def memory_message(name: str, needed: int, free: int) -> str:
    """A line that compares the two, and says what to do if it is too little."""
    line = f"{name} needs about {_shown(needed)} of device memory to build, {_shown(free)} are free"
    return line if free >= needed else f"{line}: close other programs, or lower --max-batch or --workspace"


def _shown(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
