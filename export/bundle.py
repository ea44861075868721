"""A bundle from a LAVT: two graphs, the tokenizer and the manifest, checked before they get their name."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from .. import __version__
from .._base.files import whole_folder
from .._base.progress import Report, ignore
from ..errors import ExportError
from ..reference.config import LAVTConfig
from ..reference.lavt import LAVT
from ..reference.words import BERT_VOCABULARY, words_tokenizer
from ..runtime.bundle import file_entry
from ..runtime.manifest import MANIFEST_NAME, CheckpointInfo, FileEntry, InputSpec, Manifest
from ..runtime.tokenizer import SentenceTokenizer
from ..runtime.update import BUSY
from .edits import EXTERNAL_DATA_BYTES, save_graph
from .graph import OPSET, export_graph
from .macs import count_macs
from .parity import Parity, measure_parity
from .rewrites.image_model import ImageModel
from .rewrites.text_model import TextModel
from .rewrites.words import prompt_channels
from .samples import make_samples

# Whole logits against PyTorch in float64, norm over norm.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class ExportOptions:
    """Image size (height, width) in pixels, batch size (None: dynamic), ONNX opset, and the parity that is asked for.

    `winograd` is for bundles that CPUs run in FP32 (see rewrites/winograd.py); they cannot be quantised. Raises
    ExportError if a value is out of range.
    """

    size: tuple[int, int] = (480, 480)
    batch: int | None = 1
    opset: int = OPSET
    tolerance: float = TOLERANCE
    external_bytes: int = EXTERNAL_DATA_BYTES
    winograd: bool = False

    def __post_init__(self) -> None:
        for side in self.size:
            if not 32 <= side <= 4096:
                raise ExportError(f"image size {self.size[0]}x{self.size[1]}: each side must be 32 to 4096 pixels")
        if max(self.size) <= 32:
            raise ExportError("image size 32x32: the last stage needs two pixels or more; make one side larger")
        if self.batch is not None and not 1 <= self.batch <= 64:
            raise ExportError(f"batch {self.batch}: give 1 to 64, or 'dynamic'")
        if not 18 <= self.opset <= 20:
            raise ExportError(f"opset {self.opset}: give 18, 19 or 20")


def export_bundle(
    model: LAVT,
    output: Path,
    checkpoint: CheckpointInfo,
    *,
    vocabulary: Path | Sequence[str] = BERT_VOCABULARY,
    options: ExportOptions | None = None,
    replace: bool = False,
    report: Report = ignore,
) -> Manifest:
    """Exports `model`, checks the result against it and writes the bundle `output`, whole or not at all.

    `model` is left in float64. `report` is told each step as it begins. Raises ExportError if the output exists,
    cannot be written, or is further from PyTorch than the tolerance; CheckpointError if `vocabulary` is not its BERT's.
    """
    options = options or ExportOptions()
    check_output(output, replace)
    try:
        with whole_folder(output, replace=replace) as folder:
            tokenizer = words_tokenizer(vocabulary, model.config.text)
            (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
            files = _export_graphs(model, folder, options, report)
            files["tokenizer.json"] = file_entry(folder / "tokenizer.json", "tokenizer")
            parity = _prove(model, folder, options, report)
            report("writing the manifest")
            manifest = _manifest(model.config, checkpoint, files, parity, options, folder)
            (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    except BlockingIOError as error:
        raise ExportError(f"{output}: {BUSY}") from error
    except FileExistsError as error:
        advice = "run this command again" if replace else "name another folder, or pass --force to replace it"
        raise ExportError(f"{output} exists already; {advice}") from error
    except OSError as error:
        raise ExportError(f"{output}: cannot be written ({error.strerror or error})") from error
    return manifest


def check_output(output: Path, replace: bool) -> None:
    """Raises ExportError if a bundle cannot be written to `output`: only an old bundle is ever replaced."""
    try:
        if not output.name:
            raise ExportError(f"{output} is not the name of a folder; name the folder to write, such as bundle")
        if output.is_symlink():
            raise ExportError(f"{output} is a symbolic link; name the folder itself")
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return
        if not (output.is_dir() and (output / MANIFEST_NAME).is_file()):
            raise ExportError(f"{output} exists already and is not a bundle; name another folder")
        if not replace:
            raise ExportError(f"{output} exists already; name another folder, or pass --force to replace it")
    except OSError as error:
        raise ExportError(f"{str(output)[:200]}: cannot be written ({error.strerror or error})") from error


def _export_graphs(model: LAVT, folder: Path, options: ExportOptions, report: Report) -> dict[str, FileEntry]:
    """Both graphs, and the entries of their files."""
    batch = options.batch or 2  # torch.export takes a batch of one for a constant
    tokens = torch.ones(batch, model.config.max_words, dtype=torch.int64)
    text_inputs = {"input_ids": tokens, "attention_mask": tokens.clone()}
    image_inputs = {
        "image": torch.zeros(batch, *options.size, 3, dtype=torch.uint8),
        "prompt": torch.zeros(batch, model.config.max_words, prompt_channels(model.config)),
        "word_mask": torch.ones(batch, model.config.max_words),
    }
    report("exporting the text graph")
    files = _export(TextModel(model), text_inputs, ("prompt",), folder / "text_encoder.onnx", options)
    report("exporting the image graph")
    files |= _export(
        ImageModel(model, *options.size, winograd=options.winograd),
        image_inputs,
        ("logits", "mask"),
        folder / "segmenter.onnx",
        options,
    )
    gc.collect()  # torch.export leaves cycles that hold the weights
    return files


def _export(
    module: nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...], path: Path, options: ExportOptions
) -> dict[str, FileEntry]:
    graph = export_graph(module, inputs, outputs, dynamic_batch=options.batch is None, opset=options.opset)
    graph_path, *weights = save_graph(graph, path, external_bytes=options.external_bytes)
    entries = {graph_path.name: file_entry(graph_path, path.stem, "fp32")}
    return entries | {part.name: file_entry(part, "weights") for part in weights}


def _prove(model: LAVT, folder: Path, options: ExportOptions, report: Report) -> Parity:
    """The parity of the graphs in `folder`, with the tokenizer there. Raises ExportError if they differ too much."""
    report("checking against PyTorch")
    tokenizer = SentenceTokenizer.from_json((folder / "tokenizer.json").read_bytes(), model.config.max_words)
    samples = make_samples(tokenizer, *options.size)
    parity = measure_parity(
        model,
        folder,
        samples,
        options.batch,
        progress=lambda done, total: report(f"checking against PyTorch, case {done} of {total}"),
    )
    if not parity.relative_error <= options.tolerance:
        raise ExportError(
            f"the exported graphs differ from PyTorch by {parity.relative_error:.2e} (relative, tolerance "
            f"{options.tolerance:.0e}); nothing was written"
        )
    return parity


def _manifest(
    config: LAVTConfig,
    checkpoint: CheckpointInfo,
    files: dict[str, FileEntry],
    parity: Parity,
    options: ExportOptions,
    folder: Path,
) -> Manifest:
    # Per image: a static batch is counted as a whole.
    macs = {
        name: sum(count_macs(folder / f"{name}.onnx").values()) // (options.batch or 1)
        for name in ("text_encoder", "segmenter")
    }
    height, width = options.size
    return Manifest(
        generator={"lavt_edge": __version__, "torch": torch.__version__, "onnx": version("onnx")},
        model={**config.to_dict(), "macs": macs, "opset": options.opset, "winograd": options.winograd},
        input=InputSpec(height, width, options.batch, config.max_words, prompt_channels(config)),
        checkpoint=checkpoint,
        files=files,
        parity={"segmenter": asdict(parity)},
    )
