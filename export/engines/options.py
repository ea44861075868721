"""What `lavt-export trt` is asked for, and whether it can be built here: decisions alone, without TensorRT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ExportError
from ...runtime.cuda import CudaDevice
from ...runtime.manifest import InputSpec
from ...runtime.tensorrt.flavor import FLAVORS
from ...runtime.tensorrt.record import DISPLAY_NAMES

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_UNITS = {"": 2**20, "k": 2**10, "m": 2**20, "g": 2**30}
_LEAST_WORKSPACE = 2**20
_AMPERE = 80


@dataclass(frozen=True)
class EngineOptions:
    """What to build. None leaves a choice to TensorRT, or to what the bundle and the machine say.

    `precision` is the image engine's; `workspace` is in bytes; `targets` are compute capabilities such as "sm86" that
    TensorRT for RTX compiles for without a GPU. Raises ExportError, which names the option, if a value is out of range.
    """

    precision: str = "fp16"
    flavor: str | None = None
    workspace: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None
    max_batch: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ExportError(f"precision {self.precision!r}: give one of {', '.join(PRECISIONS)}")
        if self.flavor is not None and self.flavor not in FLAVORS:
            raise ExportError(f"--flavor {self.flavor!r}: give one of {', '.join(FLAVORS)}")
        if self.workspace is not None and self.workspace < _LEAST_WORKSPACE:
            raise ExportError(f"--workspace: {self.workspace} bytes are too few; give 1M or more")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise ExportError(f"--optimization-level {self.optimization_level}: give 0 to 5")
        if self.max_batch is not None and not 1 <= self.max_batch <= 1024:
            raise ExportError(f"--max-batch {self.max_batch}: give 1 to 1024")


@dataclass(frozen=True)
class BuildPlan:
    """A build that can be done here: the options with every choice made.

    `targets` is empty for TensorRT, which builds for `device`; TensorRT for RTX needs no device. `max_batch` is the
    graph's own batch if that is fixed. `timing_cache` is None if the flavour has none.
    """

    options: EngineOptions
    flavor: str
    version: str
    device: CudaDevice | None
    targets: tuple[str, ...]
    max_batch: int
    timing_cache: Path | None

    def describe(self) -> str:
        """Such as "TensorRT for RTX 1.7.1 for sm86, sm89, batches of up to 4"."""
        where = ", ".join(self.targets) or (f"{self.device.name} ({self.device.sm})" if self.device else "no device")
        return f"{DISPLAY_NAMES[self.flavor]} {self.version} for {where}, batches of up to {self.max_batch}"


def plan_build(
    root: Path,
    options: EngineOptions,
    spec: InputSpec,
    *,
    flavor: str,
    version: str,
    device: CudaDevice | None,
    known_targets: Sequence[str],
) -> BuildPlan:
    """The plan for the bundle in folder `root`, whose graphs take `spec`; `known_targets` are what RTX compiles for.

    Raises ExportError if an option has no meaning for this flavour, bundle or machine.
    """
    if flavor == "tensorrt":
        _check_tensorrt(options, version, device)
        targets: tuple[str, ...] = ()
    else:
        _check_rtx(options)
        targets = _targets(options.targets, known_targets, version)
    default_cache = root.resolve().with_name(f"{root.resolve().name}.timing-cache")
    return BuildPlan(
        options=options,
        flavor=flavor,
        version=version,
        device=device,
        targets=targets,
        max_batch=_max_batch(options.max_batch, spec.batch),
        timing_cache=(options.timing_cache or default_cache) if flavor == "tensorrt" else None,
    )


def _check_tensorrt(options: EngineOptions, version: str, device: CudaDevice | None) -> None:
    if options.targets:
        raise ExportError(
            f"--compute-capability is for TensorRT for RTX; TensorRT {version} builds for the GPU of this machine: "
            "leave it out, or pass --flavor tensorrt_rtx"
        )
    if device is None:
        raise ExportError(
            f"TensorRT {version} builds on the GPU that will run the engine, and there is no CUDA device here: run "
            "this on that machine, or pass --flavor tensorrt_rtx --compute-capability sm86"
        )


def _check_rtx(options: EngineOptions) -> None:
    for given, option, reason in (
        (options.version_compatible, "--version-compatible", "it has no lean runtime to put into an engine"),
        (options.hardware_compatible, "--hardware-compatible", "its engines run on every GPU they are compiled for"),
        (options.timing_cache, "--timing-cache", "it times nothing while it builds"),
    ):
        if given:
            raise ExportError(f"{option} has no meaning for TensorRT for RTX ({reason}); leave it out")


def _targets(wanted: tuple[str, ...], known: Sequence[str], version: str) -> tuple[str, ...]:
    """The targets that were asked for, or all since Ampere: Turing lacks FP32 products and takes engines of its own."""
    for target in wanted:
        if target not in known:
            raise ExportError(
                f"--compute-capability {target}: TensorRT for RTX {version} compiles for {', '.join(known)}"
                + ("; an Orin takes TensorRT" if target == "sm87" else "")
            )
    return wanted or tuple(target for target in known if int(target[2:]) >= _AMPERE)


def _max_batch(wanted: int | None, batch: int | None) -> int:
    if batch is not None and wanted not in (None, batch):
        raise ExportError(
            f"--max-batch {wanted}: the bundle's graphs take batches of {batch}; "
            "export them with lavt-export onnx --batch dynamic"
        )
    return batch or wanted or 1


def wanted_graphs(precision: str) -> tuple[tuple[str, str], ...]:
    """Role and precision of each graph to build, the smaller first: the text encoder has no INT8 graph."""
    return (("text_encoder", "fp16" if precision == "int8" else precision), ("segmenter", precision))


def engine_name(role: str, precision: str) -> str:
    return f"{role}.{precision}.engine"


def profile_shapes(
    inputs: dict[str, tuple[int, ...]], max_batch: int
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Smallest, best and largest shape of each input, for batches of 1 to `max_batch` if the batch is dynamic (-1).

    The engine is tuned for the largest. Raises ExportError if another dimension is dynamic.
    """
    shapes = {}
    for name, shape in inputs.items():
        if any(size < 0 for size in shape[1:]):
            raise ExportError(f"the input {name} has the shape {shape}: only the batch may be dynamic")
        smallest, largest = ((size, *shape[1:]) if shape[0] < 0 else shape for size in (1, max_batch))
        shapes[name] = (smallest, largest, largest)
    return shapes


def parse_bytes(text: str) -> int:
    """Bytes from text such as "2G" or "512M" (powers of 1024); a bare number counts MiB. Raises ExportError."""
    match = re.fullmatch(r"([0-9]{1,9})([kmg]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise ExportError(f"--workspace {text!r}: give a size such as 512M or 2G")
    return int(match[1]) * _UNITS[match[2]]


def parse_targets(text: str) -> tuple[str, ...]:
    """Compute capabilities from text such as "sm86,8.9", each once. Raises ExportError."""
    targets = []
    for part in text.lower().split(","):
        match = re.fullmatch(r"(?:sm_?)?([0-9]{1,2})\.?([0-9])", part.strip())
        if not match:
            raise ExportError(f"--compute-capability {text!r}: give a list such as sm86,sm89")
        targets.append(f"sm{match[1]}{match[2]}")
    return tuple(dict.fromkeys(targets))
