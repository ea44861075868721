"""Runs both graphs over a sample: ranges of all tensors first, then, smoothed, histograms of what INT8 would hold.

Memory does not grow with the sample: each tensor leaves two numbers, a vector or a histogram. The state is saved as it
goes, and a run that was killed goes on from there to the same result, bit for bit.
"""

from __future__ import annotations

import io
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._base.files import write_whole
from .._base.progress import Progress, ignore
from ..data.sentences import Sentence
from ..errors import ExportError
from ..export.edits import load_graph, node_names
from ..runtime.batches import in_batches
from ..runtime.bundle import Bundle
from .observers import Session, add_channel_outputs, add_range_outputs, expose_outputs, observed_tensors
from .products import image_products
from .qdq import convolution_outputs, operands
from .record import Calibration
from .sample import Array, Sample, cases, image_inputs, text_inputs
from .smoothing import ChannelStatistics, Pair, apply_smoothing, choose_strength, factors, find_pairs, weight_of
from .thresholds import BINS, Histogram

ALGORITHM = 2
"""Changes whenever the same data would give another calibration."""
_STATE_NAME = ".calibration.partial.npz"
_SAVE_EVERY = 32
# Histograms are of one sentence in so many, but of no fewer than so many: each gives millions of values.
_COUNTED_PART, _LEAST_COUNTED = 4, 32
_CHUNK = 1 << 16  # of a tensor's values, which fit a core's cache
_EMPTY_RANGE = np.array([[np.inf, -np.inf]])

State = dict[str, Array]
_Observed = tuple[Session, Sequence[str]]


