"""Our CUDA code proper (memory, copies, streams, graphs) under engines that stand in for TensorRT's.

Each test runs on the simulated device, and on a real one where there is one: there the engine launches torch kernels on
our stream, and every CUDA call is real. `pytest -m gpu tests/gpu` on a machine with a CUDA device and torch.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lavt_edge.errors import BackendError
from lavt_edge.runtime.cuda import cuda_device_count
from lavt_edge.runtime.tensorrt.backend import TensorRTBackend
from lavt_edge.runtime.tensorrt.cuda import Cuda
from lavt_edge.runtime.tensorrt.flavor import Flavor
from lavt_edge.tests.engine_records import a_record
from lavt_edge.tests.gpu.torch_engine import TorchTensorRT, expected
from lavt_edge.tests.runtime_bundle import HEIGHT, WIDTH
from lavt_edge.tests.runtime_simulated_cuda import OUT_OF_MEMORY, SimulatedCuda, SimulatedTensorRT, plan

MAX_BATCH = 3
real = pytest.param(
    "real", marks=[pytest.mark.gpu, pytest.mark.skipif(not cuda_device_count(), reason="no CUDA device")]
)


@dataclass
class Device:
    """A device with its TensorRT; `api` is the simulated CUDA, None where it is real."""

    tensorrt: SimulatedTensorRT
    api: SimulatedCuda | None
    mapped: bool

    def load(self, **options: Any) -> TensorRTBackend:
        cuda = Cuda(api=self.api) if self.api else Cuda()
        described = self.api.described() if self.api else cuda.device()
        cuda.device = lambda: replace(described, shares_memory=self.mapped)  # type: ignore[method-assign]
        flavor = Flavor("tensorrt", self.tensorrt, "10.3.0")
        return TensorRTBackend(
            plan("segmenter", None, MAX_BATCH), a_record(max_batch=MAX_BATCH), flavor, cuda, **options
        )


@pytest.fixture(params=["simulated", real])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["copied", "mapped"])
def device(request: pytest.FixtureRequest, where: str) -> Iterator[Device]:
    """With buffers on the device, or in host memory that the device maps (a discrete GPU can do that, too)."""
    mapped = request.param == "mapped"
    if where == "real":
        pytest.importorskip("torch", reason="the engines that stand in for TensorRT's are made of torch kernels")
        yield Device(TorchTensorRT(), None, mapped)
        return
    api = SimulatedCuda(integrated=mapped)
    with api.all_given_back():
        yield Device(SimulatedTensorRT(api), api, mapped)


def feeds(rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (rows, HEIGHT, WIDTH, 3), dtype=np.uint8),
        "prompt": rng.standard_normal((rows, 20, 8), dtype=np.float32),
        "word_mask": np.ones((rows, 20), np.float32),
    }


def check(backend: TensorRTBackend, rows: int, seed: int) -> None:
    given = feeds(rows, seed)
    logits, mask = backend.run(given, ["logits", "mask"])
    wanted = expected(given)
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    np.testing.assert_array_equal(mask, logits.argmax(1))


def test_captured_replayed_and_captured_again_for_another_batch(device: Device) -> None:
    with_graphs, without = device.load(), device.load(cuda_graphs=False)
    for step, rows in enumerate((1, 1, 1, 1, 2, 2, 2, 3, 5, 5, 1, 1, 1)):
        check(with_graphs, rows, step)
        check(without, rows, step)
    assert with_graphs._held.graph is not None
    assert without._held.graph is None
    for backend in (with_graphs, without):
        backend.close()


def test_a_replay_does_not_come_back_to_the_engine(device: Device) -> None:
    backend = device.load()
    for step in range(3):
        check(backend, 1, step)
    before = backend._held.context.enqueued
    for step in range(5):
        check(backend, 1, step)
    assert backend._held.context.enqueued == before
    backend.close()


def test_another_thread_may_allocate_while_a_graph_is_captured(device: Device) -> None:
    """The capture is of this thread's work alone."""
    stop, errors = threading.Event(), []

    def allocate() -> None:
        cuda = Cuda(api=device.api) if device.api else Cuda()
        try:
            while not stop.is_set():
                flags = cuda.api.cudaHostAllocMapped if device.mapped else cuda.api.cudaHostAllocDefault
                cuda.call("cudaFreeHost", cuda.call("cudaHostAlloc", 4096, flags))
        except BackendError as error:
            errors.append(error)

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        for step in range(20):
            backend = device.load()
            for rows in (1, 1, 1, 2, 2, 2):
                check(backend, rows, step)
            assert backend._held.graph is not None
            backend.close()
    finally:
        stop.set()
        thread.join()
    assert not errors


