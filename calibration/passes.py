"""The two runs over a sample: ranges of every tensor, then histograms of what INT8 would hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..errors import ExportError
from ..export.edits import load_graph, node_names
from ..runtime.bundle import Bundle
from .observers import Session, add_channel_outputs, add_range_outputs, expose_outputs, observed_tensors
from .products import image_products
from .qdq import convolution_outputs, operands
from .record import Calibration
from .sample import Array, Case, image_inputs, text_inputs
from .smoothing import ChannelStatistics, Pair, find_pairs, weight_of
from .thresholds import BINS, Histogram

_CHUNK = 1 << 16  # of a tensor's values, which fit a core's cache
_EMPTY_RANGE = np.array([[np.inf, -np.inf]])

State = dict[str, Array]


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


class Pass(ABC):
    """A run of both graphs over a sample; `state` holds what it has gathered, arrays by name, changed in place."""

    state: State
    _sessions: tuple[Session, Session]
    _outputs: tuple[Sequence[str], Sequence[str]]

    @abstractmethod
    def open(self) -> None:
        """Makes the sessions of the text and the image graph, and the names of their outputs that are gathered."""

    def close(self) -> None:
        """Lets go of the sessions and their memory: gigabytes of a large model's."""
        self.__dict__.pop("_sessions", None)

    def take(self, batch: Sequence[Case]) -> None:
        """Runs both graphs on a batch of cases and gathers their outputs."""
        (text, image), (text_outputs, image_outputs) = self._sessions, self._outputs
        prompts, *words = text.run(text_inputs(batch), ["prompt", *text_outputs])
        self._gather(words, image.run(image_inputs(batch, list(prompts)), image_outputs))

    @abstractmethod
    def _gather(self, text: Sequence[Array], image: Sequence[Array]) -> None: ...


class RangePass(Pass):
    """Ranges of every tensor of both graphs, and channel statistics of the norms that may be smoothed."""

    def __init__(self, targets: Targets) -> None:
        self._targets = targets
        self.state = {role: np.tile(_EMPTY_RANGE, (len(names), 1)) for role, names in targets.tensors.items()}
        for pair, width in targets.pairs.items():
            self.state |= {f"{pair.norm}.{name}": np.zeros(width) for name in ("amax", "square")}

    def open(self) -> None:
        bundle, tensors = self._targets.bundle, self._targets.tensors
        text, image = load_graph(bundle, "text_encoder"), load_graph(bundle, "segmenter")
        nodes = node_names(image)
        norms = [str(nodes[pair.norm].outputs[0].name) for pair in self._targets.pairs]
        ranges = add_range_outputs(image, tensors["segmenter"])
        self._outputs = (
            add_range_outputs(text, tensors["text_encoder"]),
            [*ranges, *add_channel_outputs(image, norms)],
        )
        self._sessions = Session(text), Session(image)

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

    def __init__(self, targets: Targets, smoothed: ir.Model, bounds: Mapping[str, float]) -> None:
        self._targets, self._image = targets, smoothed
        self._bounds = [bounds[name] for name in targets.counted]
        self.state = {
            "counts": np.zeros((len(self._bounds), BINS), np.int64),
            "extent": np.tile(_EMPTY_RANGE, (len(self._bounds), 1)),
        }

    def open(self) -> None:
        expose_outputs(self._image, self._targets.counted)
        self._outputs = (), self._targets.counted
        self._sessions = Session(load_graph(self._targets.bundle, "text_encoder")), Session(self._image)

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
