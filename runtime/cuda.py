"""CUDA devices, asked of the driver: that needs no other library of CUDA and prints nothing."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
# CUdevice_attribute: compute capability, major and minor; integrated; can map host memory; multiprocessors
_ATTRIBUTES = (75, 76, 18, 19, 16)


@dataclass(frozen=True)
class CudaDevice:
    """A CUDA device: its name, its compute capability such as "8.7", whether it can share the host's memory, and its
    number of multiprocessors, None if it is not known."""

    name: str
    compute_capability: str
    shares_memory: bool
    multiprocessors: int | None = None

    @property
    def sm(self) -> str:
        """The compute capability as targets are written, such as "sm87"."""
        return "sm" + self.compute_capability.replace(".", "")


class _Driver:
    """The CUDA Driver API, initialised. Calls raise OSError if they fail, as does the constructor without a driver."""

    def __init__(self) -> None:
        name = _DRIVERS.get(sys.platform)
        if name is None:
            raise OSError(f"no CUDA on {sys.platform}")
        self._library = ctypes.CDLL(name)
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            raise OSError(f"{name} failed with {status}")

    def integer(self, name: str, *arguments: object) -> int:
        """What a call gives as its first argument."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value


def cuda_device_count() -> int:
    """The number of CUDA devices that this process may use; 0 without a driver."""
    try:
        return _Driver().integer("cuDeviceGetCount")
    except (OSError, AttributeError):
        return 0


def find_device() -> CudaDevice | None:
    """The first CUDA device, or None."""
    try:
        driver, name = _Driver(), ctypes.create_string_buffer(256)
        device = driver.integer("cuDeviceGet", 0)
        driver.call("cuDeviceGetName", name, len(name), device)
        major, minor, integrated, can_map, multiprocessors = (
            driver.integer("cuDeviceGetAttribute", attribute, device) for attribute in _ATTRIBUTES
        )
        return CudaDevice(
            name.value.decode(errors="replace"), f"{major}.{minor}", bool(integrated and can_map), multiprocessors
        )
    except (OSError, AttributeError):
        return None


def free_device_memory() -> int | None:
    """Bytes that are free on the first CUDA device, or None. Takes its primary context for a moment."""
    try:
        driver = _Driver()
        device = driver.integer("cuDeviceGet", 0)
        context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
        driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        try:
            driver.call("cuCtxPushCurrent_v2", context)
            driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            driver.call("cuCtxPopCurrent_v2", ctypes.byref(context))
        finally:
            driver.call("cuDevicePrimaryCtxRelease_v2", device)
        return free.value
    except (OSError, AttributeError):
        return None
