"""Which of a bundle's files run on this machine: the choice between engines and ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from .._base.callers import warn_caller
from ..errors import BackendError, BundleError, LavtError
from .backend import Backend, OnnxRuntimeBackend, Placement
from .bundle import Bundle
from .cuda import cuda_device_count
from .manifest import FRAME_ROLES
from .signature import check_signature, frame_signature, mask_signature, segmenter_signature, text_signature
from .tensorrt.record import (
    EngineRecord,
    UnusedEngineWarning,
    UnverifiedEngineWarning,
    engine_record,
    preferred,
    rebuild_command,
    text_engine_for,
)

if TYPE_CHECKING:
    from .tensorrt.backend import TensorRTBackend

FrameKind = tuple[int, int, str]
TENSORRT, OPENVINO = "tensorrt", "openvino"
BACKENDS = ("onnxruntime", OPENVINO, TENSORRT)
_WITH_CUDA = ("auto", "cuda")
_SIGNATURES = {"text_encoder": text_signature, "segmenter": segmenter_signature}


@dataclass(frozen=True)
class Graphs:
    """The text and the image graph as they run, the image graph's precision, and the bundle's files they came from.

    `frames` are the engines for a camera's frames, by height, width and layout.
    """

    text: Backend
    image: Backend
    precision: str
    files: tuple[str, ...]
    frames: Mapping[FrameKind, Backend] = field(default_factory=dict)


def open_graphs(bundle: Bundle, placement: Placement, precision: str | None) -> Graphs:
    """The graphs of a bundle, or the file in it that was selected; see `Segmenter.load`.

    Warns of an engine that was never verified, and of each that is there and not used.
    Raises BundleError and BackendError.
    """
    if placement.backend not in (None, *BACKENDS):
        raise BackendError(f"unknown backend {placement.backend!r}: give one of {', '.join(BACKENDS)}")
    selected = bundle.selected
    if selected is None:
        best = _best_engine(bundle, placement, precision) if placement.backend in (None, TENSORRT) else None
        if best is None and placement.backend == TENSORRT:
            raise BackendError(f"{bundle.root} has no engine that runs here: {rebuild_command(bundle.root, precision)}")
        return best or _onnx(bundle, precision or "fp32", placement)
    entry = bundle.manifest.files[selected]
    if (entry.role == "engine") != (placement.backend == TENSORRT) and placement.backend is not None:
        raise BackendError(f"{selected} does not run on {placement.backend}: give the bundle's folder")
    if entry.role == "engine":
        record = engine_record(bundle.root, bundle.manifest, selected)
        _refuse_unless(record.role, record.precision, precision, selected)
        if placement.device not in _WITH_CUDA:
            raise BackendError(
                f"{selected} runs on a CUDA device, not on {placement.device!r}: give the bundle's folder"
            )
        return _with_text(bundle, record, _load_engine(bundle, record), placement)
    _refuse_unless(entry.role, entry.precision, precision, selected)
    return _onnx(bundle, entry.precision or "fp32", placement)


def _open_onnx(file: Path, placement: Placement) -> Backend:
    """An .onnx file on OpenVINO, if it or a device of its own was asked for, or it is alone here; else ONNX Runtime."""
    device, threads = placement.device, placement.threads
    on_openvino = placement.backend == OPENVINO or (placement.backend is None and device.startswith("intel-"))
    if on_openvino or (placement.backend is None and not _installed("onnxruntime") and _installed("openvino")):
        from .openvino import OpenVINOBackend

        return OpenVINOBackend(file, device=device, threads=threads)
    return OnnxRuntimeBackend(file, device=device, threads=threads, spinning=placement.spinning)


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:  # half imported, or made unimportable
        return False


def _refuse_unless(role: str, of: str | None, precision: str | None, file: str) -> None:
    if role != "segmenter" or of is None:
        raise BundleError(f"{file} is the bundle's {role}, not an image graph: give the bundle's folder")
    if precision not in (None, of):
        raise BundleError(f"{file} is of precision {of}, not {precision}: give one of the two")


def _best_engine(bundle: Bundle, placement: Placement, precision: str | None) -> Graphs | None:
    """The first engine in the order of `preferred` that runs here, or None with a warning that says why."""
    if not bundle.has("engine", precision) or placement.device not in _WITH_CUDA:
        return None
    if not cuda_device_count():
        _warn_unused(f"{bundle.root} runs on ONNX Runtime, not on its engines: no CUDA device was found")
        return None
    for record in preferred(_readable(bundle, "segmenter", precision)):
        try:
            image = _load_engine(bundle, record)
        except LavtError as error:
            _warn_unused(f"{record.name} is not used: {error}")
            continue
        return _with_text(bundle, record, image, placement)
    _warn_unused(f"no engine of {bundle.root} fits this machine: it runs on ONNX Runtime")
    return None


def _warn_unused(message: str) -> None:
    warn_caller(message, UnusedEngineWarning, __package__)


def _readable(bundle: Bundle, role: str, precision: str | None = None) -> list[EngineRecord]:
    records = []
    for name, entry in bundle.manifest.files.items():
        if entry.role != "engine" or precision not in (None, entry.precision):
            continue
        try:
            record = engine_record(bundle.root, bundle.manifest, name)
        except BundleError as error:
            _warn_unused(f"{name} is not used: {error}")
            continue
        if record.role == role:
            records.append(record)
    return records


def _frames(bundle: Bundle, image: TensorRTBackend, flavor: str) -> tuple[dict[FrameKind, Backend], list[EngineRecord]]:
    """The chains around an image engine of this flavour for a camera's frames, and their engines."""
    from .tensorrt.chain import FrameChain

    records = {
        record.onnx_file: record
        for role in FRAME_ROLES
        for record in (_readable(bundle, role) if bundle.manifest.frames else ())
        if record.flavor == flavor
    }
    chains: dict[FrameKind, Backend] = {}
    engines: list[EngineRecord] = []
    for entry in bundle.manifest.frames.values():
        frame, mask = records.get(entry.frame), records.get(entry.mask)
        if frame is None or mask is None:
            rebuild = rebuild_command(bundle.root, None)
            _warn_unused(f"frames {entry.name} have no engines and are resized on the CPU: {rebuild}")
            continue
        try:
            chain, spec = FrameChain(bundle, frame, mask, image), bundle.manifest.input
            for found, wanted in zip(
                chain.signatures, (frame_signature(entry, spec), mask_signature(entry, spec)), strict=True
            ):
                check_signature(found, wanted, f"{bundle.root}, frames {entry.name}")
        except LavtError as error:
            _warn_unused(f"the engines for frames {entry.name} are not used: {error}")
            continue
        chains[entry.height, entry.width, entry.pixels] = chain
        engines += [record for record in (frame, mask) if record not in engines]
    return chains, engines


