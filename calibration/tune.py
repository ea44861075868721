"""Tuning: which placement of INT8 is the fastest on the device that will run it, by measurement, within the budget."""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnx_ir as ir

from .._base.progress import Progress, Report, ignore
from .._base.timing import Timed, interleave, paired_ratio
from ..errors import ExportError
from ..export.edits import save_graph
from ..runtime.backend import Backend, OnnxRuntimeBackend
from .evaluator import Figures
from .observers import Array
from .placement import Placement
from .products import Product, candidates, group_macs

# Calls of each side: to warm up, to tell what one part of the model saves, and to choose among placements.
WARMUP, PART_ROUNDS, ROUNDS = 3, 30, 60

# Layer groups of one kind are timed together: an engine takes minutes to build. The two attention products are one
# kernel, or none is.
_PLACE = re.compile(r"^stage\d+\.|\.level\d+")
_JOINED = {"attn.scores": "attn.products", "attn.values": "attn.products"}


class Device(Protocol):
    """What is to run the image graph; `name` stands in the manifest."""

    name: str

    def load(self, graph: Path) -> AbstractContextManager[Backend]:
        """The graph of this file, ready to run; the file is gone later. Raises LavtError if it cannot be run."""
        raise NotImplementedError


class CpuDevice:
    """ONNX Runtime on the CPU, as the runtime uses it."""

    name = "ONNX Runtime on the CPU"

    def load(self, graph: Path) -> AbstractContextManager[Backend]:
        return nullcontext(OnnxRuntimeBackend(graph, device="cpu"))


@dataclass(frozen=True)
class TimedPart:
    """What one kind of layer group takes if it alone is in INT8: its time over that of a graph without INT8."""

    part: str
    """Such as "mlp.fc1": that of all stages."""
    ratio: float
    low: float
    """Of the ratio's 95 % interval, like `high`."""
    high: float


@dataclass(frozen=True)
class TimedPlacement:
    """What the image graph takes with some of its layer groups in INT8."""

    placement: str
    """ "none", a policy, or what the parts were whose groups may be INT8: "faster", "surely faster" (the interval is
    below 1) or "not surely slower"."""
    groups: Sequence[str]
    """The groups in INT8."""
    median_ms: float
    quartiles_ms: Sequence[float]
    drop: float
    """Points of mean IoU lost against FP32."""
    kept: bool = False
    """Whether it is that of the graph that was written."""


@dataclass(frozen=True)
class Tuning:
    """What was measured to choose a placement: calls of all sides in turn, so many rounds."""

    device: str
    rounds: int
    parts: Sequence[TimedPart]
    placements: Sequence[TimedPlacement]


class _Call:
    """One call of a graph for its logits, timed."""

    def __init__(self, backend: Backend, feeds: Mapping[str, Array]) -> None:
        self._backend, self._feeds = backend, feeds

    def run(self) -> float:
        start = time.perf_counter()
        self._backend.run(self._feeds, ("logits",))
        return time.perf_counter() - start


@contextmanager
def loaded(model: ir.Model, device: Device, feeds: Mapping[str, Array]) -> Iterator[Timed]:
    """An image graph on the device."""
    with ExitStack() as stack:
        with tempfile.TemporaryDirectory() as folder:
            (graph, *_) = save_graph(model, Path(folder) / "segmenter.int8.onnx")
            backend = stack.enter_context(device.load(graph))
        yield _Call(backend, feeds)


