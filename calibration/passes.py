"""The two runs over a sample: ranges of every tensor, then histograms of what INT8 would hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
import onnx_ir as ir

from ..errors import BundleError, ExportError
from ..export.macs import count_macs
from ..runtime.batches import image_feeds, text_feeds
from ..runtime.bundle import Bundle
from .graphs import node_names
from .observers import Array, Session, add_channel_outputs, add_range_outputs, expose_outputs, observed_tensors
from .products import Product, find_products
from .qdq import convolution_outputs, operands
from .record import Calibration
from .sample import Case
from .smoothing import ChannelStatistics, Pair, find_pairs, weight_of
from .thresholds import BINS, Histogram

_CHUNK = 1 << 20

State = dict[str, Array]


def load_graph(bundle: Bundle, role: str) -> ir.Model:
    """A FP32 graph of the bundle, with its weights. Raises BundleError."""
    path = bundle.file(role)
    try:
        return ir.load(path)
    except Exception as error:  # protobuf's own class, which onnx_ir does not name
        raise BundleError(f"{path} is not an ONNX graph ({type(error).__name__})") from error


def image_macs(bundle: Bundle) -> dict[str, int]:
    """MACs of each product of the image graph, by node name, for one image."""
    batch = bundle.manifest.input.batch or 1
    return {name: count // batch for name, count in count_macs(bundle.file("segmenter")).items()}


def image_products(bundle: Bundle, model: ir.Model) -> list[Product]:
    """The products of the image graph that may be quantised, with their MACs for one image."""
    return find_products(model, image_macs(bundle))


def fits_graphs(bundle: Bundle, calibration: Calibration) -> bool:
    """Whether a calibration speaks of the tensors of the bundle's graphs, and of all that quantisation asks for."""
    text, image = load_graph(bundle, "text_encoder"), load_graph(bundle, "segmenter")
    names = [one.name for one in image_products(bundle, image)]
    reads = operands(image, names)
    asked = {*reads, *(str(value.name) for value in convolution_outputs(image, names))}
    pairs = {pair.norm: len(weight_of(image, pair.product)) for pair in find_pairs(image, set(names))}
    return (
        set(observed_tensors(text)) <= calibration.ranges.get("text_encoder", {}).keys()
        and {*observed_tensors(image), *reads} <= calibration.ranges.get("segmenter", {}).keys()
        and asked <= calibration.histograms.keys()
        and calibration.strengths.keys() <= calibration.channels.keys() == pairs.keys()
        and all(one.amax.shape == one.square.shape == (pairs[norm],) for norm, one in calibration.channels.items())
    )


class Pass(Protocol):
    """A run over the sample; `state` holds what it has gathered, arrays by name, changed in place."""

    state: State

    def open(self) -> None: ...

    def take(self, group: Sequence[Case]) -> None: ...


def text_inputs(group: Sequence[Case]) -> dict[str, Array]:
    """The text graph's inputs for a batch of cases."""
    return text_feeds([case.input_ids for case in group], [case.attention_mask for case in group])


def image_inputs(group: Sequence[Case], prompts: Sequence[Array]) -> dict[str, Array]:
    """The image graph's inputs for a batch of cases and their prompts (T,P)."""
    return image_feeds([case.image for case in group], prompts, [case.attention_mask for case in group])


class RangePass:
    """Ranges of every tensor of both graphs, and channel statistics of the norms that may be smoothed."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.plain_image = load_graph(bundle, "segmenter")
        self.products = image_products(bundle, self.plain_image)
        names = [one.name for one in self.products]
        self.pairs = find_pairs(self.plain_image, set(names))
        self.reads = operands(self.plain_image, names)
        self._text = observed_tensors(load_graph(bundle, "text_encoder"))
        self._image = list(dict.fromkeys([*observed_tensors(self.plain_image), *self.reads]))
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
        self._text_outputs = ["prompt", *add_range_outputs(text, self._text)]
        self._image_outputs = add_range_outputs(image, self._image)
        self._image_outputs += add_channel_outputs(image, self._norms)
        self._sessions = Session(text), Session(image)

    def take(self, group: Sequence[Case]) -> None:
        prompts, *text = self._sessions[0].run(text_inputs(group), self._text_outputs)
        found = self._sessions[1].run(image_inputs(group, list(prompts)), self._image_outputs)
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


class HistogramPass:
    """Histograms of what the products of the smoothed image graph read, and of what its convolutions put out."""

    def __init__(self, bundle: Bundle, model: ir.Model, ranging: RangePass, smoothed: Mapping[str, float]) -> None:
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
        expose_outputs(self._model, self._tensors)
        self._sessions = Session(load_graph(self._bundle, "text_encoder")), Session(self._model)

    def take(self, group: Sequence[Case]) -> None:
        (prompts,) = self._sessions[0].run(text_inputs(group), ["prompt"])
        found = self._sessions[1].run(image_inputs(group, list(prompts)), self._tensors)
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
