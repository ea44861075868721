"""Runs both graphs over a sample: ranges of all tensors first, then, smoothed, histograms of what INT8 would hold.

Memory does not grow with the sample: each tensor leaves two numbers, a vector or a histogram. The state is saved as it
goes, and a run that was killed goes on from there to the same result, bit for bit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .._base.files import write_whole
from .._base.progress import Progress, ignore
from ..runtime.batches import in_batches
from ..runtime.bundle import Bundle
from .observers import Array
from .passes import HistogramPass, Pass, RangePass, State
from .record import Calibration
from .sample import Case, Sample, cases
from .smoothing import ChannelStatistics, Pair, choose_strength, factors, find_pairs, smooth, weight_of

ALGORITHM = 1
"""Changes whenever the same data would give another calibration."""
_STATE_NAME = ".calibration.partial.npz"
_SAVE_EVERY = 32


def calibration_key(bundle: Bundle, sample: Sample) -> dict[str, Any]:
    """Plain JSON that is equal for equal graphs, tokenizer and data."""
    manifest = bundle.manifest
    names = [manifest.find("segmenter", "fp32"), manifest.find("text_encoder", "fp32"), manifest.find("tokenizer")]
    files = {name: manifest.files[name].sha256 for name in names if name}
    key: dict[str, Any] = json.loads(json.dumps({"algorithm": ALGORITHM, "files": files, "data": sample.origin}))
    return key


def calibrate(bundle: Bundle, sample: Sample, progress: Progress = ignore) -> Calibration:
    """The calibration of a bundle's FP32 graphs on a sample; `progress` is called with (done, total).

    Raises BundleError or DatasetError for damaged files, ExportError where a tensor is not finite.
    """
    inputs = _Inputs(bundle, sample)
    store = _Store(bundle.root / _STATE_NAME, calibration_key(bundle, sample))
    total = 2 * len(sample.calibrated)
    ranging = RangePass(bundle)
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
    counting = HistogramPass(bundle, model, ranging, bounds)
    _run(counting, inputs, store, 1, lambda done: progress(len(sample.calibrated) + done, total))
    return Calibration(
        key=store.key,
        ranges=ranging.ranges(),
        channels=channels,
        strengths=strengths,
        histograms=counting.histograms(),
    )


def delete_state(root: Path) -> None:
    """Removes the saved state of a calibration that is recorded now."""
    with suppress(OSError):
        (root / _STATE_NAME).unlink()


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
    return float(np.max(statistics.amax / factors(statistics, weight, strength)))


class _Inputs:
    """The sample's cases in groups of the graphs' batch size, the last one filled with its last case."""

    def __init__(self, bundle: Bundle, sample: Sample) -> None:
        spec = bundle.manifest.input
        self._tokenizer = bundle.tokenizer()
        self._size, self._batch = (spec.height, spec.width), spec.batch or 1
        self._sentences = sample.calibrated
        self.count = len(sample.calibrated)

    def groups(self, begin: int) -> Iterator[tuple[int, list[Case]]]:
        """From sentence `begin` on: how many sentences are done after a group, and its cases."""
        for part in in_batches(self._sentences[begin:], self._batch, fill=False):
            begin += len(part)
            for group in in_batches(list(cases(part, self._size, self._tokenizer)), self._batch):
                yield begin, group


def _run(work: Pass, inputs: _Inputs, store: _Store, phase: int, progress: Callable[[int], None]) -> None:
    begin = store.restore(phase, work.state)
    progress(min(begin, inputs.count))
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
        # Whatever is wrong with a state, the run begins again without it.
        with suppress(Exception), np.load(path, allow_pickle=False) as found:
            if str(found["key"]) == self._header:
                self._arrays = {name: found[name] for name in found.files if name != "key"}

    def restore(self, phase: int, state: State) -> int:
        """Fills `state` with what was saved of a pass; how many sentences that is (all of them: a huge number)."""
        at = self._arrays.get(f"{phase}.done", np.array(0))
        saved = {name: self._arrays.get(f"{phase}.{name}", np.array(0)) for name in state}
        fits = at.shape == () and at.dtype.kind == "i"
        fits &= all((one.shape, one.dtype) == (state[name].shape, state[name].dtype) for name, one in saved.items())
        done = int(at) if fits else 0
        if done == 0 or done < self.FINISHED:
            return 0
        for name, one in saved.items():
            state[name][...] = one
        return 2**31 if done == self.FINISHED else done

    def save(self, phase: int, done: int, state: State) -> None:
        self._arrays |= {f"{phase}.{name}": array for name, array in state.items()}
        self._arrays[f"{phase}.done"] = np.array(done)
        file = io.BytesIO()
        np.savez(file, key=np.array(self._header), **self._arrays)  # type: ignore[arg-type]
        write_whole(self.path, file.getvalue())
