"""The standing comparison as data, and docs/benchmarks.md from it: no figure in it is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..._base.records import OPTIONAL
from ..._base.timing import Summary
from ..timing.machine import Machine
from ..timing.result import FidelityFigures, Memory, SideRatio
from .format import NOTHING, bytes_text, percent, ratio_text
from .sections import fidelity_table

PLAIN = "plain export"


@dataclass(frozen=True)
class Side:
    """A side as `SideResult` describes it; seconds are rounded to microseconds."""

    name: str
    precision: str
    size: tuple[int, int]
    runtime: str
    seconds: tuple[float, ...]
    summary: Summary
    memory: Memory


@dataclass(frozen=True)
class PartTime:
    seconds: float
    macs: int


@dataclass(frozen=True)
class Part:
    """A part of the model: what it costs on each side that was profiled, by the side's name."""

    part: str
    sides: Mapping[str, PartTime]


@dataclass(frozen=True)
class FrameCost:
    """Seconds of a frame of `size` (height, width) on one thread, medians; `opencv` says whether that could be used.

    `preprocess` is the frame to the size of the graph's input, `image` the graph, `postprocess` logits to the mask.
    """

    size: tuple[int, int]
    opencv: bool
    preprocess: float
    image: float
    postprocess: float


@dataclass(frozen=True)
class GpuGraph:
    """What TensorRT for RTX compiles a graph to, without a GPU; bytes as if there were no caches."""

    name: str
    compiler: str
    macs: int
    kernels: int
    moved_bytes: int
    constant_bytes: int


