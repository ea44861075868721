"""What a loaded engine holds on the device, and how it is given back."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from ...errors import BackendError
from .buffers import BufferPlan, TensorPlan
from .cuda import Cuda, host_array

if TYPE_CHECKING:
    import tensorrt

_LOGGER = logging.getLogger("lavt_edge")


class Buffer:
    """A tensor's memory: on the host as `array`, of the largest batch, and where the device reads or writes it."""

    def __init__(self, plan: TensorPlan, host: int, device: int, mapped: bool) -> None:
        self.host, self.device, self.mapped = host, device, mapped
        self.array = host_array(host, plan.largest, plan.spec.dtype)
        self._row_bytes = plan.nbytes // plan.largest[0]

    def upload(self, cuda: Cuda, stream: Any, rows: int) -> None:
        if not self.mapped:
            cuda.upload(self.device, self.host, rows * self._row_bytes, stream)

    def download(self, cuda: Cuda, stream: Any, rows: int) -> None:
        if not self.mapped:
            cuda.download(self.host, self.device, rows * self._row_bytes, stream)


class DeviceResources:
    """All that must be given back, apart from the backend so that its finalizer does not keep it alive."""

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.runtime: tensorrt.Runtime | None = None
        self.engine: tensorrt.ICudaEngine | None = None
        self.context: tensorrt.IExecutionContext | None = None
        self.stream: Any = None
        self.graph: Any = None
        self.buffers: dict[str, Buffer] = {}
        self._host: list[int] = []
        self._device: list[int] = []

    def allocate(self, plan: BufferPlan, context: tensorrt.IExecutionContext, mapped: bool) -> None:
        """One stream and all buffers; their addresses are the context's from now on."""
        self.stream = self.cuda.create_stream()
        for tensor in plan.tensors:
            host = self.cuda.allocate_host(tensor.nbytes, mapped)
            self._host.append(host)
            if mapped:
                device = self.cuda.device_address(host)
            else:
                device = self.cuda.allocate(tensor.nbytes)
                self._device.append(device)
            self.buffers[tensor.spec.name] = Buffer(tensor, host, device, mapped)
            if not context.set_tensor_address(tensor.spec.name, device):
                raise BackendError(f"TensorRT refused the buffer of {tensor.spec.name}")

    def drop_graph(self) -> None:
        if self.graph is not None:
            graph, self.graph = self.graph, None
            self.cuda.destroy_graph(graph)

    def free(self) -> None:
        """Everything, in the reverse order; an error on the way is logged and stops nothing."""
        steps = [self.cuda.use]
        if self.stream is not None:
            steps += [functools.partial(self.cuda.wait, self.stream)]
        steps += [self.drop_graph, functools.partial(setattr, self, "context", None)]
        steps += [functools.partial(self.cuda.release, address) for address in self._device]
        steps += [functools.partial(self.cuda.release_host, address) for address in self._host]
        if self.stream is not None:
            steps += [functools.partial(self.cuda.destroy_stream, self.stream)]
        self.buffers, self._device, self._host, self.stream = {}, [], [], None
        for step in steps:
            try:
                step()
            except BackendError as error:
                _LOGGER.debug("while freeing the device: %s", str(error))
        self.engine = self.runtime = None
