"""What runs a graph: the members that every backend has, and ONNX Runtime's. TensorRT's is in `tensorrt.backend`."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import BackendError, BundleError, reason_of
from .cuda import cuda_device_count
from .manifest import EXPORT_AGAIN
from .signature import Signature, TensorSpec

DEVICES = ("auto", "cpu", "cuda")

_LOGGER = logging.getLogger("lavt_edge")
_DTYPES = {"float": "float32", "double": "float64"}
_LOG_ERRORS_ONLY, _LOG_FATAL_ONLY = 3, 4
_CUDA = "CUDAExecutionProvider"
_CPU_ONLY = ("CPUExecutionProvider",)
# TF32 would round the factors of every product in an fp32 graph to 10 bits; a fast graph is one of another precision.
_CUDA_FIRST = ((_CUDA, {"use_tf32": "0"}), *_CPU_ONLY)
# On x86-64 without VNNI the product of uint8 and int8 saturates at 16 bits unless ONNX Runtime takes uint8 for both
# (onnxruntime_session_options_config_keys.h); where it does not saturate this changes nothing.
_EXACT_INT8 = {"session.x64quantprecision": "1"}


class Backend(Protocol):
    """A loaded graph. `run` may be called from several threads at once.

    Attributes:
        name: what runs it, with its version, such as "TensorRT 10.3.0".
        device: "cpu" or "cuda".
        signature: the graph's inputs and outputs.
        max_batch: the largest batch that runs at once, if its batch is dynamic and has a limit; else None.
    """

    name: str
    device: str
    signature: Signature
    max_batch: int | None

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The named outputs for these inputs. Raises BackendError if the graph cannot be run on them."""
        raise NotImplementedError

    def start(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> Callable[[], list[npt.NDArray[Any]]]:
        """Begins what `run` does, if it can go on by itself; what is returned does the rest and gives the outputs."""
        return partial(self.run, feeds, outputs)

    def run_in_steps(
        self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]
    ) -> tuple[list[npt.NDArray[Any]], dict[str, float]]:
        """`run`, and the seconds of "copy_in", "image" and "copy_out"; all are "image" where that copies by itself."""
        start = time.perf_counter()
        made = self.run(feeds, outputs)
        return made, {"copy_in": 0.0, "image": time.perf_counter() - start, "copy_out": 0.0}