@dataclass(frozen=True)
class Model:
    """What was measured of a model, see `runs.standing.measure_subject`.

    `targets` are (side, against, ratio at most).
    """

    name: str
    weights: str
    size: tuple[int, int]
    rounds: int
    calibrated_on: int
    int8_policy: str
    sides: tuple[Side, ...]
    ratios: tuple[SideRatio, ...]
    targets: tuple[tuple[str, str, float], ...]
    parts: tuple[Part, ...]
    accuracy: tuple[FidelityFigures, ...] | None
    warnings: tuple[str, ...]
    frames: tuple[FrameCost, ...] | None = field(default=None, metadata=OPTIONAL)
    gpu: tuple[GpuGraph, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Standing:
    """The content of docs/benchmarks.json."""

    format: int
    date: str
    minutes: float
    machine: Machine
    models: tuple[Model, ...]
    warnings: tuple[str, ...]


def markdown(result: Standing) -> str:
    """The standing comparison as Markdown."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured by `make bench` on {result.date} in {result.minutes:.0f} minutes, from",
        "`benchmarks.json` beside it; no figure here is written by hand. "
        "Every side runs the image graph alone, one image",
        "a call, in a process of its own; sides take turns round by round. A ratio is of medians, with its 95 %",
        "interval; below 1 the side is faster. Your machine will give other times: measure with `lavt-bench`.",
        "",
        *_machine(result.machine),
    ]
    for model in result.models:
        lines += ["", *_model(model)]
    warnings = [*result.warnings, *(f"{model.name}: {line}" for model in result.models for line in model.warnings)]
    if warnings:
        lines += ["", "## Warnings", "", *(f"- {_cell(line)}" for line in warnings)]
    return "\n".join(lines) + "\n"


def _machine(machine: Machine) -> list[str]:
    cpu = machine.cpu
    facts = [
        ("CPU", f"{cpu.model}, {cpu.allowed} of {cpu.cores} cores{', virtual' if cpu.virtual else ''}"),
        ("instructions", ", ".join(cpu.flags) or "none that matter"),
        ("threads", str(machine.threads)),
        ("memory", bytes_text(machine.memory_bytes)),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
    ]
    return _table(("machine", ""), facts, "ll")


def _model(model: Model) -> list[str]:
    height, width = model.size
    weights = "random weights" if model.weights == "random" else "its own weights"
    chosen = {"full": "every product with a weight in INT8", "auto": "INT8 placed by accuracy control"}
    lines = [
        f"## {model.name[:1].upper()}{model.name[1:]}, {height}x{width}",
        "",
        f"With {weights}, {model.rounds} rounds; INT8 calibrated on {model.calibrated_on} generated sentences,",
        f"{chosen[model.int8_policy]}.",
        "",
        *_sides(model),
    ]
    others = [(ratio.name, ratio.against, ratio_text(ratio)) for ratio in model.ratios if ratio.against != PLAIN]
    if others:
        lines += ["", *_table(("side", "over", "ratio (95 % interval)"), others, "llr")]
    if model.targets:
        lines += ["", *_targets(model)]
    lines += ["", *_parts(model.parts)]
    if model.gpu:
        lines += ["", *_gpu(model.gpu)]
    if model.accuracy:
        table = fidelity_table(model.accuracy)
        lines += ["", f"Accuracy over {model.accuracy[0].sentences} sentences of generated val:", ""]
        lines += _table(table.columns, table.rows, "lrrrrr")
    if model.frames:
        lines += ["", *_frames(model.frames)]
    return lines


def _sides(model: Model) -> list[str]:
    over_plain = {ratio.name: ratio_text(ratio) for ratio in model.ratios if ratio.against == PLAIN}
    rows = []
    for side in model.sides:
        summary = side.summary
        times = [f"{1e3 * seconds:.1f}" for seconds in (summary.median, summary.p90, summary.p99)]
        memory = bytes_text(side.memory.peak_bytes)
        over = over_plain.get(side.name, "1")
        rows.append((side.name, side.runtime, *times, f"{summary.throughput:.2f}", memory, over))
    times_head = ("median ms", "p90 ms", "p99 ms", "1/median, images/s")
    head = ("side", "runtime", *times_head, "peak memory", "over plain export (95 %)")
    return _table(head, rows, "llrrrrrr")


def _targets(model: Model) -> list[str]:
    ratios = {(ratio.name, ratio.against): ratio for ratio in model.ratios}
    rows = []
    for name, against, most in model.targets:
        ratio = ratios.get((name, against))
        verdict = "not measured" if ratio is None else "met" if ratio.ratio <= most else "missed"
        if ratio is not None and not ratio.excludes(most):
            verdict += ", the interval holds the target"
        shown = NOTHING if ratio is None else ratio_text(ratio)
        rows.append((f"{name} over {against}", f"{most:.2f}", shown, verdict))
    return _table(("target", "at most", "ratio (95 % interval)", ""), rows, "lrrl")


def _parts(parts: Sequence[Part]) -> list[str]:
    """Milliseconds, share and GMACs of each part, for every side that was profiled."""
    names = list(dict.fromkeys(name for row in parts for name in row.sides))
    columns = {name: [row.sides[name] for row in parts if name in row.sides] for name in names}
    whole = {
        name: PartTime(sum(time.seconds for time in times), sum(time.macs for time in times))
        for name, times in columns.items()
    }
    rows = [
        [row.part, *(cell for name in names for cell in _part_cells(row.sides.get(name), whole[name].seconds))]
        for row in [*parts, Part("all", whole)]
    ]
    head = ["part", *(f"{name}{what}" for name in names for what in (", ms", ", share", ", GMACs"))]
    return [
        "Where the time goes, by ONNX Runtime's profiler:",
        "",
        *_table(head, rows, "l" + "rrr" * len(names)),
    ]


def _part_cells(part: PartTime | None, total: float) -> tuple[str, str, str]:
    if part is None:
        return NOTHING, NOTHING, NOTHING
    return f"{1e3 * part.seconds:.1f}", percent(part.seconds / total, 1), f"{part.macs / 1e9:.2f}"


def _gpu(graphs: Sequence[GpuGraph]) -> list[str]:
    """Kernels and bytes, and the bytes over those of the first graph."""
    total = {graph.name: graph.moved_bytes + graph.constant_bytes for graph in graphs}
    rows = []
    for graph in graphs:
        megabytes = [f"{count / 1e6:.0f}" for count in (graph.moved_bytes, graph.constant_bytes, total[graph.name])]
        share = f"{total[graph.name] / total[graphs[0].name]:.3f}"
        rows.append((graph.name, f"{graph.macs / 1e9:.1f}", str(graph.kernels), *megabytes, share))
    head = ("graph", "GMACs", "kernels", "activations, MB", "constants, MB", "all, MB", f"over {graphs[0].name}")
    return [
        f"What a GPU runs for it, counted and not timed: {graphs[0].compiler},",
        "bytes of every tensor that a kernel reads or writes, as if there were no caches:",
        "",
        *_table(head, rows, "lrrrrrr"),
    ]


def _frames(costs: Sequence[FrameCost]) -> list[str]:
    rows = []
    for cost in costs:
        height, width = cost.size
        times = [f"{1e3 * seconds:.1f}" for seconds in (cost.preprocess, cost.postprocess, cost.image)]
        rows.append((f"{width}x{height}", "yes" if cost.opencv else "no", *times))
    return [
        "What a camera's frame costs beside the graph, on one thread, only the mask read:",
        "",
        *_table(("frame", "OpenCV", "prepare, ms", "mask, ms", "image graph, ms"), rows, "llrrr"),
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    """A table; `sides` aligns each column, "l" or "r"."""
    rule = " | ".join("---:" if side == "r" else "---" for side in sides)
    body = [" | ".join(_cell(text) for text in row) for row in rows]
    return [f"| {line} |" for line in (" | ".join(head), rule, *body)]


def _cell(text: str) -> str:
    """Text that ends neither a cell nor a line."""
    return " ".join(text.split()).replace("|", "\\|")
