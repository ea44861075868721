"""Is there a CUDA device? Asked of the driver, so that the answer costs no library of CUDA and prints nothing."""

from __future__ import annotations

import ctypes
import sys

_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}


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