def tune(
    products: Sequence[Product],
    policy: str,
    select: Callable[[Sequence[Product], Mapping[str, float] | None], Placement],
    evaluate: Callable[[Sequence[Product]], Figures],
    load: Callable[[Sequence[Product]], AbstractContextManager[Timed]],
    max_drop: float,
    device: str,
    report: Report = ignore,
    progress: Progress = ignore,
) -> tuple[Placement, Tuning]:
    """The fastest of the placements that cost at most `max_drop` points of mean IoU, and what was measured.

    Each part of the model is timed in INT8 alone, in turn with a graph without INT8. Then these take turns: no INT8,
    what `policy` gives without tuning, what of it policies `bytes` and `decoder` give, and the parts that were faster,
    surely faster or not surely slower. `select` is accuracy control, which returns what costs the most per time saved;
    `evaluate` gives the figures of products in INT8, `load` a graph of them on the device.

    Raises ExportError if no placement keeps to the budget, or none is faster than no INT8.
    """
    parts: dict[str, list[Product]] = {}
    for product in products:
        parts.setdefault(part_of(product.group), []).append(product)
    with ExitStack() as stack:
        report("timing the graph without INT8")
        plain = stack.enter_context(load([]))
        times = []
        for i, (part, members) in enumerate(parts.items()):
            report(f"timing {part} alone, {i + 1} of {len(parts)}")
            with load(members) as side:
                without, alone = interleave([plain, side], WARMUP, PART_ROUNDS, progress)
            ratio = paired_ratio(alone, without)
            times.append(TimedPart(part, ratio.ratio, ratio.low, ratio.high))
        by_name = _placements(products, policy, times, select, evaluate)
        sides = [plain]
        for name, placement in list(by_name.items())[1:]:
            report(f"loading the placement {name!r}")
            sides.append(stack.enter_context(load(placement.products)))
        report(f"timing {len(sides)} placements")
        seconds = interleave(sides, WARMUP, ROUNDS, progress)
    medians = dict(zip(by_name, (float(np.median(values)) for values in seconds), strict=True))
    kept = fastest(medians, {name: placement.figures.drop for name, placement in by_name.items()}, max_drop, device)
    placements = [
        TimedPlacement(
            name,
            list(group_macs(placement.products)),
            _milliseconds(medians[name]),
            [_milliseconds(float(value)) for value in np.percentile(values, (25, 75))],
            placement.figures.drop,
            name == kept,
        )
        for (name, placement), values in zip(by_name.items(), seconds, strict=True)
    ]
    return by_name[kept], Tuning(device, ROUNDS, times, placements)


def fastest(medians: Mapping[str, float], drops: Mapping[str, float], max_drop: float, device: str) -> str:
    """The name of the fastest placement within the budget; `medians` are in seconds, that of "none" among them.

    Raises ExportError if there is none, or it is not faster than no INT8.
    """
    within = [name for name in medians if name != "none" and drops[name] <= max_drop]
    if not within:
        raise ExportError(
            f"no layer group keeps within {max_drop} points of mean IoU in INT8; allow more with --max-drop"
        )
    best = min(within, key=medians.__getitem__)
    if medians[best] >= medians["none"]:
        raise ExportError(
            f"INT8 saves no time on {device}: {1e3 * medians['none']:.2f} ms without, {1e3 * medians[best]:.2f} ms "
            f"with the fastest placement, {best!r}; nothing was written"
        )
    return best


def _placements(
    products: Sequence[Product],
    policy: str,
    times: Sequence[TimedPart],
    select: Callable[[Sequence[Product], Mapping[str, float] | None], Placement],
    evaluate: Callable[[Sequence[Product]], Figures],
) -> dict[str, Placement]:
    """The placements to choose from, by name, each set of groups once; the first has nothing in INT8."""
    by_name = {"none": Placement([], evaluate([])), policy: select(products, None)}
    for name in ("bytes", "decoder"):
        members = candidates(by_name[policy].products, name)
        by_name.setdefault(name, Placement(members, evaluate(members)))
    saved = _time_saved(products, times)
    slow = {
        "not surely slower": {timed.part for timed in times if timed.low > 1},
        "faster": {timed.part for timed in times if timed.ratio >= 1},
        "surely faster": {timed.part for timed in times if timed.high >= 1},
    }
    for name, parts in slow.items():
        by_name[name] = select([product for product in products if part_of(product.group) not in parts], saved)
    first: dict[frozenset[str], str] = {}
    for name, placement in by_name.items():
        first.setdefault(frozenset(group_macs(placement.products)), name)
    return {name: by_name[name] for name in first.values()}


def _time_saved(products: Sequence[Product], times: Sequence[TimedPart]) -> dict[str, float]:
    """The share of the graph's time that each group saves: its part's, divided by multiply-accumulates."""
    macs, of_part = group_macs(products), Counter[str]()
    for group, count in macs.items():
        of_part[part_of(group)] += count
    saved = {timed.part: 1 - timed.ratio for timed in times}
    return {group: saved[part_of(group)] * count / of_part[part_of(group)] for group, count in macs.items()}


def part_of(group: str) -> str:
    """What is timed together: "mlp.fc1" for "stage2.mlp.fc1"."""
    kind = _PLACE.sub("", group)
    return _JOINED.get(kind, kind)


def _milliseconds(seconds: float) -> float:
    return round(1e3 * seconds, 4)
