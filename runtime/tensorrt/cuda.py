"""CUDA calls, each checked, and what an engine holds on the device; by cuda-python of CUDA 12 (JetPack 6) or later."""

from __future__ import annotations

import ctypes
import importlib
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import BackendError, reason_of
from ..cuda import CudaDevice, find_device
from ..signature import TensorSpec
from .buffers import BufferPlan

if TYPE_CHECKING:
    import tensorrt

_LOGGER = logging.getLogger("lavt_edge")
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
    """The CUDA runtime on the first device. Every method raises BackendError if CUDA reports an error."""

    def __init__(self, api: Any = None) -> None:
        self.api = import_cuda_runtime() if api is None else api
        self.use()

    def use(self) -> None:
        """Make this device the calling thread's."""
        self.call("cudaSetDevice", 0)

    def device(self) -> CudaDevice:
        """What the driver says of the device."""
        device = find_device()
        if device is None:
            raise BackendError("no usable CUDA device (its driver does not describe it)")
        return device

    def call(self, name: str, *arguments: Any) -> Any:
        """What the CUDA function of this name returns besides its status: None, a value, or a tuple."""
        try:
            error, *values = getattr(self.api, name)(*arguments)
        except RuntimeError as failure:  # cuda-python 12 if it finds no driver
            raise BackendError(f"no usable CUDA device ({reason_of(failure)})") from failure
        if int(error) != 0:
            self.api.cudaGetLastError()
            raise BackendError(self._describe(error))
        return values[0] if len(values) == 1 else tuple(values)

    def capture(self, stream: Any, work: Callable[[], bool]) -> Any:
        """What `work` gives the stream, as a graph to launch. Raises BackendError if that cannot be captured.

        Other threads may use CUDA meanwhile.
        """
        mode = self.api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        done = False
        try:
            done = work()
        finally:
            status, *captured = self.api.cudaStreamEndCapture(stream)
            if int(status) != 0:
                self.api.cudaGetLastError()  # it would be reported again by the next call
            elif not done:
                self.call("cudaGraphDestroy", captured[0])
        if int(status) != 0 or not done:
            raise BackendError(self._describe(status) if int(status) else "TensorRT refused to enqueue")
        try:
            return self.call("cudaGraphInstantiate", captured[0], 0)
        finally:
            self.call("cudaGraphDestroy", captured[0])

    def _describe(self, error: Any) -> str:
        _, text = self.api.cudaGetErrorString(error)
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


@dataclass(frozen=True, eq=False)
class Buffer:
    """A tensor's memory for the largest batch: on the host as `array`, its address, and the device's address of it."""

    array: npt.NDArray[Any]
    host: int
    device: int


class DeviceResources:
    """All that must be given back, apart from the backend so that its finalizer does not keep it alive.

    If the buffers are `mapped`, the device uses the host's memory in place and nothing is copied.
    """

    def __init__(self, cuda: Cuda, mapped: bool) -> None:
        self.cuda = cuda
        self.runtime: tensorrt.Runtime | None = None
        self.engine: tensorrt.ICudaEngine | None = None
        self._context: tensorrt.IExecutionContext | None = None
        self.stream: Any = None
        self.graph: Any = None
        self.buffers: dict[str, Buffer] = {}
        self.guests: list[DeviceResources] = []  # what uses this stream and these buffers; freed before them
        self._mapped = mapped
        self._to_free: list[tuple[str, Any]] = []

    @property
    def context(self) -> tensorrt.IExecutionContext:
        """The engine's, once its buffers are allocated."""
        assert self._context is not None
        return self._context

    def allocate(self, plan: BufferPlan, context: tensorrt.IExecutionContext) -> None:
        """One stream, which does not wait for the default one, and all buffers of the context.

        A stream and buffers that are there already belong to another.
        """
        api, self._context = self.cuda.api, context
        if self.stream is None:
            self.stream = self._make("cudaStreamDestroy", "cudaStreamCreateWithFlags", api.cudaStreamNonBlocking)
        for spec in (*plan.signature.inputs, *plan.signature.outputs):
            if spec.name not in self.buffers:
                self.buffers[spec.name] = self._allocate(spec, plan.max_batch)
            if not context.set_tensor_address(spec.name, self.buffers[spec.name].device):
                raise BackendError(f"TensorRT refused the buffer of {spec.name}")

    def _allocate(self, spec: TensorSpec, batch: int) -> Buffer:
        api, shape = self.cuda.api, spec.at(batch)
        nbytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
        flags = api.cudaHostAllocMapped if self._mapped else api.cudaHostAllocDefault
        host = int(self._make("cudaFreeHost", "cudaHostAlloc", nbytes, flags))
        if self._mapped:
            device = int(self.cuda.call("cudaHostGetDevicePointer", host, 0))
        else:
            device = int(self._make("cudaFree", "cudaMalloc", nbytes))
        memory = memoryview((ctypes.c_ubyte * nbytes).from_address(host))
        return Buffer(np.frombuffer(memory, spec.dtype).reshape(shape), host, device)

    def _make(self, undo: str, name: str, *arguments: Any) -> Any:
        made = self.cuda.call(name, *arguments)
        self._to_free.append((undo, made))
        return made

    def upload(self, buffer: Buffer, rows: int) -> None:
        """Copy the first rows to the device, in the stream's order."""
        self._copy(buffer.device, buffer.host, buffer.array[:rows].nbytes, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer, rows: int) -> None:
        """Copy the first rows from the device, in the stream's order."""
        self._copy(buffer.host, buffer.device, buffer.array[:rows].nbytes, "cudaMemcpyDeviceToHost")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        if not self._mapped:
            kinds = self.cuda.api.cudaMemcpyKind
            self.cuda.call("cudaMemcpyAsync", target, source, size, getattr(kinds, kind), self.stream)

    def synchronize(self) -> None:
        """Wait for all that the stream was given."""
        self.cuda.call("cudaStreamSynchronize", self.stream)

    def drop_graph(self) -> None:
        if self.graph is not None:
            graph, self.graph = self.graph, None
            self.cuda.call("cudaGraphExecDestroy", graph)

    def free(self) -> None:
        """Everything, in the reverse order; an error on the way is logged and stops nothing."""
        for guest in self.guests:
            guest.free()
        idle = [("cudaStreamSynchronize", self.stream)] if self.stream is not None else []
        graph = [("cudaGraphExecDestroy", self.graph)] if self.graph is not None else []
        self._call_all([("cudaSetDevice", 0), *idle, *graph])
        self._context = self.graph = None
        self._call_all(self._to_free[::-1])
        self.buffers, self._to_free, self.stream = {}, [], None
        self.engine = self.runtime = None

    def _call_all(self, calls: Iterable[tuple[str, Any]]) -> None:
        for name, argument in calls:
            try:
                self.cuda.call(name, argument)
            except BackendError as error:
                _LOGGER.debug("while freeing the device: %s", str(error))
