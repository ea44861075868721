"""Does an engine file fit this machine? Answered from the manifest, the file's header and the device, without CUDA."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..._base.records import from_plain, like, to_plain, within
from ...errors import BundleError
from ..cuda import CudaDevice
from ..manifest import FRAME_ROLES, GRAPH_ROLES, MANIFEST_NAME, Manifest
from .flavor import FLAVORS

DISPLAY_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}

# The first bytes of a plan, by flavour. The version is in bytes 24 to 27 as NVIDIA says (NVIDIA/TensorRT issue 3073).
_MAGIC = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
# Releases after these majors may have another magic; of them the SHA-256 alone says that the file is the one built.
_LAST_KNOWN_MAJOR = {"tensorrt": 10, "tensorrt_rtx": 1}
_HEADER_BYTES = 64
# Nearest to the checkpoint first: int8 is taken if it is asked for, or if it is all there is.
_PREFERENCE = ("fp16", "bf16", "int8", "fp32")
# Such as 10.13.3.9.post1, which is a release of NVIDIA's.
_VERSION = r"[0-9]{1,5}(\.[0-9]{1,5}){1,3}([.+-]?[a-z][a-z0-9.]{0,15})?"


class UnverifiedEngineWarning(UserWarning):
    """An engine whose outputs were never compared with the graph it was built from."""


class UnusedEngineWarning(UserWarning):
    """An engine of the bundle that was not used, and why; the model runs slower than it could."""


class PowerModeWarning(UserWarning):
    """An engine was built with more or fewer multiprocessors than are on now: power modes switch them."""


@dataclass(frozen=True)
class EngineRecord:
    """What the manifest says of an engine file, but for `name` and for `rebuild`, the command that makes it anew.

    `gpu`, `compute_capability` and `multiprocessors` are the machine's that TensorRT built it on; TensorRT for RTX has
    `targets` instead. `onnx_file` and `onnx_sha256` are of the graph that it was built from.
    """

    name: str
    rebuild: str
    role: str = field(metadata=like("|".join((*GRAPH_ROLES, *FRAME_ROLES)), "a graph's role"))
    precision: str
    flavor: str = field(metadata=like("|".join(FLAVORS), " or ".join(FLAVORS)))
    version: str = field(metadata=like(_VERSION, "a version such as 10.3.0"))
    gpu: str | None
    compute_capability: str | None = field(metadata=like(r"[0-9]{1,2}\.[0-9]", "a compute capability such as 8.7"))
    targets: tuple[str, ...] = field(metadata=like(r"sm[0-9]{2,3}", "targets such as sm86"))
    max_batch: int = field(metadata=within(1, 999_999_999))
    version_compatible: bool
    hardware_compatible: bool
    verified: bool
    multiprocessors: int | None = None
    onnx_file: str | None = None
    onnx_sha256: str | None = None

    @classmethod
    def read(cls, name: str, rebuild: str, recorded: Mapping[str, Any]) -> EngineRecord:
        """The record of engine `name` in a manifest. Raises BundleError if a field is missing or malformed."""
        try:
            return from_plain(cls, {**recorded, "name": name, "rebuild": rebuild}, f"engines.{name}")
        except ValueError as error:
            raise BundleError(f"{MANIFEST_NAME}: {error}: {rebuild}") from None

    def to_dict(self) -> dict[str, Any]:
        """The record as it stands in a manifest."""
        return {key: value for key, value in to_plain(self).items() if key not in ("name", "rebuild")}


def rebuild_command(root: Path, precision: str | None) -> str:
    """The command that builds a bundle's engines of a precision again."""
    return f"lavt-export trt {root}" + (f" --{precision}" if precision in _PREFERENCE else "")


def engine_record(root: Path, manifest: Manifest, name: str) -> EngineRecord:
    """The checked record of one of the bundle's engine files.

    Raises BundleError if `name` is not an engine, the record is missing or malformed, or the bundle's graph has changed
    since the engine was built from it.
    """
    entry = manifest.files.get(name)
    if entry is None or entry.role != "engine":
        raise BundleError(f"{name} is not an engine of {root}: build one with {rebuild_command(root, 'fp16')}")
    rebuild = rebuild_command(root, entry.precision)
    record = EngineRecord.read(name, rebuild, manifest.engines.get(name, {}))
    graph = manifest.files.get(record.onnx_file or "")
    if graph is not None and graph.sha256 != record.onnx_sha256:
        raise BundleError(f"{name} was built from another {record.onnx_file} than the bundle has now: {rebuild}")
    return record


