"""Which weights a bundle's peers run: the bundle's own, with its PWAM heads, or others, and what a cache calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from lavt_edge.benchmarks.peers.plain import plain_export
from lavt_edge.benchmarks.peers.pytorch import TorchSide
from lavt_edge.benchmarks.timing.measure import prepare_sides
from lavt_edge.benchmarks.timing.result import Options
from lavt_edge.errors import CheckpointError
from lavt_edge.export import ExportOptions, export_bundle
from lavt_edge.export.source import Source, open_source, peer_source
from lavt_edge.reference import LAVT
from lavt_edge.reference.lavt import normalise
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import open_bundle
from lavt_edge.tests.small_checkpoints import SMALL, golden_lavt, saved, small_bert

__all__ = ["small_bert"]
HEADS = (2, 4, 2, 4)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "red", "man", "[MASK]", *(f"w{i}" for i in range(52))]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An official checkpoint without `args`: nothing inside says its PWAM heads."""
    return saved(tmp_path / "bare.pth", {"model": golden_lavt(SMALL).state_dict()})


def relative_error(output: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(output - expected) / np.linalg.norm(expected))


@pytest.mark.usefixtures("small_bert")
def test_fusion_heads_in_peers(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers of a bundle exported with --fusion-heads compute what the bundle computes, not a 1-1-1-1 model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exported, root = open_source(checkpoint, HEADS), tmp_path / "bundle"
    export_bundle(exported.load(), root, exported.info(), vocabulary=WORDS, options=ExportOptions((64, 64)))

    options = Options(root, against=("torch",), checkpoint=str(checkpoint), device="cpu")
    warnings: list[str] = []
    spec = prepare_sides(options, warnings=warnings)[1]
    assert warnings == []
    assert spec.source is not None
    assert spec.source.fusion_heads == HEADS

    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    with Segmenter.load(root, device="cpu") as segmenter:
        prompt = segmenter.encode("the red man")
        of_bundle = segmenter.run_graph(image, prompt.prompt[None], prompt.word_mask[None])
    ids = torch.tensor([[2, 4, 5, 6, 3, *[0] * (SMALL.max_words - 5)]])
    mask = (ids != 0).long()

    def logits(model: LAVT) -> np.ndarray:
        with torch.inference_mode():
            return model(normalise(torch.from_numpy(image)), ids, mask).numpy()

    peer, guessed = spec.source.load(), open_source(checkpoint).load()
    assert relative_error(logits(peer), of_bundle) < 1e-4
    assert relative_error(logits(guessed), of_bundle) > 1e-2

    side = TorchSide(spec)
    with torch.inference_mode():
        expected = peer.segment(*side._inputs).numpy()
    assert relative_error(np.asarray(side.run()), expected) < 1e-4
    session = onnxruntime.InferenceSession(plain_export(root, spec.source), providers=["CPUExecutionProvider"])
    feeds = {entry.name: part.numpy() for entry, part in zip(session.get_inputs(), side._inputs, strict=True)}
    assert relative_error(session.run(None, feeds)[0], expected) < 1e-4


def test_sources_that_load_different_models_have_names_of_their_own(checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(checkpoint.read_bytes() + b" ")
    sources = [open_source(path, heads) for path in (checkpoint, other) for heads in (None, (1, 1, 1, 1), HEADS)]
    sources.append(open_source("demo"))
    assert len({source.identity() for source in sources}) == len(sources)


def test_the_weights_of_a_bundle_are_told_by_their_hash(demo_bundle: Path, checkpoint: Path) -> None:
    bundle = open_bundle(demo_bundle)
    assert peer_source(bundle, None) == peer_source(bundle, "demo") == open_source("demo")
    assert open_source("demo").is_of(bundle)
    other = peer_source(bundle, str(checkpoint))
    assert other == Source(checkpoint)  # not the bundle's heads: it is another model
    assert not other.is_of(bundle)
    random = Source(demo_bundle, "random")
    assert not random.is_of(bundle)
    assert random.load().config == open_source("demo").load().config
    assert random.identity().startswith("random-")
    with pytest.raises(CheckpointError, match=r"missing\.pth: no such file; give an official checkpoint"):
        peer_source(bundle, "missing.pth")