def test_threads_take_turns(device: Device) -> None:
    backend, errors = device.load(), []

    def work(worker: int) -> None:
        try:
            for step in range(30):
                check(backend, 1 + (worker + step) % MAX_BATCH, worker)
        except AssertionError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    backend.close()


def test_out_of_memory_is_one_line_and_leaves_nothing(device: Device) -> None:
    if device.api:
        device.api.failing["cudaHostAlloc"] = OUT_OF_MEMORY
    with pytest.raises(BackendError) as caught:
        _ = device.load() if device.api else Cuda().call("cudaMalloc", 2**50)
    assert str(caught.value).startswith("out of GPU memory")
    if device.api:
        device.api.failing.clear()
    backend = device.load()
    check(backend, 1, 0)
    backend.close()


def test_frames_and_loads_leave_no_memory_behind(device: Device, where: str) -> None:
    """10,000 frames and 50 loads; on the simulated device, whose allocations are all counted, a few of each."""
    frames, loads = (10_000, 50) if where == "real" else (60, 5)
    backend = device.load()
    given = feeds()
    for _ in range(10):
        backend.run(given, ["logits"])
    before, resident = held(device), resident_bytes()
    for _ in range(frames):
        backend.run(given, ["logits"])
    assert held(device) == before
    if where == "real":  # a byte for a frame would show; what the allocator rounds does not
        assert resident_bytes() - resident < 512 * frames
    backend.close()
    after_first = held(device)
    for _ in range(loads):
        again = device.load()
        for _ in range(3):
            again.run(given, ["logits"])
        again.close()
    gc.collect()
    assert held(device) == after_first


def held(device: Device) -> int:
    """What is allocated: counted on the simulated device; of the real one, by this process, as torch's allocator and
    the driver's table of this process say it, so that other programs on the GPU do not count."""
    if device.api:
        return len(device.api.live)
    import torch

    torch.cuda.synchronize()
    return int(torch.cuda.memory_allocated())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


STICKY = """
import numpy as np
from lavt_edge.errors import BackendError
from lavt_edge.tests.gpu.test_cuda import Device, TorchTensorRT, check, feeds
device = Device(TorchTensorRT(), None, False)
backend = device.load(cuda_graphs=False)
check(backend, 1, 0)
device.tensorrt.failing = True
for attempt in range(3):
    try:
        backend.run(feeds(), ["logits"])
    except BackendError as error:
        print(str(error).count("\\n"), "CUDA failed" in str(error))
backend.close()
backend.close()
print("closed")
"""


@pytest.mark.gpu
@pytest.mark.skipif(not cuda_device_count(), reason="no CUDA device")
def test_after_an_error_that_stays_every_call_says_so_and_closing_works() -> None:
    """In a process of its own, whose context is lost."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", STICKY], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["0 True"] * 3 + ["closed"]


def test_work_that_fails_is_told_and_the_engine_is_closed_cleanly() -> None:
    """The same on the simulated device: the error comes when the stream is waited for."""
    api = SimulatedCuda()
    device = Device(SimulatedTensorRT(api), api, False)
    backend = device.load()
    check(backend, 1, 0)
    api.failing["cudaStreamSynchronize"] = 719
    for _ in range(3):
        with pytest.raises(BackendError, match="CUDA failed"):
            backend.run(feeds(), ["logits"])
    backend.close()
    backend.close()
    api.failing.clear()
    gc.collect()
    assert not [key for key in api.live if isinstance(key, tuple) and key[0] in ("host", "device")]
