"""Edge devices as data, and the lower bound of a graph's latency by their published peak rates: never a promise.

Rates are those of the GPU's tensor cores for dense matrices. If NVIDIA publishes the figure for 2:4 sparse matrices
alone it is halved, as `note` says. The headline TOPS of Orin modules are sparse, and include the DLAs, which these
graphs do not run on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...errors import LavtError
from ..timing.result import Estimate, PartBound, PartCost
from .costs import floor_seconds

_ORIN = "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-orin/"
_ORIN_NANO = "https://developer.nvidia.com/blog/nvidia-jetson-orin-nano-developer-kit-gets-a-super-boost/"
_AGX_ORIN = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/gtcf21/jetson-orin/nvidia-jetson-agx-orin-technical-brief.pdf"
)
_THOR = "https://developer.nvidia.com/blog/introducing-nvidia-jetson-thor-the-ultimate-platform-for-physical-ai/"
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}

LABEL = "lower bound from published peak rates, not a promise: no device reaches it"


@dataclass(frozen=True)
class Device:
    """A device: dense tensor-core operations per second (a MAC is two), bytes per second, bytes of memory.

    None: NVIDIA publishes no such figure. The memory is shared by CPU and GPU, and by the system that runs there.
    """

    key: str
    name: str
    fp16_flops: float | None
    int8_ops: float | None
    bandwidth: float | None
    memory: int
    source: str
    note: str


DEVICES = (
    Device(
        "jetson-orin-nano",
        "Jetson Orin Nano 8GB",
        fp16_flops=17e12,
        int8_ops=33e12,
        bandwidth=102e9,
        memory=8 * 10**9,
        source=_ORIN_NANO,
        note="Super mode (25 W and up, JetPack 6.1 and later); dense as published, 67 TOPS are sparse",
    ),
    Device(
        "jetson-orin-nx",
        "Jetson Orin NX 16GB",
        fp16_flops=19e12,
        int8_ops=38e12,
        bandwidth=102.4e9,
        memory=16 * 10**9,
        source=_ORIN,
        note="Super mode (40 W); dense figures of the GPU as published, 157 TOPS are sparse and hold 80 of the DLAs",
    ),
    Device(
        "jetson-agx-orin",
        "Jetson AGX Orin 64GB",
        fp16_flops=85e12 / 2,
        int8_ops=170e12 / 2,
        bandwidth=204.8e9,
        memory=64 * 10**9,
        source=_AGX_ORIN,
        note="MAXN (60 W); the published sparse figures of the GPU (85 TFLOPS, 170 TOPS), halved; 275 TOPS hold 105 of "
        "the DLAs",
    ),
    Device(
        "jetson-thor",
        "Jetson Thor (T5000)",
        fp16_flops=517e12 / 2,
        int8_ops=1035e12 / 2,
        bandwidth=273e9,
        memory=128 * 10**9,
        source=_THOR,
        note="MAXN (130 W); the published sparse figures (517 TFLOPS FP16, 1035 TOPS INT8), halved; 2070 TFLOPS are "
        "sparse FP4",
    ),
)


def find_device(key: str) -> Device:
    """A device by its key, such as "jetson-agx-orin". Raises LavtError, which lists them, for another."""
    for device in DEVICES:
        if device.key == key:
            return device
    raise LavtError(f"unknown device {key!r}: give one of {', '.join(device.key for device in DEVICES)}")


def estimate(parts: Iterable[PartCost], device: Device | str, precision: str) -> Estimate:
    """The lower bound of each part's time on a device.

    `precision` is that of the graph that the parts are of: each product then counts at the rate of its own type, but
    one in bfloat16 and one in FP32, of which there are few, at that of FP16, so that the bound holds. If no product of
    the graph has that precision it says what if: all products and tensors in it.

    Raises LavtError for an unknown device or a precision other than fp32, fp16, bf16 and int8.
    """
    device = find_device(device) if isinstance(device, str) else device
    if precision not in _BYTES:
        raise LavtError(f"precision {precision!r}: give one of {', '.join(_BYTES)}")
    rows = list(parts)
    present = {kind for row in rows for kind in row.macs_by_precision}
    if present and precision not in present:
        rows = [_in(row, precision, max(_BYTES[kind] for kind in present)) for row in rows]
    rates = {kind: device.int8_ops if kind == "int8" else device.fp16_flops for kind in _BYTES}
    macs_per_second = {kind: rate / 2 for kind, rate in rates.items() if rate is not None}
    bounds = tuple(
        PartBound(row.part, *floor_seconds(row.macs_by_precision, row.bytes, macs_per_second, device.bandwidth))
        for row in rows
    )
    needed = sum(row.weight_bytes for row in rows) + max((row.peak_activation_bytes for row in rows), default=0)
    return Estimate(
        device=device.key,
        name=device.name,
        source=device.source,
        note=device.note,
        precision=precision,
        label=LABEL,
        parts=bounds,
        floor_seconds=sum(bound.floor_seconds for bound in bounds),
        compute_seconds=sum(floor_seconds(row.macs_by_precision, 0, macs_per_second, None)[0] for row in rows),
        memory_seconds=sum(row.bytes for row in rows) / device.bandwidth if device.bandwidth else None,
        needed_bytes=needed,
        memory_bytes=device.memory,
        fits=needed <= device.memory,
    )


def _in(row: PartCost, precision: str, stored: int) -> PartCost:
    """A part as if every product and tensor were of a precision; they are stored in `stored` bytes now."""
    sizes = {
        key: getattr(row, key) * _BYTES[precision] // stored
        for key in ("bytes", "weight_bytes", "peak_activation_bytes")
    }
    return replace(row, **sizes, macs_by_precision={precision: row.macs})