def _with_text(bundle: Bundle, record: EngineRecord, image: TensorRTBackend, placement: Placement) -> Graphs:
    """The text graph beside an image engine: its engine if that runs here, else ONNX Runtime; and those for frames."""
    text_record = text_engine_for(record, _readable(bundle, "text_encoder"))
    frames, frame_engines = _frames(bundle, image, record.flavor)
    engines = [record]
    text: Backend | None = None
    if text_record is not None:
        try:
            text, file = _load_engine(bundle, text_record), text_record.name
            engines = [text_record, record]
        except LavtError as error:
            _warn_unused(f"{text_record.name} is not used, the text encoder runs on ONNX Runtime: {error}")
    if text is None:
        text, file = _onnx_graph(bundle, "text_encoder", record.precision, placement)
    unverified = [engine.name for engine in (*engines, *frame_engines) if not engine.verified]
    if unverified:
        warn_caller(
            f"{' and '.join(unverified)} of {bundle.root}: outputs were never compared with the graph's, "
            f"masks may be wrong; build on this machine to verify: {record.rebuild}",
            UnverifiedEngineWarning,
            __package__,
        )
    return Graphs(text, image, record.precision, (file, record.name), frames)


def _load_engine(bundle: Bundle, record: EngineRecord) -> TensorRTBackend:
    from .tensorrt.backend import load_engine

    backend = load_engine(bundle, record)
    signature = _SIGNATURES[record.role](bundle.manifest.input)
    check_signature(backend.signature, signature, str(bundle.root / record.name))
    return backend


def _onnx(bundle: Bundle, precision: str, placement: Placement) -> Graphs:
    text, text_file = _onnx_graph(bundle, "text_encoder", precision, placement)
    image, image_file = _onnx_graph(bundle, "segmenter", precision, placement)
    return Graphs(text, image, precision, (text_file, image_file))


def _onnx_graph(bundle: Bundle, role: str, precision: str, placement: Placement) -> tuple[Backend, str]:
    """A graph and its file's name; the text encoder is of fp32 if the bundle has none of this precision."""
    if role == "text_encoder" and not bundle.has(role, precision):
        precision = "fp32"
    file = bundle.file(role, precision)
    backend = _open_onnx(file, placement)
    check_signature(backend.signature, _SIGNATURES[role](bundle.manifest.input), str(file))
    return backend, file.name
