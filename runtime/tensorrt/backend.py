"""An engine on a CUDA device. What can be decided without one is in `record` and `buffers`."""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..._base.callers import warn_caller
from ..._base.files import write_whole
from ...errors import BackendError
from ..bundle import Bundle
from .buffers import BufferPlan, TensorPlan, plan_buffers, validate_feeds
from .cuda import Cuda, DeviceResources
from .flavor import Flavor, find_flavor
from .record import (
    DISPLAY_NAMES,
    EngineRecord,
    PowerModeWarning,
    check_header,
    device_misfit,
    flavor_misfit,
    power_mode_misfit,
)

if TYPE_CHECKING:
    import tensorrt

_LOGGER = logging.getLogger("lavt_edge")
_MOST_KERNEL_BYTES = 2**28
_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}


class TensorRTBackend:
    """An engine, its buffers and its stream; implements `Backend`.

    Buffers are allocated once. Calls from several threads take turns. The first call of a batch size enqueues, the
    second captures a CUDA graph, which the next ones launch; if that fails they go on enqueueing, with a log line.
    TensorRT for RTX captures by itself. An input that is the read-only array of the call before is not copied again.

    Args:
        data: the engine file's bytes, checked by SHA-256 and header.
        record: what the manifest says of it.
        flavor: the TensorRT to run it with.
        cuda: the device.
        cuda_graphs: whether to use CUDA graphs.
        kernels: where TensorRT for RTX keeps the kernels that it compiles for this GPU.

    Raises:
        BackendError: TensorRT refuses the engine, or the device has too little memory.
    """

    device = "cuda"

    def __init__(
        self,
        data: bytes,
        record: EngineRecord,
        flavor: Flavor,
        cuda: Cuda,
        *,
        cuda_graphs: bool = True,
        kernels: Path | None = None,
    ) -> None:
        self.name = f"{DISPLAY_NAMES[flavor.name]} {flavor.version}"
        self._logger = _logger(flavor.module)
        self._file = record.name
        self._lock = threading.Lock()
        self._resident: dict[str, npt.NDArray[Any]] = {}
        self._batch = 0
        self._runs = 0
        self._saved: set[int] = set()  # the batch sizes whose kernels are kept
        self._held = held = DeviceResources(cuda, mapped=cuda.device().shares_memory)
        self._close = weakref.finalize(self, held.free)
        try:
            held.runtime, held.engine = _deserialise(data, record, flavor)
            self._plan = _plan(held.engine, record)
            self._kernels = _KernelCache(kernels)
            context = _create_context(held.engine, flavor.module, cuda_graphs, self._kernels)
            if context is None:
                raise _refused(record, flavor, "could not prepare")
            self._capture = cuda_graphs and not hasattr(flavor.module, "CudaGraphStrategy")
            held.allocate(self._plan, context)
        except BaseException:
            self._close()
            raise
        self.signature = self._plan.signature
        self.max_batch = self._plan.max_batch if self._plan.dynamic else None  # larger ones run in pieces
        _LOGGER.info("%s runs on cuda (%s)", record.name, self.name)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The named outputs for these inputs. Raises BackendError if the engine cannot be run on them."""
        with self._lock:
            if not self._close.alive:
                raise BackendError(f"{self._file} is closed: load it again")
            try:
                rows, most = validate_feeds(self._plan, feeds, outputs), self._plan.max_batch
                self._held.cuda.use()
                pieces = [slice(start, min(start + most, rows)) for start in range(0, rows, most)]
                parts = [self._run_piece(feeds, piece, outputs) for piece in pieces]
                if self._batch not in self._saved:  # kernels are compiled when a batch size first needs them
                    self._saved.add(self._batch)
                    self._kernels.save()
            except (BackendError, ValueError) as error:
                self._resident.clear()
                raise BackendError(f"{self._file} could not run: {error}") from error
        return parts[0] if len(parts) == 1 else [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]

    def close(self) -> None:
        """Free the device, after the call under way in another thread. May be called twice."""
        with self._lock:
            self._resident.clear()
            self._close()

    def _run_piece(
        self, feeds: Mapping[str, npt.NDArray[Any]], part: slice, outputs: Sequence[str]
    ) -> list[npt.NDArray[Any]]:
        batch, held = part.stop - part.start, self._held
        try:
            self._set_batch(batch)
            for tensor in self._plan.inputs:
                self._send(tensor, feeds[tensor.spec.name], part)
            self._execute()
            wanted = [held.buffers[name] for name in outputs]
            for buffer in wanted:
                held.download(buffer, batch)
        finally:
            held.cuda.call("cudaStreamSynchronize", held.stream)  # the buffers must be idle, whatever happened
        return [buffer.array[:batch].copy() for buffer in wanted]

    def _set_batch(self, batch: int) -> None:
        """Shapes of the context; a captured graph is for one shape and one state of the context."""
        if batch == self._batch:
            return
        self._batch, self._runs = 0, 0
        self._resident.clear()
        self._held.drop_graph()
        if self._plan.dynamic:
            for tensor in self._plan.inputs:
                if not self._held.context.set_input_shape(tensor.spec.name, tensor.at(batch)):
                    raise BackendError(f"TensorRT refused the shape {tensor.at(batch)} of {tensor.spec.name}")
        self._batch = batch

    def _send(self, tensor: TensorPlan, array: npt.NDArray[Any], part: slice) -> None:
        name = tensor.spec.name
        if self._resident.get(name) is array:
            return
        self._resident.pop(name, None)
        buffer = self._held.buffers[name]
        np.copyto(buffer.array[: self._batch], array[part])
        self._held.upload(buffer, self._batch)
        # Read-only and not a view of another array: it cannot change.
        if len(array) == self._batch and array.flags.owndata and not array.flags.writeable:
            self._resident[name] = array

    def _execute(self) -> None:
        held = self._held
        if held.graph is None and self._capture and self._runs:
            try:
                held.graph = held.cuda.capture(held.stream, self._enqueue)
            except BackendError as error:
                self._capture = False
                _LOGGER.warning("%s runs without a CUDA graph: %s", self._file, str(error))
        if held.graph is not None:
            held.cuda.call("cudaGraphLaunch", held.graph, held.stream)
        elif not self._enqueue():
            raise BackendError(f"TensorRT could not enqueue it{_last_error(self._logger)}")
        self._runs += 1

    def _enqueue(self) -> bool:
        return bool(self._held.context.execute_async_v3(int(self._held.stream)))


def load_engine(bundle: Bundle, record: EngineRecord, *, cuda_graphs: bool = True) -> TensorRTBackend:
    """Run an engine of the bundle on the first CUDA device; every check comes before anything is deserialised.

    Warns of one that was built in another power mode.

    Raises:
        BundleError: the file is damaged or foreign; the line has the command that rebuilds it.
        BackendError: it was built for another TensorRT or another GPU, or there is no TensorRT, CUDA device or memory.
    """
    data = bundle.engine_bytes(record.name, record.rebuild)
    check_header(data, record, bundle.root / record.name)
    flavor = _flavor_for(record)
    misfit = flavor_misfit(record, flavor.name, flavor.version)
    if misfit:
        raise BackendError(misfit)
    cuda = Cuda()
    device = cuda.device()
    misfit = device_misfit(record, device)
    if misfit:
        raise BackendError(misfit)
    gated = power_mode_misfit(record, device)
    if gated:
        warn_caller(gated, PowerModeWarning, __package__.rpartition(".")[0])
    kernels = bundle.root / f"{record.name}.kernels"
    return TensorRTBackend(data, record, flavor, cuda, cuda_graphs=cuda_graphs, kernels=kernels)


def _flavor_for(record: EngineRecord) -> Flavor:
    """The engine's flavour, or if that is missing the one that is here, to be named as the difference."""
    try:
        return find_flavor(record.flavor)
    except BackendError:
        try:
            return find_flavor()
        except BackendError as error:
            raise BackendError(f"{record.name} needs {DISPLAY_NAMES[record.flavor]}: {error}") from None