def create_session(
    graph: Path | bytes,
    *,
    cuda: bool = False,
    threads: int | None = None,
    spinning: bool = False,
    options: Mapping[str, object] = MappingProxyType({}),
    config: Mapping[str, str] = MappingProxyType({}),
    weights: Mapping[str, npt.NDArray[Any]] = MappingProxyType({}),
) -> Any:
    """An `onnxruntime.InferenceSession` of a file or of a serialised model, on the CPU, or on CUDA before it.

    `threads` is within an operator (None: one per core); `spinning` lets threads without work burn their core for a
    while rather than sleep: those of the text graph get in the way of the image graph. `options` are attributes of
    `onnxruntime.SessionOptions`, `config` its configuration entries. `weights` are initializers that the graph has as
    external data, by name; they must outlive the session, which does not copy them. Raises what ONNX Runtime raises if
    it cannot load the graph, and BackendError if it cannot be imported.
    """
    runtime = _import_onnxruntime()
    settings = runtime.SessionOptions()
    # What fails raises, with the same words; of CUDA they are all that says which library is missing.
    settings.log_severity_level = _LOG_ERRORS_ONLY if cuda else _LOG_FATAL_ONLY
    if threads is not None:
        settings.intra_op_num_threads = threads
    for name, value in options.items():
        setattr(settings, name, value)
    always = {"session.intra_op.allow_spinning": str(int(spinning)), **_EXACT_INT8}
    for name, text in {**always, **config}.items():
        settings.add_session_config_entry(name, text)
    if weights:
        values = [runtime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        settings.add_external_initializers(list(weights), values)
    source = graph if isinstance(graph, bytes) else str(graph)
    providers = list(_CUDA_FIRST if cuda else _CPU_ONLY)
    return runtime.InferenceSession(source, sess_options=settings, providers=providers, enable_fallback=0)


def cuda_problem() -> str | None:
    """Why ONNX Runtime cannot use CUDA on this machine, or None."""
    if _CUDA not in _import_onnxruntime().get_available_providers():
        return "this ONNX Runtime has no CUDA: pip install lavt-edge[cuda]"
    return None if cuda_device_count() else "no CUDA device was found"


@dataclass(frozen=True)
class Placement:
    """Where and how graphs run: see the arguments of `Segmenter.load`."""

    device: str = "auto"
    threads: int | None = None
    spinning: bool = False
    backend: str | None = None


def check_threads(threads: object) -> None:
    """Raises BackendError for what is neither a positive integer nor None."""
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise BackendError(f"threads must be a positive integer or None, not {threads!r}")


class OnnxRuntimeBackend(Backend):
    """A graph on ONNX Runtime.

    Args:
        path: an .onnx file; its external data lies beside it.
        device: "cpu", "cuda", or "auto": CUDA if there is a device and ONNX Runtime can use it, else the CPU.
        threads: threads within an operator on the CPU (None: one per core).
        spinning: whether threads without work spin for a while rather than sleep.

    Raises:
        BackendError: no ONNX Runtime, an unknown device, CUDA was asked for and cannot be used, or the CPU has no
            kernels for the graph's types, such as bfloat16.
        BundleError: the file is not a graph that ONNX Runtime can load.
    """

    max_batch: int | None = None

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None, spinning: bool = False) -> None:
        if device not in DEVICES:
            raise BackendError(f"unknown device {device!r}: give one of {', '.join(DEVICES)}")
        check_threads(threads)
        self._path, self._threads, self._spinning = path, threads, spinning
        self.name = f"ONNX Runtime {_import_onnxruntime().__version__}"
        self._session, self.device = self._create(device)
        try:
            self.signature = Signature(
                inputs=tuple(_tensor_spec(argument) for argument in self._session.get_inputs()),
                outputs=tuple(_tensor_spec(argument) for argument in self._session.get_outputs()),
            )
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} has an input or output whose name is not text: {EXPORT_AGAIN}") from error
        _LOGGER.info("%s runs on %s (%s)", path.name, self.device, self.name)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The named outputs for these inputs. Raises BackendError if ONNX Runtime fails on them."""
        try:
            return [np.asarray(output) for output in self._session.run(list(outputs), dict(feeds))]
        except Exception as error:  # the classes of ONNX Runtime's errors derive from Exception alone
            raise BackendError(f"{self._path.name} could not run: {reason_of(error, 300)}") from error

    def _create(self, device: str) -> tuple[Any, str]:
        if device != "cpu":
            problem = cuda_problem()
            if problem is None:
                session, problem = self._create_on_cuda()
                if session is not None:
                    return session, "cuda"
                _LOGGER.log(logging.WARNING if device == "auto" else logging.DEBUG, "no CUDA: %s", problem)
            if device == "cuda":
                raise BackendError(f"CUDA was asked for and cannot be used ({problem}): give device='cpu'")
        try:
            return create_session(self._path, threads=self._threads, spinning=self._spinning), "cpu"
        except Exception as error:
            if type(error).__name__ == "NotImplemented":  # ONNX Runtime's: an operator without a kernel for its type
                raise BackendError(
                    f"ONNX Runtime cannot run {self._path} on the CPU ({reason_of(error, 300)}): build its engine, or "
                    "load another precision"
                ) from error
            raise BundleError(
                f"{self._path} is not a graph that ONNX Runtime can load ({reason_of(error, 300)}): {EXPORT_AGAIN}"
            ) from error

    def _create_on_cuda(self) -> tuple[Any | None, str]:
        _preload_cuda_libraries(_import_onnxruntime())
        try:
            session = create_session(self._path, cuda=True, threads=self._threads, spinning=self._spinning)
        except Exception as error:
            return None, reason_of(error, 300)
        if _CUDA not in session.get_providers():
            return None, "ONNX Runtime could not load CUDA or cuDNN"
        return session, ""


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
        from onnxruntime import InferenceSession  # noqa: F401  (one that is half removed has none)
    except ImportError as error:
        raise BackendError(
            f"ONNX Runtime cannot be imported ({error}): pip install lavt-edge[cpu], or lavt-edge[cuda] for a GPU"
        ) from error
    return onnxruntime


def _preload_cuda_libraries(runtime: Any) -> None:
    """Let ONNX Runtime find CUDA and cuDNN if they came as Python packages; it prints what it misses, to stdout."""
    if hasattr(runtime, "preload_dlls"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            runtime.preload_dlls(directory="")
        if printed.getvalue():
            _LOGGER.debug("%s", printed.getvalue().strip())


def _tensor_spec(argument: Any) -> TensorSpec:
    element = str(argument.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else None for size in argument.shape)
    return TensorSpec(argument.name, _DTYPES.get(element, element), shape)
