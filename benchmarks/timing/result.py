"""What `lavt-bench` was asked and what it measured, as data: a tree of frozen dataclasses, whose root is `Result`.

`lavt-bench --json` writes it as it stands here: a class as an object, a field as a key. Times are in seconds, ratios
of medians, `name` over `against`: below 1 `name` is faster. None: not measured, or the system does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..._base.records import OPTIONAL, to_plain
from ..._base.timing import Ratio, Summary
from .machine import Machine

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Options:
    """What to measure. `against` are peers by name or path; `checkpoint` None is the demo's if the bundle's is.

    `frame` is the height and width of the noise that is measured on if there is no `image`.
    `batch` is in images, for graphs with a dynamic batch; `threads` None: one per core. `sweep_threads` and
    `sweep_batch` are measured as well, one after another, `sweep_rounds` each.
    """

    engine: Path
    against: tuple[str, ...] = ()
    checkpoint: str | None = None
    image: Path | None = None
    text: str = "the man in red"
    warmup: int = 3
    rounds: int = 20
    batch: int = 1
    threads: int | None = None
    device: str = "auto"
    sweep_threads: tuple[int, ...] = ()
    sweep_batch: tuple[int, ...] = ()
    sweep_rounds: int = 10
    split: bool = True
    frame: tuple[int, int] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Memory:
    """Bytes: the peak of the side's process, what it held before it opened the side, and what it took on the GPU."""

    peak_bytes: int | None
    before_bytes: int | None
    device_bytes: int | None


@dataclass(frozen=True)
class Overhead:
    """What a call takes beside the image graph: seconds, and their share of the call; medians over the rounds."""

    seconds: float
    share: float


@dataclass(frozen=True)
class SideResult:
    """A side: `size` is (height, width), `batch` images a call, `seconds` those of each round in their order.

    A bundle's call is also split: `split` is the median of each step of `latency.PARTS`, `call` that of whole calls.
    """

    name: str
    kind: str
    precision: str
    size: tuple[int, int]
    batch: int
    device: str
    runtime: str
    file: str | None
    seconds: tuple[float, ...]
    summary: Summary
    memory: Memory
    split: Mapping[str, float] | None = None
    call: float | None = None
    overhead: Overhead | None = None


@dataclass(frozen=True)
class SideRatio(Ratio):
    """The time of a side over that of another, per image."""

    name: str
    against: str


@dataclass(frozen=True)
class SweepPoint:
    """A side with another number of threads or another batch (`sweep` says which), or why it was `skipped`.

    `ratio`, `low` and `high` are those of the engine over this side.
    """

    sweep: str
    threads: int | None
    batch: int
    name: str
    seconds: tuple[float, ...] | None = field(default=None, metadata=OPTIONAL)
    summary: Summary | None = field(default=None, metadata=OPTIONAL)
    ratio: float | None = field(default=None, metadata=OPTIONAL)
    low: float | None = field(default=None, metadata=OPTIONAL)
    high: float | None = field(default=None, metadata=OPTIONAL)
    skipped: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class PartCost:
    """What one part of the model costs for a batch.

    `macs_by_precision` are by the precision that a product is computed in: "int8" if both operands come through
    DequantizeLinear, else "fp16", "bf16" or "fp32" by their type. `bytes` are the least that must move to and from
    memory: each constant once, and each tensor that crosses the part's border once for each part that reads or writes
    it; what stays within a part may stay on the chip. Tensors count in the narrowest type between writer and reader,
    quantised ones with one byte. `weight_bytes` are the constants alone, `peak_activation_bytes` the activations alive
    at the part's fullest moment, those of other parts included.
    """

    part: str
    macs: int
    macs_by_precision: Mapping[str, int]
    bytes: int
    weight_bytes: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class TimedPart(PartCost):
    """A part and the seconds it took."""

    seconds: float


@dataclass(frozen=True)
class RooflinePart(TimedPart):
    """A timed part beside the least time that the machine's ceilings allow, `floor_seconds`, set by `bound`: "compute"
    or "memory". `efficiency` is that over the measured time."""

    floor_seconds: float
    bound: str
    macs_per_byte: float | None
    efficiency: float | None


@dataclass(frozen=True)
class SideParts:
    """The parts of a side's image graph, in the graph's order."""

    side: str
    precision: str
    parts: tuple[TimedPart, ...]