def _deserialise(data: bytes, record: EngineRecord, flavor: Flavor) -> tuple[tensorrt.Runtime, tensorrt.ICudaEngine]:
    """TensorRT's runtime and the engine."""
    try:
        runtime: tensorrt.Runtime = flavor.module.Runtime(_logger(flavor.module))
    except TypeError as error:  # what a factory that returned null becomes, as with a driver that is too old
        raise BackendError(start_refused(flavor, _last_error(_logger(flavor.module)))) from error
    if record.version_compatible and flavor.name == "tensorrt":
        runtime.engine_host_code_allowed = True  # such an engine brings its own runtime
    ask_rtx(data, record, flavor, runtime)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise _refused(record, flavor, "could not load")
    return runtime, engine


def ask_rtx(data: bytes, record: EngineRecord, flavor: Flavor, runtime: Any) -> None:
    """Let TensorRT for RTX judge an engine by its header, see IRuntime::getEngineValidity.

    Raises BackendError if it finds it invalid, with its reasons.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity == flavor.module.EngineValidity.INVALID:
        flags = flavor.module.EngineInvalidityDiagnostics.__members__
        names = ", ".join(name for name, flag in flags.items() if int(flag) & int(diagnostics)) or "no reason given"
        raise BackendError(f"{record.name}: TensorRT for RTX finds it invalid here ({names}): {record.rebuild}")
    if validity != flavor.module.EngineValidity.VALID:
        _LOGGER.warning("%s will run slower here than one built for this GPU: %s", record.name, record.rebuild)


def _create_context(
    engine: tensorrt.ICudaEngine, module: ModuleType, cuda_graphs: bool, kernels: _KernelCache
) -> tensorrt.IExecutionContext | None:
    """The engine's context; that of TensorRT for RTX captures CUDA graphs by itself, and uses the kernels again."""
    if hasattr(module, "CudaGraphStrategy"):
        config = engine.create_runtime_config()
        if cuda_graphs:
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.set_runtime_cache(kernels.load(config.create_runtime_cache()))
        return engine.create_execution_context(config)
    return engine.create_execution_context()


