"""What CUDA's driver says of the devices, asked of a stand-in for it."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest
from lavt_edge.runtime import cuda

ATTRIBUTES = {75: 8, 76: 7, 18: 1, 19: 1, 16: 16}


class Driver:
    """`devices` Orins; the call named `failing` fails, and of `missing` there is none, as in an older driver."""

    def __init__(self, devices: int, failing: str = "", missing: str = "") -> None:
        self.devices, self.failing, self.missing = devices, failing, missing
        self.retained = 0

    def __getattr__(self, name: str) -> Any:
        if name == self.missing:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name == self.failing or (name != "cuInit" and name != "cuDeviceGetCount" and not self.devices):
                return 100
            if name == "cuDeviceGetCount":
                arguments[0]._obj.value = self.devices
            elif name == "cuDeviceGetName":
                arguments[0].value = b"Orin"
            elif name == "cuDeviceGetAttribute":
                assert arguments[2] == 0
                arguments[0]._obj.value = ATTRIBUTES[arguments[1]]
            elif name == "cuMemGetInfo_v2":
                arguments[0]._obj.value = 5 * 2**30
            elif name.startswith("cuDevicePrimaryCtx"):
                self.retained += 1 if name.endswith("Retain") else -1
            return 0

        return call


def asked(monkeypatch: pytest.MonkeyPatch, driver: Driver | OSError) -> tuple[int, cuda.CudaDevice | None, int | None]:
    def load(name: str) -> Driver:
        assert name == "libcuda.so.1"
        if isinstance(driver, OSError):
            raise driver
        return driver

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", load)
    return cuda.cuda_device_count(), cuda.find_device(), cuda.free_device_memory()


def test_the_first_device_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(2)
    orin = cuda.CudaDevice("Orin", "8.7", shares_memory=True, multiprocessors=16)
    assert asked(monkeypatch, driver) == (2, orin, 5 * 2**30)
    assert driver.retained == 0


@pytest.mark.parametrize(
    "driver",
    [Driver(0), Driver(1, failing="cuInit"), Driver(1, missing="cuInit"), OSError("no libcuda.so.1")],
    ids=["no device", "no start", "an old driver", "no driver"],
)
def test_without_a_device_or_a_driver_there_is_nothing(
    driver: Driver | OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, driver) == (0, None, None)


def test_memory_that_cannot_be_asked_for_leaves_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(1, failing="cuMemGetInfo_v2")
    count, device, free = asked(monkeypatch, driver)
    assert (count, device is not None, free) == (1, True, None)
    assert driver.retained == 0
