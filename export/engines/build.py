"""From an ONNX file to an engine, by polygraphy's loaders over the TensorRT at hand; strongly typed always."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import platform
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..._base.exits import needs
from ..._base.files import write_whole
from ..._base.progress import ignore
from ...errors import ExportError, reason_of
from ...runtime.tensorrt.flavor import Flavor
from ...runtime.tensorrt.loading import start_refused
from ...runtime.tensorrt.record import DISPLAY_NAMES
from .layers import LOG_TITLE, EngineLayer, layers_from_inspector, layers_from_log
from .memory import network_layers, peak_bytes
from .options import BuildPlan, profile_shapes
from .progress import Phases, Progress, make_monitor, run_stoppable

if TYPE_CHECKING:
    import tensorrt

_LOGGER = logging.getLogger("lavt_edge")
_RTX_SWITCH = "POLYGRAPHY_USE_TENSORRT_RTX"
_NOISE = ("catchCudaError", "CUDA driver version", "--- ", "Node name", "Thread context")


@dataclass(frozen=True)
class BuiltEngine:
    """An engine's bytes (TensorRT's own buffer), its layers (empty: none were reported), and the seconds it took."""

    data: Any
    layers: list[EngineLayer]
    seconds: float


def known_targets(flavor: Flavor) -> list[str]:
    """The compute capabilities that TensorRT for RTX compiles for, such as "sm86"; none for TensorRT."""
    members = getattr(getattr(flavor.module, "ComputeCapability", None), "__members__", {})
    return sorted((name.lower() for name in members if name.startswith("SM")), key=lambda name: int(name[2:]))


def build_engine(
    onnx_file: Path,
    plan: BuildPlan,
    flavor: Flavor,
    *,
    progress: Progress = ignore,
    on_memory: Callable[[int], None] = lambda activations: None,
) -> BuiltEngine:
    """Builds the engine of a typed graph.

    `progress` is told TensorRT's phase and the share that is done, 0 to 1; `on_memory` the bytes of tensors that are
    alive at once, before the build begins. A timing cache is read and, even if the build is stopped, written.
    Raises ExportError in one line if TensorRT cannot start, read or build the graph, and KeyboardInterrupt or
    SystemExit if that stopped the build.
    """
    polygraphy = import_polygraphy(flavor)
    logger = _build_logger(flavor.module)
    logger.clear()
    polygraphy.trt.util.TRT_LOGGER = logger  # what its loaders take; its own prints to stdout
    phases, stop = Phases(), threading.Event()

    def work() -> BuiltEngine:
        with polygraphy.silence():
            monitor = make_monitor(flavor.module, phases, stop)
            data, seconds = _build(polygraphy, onnx_file, plan, flavor, monitor, on_memory)
            # Builder and network are gone by now: reading the engine back needs the memory that they held.
            return BuiltEngine(data, _layers(flavor, data), seconds)

    def refresh() -> None:
        phase, share = phases.now()
        progress(phase or ("finishing" if share else f"reading {onnx_file.name}"), share)

    try:
        return run_stoppable(work, stop, refresh)
    except TypeError as error:
        if "nullptr" not in str(error):
            raise
        # TensorRT's factory returned null, as with a driver that is too old.
        reason = " ".join(logger.errors[:1])
        raise ExportError(start_refused(flavor, f" ({reason})" if reason else "")) from error
    except polygraphy.Error as error:
        reason = logger.reason() or reason_of(error)
        raise ExportError(
            f"{DISPLAY_NAMES[flavor.name]} {flavor.version} cannot build {onnx_file.name}: {reason[:400]}"
        ) from error


def _build(
    polygraphy: Polygraphy,
    onnx_file: Path,
    plan: BuildPlan,
    flavor: Flavor,
    monitor: Any,
    on_memory: Callable[[int], None],
) -> tuple[Any, float]:
    """The engine's bytes, and the seconds that TensorRT took."""
    # From 11.0 on networks are always strongly typed: the flag is ignored, and may be removed.
    typed = hasattr(flavor.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    builder, network, parser = polygraphy.trt.network_from_onnx_path(str(onnx_file), strongly_typed=typed)
    on_memory(peak_bytes(list(network_layers(network, plan.max_batch))))
    config = _configure(polygraphy, builder, network, plan, flavor.module, monitor)
    start = time.perf_counter()
    try:
        data = polygraphy.trt.engine_bytes_from_network((builder, network, parser), config=config)
        return data, time.perf_counter() - start
    finally:
        if plan.timing_cache is not None:
            save_timing_cache(config, plan.timing_cache)


def _configure(
    polygraphy: Polygraphy, builder: Any, network: Any, plan: BuildPlan, module: ModuleType, monitor: Any
) -> tensorrt.IBuilderConfig:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    profile = polygraphy.trt.Profile()
    for name, shapes in profile_shapes({tensor.name: tuple(tensor.shape) for tensor in inputs}, plan.max_batch).items():
        profile.add(name, *shapes)
    options = plan.options
    common: dict[str, Any] = {
        "profiles": [profile],
        "profiling_verbosity": module.ProfilingVerbosity.DETAILED,
        "progress_monitor": monitor,
        "builder_optimization_level": options.optimization_level,
    }
    if options.workspace is not None:
        common["memory_pool_limits"] = {module.MemoryPoolType.WORKSPACE: options.workspace}
    if plan.flavor == "tensorrt_rtx":
        capabilities = [(int(target[2:-1]), int(target[-1])) for target in plan.targets]
        config = polygraphy.rtx.create_config_rtx(builder, network, compute_capabilities=capabilities, **common)
    else:
        if options.hardware_compatible:
            common["hardware_compatibility_level"] = module.HardwareCompatibilityLevel.AMPERE_PLUS
        config = polygraphy.trt.create_config(builder, network, version_compatible=options.version_compatible, **common)
        if plan.timing_cache is not None:
            load_timing_cache(config, plan.timing_cache)
    if hasattr(module.BuilderFlag, "TF32"):
        config.clear_flag(module.BuilderFlag.TF32)  # what is FP32 in the graph needs its digits
    return config


def load_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    """Gives the build the timings of earlier builds; a file that TensorRT does not accept is replaced."""
    try:
        data = path.read_bytes()
    except OSError:
        return
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        _LOGGER.warning("%s is not a timing cache of this TensorRT and GPU: it is made again", path)
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def save_timing_cache(config: tensorrt.IBuilderConfig, path: Path) -> None:
    """Keeps what the build has timed so far. A file that cannot be written does not fail the build."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        write_whole(path, bytes(cache.serialize()))
    except OSError as error:
        _LOGGER.warning("%s cannot be written (%s): the next build times everything again", path, error.strerror)


def _layers(flavor: Flavor, data: Any) -> list[EngineLayer]:
    """From the log if TensorRT for RTX wrote them there, which needs no GPU, else from the inspector."""
    module, logger = flavor.module, _build_logger(flavor.module)
    layers = layers_from_log(logger.layers)
    if layers:
        return layers
    try:
        runtime = module.Runtime(logger)
        with suppress(AttributeError):
            runtime.engine_host_code_allowed = True  # version-compatible engines bring their own runtime
        inspector = runtime.deserialize_cuda_engine(data).create_engine_inspector()
        return layers_from_inspector(inspector.get_engine_information(module.LayerInformationFormat.JSON))
    except Exception as error:  # the engine is built; without a GPU TensorRT cannot read it back for this report
        _LOGGER.info("the engine's layers are not known: %s", reason_of(error))
        return []


@dataclass(frozen=True)
class Polygraphy:
    """The parts of polygraphy that a build takes."""

    trt: Any
    rtx: Any
    Error: type[Exception]
    silence: Callable[[], Any]


def import_polygraphy(flavor: Flavor) -> Polygraphy:
    """Polygraphy over this flavour. It decides once, when it is first imported, so another choice imports it anew.

    Raises LavtError if it is not installed.
    """
    wanted = flavor.name == "tensorrt_rtx"
    os.environ[_RTX_SWITCH] = str(int(wanted))
    # JetPack brings a Jetson's TensorRT, and the extra `trt` would install another.
    extra = "rtx" if wanted else "jetson" if platform.machine() == "aarch64" else "trt"
    with needs(extra):
        if bool(importlib.import_module("polygraphy.config").USE_TENSORRT_RTX) != wanted:
            for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
                del sys.modules[name]
        logger = importlib.import_module("polygraphy.logger").G_LOGGER
        return Polygraphy(
            trt=importlib.import_module("polygraphy.backend.trt"),
            rtx=importlib.import_module("polygraphy.backend.tensorrt_rtx") if wanted else None,
            Error=importlib.import_module("polygraphy.exception").PolygraphyException,
            silence=lambda: logger.verbosity(logger.CRITICAL + 1),
        )


@functools.cache
def _build_logger(module: ModuleType) -> Any:
    """What TensorRT says while it builds: errors for the message, the layer report, the rest into `logging`."""

    class Logger(module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, msg: str) -> None:
            if msg.startswith(LOG_TITLE):
                self.layers = msg
            elif severity.name in ("INTERNAL_ERROR", "ERROR"):
                self.errors.append(" ".join(msg.split()))
            elif severity.name == "WARNING":
                _LOGGER.info("%s: %s", module.__name__, " ".join(msg.split()))

        def reason(self) -> str:
            """The first error that says something of its own; later errors follow from it."""
            return next((line for line in self.errors if not any(noise in line for noise in _NOISE)), "")

    return Logger()
