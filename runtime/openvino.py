"""OpenVINO as a backend: Intel's and Arm's CPUs, Intel's GPUs and NPUs. The same bundle, graphs and checks."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.cache import cache_folder
from ..errors import BackendError, BundleError, DatasetError, reason_of
from .backend import Backend, check_threads
from .manifest import EXPORT_AGAIN
from .signature import Signature, TensorSpec

DEVICES = {"auto": "CPU", "cpu": "CPU", "intel-gpu": "GPU", "intel-npu": "NPU"}
"""OpenVINO's name of each device."""

_LOGGER = logging.getLogger("lavt_edge")
_CPU_INFO = Path("/proc/cpuinfo")
_LOADING = threading.Lock()


class OpenVINOBackend(Backend):
    """A graph on OpenVINO, compiled for latency.

    What is not INT8 runs in float32, also where the device would choose bfloat16 or FP16 by itself: masks are those
    that the bundle was checked with. Compiled graphs are kept in the user's cache; OpenVINO keys them by the graph, the
    device and its own version.

    Args:
        path: an .onnx file; its external data lies beside it.
        device: "cpu" (or "auto"), "intel-gpu" or "intel-npu".
        threads: of the CPU (None: OpenVINO's choice).

    Raises:
        BackendError: no OpenVINO, or it lists no such device.
        BundleError: the file is not a graph that OpenVINO can load.
    """

    max_batch: int | None = None

    def __init__(self, path: Path, *, device: str = "auto", threads: int | None = None) -> None:
        if device not in DEVICES:
            raise BackendError(f"OpenVINO has no device {device!r}: give one of {', '.join(DEVICES)}")
        check_threads(threads)
        openvino = _import_openvino()
        with _LOADING:
            core = _core(openvino)
        self._path, self.device = path, "cpu" if device == "auto" else device
        self.name = f"OpenVINO {openvino.__version__.split('-')[0]}"
        listed = core.available_devices
        if not any(name.split(".")[0] == DEVICES[device] for name in listed):
            raise BackendError(
                f"OpenVINO lists no {DEVICES[device]} here ({', '.join(listed) or 'nothing'}): give device='cpu', or "
                "install its driver"
            )
        properties = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        with suppress(DatasetError):  # no home folder: nothing is kept
            properties["CACHE_DIR"] = str(cache_folder() / "openvino")
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = str(threads)
        try:
            model = core.read_model(str(path))
            self._compiled = core.compile_model(model, DEVICES[device], properties)
            self.signature = Signature(
                inputs=tuple(tensor_spec(port) for port in self._compiled.inputs),
                outputs=tuple(tensor_spec(port) for port in self._compiled.outputs),
            )
        except (RuntimeError, UnicodeDecodeError) as error:
            raise BundleError(
                f"{path} is not a graph that OpenVINO can load ({reason_of(error, 300)}): {EXPORT_AGAIN}"
            ) from error
        if DEVICES[device] == "CPU" and _saturates() and _is_int8(model):
            _LOGGER.warning(
                "%s: this CPU has no VNNI, without which OpenVINO's INT8 products saturate and ONNX Runtime's do not: "
                "use backend='onnxruntime', or compare the masks with FP32's",
                path.name,
            )
        self._idle: list[Any] = []  # requests; each is used by one thread at a time
        _LOGGER.info("%s runs on %s (%s)", path.name, self.device, self.name)

    def run(self, feeds: Mapping[str, npt.NDArray[Any]], outputs: Sequence[str]) -> list[npt.NDArray[Any]]:
        """The named outputs for these inputs. Raises BackendError if OpenVINO fails on them."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:
            arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
            request.infer(arrays, share_inputs=True)
            return [np.array(request.get_tensor(name).data) for name in outputs]
        except (RuntimeError, TypeError, ValueError) as error:
            raise BackendError(f"{self._path.name} could not run: {reason_of(error, 300)}") from error
        finally:
            self._idle.append(request)


@cache
def _core(openvino: Any) -> Any:
    """One for the process, never freed.

    The CPU plugin gives the thread that loads it a stack for signals (openvino#11894). Freed by another thread, that
    stack is gone, and the next signal, Ctrl-C too, ends the process with a segmentation fault.
    """
    return openvino.Core()


def _import_openvino() -> Any:
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError as error:
        raise BackendError(f"OpenVINO cannot be imported ({error}): pip install lavt-edge[openvino]") from error
    return openvino


def _is_int8(model: Any) -> bool:
    return any(operation.type_info.name == "FakeQuantize" for operation in model.get_ops())


def _saturates() -> bool:
    """Whether this is an x86-64 CPU without VNNI, as far as the system says: Arm's list has another name."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", _CPU_INFO.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and "vnni" not in flags[1]


def tensor_spec(port: Any) -> TensorSpec:
    """An input or output of a compiled model."""
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()).name, shape)