def check_header(data: bytes, record: EngineRecord, path: Path) -> None:
    """Refuse what is not an engine of the recorded flavour and version, before anything deserialises it.

    A plan begins with its magic (4 bytes); bytes 16 to 23 of one for RTX are its size, bytes 24 to 27 the version.
    Raises BundleError.
    """
    magic = bytes(data[:4])
    flavor = _MAGIC.get(magic)
    if flavor is None and numbers(record.version)[0] > _LAST_KNOWN_MAJOR[record.flavor]:
        return
    if flavor is None or len(data) < _HEADER_BYTES:
        raise BundleError(f"{path} is not a TensorRT engine (it begins with {magic!r}): {record.rebuild}")
    if flavor != record.flavor:
        raise BundleError(
            f"{path} is an engine of {DISPLAY_NAMES[flavor]}, "
            f"{MANIFEST_NAME} says {DISPLAY_NAMES[record.flavor]}: {record.rebuild}"
        )
    if flavor == "tensorrt_rtx" and int.from_bytes(data[16:24], "little") != len(data):
        raise BundleError(f"{path} has {len(data)} bytes, its header says otherwise: {record.rebuild}")
    built = tuple(data[24:28])
    if any(byte != number & 0xFF for byte, number in zip(built, numbers(record.version), strict=False)):
        version = ".".join(map(str, built))
        raise BundleError(f"{path} was built with {version}, {MANIFEST_NAME} says {record.version}: {record.rebuild}")


def numbers(version: str) -> tuple[int, ...]:
    """The leading numeric components of a version: (10, 13, 3, 9) of "10.13.3.9.post1"."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def flavor_misfit(record: EngineRecord, flavor: str, version: str) -> str | None:
    """Why this TensorRT cannot run the engine, or None."""
    here, there = f"{DISPLAY_NAMES[flavor]} {version}", f"{DISPLAY_NAMES[record.flavor]} {record.version}"
    if record.flavor != flavor or not _version_fits(record, version):
        return f"{record.name} was built with {there}, this machine has {here}: {record.rebuild}"
    return None


def _version_fits(record: EngineRecord, version: str) -> bool:
    """Equal as far as both are given; with version compatibility, newer ones of the same major, and 11 for 10."""
    built, running = numbers(record.version), numbers(version)
    common = min(len(built), len(running))
    if built[:common] == running[:common]:
        return common > 0
    if record.flavor != "tensorrt" or not record.version_compatible:
        return False
    return built < running and (built[0] == running[0] or (built[0], running[0]) == (10, 11))


def device_misfit(record: EngineRecord, device: CudaDevice) -> str | None:
    """Why this GPU cannot run the engine, or None.

    An engine of TensorRT is for the GPU model it was built on; with hardware compatibility, for compute capability 8.0
    and later. One of TensorRT for RTX is for its targets; without any for whatever RTX says when it is loaded.
    """
    found = f"this machine has {device.name} ({device.compute_capability}): {record.rebuild}"
    if record.targets:
        fits = device.sm in record.targets
        return None if fits else f"{record.name} was built for {', '.join(record.targets)}, {found}"
    if record.flavor == "tensorrt_rtx":
        return None
    if record.hardware_compatible:
        fits = numbers(device.compute_capability) >= (8, 0)
        return None if fits else f"{record.name} was built for compute capability 8.0 or later, {found}"
    if record.compute_capability != device.compute_capability or record.gpu not in (None, device.name):
        return f"{record.name} was built for {record.gpu} ({record.compute_capability}), {found}"
    return None


def power_mode_misfit(record: EngineRecord, device: CudaDevice) -> str | None:
    """What to warn of where an engine fits the GPU but for its number of multiprocessors, which power modes gate."""
    built, here = record.multiprocessors, device.multiprocessors
    if record.targets or record.hardware_compatible or built is None or here is None or built == here:
        return None
    return (
        f"{record.name} was built for {record.gpu} with {built} multiprocessors, {here} are on now: it may be slow or "
        f"fail; set the power mode that it was built in (nvpmodel), or build it in this one: {record.rebuild}"
    )


def preferred(records: Sequence[EngineRecord]) -> list[EngineRecord]:
    """Image engines, best first: verified before unverified; then fp16, bf16, int8, fp32; then the manifest's order."""
    ranks = {precision: rank for rank, precision in enumerate(_PREFERENCE)}
    return sorted(records, key=lambda record: (not record.verified, ranks.get(record.precision, len(ranks))))


def text_engine_for(image: EngineRecord, records: Sequence[EngineRecord]) -> EngineRecord | None:
    """The text encoder's engine to use beside an image engine: of its flavour; its precision, else fp16, else any."""
    ranks = {precision: rank for rank, precision in enumerate((*_PREFERENCE[::-1], "fp16", image.precision))}
    fitting = [record for record in records if record.role == "text_encoder" and record.flavor == image.flavor]
    return max(fitting, key=lambda record: (ranks.get(record.precision, -1), record.verified), default=None)
