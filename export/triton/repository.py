"""`lavt-export triton`: a model repository for NVIDIA Triton from a bundle, or a version in one that exists."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..._base.files import whole_folder, write_whole
from ...errors import ExportError
from ...runtime.batches import MAX_DYNAMIC_BATCH
from ...runtime.bundle import Bundle, open_bundle
from ...runtime.manifest import MANIFEST_NAME, Manifest
from ...runtime.signature import segmenter_signature, text_signature
from ...runtime.tensorrt.record import EngineRecord, engine_record, preferred, rebuild_command, text_engine_for
from .config import Config, graph_config, lavt_config, to_text

BACKENDS = ("python", "onnxruntime", "tensorrt")
MODEL = Path(__file__).with_name("model.py")
MOST_INSTANCES = 64


@dataclass(frozen=True)
class TritonOptions:
    """`python` is the model `lavt`; the others are the bare graphs on that backend, `lavt_text` and `lavt_segmenter`.

    Raises ExportError if a value is out of range.
    """

    backend: str = "python"
    instances: int = 1

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise ExportError(f"--backend {self.backend!r}: give one of {', '.join(BACKENDS)}")
        if not 1 <= self.instances <= MOST_INSTANCES:
            raise ExportError(f"--instances {self.instances}: give 1 to {MOST_INSTANCES}")


@dataclass(frozen=True)
class TritonModel:
    """A model of a repository: its config, and the files of its version by their names, each a path or its content."""

    name: str
    config: Config
    files: Mapping[str, Path | bytes]


def write_repository(path: Path, output: Path, options: TritonOptions) -> tuple[int, list[str]]:
    """Writes a bundle's models into the repository `output`; returns their version and names.

    A new repository appears whole or not at all. In one that exists the version does, and is served from then on:
    `config.pbtxt`, which names it, is replaced last. Other models and versions stay. `path` is a bundle, or the graph
    or engine in it that is to run. Raises BundleError for a damaged bundle, ExportError if it has no such graphs or
    `output` cannot be written.
    """
    opened = open_bundle(path)
    content = (opened.root / MANIFEST_NAME).read_bytes()
    bundle = Bundle(opened.root, Manifest.parse_json(content), opened.selected)
    version = version_of(content)
    if options.backend == "python":
        models = [_lavt(bundle, content, version, options)]
    else:
        models = _graphs(bundle, version, options)
    _check_output(output)
    try:
        if _has_content(output):
            for model in models:
                with whole_folder(output / model.name / str(version), replace=True) as folder:
                    _fill(folder, model)
            for model in models:
                write_whole(output / model.name / "config.pbtxt", to_text(model.config).encode())
        else:
            with whole_folder(output) as whole:
                for model in models:
                    _fill(whole / model.name / str(version), model)
                    (whole / model.name / "config.pbtxt").write_text(to_text(model.config))
    except OSError as error:
        raise ExportError(f"{output}: cannot be written ({error.strerror or error})") from error
    return version, [model.name for model in models]


def version_of(manifest: bytes) -> int:
    """A bundle's version: the first 12 hex digits of the SHA-256 of its `lavt.json`, which has the files' hashes.

    48 bits: exact in JSON readers that take numbers for doubles.
    """
    return int(hashlib.sha256(manifest).hexdigest()[:12], 16) or 1


def _check_output(output: Path) -> None:
    """Raises ExportError for what is neither new, nor empty, nor a model repository."""
    if output.exists() and not output.is_dir():
        raise ExportError(f"{output} is not a folder; name another")
    if _has_content(output) and not any(output.glob("*/config.pbtxt")):
        raise ExportError(f"{output} exists already and is not a model repository; name another folder")


def _has_content(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _lavt(bundle: Bundle, manifest: bytes, version: int, options: TritonOptions) -> TritonModel:
    files: dict[str, Path | bytes] = {"model.py": MODEL.read_bytes(), f"bundle/{MANIFEST_NAME}": manifest}
    files |= {f"bundle/{name}": bundle.verified(name) for name in bundle.manifest.files}
    max_batch = bundle.manifest.input.batch or MAX_DYNAMIC_BATCH
    return TritonModel("lavt", lavt_config(version, bundle.selected or "", max_batch, options.instances), files)


def _graphs(bundle: Bundle, version: int, options: TritonOptions) -> list[TritonModel]:
    spec = bundle.manifest.input
    if options.backend == "tensorrt":
        graphs = [(engine.name, engine.max_batch) for engine in _engines(bundle)]
    else:
        graphs = [(name, MAX_DYNAMIC_BATCH) for name in _onnx_files(bundle)]
    named = (("lavt_text", text_signature(spec)), ("lavt_segmenter", segmenter_signature(spec)))
    return [
        TritonModel(
            name,
            graph_config(name, options.backend, file, version, signature, max_batch, options.instances),
            {part: bundle.verified(part) for part in (file, *bundle.manifest.weights_of(file))},
        )
        for (name, signature), (file, max_batch) in zip(named, graphs, strict=True)
    ]


def _onnx_files(bundle: Bundle) -> list[str]:
    """The text and the image graph: of the precision of the file that was chosen, else in FP32."""
    precision = "fp32"
    if bundle.selected is not None:
        entry = bundle.manifest.files[bundle.selected]
        if entry.role != "segmenter":
            raise ExportError(f"{bundle.selected} is not an image graph in ONNX; give the bundle's folder")
        precision = entry.precision or precision
    text = precision if bundle.has("text_encoder", precision) else "fp32"
    return [bundle.file("text_encoder", text).name, bundle.file("segmenter", precision).name]


def _engines(bundle: Bundle) -> list[EngineRecord]:
    """The text and the image engine for TensorRT: the file that was chosen, else the runtime's order decides."""
    entries = bundle.manifest.files.items()
    records = [engine_record(bundle.root, bundle.manifest, name) for name, entry in entries if entry.role == "engine"]
    ours = [record for record in records if record.flavor == "tensorrt"]
    images = [record for record in preferred(ours) if record.role == "segmenter"]
    chosen = [record for record in images if bundle.selected in (None, record.name)]
    text = text_engine_for(chosen[0], ours) if chosen else None
    if text is None:
        what = f"{bundle.selected} is not one" if bundle.selected else f"{bundle.root} has none"
        raise ExportError(
            f"Triton runs an image engine of TensorRT (not for RTX) with a text engine beside it, {what}: "
            f"{rebuild_command(bundle.root, None)} --flavor tensorrt"
        )
    return [text, chosen[0]]


def _fill(folder: Path, model: TritonModel) -> None:
    for name, source in model.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
            continue
        try:
            # Whoever changes a bundle replaces its files, and leaves what they were to those who link to them.
            os.link(source.resolve(), target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