class Targets:
    """What a calibration measures of a bundle's graphs.

    `tensors`, by role, have a range; `counted` have a histogram as well; the norm of each of `pairs` has statistics of
    its channels, as many as `pairs` says.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.image = load_graph(bundle, "segmenter")
        products = [product.name for product in image_products(bundle, self.image)]
        reads = operands(self.image, products)
        outputs = [str(value.name) for value in convolution_outputs(self.image, products).values()]
        self.counted = list(dict.fromkeys([*reads, *outputs]))
        self.tensors = {
            "text_encoder": observed_tensors(load_graph(bundle, "text_encoder")),
            "segmenter": list(dict.fromkeys([*observed_tensors(self.image), *reads])),
        }
        pairs = find_pairs(self.image, set(products))
        self.pairs = {pair: len(weight_of(self.image, pair.product)) for pair in pairs}

    def are_in(self, calibration: Calibration) -> bool:
        """Whether a calibration holds all of them."""
        widths = {pair.norm: (width,) for pair, width in self.pairs.items()}
        return (
            all(set(names) <= calibration.ranges.get(role, {}).keys() for role, names in self.tensors.items())
            and set(self.counted) <= calibration.histograms.keys()
            and calibration.strengths.keys() <= calibration.channels.keys() == widths.keys()
            and all(seen.amax.shape == seen.square.shape == widths[norm] for norm, seen in calibration.channels.items())
        )


def calibration_key(bundle: Bundle, sample: Sample) -> dict[str, Any]:
    """Plain JSON that is equal for equal graphs, tokenizer and data."""
    manifest = bundle.manifest
    names = [manifest.find("segmenter", "fp32"), manifest.find("text_encoder", "fp32"), manifest.find("tokenizer")]
    files = {name: manifest.files[name].sha256 for name in names if name}
    key: dict[str, Any] = json.loads(json.dumps({"algorithm": ALGORITHM, "files": files, "data": sample.origin}))
    return key


def calibrate(bundle: Bundle, sample: Sample, progress: Progress = ignore) -> Calibration:
    """The calibration of a bundle's FP32 graphs on a sample; `progress` is called with (done, total).

    Raises BundleError or DatasetError for damaged files, ExportError if a tensor is not finite.
    """
    targets, count = Targets(bundle), len(sample.calibrated)
    counted = sample.calibrated[:: max(1, min(_COUNTED_PART, count // _LEAST_COUNTED))]
    total = count + len(counted)
    state = _StateFile(bundle.root / _STATE_NAME, calibration_key(bundle, sample))
    ranging = RangePass(targets)
    ranging.run(sample.calibrated, state, lambda done: progress(done, total))
    ranges, channels = ranging.ranges(), ranging.channels(count)
    weights = {pair: weight_of(targets.image, pair.product) for pair in targets.pairs}
    chosen = {pair: choose_strength(channels[pair], weight) for pair, weight in weights.items()}
    strengths = {pair.norm: strength for pair, strength in chosen.items() if strength is not None}
    statistics = {pair.norm: measured for pair, measured in channels.items()}
    apply_smoothing(targets.image, statistics, strengths)
    bounds = {name: max(map(abs, ranges["segmenter"][name])) for name in targets.counted}
    for pair, strength in chosen.items():
        if strength is not None:  # the largest magnitude that the norm now puts out: max_j |x_j| / f_j
            (tensor,) = operands(targets.image, [pair.product])
            bounds[tensor] = float(np.max(channels[pair].amax / factors(channels[pair], weights[pair], strength)))
    counting = HistogramPass(targets, bounds)
    counting.run(counted, state, lambda done: progress(count + done, total))
    return Calibration(state.key, ranges, statistics, strengths, counting.histograms())


def delete_state(root: Path) -> None:
    """Removes the saved state of a calibration that is recorded now; a killed run may have left it."""
    with suppress(OSError):
        (root / _STATE_NAME).unlink()


class Pass(ABC):
    """A run of both graphs over a sample; `state` holds what it has gathered, arrays by name, changed in place."""

    name: str
    state: State

    def __init__(self, targets: Targets) -> None:
        self._targets = targets

    def run(self, sentences: Sequence[Sentence], saved: _StateFile, progress: Callable[[int], None]) -> None:
        """Runs both graphs over the sentences, from where the saved state ends; `progress` is told how many are done.

        The sessions, gigabytes of a large model's, live no longer than that.
        """
        done = saved.restore(self.name, self.state, len(sentences))
        progress(done)
        if done == len(sentences):
            return
        bundle = self._targets.bundle
        (text, text_outputs), (image, image_outputs) = self._open()
        size = bundle.manifest.input.batch or 1
        until_saved = math.ceil(_SAVE_EVERY / size) * size
        for part in in_batches(sentences[done:], until_saved, fill=False):
            for batch in in_batches(list(cases(bundle, part)), size):
                prompts, *words = text.run(text_inputs(batch), ["prompt", *text_outputs])
                self._gather(words, image.run(image_inputs(batch, list(prompts)), image_outputs))
                done = min(done + size, len(sentences))
                progress(done)
            saved.save(self.name, self.state, done)

    @abstractmethod
    def _open(self) -> tuple[_Observed, _Observed]:
        """The sessions of the text and the image graph, with the names of their outputs that are gathered."""

    @abstractmethod
    def _gather(self, text: Sequence[Array], image: Sequence[Array]) -> None: ...


class RangePass(Pass):
    """Ranges of every tensor of both graphs, and channel statistics of the norms that may be smoothed."""

    name = "ranges"

    def __init__(self, targets: Targets) -> None:
        super().__init__(targets)
        self.state = {role: np.tile(_EMPTY_RANGE, (len(names), 1)) for role, names in targets.tensors.items()}
        for pair, width in targets.pairs.items():
            self.state |= {f"{pair.norm}.{name}": np.zeros(width) for name in ("amax", "square")}

    def _open(self) -> tuple[_Observed, _Observed]:
        bundle, tensors = self._targets.bundle, self._targets.tensors
        text, image = load_graph(bundle, "text_encoder"), load_graph(bundle, "segmenter")
        nodes = node_names(image)
        norms = [str(nodes[pair.norm].outputs[0].name) for pair in self._targets.pairs]
        words = add_range_outputs(text, tensors["text_encoder"])
        ranges = add_range_outputs(image, tensors["segmenter"])
        channels = add_channel_outputs(image, norms)
        return (Session(text), words), (Session(image), ranges + channels)

    def _gather(self, text: Sequence[Array], image: Sequence[Array]) -> None:
        scalars = 2 * len(self._targets.tensors["segmenter"])
        self._widen("text_encoder", text)
        self._widen("segmenter", image[:scalars])
        for pair, amax, square in zip(self._targets.pairs, image[scalars::2], image[scalars + 1 :: 2], strict=True):
            np.maximum(self.state[f"{pair.norm}.amax"], amax, out=self.state[f"{pair.norm}.amax"])
            self.state[f"{pair.norm}.square"] += square

    def _widen(self, role: str, scalars: Sequence[Array]) -> None:
        bounds = np.array([float(scalar) for scalar in scalars]).reshape(-1, 2)
        finite = np.isfinite(bounds).all(axis=1)
        if not finite.all():
            tensor = self._targets.tensors[role][int(np.argmin(finite))]
            raise ExportError(f"the {role}'s {tensor} is not finite on calibration data; is the checkpoint sound?")
        state = self.state[role]
        state[:, 0] = np.minimum(state[:, 0], bounds[:, 0])
        state[:, 1] = np.maximum(state[:, 1], bounds[:, 1])

    def ranges(self) -> dict[str, dict[str, tuple[float, float]]]:
        return {
            role: {name: (float(low), float(high)) for name, (low, high) in zip(names, self.state[role], strict=True)}
            for role, names in self._targets.tensors.items()
        }

    def channels(self, samples: int) -> dict[Pair, ChannelStatistics]:
        """The squares' mean is up to a factor that all channels share."""
        return {
            pair: ChannelStatistics(self.state[f"{pair.norm}.amax"].copy(), self.state[f"{pair.norm}.square"] / samples)
            for pair in self._targets.pairs
        }


