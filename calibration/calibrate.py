"""Runs both graphs over a sample: ranges of all tensors first, then, smoothed, histograms of what INT8 would hold.

Memory does not grow with the sample: each tensor leaves two numbers, a vector or a histogram. The state is saved as it
goes, and a run that was killed goes on from there to the same result, bit for bit.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from .._base.files import write_whole
from .._base.progress import Progress, ignore
from ..data.sentences import GENERATED, Sentence
from ..errors import ExportError
from ..runtime.batches import in_batches
from ..runtime.bundle import Bundle
from .passes import HistogramPass, Pass, RangePass, State, Targets
from .qdq import operands
from .record import Calibration, kept_calibration
from .sample import DataOptions, Sample, cases
from .smoothing import apply_smoothing, choose_strength, factors, weight_of

ALGORITHM = 2
"""Changes whenever the same data would give another calibration."""
_STATE_NAME = ".calibration.partial.npz"
_SAVE_EVERY = 32
# Histograms are of one sentence in so many, but of no fewer than so many: each gives millions of values.
_COUNTED_PART, _LEAST_COUNTED = 4, 32


def calibration_key(bundle: Bundle, sample: Sample) -> dict[str, Any]:
    """Plain JSON that is equal for equal graphs, tokenizer and data."""
    manifest = bundle.manifest
    names = [manifest.find("segmenter", "fp32"), manifest.find("text_encoder", "fp32"), manifest.find("tokenizer")]
    files = {name: manifest.files[name].sha256 for name in names if name}
    key: dict[str, Any] = json.loads(json.dumps({"algorithm": ALGORITHM, "files": files, "data": sample.origin}))
    return key


def recorded_data(bundle: Bundle) -> DataOptions:
    """The options that draw the sample of the bundle's own calibration again; if it has none, the usual ones.

    Raises ExportError if that is not of generated scenes: a bundle does not say where other data lies.
    """
    recorded = kept_calibration(bundle)
    try:
        data = {} if recorded is None else recorded.key["data"]
        dataset = str(data.get("dataset", GENERATED))
        options = DataOptions(samples=int(data.get("samples", DataOptions.samples)), seed=int(data.get("seed", 0)))
    except (ExportError, AttributeError, LookupError, TypeError, ValueError, OverflowError):
        return DataOptions()
    if dataset != GENERATED:
        raise ExportError(
            f"the calibration of {bundle.root} is of {dataset}: run lavt-export quantize {bundle.root} --int8 --tune "
            f"--force --dataset {dataset} --calibration-data ROOT, then lavt-export trt {bundle.root} --int8"
        )
    return options


def calibrate(bundle: Bundle, sample: Sample, progress: Progress = ignore) -> Calibration:
    """The calibration of a bundle's FP32 graphs on a sample; `progress` is called with (done, total).

    Raises BundleError or DatasetError for damaged files, ExportError if a tensor is not finite.
    """
    targets, count = Targets(bundle), len(sample.calibrated)
    counted = sample.calibrated[:: max(1, min(_COUNTED_PART, count // _LEAST_COUNTED))]
    total = count + len(counted)
    state = _StateFile(bundle.root / _STATE_NAME, calibration_key(bundle, sample))
    ranging = RangePass(targets)
    _run(ranging, "ranges", targets, sample.calibrated, state, lambda done: progress(done, total))
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
    counting = HistogramPass(targets, targets.image, bounds)
    _run(counting, "histograms", targets, counted, state, lambda done: progress(count + done, total))
    return Calibration(state.key, ranges, statistics, strengths, counting.histograms())


def delete_state(root: Path) -> None:
    """Removes the saved state of a calibration that is recorded now; a killed run may have left it."""
    with suppress(OSError):
        (root / _STATE_NAME).unlink()


def _run(
    gathering: Pass,
    name: str,
    targets: Targets,
    sentences: Sequence[Sentence],
    states: _StateFile,
    progress: Callable[[int], None],
) -> None:
    """Runs a pass over the sentences, from where its saved state ends."""
    done = states.restore(name, gathering.state, len(sentences))
    progress(done)
    if done < len(sentences):
        gathering.open()
    size = targets.bundle.manifest.input.batch or 1
    until_saved = math.ceil(_SAVE_EVERY / size) * size
    for part in in_batches(sentences[done:], until_saved, fill=False):
        for batch in in_batches(list(cases(targets.bundle, part)), size):
            gathering.take(batch)
            done = min(done + size, len(sentences))
            progress(done)
        states.save(name, gathering.state, done)
    gathering.close()


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
