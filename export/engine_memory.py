"""The CUDA device of this machine and its free memory, by the driver alone; and what building a graph needs of it."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..runtime.tensorrt_engine import CudaDevice

if TYPE_CHECKING:
    import tensorrt

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
# CUdevice_attribute
_MAJOR, _MINOR, _INTEGRATED, _CAN_MAP, _MULTIPROCESSORS = 75, 76, 18, 19, 16
# tensorrt.DataType by name, in bytes
_BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "FP8": 1, "UINT8": 1, "BOOL": 1, "INT32": 4, "INT64": 8}


class _Driver:
    """Calls of the CUDA Driver API on the first device. Raises OSError where one fails or there is no driver."""

    def __init__(self) -> None:
        name = _DRIVERS.get(sys.platform)
        if name is None:
            raise OSError(f"no CUDA on {sys.platform}")
        self._library = ctypes.CDLL(name)
        self.call("cuInit", 0)
        self.device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self.device), 0)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} failed with {status}")

    def attribute(self, attribute: int) -> int:
        value = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), attribute, self.device)
        return value.value


def find_device() -> CudaDevice | None:
    """The first CUDA device, or None; asked of the driver, so that no library of CUDA need be installed."""
    try:
        driver = _Driver()
        name = ctypes.create_string_buffer(256)
        driver.call("cuDeviceGetName", name, len(name), driver.device)
        return CudaDevice(
            name=name.value.decode(errors="replace"),
            compute_capability=f"{driver.attribute(_MAJOR)}.{driver.attribute(_MINOR)}",
            shares_memory=bool(driver.attribute(_INTEGRATED) and driver.attribute(_CAN_MAP)),
            multiprocessors=driver.attribute(_MULTIPROCESSORS),
        )
    except (OSError, AttributeError):
        return None


def free_device_memory() -> int | None:
    """Bytes that are free on the first CUDA device, or None. Takes its primary context for a moment."""
    try:
        driver = _Driver()
        context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), driver.device)
        try:
            driver.call("cuCtxPushCurrent_v2", context)
            driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            driver.call("cuCtxPopCurrent_v2", ctypes.byref(context))
        finally:
            driver.call("cuDevicePrimaryCtxRelease_v2", driver.device)
        return free.value
    except (OSError, AttributeError):
        return None


@dataclass(frozen=True)
class NetworkLayer:
    """A layer before optimisation: the tensors it reads, and those it makes with their bytes."""

    inputs: tuple[str, ...]
    outputs: tuple[tuple[str, int], ...]


def peak_bytes(layers: Sequence[NetworkLayer]) -> int:
    """The most bytes of tensors that are alive at once, where each dies with its last reader; layers in order."""
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
    """A network's layers but for its constants, which are weights, at a batch size."""
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
    """Bytes of a tensor whose free dimensions, -1, are the batch; types below a byte count one."""
    return math.prod(batch if size < 0 else size for size in shape) * _BYTES.get(dtype, 1)


def needed_bytes(weights: int, activations: int, workspace: int | None) -> int:
    """Device memory that a build takes, roughly: the weights twice, as read and as laid out; tensors; the workspace."""
    return 2 * weights + activations + (workspace or 0)


def memory_message(name: str, needed: int, free: int) -> tuple[str, bool]:
    """A line that compares the two, and whether it is too little."""
    line = f"{name} needs about {_shown(needed)} of device memory to build, {_shown(free)} are free"
    if free >= needed:
        return line, False
    return f"{line}: close other programs, or lower --max-batch or --workspace", True


def _shown(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
