"""Runs both graphs over a sample: ranges of all tensors first, then, smoothed, histograms of what INT8 would hold.

Memory does not grow with the sample: each tensor leaves two numbers, a vector or a histogram. The state is saved as it
goes, and a run that was killed goes on from there to the same result, bit for bit.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ..errors import BundleError, ExportError
from ..export.macs import count_macs
from ..files import write_whole
from ..runtime.bundle import Bundle
from ..runtime.tokenizer import SentenceTokenizer
from .graphs import node_names
from .observe import Array, Session, report_channels, report_ranges, report_tensors, watched
from .products import Product, find_products
from .qdq import convolution_outputs, operands
from .record import Calibration
from .sample import Case, Sample, cases
from .smoothing import ChannelStatistics, Pair, choose_strength, factors, find_pairs, smooth, weight_of
from .thresholds import BINS, Histogram

ALGORITHM = 1
"""Changes whenever the same data would give another calibration."""
_STATE_NAME = ".calibration.partial.npz"
_SAVE_EVERY = 32
_CHUNK = 1 << 20

Progress = Callable[[int, int], None]
State = dict[str, Array]


def calibration_key(bundle: Bundle, sample: Sample) -> dict[str, Any]:
    """Plain JSON that is equal for equal graphs, tokenizer and data."""
    manifest = bundle.manifest
    names = [manifest.find("segmenter", "fp32"), manifest.find("text_encoder", "fp32"), manifest.find("tokenizer")]
    files = {name: manifest.files[name].sha256 for name in names if name}
    key: dict[str, Any] = json.loads(json.dumps({"algorithm": ALGORITHM, "files": files, "data": sample.origin}))
    return key


def calibrate(bundle: Bundle, sample: Sample, progress: Progress = lambda done, total: None) -> Calibration:
    """The calibration of a bundle's FP32 graphs on a sample; `progress` is called with (done, total).

    Raises BundleError or DatasetError for damaged files, ExportError where a tensor is not finite.
    """
    inputs = _Inputs(bundle, sample)
    store = _Store(bundle.root / _STATE_NAME, calibration_key(bundle, sample))
    total = 2 * len(sample.calibrated)
    ranging = _RangePass(bundle)
    _run(ranging, inputs, store, 0, lambda done: progress(done, total))
    channels = ranging.channels(len(sample.calibrated))
    model = ranging.plain_image
    weights = {pair: weight_of(model, pair.product) for pair in ranging.pairs}
    chosen = {pair: choose_strength(channels[pair.norm], weight) for pair, weight in weights.items()}
    strengths = {pair.norm: strength for pair, strength in chosen.items() if strength is not None}
    apply_smoothing(model, channels, strengths)
    bounds = {
        ranging.read_by(pair): _smoothed_bound(channels[pair.norm], weights[pair], strengths[pair.norm])
        for pair in ranging.pairs
        if pair.norm in strengths
    }
    counting = _HistogramPass(bundle, model, ranging, bounds)
    _run(counting, inputs, store, 1, lambda done: progress(len(sample.calibrated) + done, total))
    return Calibration(
        key=store.key,
        ranges=ranging.ranges(),
        channels=channels,
        strengths=strengths,
        histograms=counting.histograms(),
    )


def forget_state(root: Path) -> None:
    """Removes the saved state of a calibration that is recorded now."""
    with suppress(OSError):
        (root / _STATE_NAME).unlink()


def load_graph(bundle: Bundle, role: str) -> ir.Model:
    """A FP32 graph of the bundle, with its weights. Raises BundleError."""
    path = bundle.file(role)
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's own class, which onnx_ir does not name
        raise BundleError(f"{path} is not an ONNX graph ({type(error).__name__})") from error


def image_products(bundle: Bundle, model: ir.Model) -> list[Product]:
    """The products of the image graph that may be quantised, with their MACs for one image."""
    batch = bundle.manifest.input.batch or 1
    macs = {name: count // batch for name, count in count_macs(bundle.file("segmenter")).items()}
    return find_products(model, macs)


def apply_smoothing(model: ir.Model, channels: Mapping[str, ChannelStatistics], strengths: Mapping[str, float]) -> None:
    """Smooths, in place, the pairs of the LayerNorms that `strengths` names."""
    pairs = {pair.norm: pair for pair in find_pairs(model, {str(node.name) for node in model.graph})}
    chosen: dict[Pair, Array] = {}
    for norm, strength in strengths.items():
        pair = pairs[norm]
        chosen[pair] = factors(channels[norm], weight_of(model, pair.product), strength)
    smooth(model, chosen)


def _smoothed_bound(statistics: ChannelStatistics, weight: Array, strength: float) -> float:
    """The largest magnitude that a smoothed norm puts out: max_j |x_j| / f_j."""
    return float((statistics.amax / factors(statistics, weight, strength)).max())


class _Inputs:
    """The sample's cases in groups of the graphs' batch size, the last one filled with its last case."""

    def __init__(self, bundle: Bundle, sample: Sample) -> None:
        spec = bundle.manifest.input
        self._tokenizer = SentenceTokenizer.from_json(bundle.file("tokenizer").read_bytes(), spec.max_words)
        self._size, self._batch = (spec.height, spec.width), spec.batch or 1
        self._sentences = sample.calibrated

    def groups(self, begin: int) -> Iterator[tuple[int, list[Case]]]:
        """From sentence `begin` on: how many sentences are done after a group, and its cases."""
        for start in range(begin, len(self._sentences), self._batch):
            part = list(cases(self._sentences[start : start + self._batch], self._size, self._tokenizer))
            yield start + len(part), part + [part[-1]] * (self._batch - len(part))


class _Pass(Protocol):
    """A run over the sample; `state` holds what it has gathered, arrays by name, changed in place."""

    state: State

    def open(self) -> None: ...

    def take(self, group: Sequence[Case]) -> None: ...


def _run(work: _Pass, inputs: _Inputs, store: _Store, phase: int, progress: Callable[[int], None]) -> None:
    begin = store.restore(phase, work.state)
    progress(begin)
    saved = begin
    for done, group in inputs.groups(begin):
        if done - len(group) <= begin:
            work.open()
        work.take(group)
        progress(done)
        if done - saved >= _SAVE_EVERY:
            store.save(phase, done, work.state)
            saved = done
    store.save(phase, store.FINISHED, work.state)


class _Store:
    """The state of a calibration on disk, one entry for each of its passes."""

    FINISHED = -1

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path, self.key = path, key
        self._header = json.dumps(key, sort_keys=True)
        self._arrays: State = {}
        with suppress(ValueError, KeyError, OSError, zipfile.BadZipFile), np.load(path, allow_pickle=False) as found:
            if str(found["key"]) == self._header:
                self._arrays = {name: found[name] for name in found.files if name != "key"}

    def restore(self, phase: int, state: State) -> int:
        """Fills `state` with what was saved of a pass; how many sentences that is (all of them: a huge number)."""
        done = int(self._arrays.get(f"{phase}.done", np.array(0)))
        saved = {name: self._arrays.get(f"{phase}.{name}") for name in state}
        if done == 0 or any(one is None or one.shape != state[name].shape for name, one in saved.items()):
            return 0
        for name, one in saved.items():
            assert one is not None
            state[name][...] = one
        return 2**31 if done == self.FINISHED else done

    def save(self, phase: int, done: int, state: State) -> None:
        self._arrays |= {f"{phase}.{name}": array for name, array in state.items()}
        self._arrays[f"{phase}.done"] = np.array(done)
        file = io.BytesIO()
        np.savez(file, key=np.array(self._header), **self._arrays)  # type: ignore[arg-type]
        write_whole(self.path, file.getvalue())


def _feeds(group: Sequence[Case]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Of a group: the text graph's inputs, and the image graph's but for the prompt."""
    mask = np.stack([case.attention_mask for case in group])
    text = {"input_ids": np.stack([case.input_ids for case in group]), "attention_mask": mask}
    return text, {"image": np.stack([case.image for case in group]), "word_mask": mask.astype(np.float32)}