class HistogramPass(Pass):
    """Histograms of what the products of the smoothed image graph read, and of what its convolutions put out."""

    name = "histograms"

    def __init__(self, targets: Targets, bounds: Mapping[str, float]) -> None:
        super().__init__(targets)
        self._bounds = [bounds[name] for name in targets.counted]
        self.state = {
            "counts": np.zeros((len(self._bounds), BINS), np.int64),
            "extent": np.tile(_EMPTY_RANGE, (len(self._bounds), 1)),
        }

    def _open(self) -> tuple[_Observed, _Observed]:
        targets = self._targets
        expose_outputs(targets.image, targets.counted)
        text = Session(load_graph(targets.bundle, "text_encoder"))
        return (text, ()), (Session(targets.image), targets.counted)

    def _gather(self, text: Sequence[Array], image: Sequence[Array]) -> None:
        for i, tensor in enumerate(image):
            _count(tensor, self._bounds[i], self.state["counts"][i], self.state["extent"][i])

    def histograms(self) -> dict[str, Histogram]:
        """By tensor. The ends are widened to the bound, which is of more sentences than were counted."""
        extent, bounds = self.state["extent"], np.array(self._bounds)[:, None]
        largest = np.abs(extent).max(axis=1, keepdims=True)
        ends = np.where(largest > 0, extent / np.maximum(largest, 1e-300) * bounds, bounds * [-1, 1])
        parts = zip(ends.tolist(), self._bounds, self.state["counts"], strict=True)
        histograms = [Histogram(low, high, bound, counts) for (low, high), bound, counts in parts]
        return dict(zip(self._targets.counted, histograms, strict=True))


def _count(tensor: Array, bound: float, counts: Array, extent: Array) -> None:
    """Adds a tensor's values to its histogram (BINS,) and its extent (2,), in place."""
    values = tensor.reshape(-1)
    scale = np.float32(BINS / (2 * bound) if bound else 0)
    for start in range(0, len(values), _CHUNK):
        chunk = values[start : start + _CHUNK]
        extent[0], extent[1] = min(extent[0], chunk.min()), max(extent[1], chunk.max())
        index = chunk * scale
        index += BINS / 2
        counts += np.bincount(index.astype(np.int32).clip(0, BINS - 1), minlength=BINS)


class _StateFile:
    """The state of a calibration on disk: the arrays of each pass, and how many sentences they are of."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path, self.key = path, key
        header = json.dumps(key, sort_keys=True)
        self._arrays: State = {"key": np.array(header)}
        # Whatever is wrong with the file, the run begins again without it.
        with suppress(Exception), np.load(path, allow_pickle=False) as saved:
            if str(saved["key"]) == header:
                self._arrays = dict(saved)

    def restore(self, name: str, state: State, count: int) -> int:
        """Fills `state` with what was saved of a pass, if it fits; returns how many of `count` sentences that is."""
        done = np.array(0)
        saved = [(array, self._arrays.get(f"{name}.{part}")) for part, array in {"done": done, **state}.items()]
        if any(old is None or (old.shape, old.dtype) != (array.shape, array.dtype) for array, old in saved):
            return 0
        if not 0 < self._arrays[f"{name}.done"] <= count:
            return 0
        for array, old in saved:
            array[...] = old
        return int(done)

    def save(self, name: str, state: State, done: int) -> None:
        self._arrays |= {f"{name}.{part}": array for part, array in {"done": np.array(done), **state}.items()}
        file = io.BytesIO()
        np.savez(file, **self._arrays)  # type: ignore[arg-type]
        write_whole(self.path, file.getvalue())
