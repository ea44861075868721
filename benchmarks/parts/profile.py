"""Where the time of a graph goes, by part of the model, from ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ...errors import BackendError, InputError, reason_of
from ...export.rewrites.names import part_of
from ...runtime.backend import create_session
from ..timing.result import TimedPart
from .costs import Operation, assign_parts, cost_rows, timed_parts

_KERNEL = "_kernel_time"
Event = Mapping[str, Any]


def part_times(
    onnx_path: Path, feeds: Mapping[str, npt.NDArray[Any]], threads: int | None = None, rounds: int = 5
) -> tuple[tuple[TimedPart, ...], float]:
    """Seconds, MACs and bytes of each part of a graph that runs on the CPU, in its order; and seconds of a whole run.

    A node's seconds go from the end of the node before it to its own end: its kernel, and what the executor does to
    start it. They are the mean over the faster half of `rounds`, so that they add up to the whole.

    Raises:
        BackendError: ONNX Runtime cannot load the graph or run it on `feeds`.
        InputError: fewer than one round.
    """
    if rounds < 1:
        raise InputError(f"rounds {rounds}: give 1 or more")
    events, operations = _profile(onnx_path, feeds, threads, rounds)
    runs = [_run_seconds(nodes, _event_parts(nodes, operations)) for nodes in _nodes_of_runs(events)]
    totals = [event["dur"] / 1e6 for event in events if event["name"] == "model_run"]
    # The first run allocates the memory that the others use again.
    kept = sorted(range(1, len(totals)), key=totals.__getitem__)[: (rounds + 1) // 2]
    parts = {part for i in kept for part in runs[i]}
    seconds = {part: float(np.mean([runs[i].get(part, 0.0) for i in kept])) for part in parts}
    costs = cost_rows(onnx_path, max(len(array) for array in feeds.values()))
    return timed_parts(costs, seconds), float(np.mean([totals[i] for i in kept]))


def _profile(
    path: Path, feeds: Mapping[str, npt.NDArray[Any]], threads: int | None, rounds: int
) -> tuple[list[Event], list[Operation]]:
    """The profiler's events of `rounds` runs after a first, and the nodes that ran, as ONNX Runtime's optimiser left
    them: it writes its graph in the order in which it runs it."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "enable_profiling": True,
            "profile_file_prefix": str(Path(folder, "profile")),
            "optimized_model_filepath": str(Path(folder, "optimized.onnx")),
        }
        config = {
            "session.optimized_model_external_initializers_file_name": "weights.bin",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        try:
            session = create_session(path, threads=threads, options=options, config=config)
            for _ in range(rounds + 1):
                session.run(None, dict(feeds))
            events: list[Event] = json.loads(Path(session.end_profiling()).read_bytes())
        except Exception as error:  # its exceptions have no common base
            raise BackendError(f"ONNX Runtime could not profile {path}: {reason_of(error)}") from error
        graph = onnx.load(Path(folder, "optimized.onnx"), load_external_data=False).graph
    return events, [Operation(node.name, list(node.input), list(node.output)) for node in graph.node]


def _nodes_of_runs(events: Sequence[Event]) -> list[list[Event]]:
    """The kernels of each run, in the order in which they ran."""
    kernels = sorted(
        (event for event in events if event["cat"] == "Node" and event["name"].endswith(_KERNEL)),
        key=lambda event: int(event["ts"]),
    )
    runs = [event for event in events if event["name"] == "model_run"]
    return [[node for node in kernels if run["ts"] <= node["ts"] < run["ts"] + run["dur"]] for run in runs]


def _event_parts(kernels: Sequence[Event], operations: Sequence[Operation]) -> list[str]:
    """The part of each kernel: by its place in the graph that ran, or by its name alone if that is another."""
    names = [event["name"].removesuffix(_KERNEL) for event in kernels]
    same = len(names) == len(operations) and all(
        node.name in ("", name) for name, node in zip(names, operations, strict=True)
    )
    return assign_parts(operations) if same else [part_of(name) for name in names]


def _run_seconds(kernels: Sequence[Event], parts: Iterable[str]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    before: int | None = None
    for event, part in zip(kernels, parts, strict=True):
        start = event["ts"] if before is None else before
        before = event["ts"] + event["dur"]
        seconds[part] = seconds.get(part, 0.0) + (before - start) / 1e6
    return seconds
