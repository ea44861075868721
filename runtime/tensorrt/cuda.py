"""The few CUDA calls that running an engine takes, each checked; by cuda-python, of CUDA 12 (JetPack 6) or later."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, reason_of
from ..cuda import CudaDevice

# cudaError_t
_OUT_OF_MEMORY = 2
_NO_DEVICE = (34, 35, 36, 38, 46, 100, 101, 999)
# cuda-bindings has the first since 12.6.1; the second is that of older releases of cuda-python.
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")


def import_cuda_runtime() -> Any:
    """The module of cuda-python with the runtime API. Raises BackendError if there is none."""
    problem = ""
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            problem = problem or reason_of(error)
    raise BackendError(f"cuda-python cannot be imported ({problem}): pip install cuda-python, of your CUDA's version")


class Cuda:
    """The CUDA runtime on one device. Every method raises BackendError if CUDA reports an error."""

    def __init__(self, device: int = 0, api: Any = None) -> None:
        self._api = import_cuda_runtime() if api is None else api
        self._device = device
        self.use()

    def use(self) -> None:
        """Make this device the calling thread's."""
        self._call(self._api.cudaSetDevice, self._device)

    def device(self) -> CudaDevice:
        """What the device is. Memory is shared if it is the host's own and can be mapped, as on a Jetson."""
        properties = self._call(self._api.cudaGetDeviceProperties, self._device)
        attributes = self._api.cudaDeviceAttr
        shares = all(
            self._call(self._api.cudaDeviceGetAttribute, attribute, self._device)
            for attribute in (attributes.cudaDevAttrIntegrated, attributes.cudaDevAttrCanMapHostMemory)
        )
        name = properties.name.decode(errors="replace") if isinstance(properties.name, bytes) else str(properties.name)
        count = self._call(self._api.cudaDeviceGetAttribute, attributes.cudaDevAttrMultiProcessorCount, self._device)
        return CudaDevice(name.rstrip("\0"), f"{properties.major}.{properties.minor}", shares, int(count))

    def free_memory(self) -> int:
        """Bytes that are free on the device."""
        free, _ = self._call(self._api.cudaMemGetInfo)
        return int(free)

    def allocate(self, size: int) -> int:
        """The address of `size` bytes on the device."""
        return int(self._call(self._api.cudaMalloc, size))

    def release(self, address: int) -> None:
        self._call(self._api.cudaFree, address)

    def allocate_host(self, size: int, mapped: bool) -> int:
        """The address of `size` page-locked bytes on the host; `mapped`: the device can use them in place."""
        flags = self._api.cudaHostAllocMapped if mapped else self._api.cudaHostAllocDefault
        return int(self._call(self._api.cudaHostAlloc, size, flags))

    def release_host(self, address: int) -> None:
        self._call(self._api.cudaFreeHost, address)

    def device_address(self, host: int) -> int:
        """Where the device sees mapped host memory."""
        return int(self._call(self._api.cudaHostGetDevicePointer, host, 0))

    def upload(self, device: int, host: int, size: int, stream: Any) -> None:
        """Copy from page-locked host memory, in the stream's order."""
        self._call(self._api.cudaMemcpyAsync, device, host, size, self._kind.cudaMemcpyHostToDevice, stream)

    def download(self, host: int, device: int, size: int, stream: Any) -> None:
        """Copy to page-locked host memory, in the stream's order."""
        self._call(self._api.cudaMemcpyAsync, host, device, size, self._kind.cudaMemcpyDeviceToHost, stream)

    def create_stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call(self._api.cudaStreamCreateWithFlags, self._api.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        self._call(self._api.cudaStreamDestroy, stream)

    def wait(self, stream: Any) -> None:
        """Until all that the stream was given is done; errors of that work are raised here."""
        self._call(self._api.cudaStreamSynchronize, stream)

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any:
        """What `work` gives the stream, as a graph to launch. Raises BackendError if that cannot be captured.

        Other threads may use CUDA meanwhile.
        """
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._api.cudaStreamBeginCapture, stream, mode)
        done = False
        try:
            done = work()
        finally:
            status, *captured = self._api.cudaStreamEndCapture(stream)
            if int(status) != 0:
                self._api.cudaGetLastError()  # it would be reported again by the next call
            elif not done:
                self._call(self._api.cudaGraphDestroy, captured[0])
        if int(status) != 0 or not done:
            raise BackendError(self._describe(status) if int(status) else "TensorRT refused to enqueue")
        try:
            return self._call(self._api.cudaGraphInstantiate, captured[0], 0)
        finally:
            self._call(self._api.cudaGraphDestroy, captured[0])

    def launch(self, graph: Any, stream: Any) -> None:
        self._call(self._api.cudaGraphLaunch, graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        self._call(self._api.cudaGraphExecDestroy, graph)

    @property
    def _kind(self) -> Any:
        return self._api.cudaMemcpyKind

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function's value, a tuple if it has several; cuda-python returns (error, values...)."""
        try:
            error, *values = function(*arguments)
        except RuntimeError as failure:  # cuda-python 12 if it finds no driver
            raise BackendError(f"no usable CUDA device ({reason_of(failure)})") from failure
        if int(error) != 0:
            self._api.cudaGetLastError()
            raise BackendError(self._describe(error))
        return values[0] if len(values) == 1 else tuple(values)

    def _describe(self, error: Any) -> str:
        _, text = self._api.cudaGetErrorString(error)
        reason = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        name = getattr(error, "name", f"error {int(error)}")
        return cuda_message(int(error), str(name), reason)


def cuda_message(code: int, name: str, reason: str) -> str:
    """One line for a CUDA error: what happened and what to do."""
    if code == _OUT_OF_MEMORY:
        return "out of GPU memory: close other programs, or build the engine with a smaller --max-batch"
    if code in _NO_DEVICE:
        return f"no usable CUDA device ({name}: {reason})"
    return f"CUDA failed ({name}: {reason})"


def host_array(address: int, shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Host memory at an address as an array; valid as long as the memory is."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")
    return np.frombuffer(memory, dtype).reshape(shape)