class _RangePass:
    """Ranges of every tensor of both graphs, and channel statistics of the norms that may be smoothed."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.plain_image = load_graph(bundle, "segmenter")
        self.products = image_products(bundle, self.plain_image)
        names = [one.name for one in self.products]
        self.pairs = find_pairs(self.plain_image, set(names))
        self.reads = operands(self.plain_image, names)
        self._text = watched(load_graph(bundle, "text_encoder"))
        self._image = list(dict.fromkeys([*watched(self.plain_image), *self.reads]))
        nodes = node_names(self.plain_image)
        self._norms = [str(nodes[pair.norm].outputs[0].name) for pair in self.pairs]
        widths = [len(weight_of(self.plain_image, pair.product)) for pair in self.pairs]
        empty = np.array([[np.inf, -np.inf]])
        self.state: State = {
            "text": np.tile(empty, (len(self._text), 1)),
            "image": np.tile(empty, (len(self._image), 1)),
        }
        for i, width in enumerate(widths):
            self.state[f"amax{i}"], self.state[f"square{i}"] = np.zeros(width), np.zeros(width)

    def open(self) -> None:
        text, image = load_graph(self._bundle, "text_encoder"), load_graph(self._bundle, "segmenter")
        self._text_outputs = ["prompt", *report_ranges(text, self._text)]
        self._image_outputs = report_ranges(image, self._image)
        self._image_outputs += report_channels(image, self._norms)
        self._sessions = Session(text), Session(image)

    def take(self, group: Sequence[Case]) -> None:
        text_feed, feed = _feeds(group)
        prompt, *text = self._sessions[0].run(text_feed, self._text_outputs)
        found = self._sessions[1].run({**feed, "prompt": prompt}, self._image_outputs)
        scalars = 2 * len(self._image)
        self._widen("text", text, self._text)
        self._widen("image", found[:scalars], self._image)
        channels = iter(found[scalars:])
        for i in range(len(self.pairs)):
            amax, square = islice(channels, 2)
            np.maximum(self.state[f"amax{i}"], amax, out=self.state[f"amax{i}"])
            self.state[f"square{i}"] += square

    def _widen(self, role: str, scalars: Sequence[Array], tensors: Sequence[str]) -> None:
        pairs = np.array([float(one) for one in scalars]).reshape(-1, 2)
        if not np.isfinite(pairs).all():
            bad = tensors[int(np.argmin(np.isfinite(pairs).all(axis=1)))]
            raise ExportError(f"the {role} graph's {bad} is not finite on calibration data; is the checkpoint sound?")
        state = self.state[role]
        state[:, 0] = np.minimum(state[:, 0], pairs[:, 0])
        state[:, 1] = np.maximum(state[:, 1], pairs[:, 1])

    def read_by(self, pair: Pair) -> str:
        """The tensor that a pair's product reads."""
        value = node_names(self.plain_image)[pair.product].inputs[0]
        assert value is not None
        return str(value.name)

    def ranges(self) -> dict[str, dict[str, tuple[float, float]]]:
        return {
            role: {name: (float(low), float(high)) for name, (low, high) in zip(tensors, self.state[key], strict=True)}
            for role, key, tensors in (("text_encoder", "text", self._text), ("segmenter", "image", self._image))
        }

    def channels(self, samples: int) -> dict[str, ChannelStatistics]:
        """By norm; the squares' mean is up to a factor that all channels share."""
        return {
            pair.norm: ChannelStatistics(self.state[f"amax{i}"].copy(), self.state[f"square{i}"] / samples)
            for i, pair in enumerate(self.pairs)
        }


