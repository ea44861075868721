"""Engines deserialised and their contexts made, what TensorRT says of it, and the kernels that it compiles."""

from __future__ import annotations

import functools
import logging
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..._base.files import write_whole
from ...errors import BackendError
from .buffers import BufferPlan, plan_buffers
from .flavor import Flavor
from .record import DISPLAY_NAMES, EngineRecord

if TYPE_CHECKING:
    import tensorrt

_LOGGER = logging.getLogger("lavt_edge")
_MOST_KERNEL_BYTES = 2**28
_LEVELS = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}


def deserialise(data: bytes, record: EngineRecord, flavor: Flavor) -> tuple[tensorrt.Runtime, tensorrt.ICudaEngine]:
    """TensorRT's runtime and the engine."""
    try:
        runtime: tensorrt.Runtime = flavor.module.Runtime(logger_of(flavor.module))
    except TypeError as error:  # what a factory that returned null becomes, as with a driver that is too old
        raise BackendError(start_refused(flavor, last_error(logger_of(flavor.module)))) from error
    if record.version_compatible and flavor.name == "tensorrt":
        runtime.engine_host_code_allowed = True  # such an engine brings its own runtime
    ask_rtx(data, record, flavor, runtime)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise refused(record, flavor, "could not load")
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


def create_context(
    engine: tensorrt.ICudaEngine, module: ModuleType, cuda_graphs: bool, kernels: KernelCache
) -> tensorrt.IExecutionContext | None:
    """The engine's context; that of TensorRT for RTX captures CUDA graphs by itself, and uses the kernels again."""
    if hasattr(module, "CudaGraphStrategy"):
        config = engine.create_runtime_config()
        if cuda_graphs:
            config.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        config.set_runtime_cache(kernels.load(config.create_runtime_cache()))
        return engine.create_execution_context(config)
    return engine.create_execution_context()


class KernelCache:
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


def plan_of(engine: tensorrt.ICudaEngine, record: EngineRecord) -> BufferPlan:
    try:
        return plan_buffers(engine)
    except ValueError as error:
        raise BackendError(f"{record.name} is not an engine of a bundle's graph ({error}): {record.rebuild}") from None


def refused(record: EngineRecord, flavor: Flavor, what: str) -> BackendError:
    reason = last_error(logger_of(flavor.module))
    return BackendError(f"{DISPLAY_NAMES[flavor.name]} {what} {record.name}{reason}: {record.rebuild}")


def start_refused(flavor: Flavor, reason: str) -> str:
    """The line for a TensorRT that does not start; `reason` is what it logged, in brackets, or nothing."""
    name = f"{DISPLAY_NAMES[flavor.name]} {flavor.version}"
    return f"{name} cannot start here{reason}: update the GPU's driver, or install a TensorRT of the driver's CUDA"


def last_error(logger: Any) -> str:
    text = logger.errors.pop() if logger.errors else ""
    return f" ({text})" if text else ""


@functools.cache
def logger_of(module: ModuleType) -> Any:
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