class _KernelCache:
    """The kernels that TensorRT for RTX compiles for this GPU at every start, kept in a file beside the engine.

    It judges the file itself, and rejects what another version, driver or GPU made. A file that cannot be read or
    written costs time and nothing else.
    """

    def __init__(self, path: Path | None) -> None:
        self._path, self._cache, self._loaded = path, None, b""

    def load(self, cache: Any) -> Any:
        self._cache = cache
        try:
            if self._path is not None and self._path.stat().st_size <= _MOST_KERNEL_BYTES:
                self._loaded = self._path.read_bytes()
        except OSError:
            return cache
        if self._loaded and not cache.deserialize(self._loaded):
            _LOGGER.info("%s is not of this GPU, driver and version: kernels are compiled again", self._path)
            self._loaded = b""
        return cache

    def save(self) -> None:
        """Writes what was compiled since it was loaded."""
        if self._cache is None or self._path is None:
            return
        kernels = bytes(self._cache.serialize())
        if kernels in (b"", self._loaded):
            return
        self._loaded = kernels
        try:
            write_whole(self._path, kernels)
        except OSError as error:
            _LOGGER.info("%s cannot be written (%s): kernels are compiled at every start", self._path, error.strerror)


def _plan(engine: tensorrt.ICudaEngine, record: EngineRecord) -> BufferPlan:
    try:
        return plan_buffers(engine)
    except ValueError as error:
        raise BackendError(f"{record.name} is not an engine of a bundle's graph ({error}): {record.rebuild}") from None


def _refused(record: EngineRecord, flavor: Flavor, what: str) -> BackendError:
    reason = _last_error(_logger(flavor.module))
    return BackendError(f"{DISPLAY_NAMES[flavor.name]} {what} {record.name}{reason}: {record.rebuild}")


def start_refused(flavor: Flavor, reason: str) -> str:
    """The line for a TensorRT that does not start; `reason` is what it logged, in brackets, or nothing."""
    name = f"{DISPLAY_NAMES[flavor.name]} {flavor.version}"
    return f"{name} cannot start here{reason}: update the GPU's driver, or install a TensorRT of the driver's CUDA"


def _last_error(logger: Any) -> str:
    text = logger.errors.pop() if logger.errors else ""
    return f" ({text})" if text else ""


@functools.cache
def _logger(module: ModuleType) -> Any:
    """TensorRT's messages into `logging`; one for the process, which TensorRT insists on."""

    class Logger(module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=1)

        def log(self, severity: Any, msg: str) -> None:
            line = " ".join(msg.split())
            level = _LEVELS.get(severity.name, logging.DEBUG)
            if level == logging.ERROR:
                self.errors.append(line[:300])
            _LOGGER.log(logging.DEBUG if level == logging.ERROR else level, "%s: %s", module.__name__, line)

    return Logger()