class _HistogramPass:
    """Histograms of what the products of the smoothed image graph read, and of what its convolutions put out."""

    def __init__(self, bundle: Bundle, model: ir.Model, ranging: _RangePass, smoothed: Mapping[str, float]) -> None:
        self._bundle, self._model = bundle, model
        outputs = convolution_outputs(model, [one.name for one in ranging.products])
        self._tensors = list(dict.fromkeys([*ranging.reads, *(str(value.name) for value in outputs)]))
        ranges = ranging.ranges()["segmenter"]
        bounds = {name: max(map(abs, ranges[name])) for name in self._tensors} | dict(smoothed)
        self._bounds = [bounds[name] for name in self._tensors]
        self.state: State = {
            "counts": np.zeros((len(self._tensors), BINS), np.int64),
            "extent": np.tile(np.array([[np.inf, -np.inf]]), (len(self._tensors), 1)),
        }

    def open(self) -> None:
        report_tensors(self._model, self._tensors)
        self._sessions = Session(load_graph(self._bundle, "text_encoder")), Session(self._model)

    def take(self, group: Sequence[Case]) -> None:
        text_feed, feed = _feeds(group)
        (prompt,) = self._sessions[0].run(text_feed, ["prompt"])
        found = self._sessions[1].run({**feed, "prompt": prompt}, self._tensors)
        for i, tensor in enumerate(found):
            _count(tensor, self._bounds[i], self.state["counts"][i], self.state["extent"][i])

    def histograms(self) -> dict[str, Histogram]:
        return {
            name: Histogram(float(low), float(high), bound, counts)
            for name, bound, counts, (low, high) in zip(
                self._tensors, self._bounds, self.state["counts"], self.state["extent"], strict=True
            )
        }


def _count(tensor: Array, bound: float, counts: Array, extent: Array) -> None:
    """Adds a tensor's values to its histogram (BINS,) and its extent (2,), in place."""
    values = tensor.reshape(-1)
    extent[0], extent[1] = min(extent[0], float(values.min())), max(extent[1], float(values.max()))
    scale = np.float32(BINS / (2 * bound) if bound else 0)
    for start in range(0, len(values), _CHUNK):
        index = values[start : start + _CHUNK] * scale
        index += BINS / 2
        counts += np.bincount(index.astype(np.int32).clip(0, BINS - 1), minlength=BINS)
