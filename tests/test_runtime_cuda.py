"""CUDA by stand-ins: what the driver says of the devices, and the runtime's calls and errors."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest
from lavt_edge.errors import BackendError
from lavt_edge.runtime import cuda
from lavt_edge.runtime.tensorrt.cuda import Cuda, cuda_message, import_cuda_runtime
from lavt_edge.tests.runtime_simulated_cuda import SimulatedCuda

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


@pytest.mark.parametrize("integrated", [False, True])
def test_a_capture_that_raises_leaves_no_graph(integrated: bool) -> None:
    simulated = SimulatedCuda(integrated)
    cuda = Cuda(api=simulated)
    stream = cuda.call("cudaStreamCreateWithFlags", simulated.cudaStreamNonBlocking)
    before = len(simulated.live)

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cuda.capture(stream, interrupted)
    with pytest.raises(BackendError, match="refused to enqueue"):
        cuda.capture(stream, lambda: False)
    assert len(simulated.live) == before
    cuda.call("cudaStreamDestroy", stream)


def test_cuda_python_of_either_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = SimulatedCuda(), SimulatedCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", new)
    monkeypatch.setitem(sys.modules, "cuda.cudart", old)
    assert import_cuda_runtime() is new
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    assert import_cuda_runtime() is old
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    with pytest.raises(BackendError, match=r"cuda-python cannot be imported .*: pip install cuda-python"):
        import_cuda_runtime()


def test_every_cuda_call_exists_in_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    used = {name for name in vars(SimulatedCuda) if name.startswith("cuda")}
    assert len(used) > 20
    assert [name for name in sorted(used) if not hasattr(runtime, name)] == []
    for group in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for name in vars(getattr(SimulatedCuda, group)):
            assert hasattr(getattr(runtime, group), name)


def test_cuda_errors_say_what_to_do() -> None:
    assert "--max-batch" in cuda_message(2, "cudaErrorMemoryAllocation", "out of memory")
    assert cuda_message(35, "cudaErrorInsufficientDriver", "too old").startswith("no usable CUDA device")
    assert cuda_message(700, "cudaErrorIllegalAddress", "x") == "CUDA failed (cudaErrorIllegalAddress: x)"