@dataclass(frozen=True)
class Ceilings:
    """What a machine reached at best: MACs a second in `precision`, which does most of the graph's work, and in each
    other; bytes a second read and written."""

    macs_per_second: float
    precision: str
    by_precision: Mapping[str, float]
    bytes_per_second: float
    threads: int | None
    backend: str


@dataclass(frozen=True)
class Roofline:
    ceilings: Ceilings
    parts: tuple[RooflinePart, ...]


@dataclass(frozen=True)
class TextCost:
    """The text graph, which runs once a sentence."""

    seconds: float
    macs: int
    bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class PartBound:
    """The lower bound of a part's time on a device, set by `bound`: "compute" or "memory"."""

    part: str
    floor_seconds: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """A lower bound of the image graph's latency on a device, from its published peak rates.

    `compute_seconds` is what all products take and `memory_seconds` what all bytes take, each if it were alone; files
    of earlier versions have neither.
    `needed_bytes` are the weights and the activations alive at the fullest moment; `fits`: the device's memory holds
    them. `source` is the address of the figures, `note` what was made of them.
    """

    device: str
    name: str
    source: str
    note: str
    precision: str
    label: str
    parts: tuple[PartBound, ...]
    floor_seconds: float
    needed_bytes: int
    memory_bytes: int
    fits: bool
    text_floor_seconds: float | None = field(default=None, metadata=OPTIONAL)
    compute_seconds: float | None = field(default=None, metadata=OPTIONAL)
    memory_seconds: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class PartKernels:
    """The kernels of a part of the image graph, the bytes of their activations and constants, and their MACs."""

    part: str
    kernels: int
    moved_bytes: int
    constant_bytes: int
    macs: int


@dataclass(frozen=True)
class PureMoves:
    """The kernels of a part that compute nothing: they only copy numbers into another layout or type."""

    part: str
    kernels: int
    moved_bytes: int


@dataclass(frozen=True)
class DeviceFloor:
    """The least time on a device by its bandwidth alone and by its products alone."""

    device: str
    memory_seconds: float | None
    compute_seconds: float | None


@dataclass(frozen=True)
class Kernels:
    """What TensorRT for RTX compiles an image graph to, by part and in all, without a GPU."""

    compiler: str
    parts: tuple[PartKernels, ...]
    moves: tuple[PureMoves, ...]
    fused_attentions: int
    floors: tuple[DeviceFloor, ...]


@dataclass(frozen=True)
class LayerError:
    """A tensor of a graph against the same one in FP32: norm(difference) / norm(FP32), None if that is not finite.

    `first`: it is here that the output begins to diverge.
    """

    tensor: str
    node: str
    relative_error: float | None
    first: bool


@dataclass(frozen=True)
class Overlay:
    """A precision's mask drawn over an image: a PNG, and the share of pixels and the IoU in percent that agree with the
    reference's mask."""

    case: int
    sentence: str
    pixel_agreement: float
    iou_with_reference: float
    image_png_base64: str


@dataclass(frozen=True)
class FidelityFigures:
    """What a precision keeps of the masks of `against`, "PyTorch" or "the FP32 graph", over `sentences`.

    IoU in percent, `drop` in points of it, `pixel_agreement` from 0 to 1, `relative_error` that of the logits
    (in JSON None if it is not finite).
    """

    name: str
    sentences: int
    mean_iou: float
    drop: float
    pixel_agreement: float
    relative_error: float | None
    iou_with_reference: float
    against: str


@dataclass(frozen=True)
class FidelityRow(FidelityFigures):
    """The figures of a precision, and its masks on the sentences where they differ most from those of `against`."""

    overlays: tuple[Overlay, ...]


@dataclass(frozen=True)
class Result:
    """Everything that one run of `lavt-bench` measured. The engine is the first side."""

    machine: Machine
    options: Options
    sides: tuple[SideResult, ...]
    ratios: tuple[SideRatio, ...]
    warnings: tuple[str, ...]
    sweeps: tuple[SweepPoint, ...] = ()
    parts: tuple[SideParts, ...] | None = None
    roofline: Roofline | None = None
    fidelity: tuple[FidelityRow, ...] | None = None
    text: TextCost | None = field(default=None, metadata=OPTIONAL)
    estimate: Estimate | None = field(default=None, metadata=OPTIONAL)
    layers: tuple[LayerError, ...] | None = field(default=None, metadata=OPTIONAL)
    kernels: Kernels | None = field(default=None, metadata=OPTIONAL)
    format: int = FORMAT_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, as `--json` writes them."""
        plain: dict[str, Any] = to_plain(self)
        return plain
