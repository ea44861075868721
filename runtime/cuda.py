"""Is there a CUDA device? Asked of the driver, so that the answer costs no library of CUDA and prints nothing."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}
# CUdevice_attribute
_MAJOR, _MINOR, _INTEGRATED, _CAN_MAP, _MULTIPROCESSORS = 75, 76, 18, 19, 16


def cuda_device_count() -> int:
    """The number of CUDA devices that this process may use; 0 without a driver.

    See cuInit and cuDeviceGetCount of the CUDA Driver API.
    """
    try:
        driver = ctypes.CDLL(_DRIVERS[sys.platform])
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (KeyError, OSError, AttributeError):
        return 0
    return count.value


@dataclass(frozen=True)
class CudaDevice:
    """A CUDA device: its name, its compute capability such as "8.7", whether it can share the host's memory, and its
    number of multiprocessors, None where it is not known."""

    name: str
    compute_capability: str
    shares_memory: bool
    multiprocessors: int | None = None

    @property
    def sm(self) -> str:
        """The compute capability as targets are written, such as "sm87"."""
        return "sm" + self.compute_capability.replace(".", "")


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
