"""What measurements leave on disk and later commands read: calibrations, results of sentences, baselines."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
from lavt_edge.benchmarks.evaluation.predictors import ModelRecord
from lavt_edge.benchmarks.evaluation.results import Run, open_results
from lavt_edge.benchmarks.timing.baseline import compare_with_baseline, read_result
from lavt_edge.calibration.calibrate import _StateFile
from lavt_edge.calibration.half import fits_half
from lavt_edge.calibration.record import Calibration, read_calibration
from lavt_edge.calibration.smoothing import ChannelStatistics, factors
from lavt_edge.calibration.thresholds import BINS, METHODS, Histogram
from lavt_edge.data.sentences import open_split
from lavt_edge.errors import BundleError, LavtError
from lavt_edge.tests.report_pages import example, read
from lavt_edge.tests.stress.cases import Case, Kind, Rng, attempt, damaged, damaged_json


def _calibration() -> Calibration:
    rng = np.random.default_rng(0)
    counts = np.bincount(rng.integers(700, 1300, 5000), minlength=BINS).astype(np.int64)
    statistics = ChannelStatistics(np.array([0.0, 1.5, 200.0]), np.array([0.0, 0.3, 9000.0]))
    return Calibration(
        key={"algorithm": 1, "files": {"segmenter.onnx": "0" * 64}, "data": {"dataset": "shapes", "samples": 8}},
        ranges={"segmenter": {"image": (0.0, 255.0), "x": (-3.5, 60000.0)}, "text_encoder": {"y": (0.0, 0.0)}},
        channels={"norm": statistics, "other": statistics},
        strengths={"norm": 0.5},
        histograms={"x": Histogram(-3.5, 2.5, 4.0, counts), "zero": Histogram(0.0, 0.0, 0.0, counts)},
    )


def calibrations(folder: Path) -> Case:
    """calibration.json: what is read can be placed by any method, smoothed by, and written again."""
    path, data = folder / "calibration.json", json.loads(_calibration().to_json())
    weight = np.ones((3, 2))

    def case(rng: Rng) -> None:
        path.write_bytes(damaged_json(data, rng))
        found = attempt(lambda: read_calibration(path), BundleError)
        if found is None or isinstance(found, LavtError):
            return
        method = METHODS[int(rng.integers(len(METHODS)))]
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            for low, high in found.clipped(method).values():
                assert np.isfinite((low, high)).all()
                fits_half(max(abs(low), abs(high)))
            for statistics in found.channels.values():
                if statistics.amax.shape == statistics.square.shape == (3,):
                    assert np.isfinite(factors(statistics, weight, 0.5)).all()
        again = folder / "again.json"
        again.write_bytes(found.to_json())
        assert read_calibration(again) is not None

    return case


def states(folder: Path) -> Case:
    """The state of a calibration that was stopped: what is restored fits, or is nothing."""
    path, key = folder / "state.npz", {"data": "x"}
    sound = {"counts": np.arange(12).reshape(3, 4), "extent": np.ones((3, 2))}
    store = _StateFile(path, key)
    store.save("ranges", sound, 7)
    whole = path.read_bytes()

    def case(rng: Rng) -> None:
        if rng.random() < 0.6:
            path.write_bytes(damaged(whole, rng))
        else:  # a sound file of something else
            odd = (np.array(-5), np.array([1]), np.array("x"), np.array(2.5), np.zeros((3, 4)), np.array(2**62))
            parts = {"key": np.array(json.dumps(key)), "ranges.done": np.array(7)}
            parts |= {f"ranges.{name}": value for name, value in sound.items()}
            parts[list(parts)[int(rng.integers(1, len(parts)))]] = odd[int(rng.integers(len(odd)))]
            np.savez(path, **parts)  # type: ignore[arg-type]
        state = {name: np.zeros_like(value) for name, value in sound.items()}
        done = _StateFile(path, key).restore("ranges", state, 12)
        assert 0 <= done <= 12
        assert {name: value.shape for name, value in state.items()} == {"counts": (3, 4), "extent": (3, 2)}

    return case


def results(folder: Path) -> Case:
    """The JSON lines of an evaluation: a run that goes on with them has as many counts as there are lines."""
    path, split = folder / "results.jsonl", open_split("shapes", "val")
    sentences, run = split.sentences[:6], Run(ModelRecord("x", "fp32", "0" * 64), (8, 8), 1, **split.describe())
    with open_results(path, run, sentences) as file:
        for i in range(5):
            file.append(i, 10, predicted=i)
    whole = path.read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]

    def case(rng: Rng) -> None:
        if rng.random() < 0.5:
            path.write_bytes(damaged(whole, rng))
        else:
            chosen = int(rng.integers(len(lines)))
            texts = [json.dumps(line).encode() for line in lines]
            texts[chosen] = damaged_json(lines[chosen], rng)
            path.write_bytes(b"\n".join(texts) + b"\n")

        def go_on() -> int:
            with open_results(path, run, sentences, restart=rng.random() < 0.1) as file:
                assert all(0 <= result.intersection <= result.union for result in file.results)
                if len(file.results) < len(sentences):
                    file.append(1, 2, predicted=1)
                return len(file.results)

        count = attempt(go_on)
        assert isinstance(count, LavtError) or len(path.read_bytes().splitlines()) == count + 1

    return case


def baselines(folder: Path) -> Case:
    """`lavt-bench --baseline`: another file than `--json` wrote."""
    path = folder / "baseline.json"
    result = example()
    for key in ("fidelity", "parts", "roofline", "layers"):
        del result[key]
    seconds = [0.1, 0.11, 0.12, 0.1]
    result["sides"] = [{**result["sides"][0], "name": name, "seconds": seconds} for name in ("small", "peer", "other")]
    result["ratios"] = [
        {"name": "small", "against": name, "ratio": 1.0, "low": 0.9, "high": 1.1} for name in ("peer", "other")
    ]
    alone = copy.deepcopy(result)
    alone["sides"], alone["ratios"] = alone["sides"][:1], []

    def case(rng: Rng) -> None:
        path.write_bytes(damaged_json(result, rng))
        baseline = attempt(lambda: read_result(path))
        if isinstance(baseline, LavtError):
            return
        for now in (result, alone):
            verdict = attempt(lambda now=now: compare_with_baseline(read(now), baseline, 1.05))  # type: ignore[misc]
            if not isinstance(verdict, LavtError):
                assert verdict.change.low <= verdict.change.ratio <= verdict.change.high

    return case


KINDS: dict[str, Kind] = {
    "calibrations": calibrations,
    "calibration states": states,
    "results of sentences": results,
    "baselines": baselines,
}
