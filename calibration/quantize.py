"""`lavt-export quantize`: graphs in 16 bits and in INT8, from calibration, judged before they get their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as replaced
from functools import cache
from pathlib import Path

import onnx_ir as ir

from .. import __version__
from .._base.progress import Progress, Report, ignore
from ..errors import ExportError
from ..export.edits import LOW, load_graph, node_names, save_graph
from ..export.rewrites.gpu import known_ranges, lay_out_for_gpu
from ..runtime.bundle import Bundle, file_entry, open_bundle
from ..runtime.manifest import FileEntry, Manifest
from ..runtime.update import BundleUpdate, update_bundle
from .calibrate import Targets, calibrate, calibration_key, delete_state
from .evaluator import Evaluator, Figures
from .half import Range, emulate_half, find_islands, to_half
from .placement import GroupLoss, Placement, draw_ranking, losses_alone, rank_groups, select_int8_groups
from .products import POLICIES, RESTS, Product, candidates, image_macs, image_products
from .qdq import quantize_products
from .record import RECORD_NAME, Calibration, kept_calibration
from .sample import DataOptions, Sample, draw_sample
from .smoothing import apply_smoothing
from .thresholds import METHODS
from .tune import Device, Tuning, loaded, tune

# Against the FP32 graphs on held-out sentences: what 16 bits may cost before they are refused. bfloat16 has 8 bits of
# precision, FP16 has 11: its logits differ by up to 2^3 as much.
HALF_MAX_DROP, HALF_MAX_ERROR = 0.25, {"fp16": 0.02, "bf16": 0.16}
TEXT_MAX_ERROR = 0.003


@dataclass(frozen=True)
class QuantizeOptions:
    """How an INT8 graph is made, and what every precision is calibrated on.

    Raises ExportError for a value that is not offered.
    """

    policy: str = "auto"
    """Which products may be INT8: "auto", "full" (no attention products), "decoder" or "bytes" (for GPUs)."""
    method: str = "mse"
    """How ranges are clipped: "mse", "entropy", "percentile" or "minmax"."""
    rest: str = "fp16"
    """What the rest of an INT8 graph is: "fp16", or "fp32" for CPUs."""
    max_drop: float = 0.5
    """Points of mean IoU that INT8 may cost, 0 to 100."""
    data: DataOptions = field(default_factory=DataOptions)
    """The sentences and images to calibrate on."""

    def __post_init__(self) -> None:
        for name, known in (("policy", POLICIES), ("method", METHODS), ("rest", RESTS)):
            if getattr(self, name) not in known:
                raise ExportError(f"{name} {getattr(self, name)!r}: give one of {', '.join(known)}")
        if not 0 <= self.max_drop <= 100:
            raise ExportError(f"max_drop {self.max_drop}: give points of mean IoU, 0 to 100")


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize_bundle` added to a bundle."""

    manifest: Manifest
    """The bundle's manifest as it is now."""
    precision: str
    """The new graph's: "fp16", "bf16", "int8", or "int8-cpu" with FP32 for the rest."""
    figures: Figures
    """What the new graph keeps of the FP32 graph's accuracy."""
    total_macs: int = 0
    """Multiply-accumulates of the image graph for one image; 0 but for INT8, as the two fields below."""
    int8_share: float = 0.0
    """The share of them that runs in INT8, 0 to 1."""
    ranking: Sequence[GroupLoss] = ()
    """Every layer group that might be INT8 with its loss, worst first."""
    tuning: Tuning | None = None
    """What was timed to choose the placement, if it was chosen by time."""


def quantize_bundle(
    bundle: str | os.PathLike[str],
    precision: str,
    options: QuantizeOptions | None = None,
    *,
    device: Device | None = None,
    replace: bool = False,
    report: Report = ignore,
    progress: Progress = ignore,
) -> QuantizeResult:
    """Adds FP16, bfloat16 or INT8 graphs to a bundle, all of them or none.

    The calibration is kept in the bundle as `calibration.json` and used again for the same graphs and data.

        from lavt_edge.calibration import DataOptions, QuantizeOptions, quantize_bundle

        data = DataOptions("refcoco", root="ROOT", samples=16)
        result = quantize_bundle("bundle", "fp16", QuantizeOptions(data=data))
        print(f"{result.figures.drop:+.2f} points of mean IoU lost")

    Args:
        bundle: the folder that `lavt-export onnx` wrote.
        precision: "fp16" adds `segmenter.fp16.onnx` and `text_encoder.fp16.onnx`, "bf16" likewise; "int8" adds
            `segmenter.int8.onnx`, or `segmenter.int8-cpu.onnx` if the rest is FP32, and a chart of its layer groups.
        options: how INT8 is placed and what to calibrate on; by default generated scenes.
        device: of INT8 placements within the budget, keep the fastest on this device: `CpuDevice()` if the rest is
            FP32, an `EngineDevice` if it is FP16. By default as much is INT8 as the budget allows.
        replace: make graphs again that the bundle has already.
        report: called with the name of each step as it begins.
        progress: called with (done, total) within a step.

    Raises:
        BundleError: not a bundle, damaged, or being changed by another command.
        DatasetError: the data is missing or damaged, or has too few images.
        ExportError: the graph exists already, loses more accuracy than it may, or INT8 saves no time on the device.
    """
    options = options or QuantizeOptions()
    root = Path(bundle)
    if precision not in (*LOW, "int8"):
        raise ExportError(f"precision {precision!r}: give fp16, bf16 or int8")
    name = "int8-cpu" if precision == "int8" and options.rest == "fp32" else precision
    _open_without(root, name, replace)  # refused before any work
    report("drawing the sample")
    sample = draw_sample(options.data, progress)
    with update_bundle(root) as change:
        opened = _open_without(root, name, replace)  # another command may have been faster
        calibration = bundle_calibration(opened, sample, change, report, progress)
        report("segmenting the held-out sentences in FP32")
        work = _Work(opened, calibration, Evaluator(opened, sample, progress), change, report, progress)
        return _add_half(work, precision) if precision in LOW else _add_int8(work, options, name, device)


def _open_without(root: Path, precision: str, replace_it: bool) -> Bundle:
    """The bundle, if it lacks the precision or that is to be replaced. Raises ExportError."""
    bundle = open_bundle(root)
    if bundle.manifest.model.get("winograd"):
        raise ExportError(f"{root} was exported with --winograd, for CPUs in FP32: export it again without")
    if bundle.has("segmenter", precision) and not replace_it:
        raise ExportError(f"{root} has a segmenter of precision {precision} already; pass --force to make it again")
    return bundle


def bundle_calibration(
    bundle: Bundle, sample: Sample, change: BundleUpdate, report: Report = ignore, progress: Progress = ignore
) -> Calibration:
    """The bundle's own calibration if it is of these graphs and data, else a new one, which it then keeps."""
    calibration, key = kept_calibration(bundle), calibration_key(bundle, sample)
    if calibration is not None and calibration.key == key and Targets(bundle).are_in(calibration):
        report("using the calibration that the bundle holds")
    else:
        report("calibrating")
        calibration = calibrate(bundle, sample, progress)
        path = change.new(RECORD_NAME)
        path.write_bytes(calibration.to_json())
        change.commit({RECORD_NAME: file_entry(path, "calibration")})
    delete_state(bundle.root)
    return calibration


@dataclass(frozen=True)
class _Work:
    """A bundle that is being changed, what its new graphs are made from, and what measures them."""

    bundle: Bundle
    calibration: Calibration
    evaluator: Evaluator
    change: BundleUpdate
    report: Report
    progress: Progress

    def save(self, model: ir.Model, role: str, precision: str) -> dict[str, FileEntry]:
        name = f"{role}.{precision}.onnx"
        graph, *weights = save_graph(model, self.change.new(name))
        if weights:  # external data would carry the partial's name; a graph of this size is beyond protobuf's limit
            raise ExportError(f"{name} would pass 2 GB; this model is too large to quantise")
        return {name: file_entry(graph, role, precision)}

    def commit(self, precision: str, entries: Mapping[str, FileEntry], figures: Figures, **more: object) -> Manifest:
        """Gives the new files their names, and enters in the manifest how the precision was made."""
        data = {key: self.calibration.key["data"][key] for key in ("dataset", "split", "samples", "held_out", "seed")}
        about = {"generator": __version__, "data": data, "against_fp32": asdict(figures), **more}
        return self.change.commit(
            entries, lambda manifest: replaced(manifest, precisions={**manifest.precisions, precision: about})
        )


def _add_half(work: _Work, precision: str) -> QuantizeResult:
    work.report("typing the text encoder")
    plain = load_graph(work.bundle, "segmenter")
    text, text_islands = half_text(
        work.bundle,
        work.calibration,
        lambda text: work.evaluator.evaluate(plain, text=text).relative_error,
        precision,
    )
    work.report("typing the segmenter")
    image, image_islands = half_graph(work.bundle, "segmenter", work.calibration, precision)
    entries = work.save(text, "text_encoder", precision) | work.save(image, "segmenter", precision)
    emulate_half(text)
    emulate_half(image)
    work.report("checking against FP32")
    figures = work.evaluator.evaluate(image, text=text, progress=work.progress)
    if not (figures.drop <= HALF_MAX_DROP and figures.relative_error <= HALF_MAX_ERROR[precision]):
        raise ExportError(
            f"{precision.upper()} loses too much: {figures.drop:.2f} points of mean IoU, relative error "
            f"{figures.relative_error:.1e}; nothing was written"
        )
    islands = {"text_encoder": text_islands, "segmenter": image_islands}
    return QuantizeResult(work.commit(precision, entries, figures, islands=islands), precision, figures)


def half_text(
    bundle: Bundle, calibration: Calibration, error: Callable[[ir.Model], float], precision: str = "fp16"
) -> tuple[ir.Model, dict[str, str]]:
    """The text graph in 16 bits, or all in FP32 if they cost too much; and its islands with their reasons.

    `error` gives the relative error of the logits behind a text graph. What tells words apart may be small beside what
    they share, most of all in a BERT that was never trained, and 16 bits round the sum of both.
    """
    emulated, _ = half_graph(bundle, "text_encoder", calibration, precision)
    emulate_half(emulated)
    cost = error(emulated)
    if cost <= TEXT_MAX_ERROR:
        return half_graph(bundle, "text_encoder", calibration, precision)
    model = load_graph(bundle, "text_encoder")
    reason = f"{precision.upper()} words move the logits by {cost:.1e}, more than {TEXT_MAX_ERROR:g}"
    return model, {str(node.name): reason for node in model.graph}


def half_graph(
    bundle: Bundle, role: str, calibration: Calibration, precision: str = "fp16"
) -> tuple[ir.Model, dict[str, str]]:
    """A graph in 16 bits, and its islands of FP32 with their reasons."""
    model, low = load_graph(bundle, role), LOW[precision]
    ranges = calibration.ranges[role]
    if role == "segmenter":
        lay_out_for_gpu(model, ranges)
    islands = find_islands(model, known_ranges(model, ranges), low)
    to_half(model, islands, low)
    return model, islands


def _add_int8(work: _Work, options: QuantizeOptions, name: str, device: Device | None) -> QuantizeResult:
    bundle, calibration, rest = work.bundle, work.calibration, options.rest
    ranges = calibration.clipped(options.method)
    graphs = {layout: smoothed_graph(bundle, calibration, layout, ranges) for layout in {"fp32", rest}}
    plain, _ = graphs[rest]
    chosen = candidates(image_products(bundle, plain), options.policy, rest)
    total = sum(image_macs(bundle, plain).values())

    alone = _losses_alone(work, graphs, chosen, rest, total)
    del graphs, plain  # gigabytes of a large model's

    def finish(kept: Sequence[Product]) -> tuple[ir.Model, dict[str, str]]:
        model = quantized_graph(bundle, calibration, kept, ranges, rest)
        return model, type_rest(model, calibration) if rest == "fp16" else {}

    @cache
    def figures_of(kept: tuple[Product, ...]) -> Figures:  # as it will run
        model, _ = finish(kept)
        emulate_half(model)  # nothing to round in a graph without FP16
        return work.evaluator.evaluate(model, fused=rest == "fp32")

    def evaluate(kept: Sequence[Product]) -> Figures:
        return figures_of(tuple(kept))

    def select(products: Sequence[Product], saved: Mapping[str, float] | None = None) -> Placement:
        return select_int8_groups(products, alone, evaluate, options.max_drop, work.report, saved=saved)

    tuning = None
    if device is None:
        placement = select(chosen)
    else:
        feeds = work.evaluator.feeds()
        placement, tuning = tune(
            chosen,
            options.policy,
            select,
            evaluate,
            lambda kept: loaded(finish(kept)[0], device, feeds),
            options.max_drop,
            device.name,
            work.report,
            work.progress,
        )
    if not placement.products:
        raise ExportError(
            f"no layer group keeps within {options.max_drop} points of mean IoU in INT8; allow more with --max-drop"
        )
    work.report("writing the graph")
    model, islands = finish(placement.products)
    entries = work.save(model, "segmenter", name)
    share = sum(product.macs for product in placement.products) / total
    chart = f"segmenter.{name}.png"
    ranking = rank_groups(chosen, alone, placement.products)
    draw_ranking(ranking, f"INT8 layer groups, {100 * share:.1f} % of the MACs", work.change.new(chart))
    entries[chart] = file_entry(work.change.path(chart), "report")
    about = {key: value for key, value in asdict(options).items() if key != "data"}
    about["groups"] = [asdict(loss) for loss in ranking]
    if tuning is not None:
        about["tuned"] = asdict(tuning)
    manifest = work.commit(name, entries, placement.figures, **about, int8_share=share, islands={"segmenter": islands})
    return QuantizeResult(manifest, name, placement.figures, total, share, ranking, tuning)


def _losses_alone(
    work: _Work,
    graphs: Mapping[str, tuple[ir.Model, Mapping[str, Range]]],
    products: Sequence[Product],
    rest: str,
    total: int,
) -> dict[str, Figures]:
    """`graphs` are what `smoothed_graph` gives for FP32 and for `rest`."""
    for_cpu = node_names(graphs["fp32"][0]).keys()

    def evaluate_alone(group: str, limit: int | None) -> Figures:
        names = [product.name for product in products if product.group == group]
        # A CPU takes half the time for a graph as CPUs want it; where that has these products it gives the same.
        plain, its_ranges = graphs["fp32" if for_cpu >= set(names) else rest]
        graph = plain.clone()
        quantize_products(graph, names, its_ranges, unsigned=rest == "fp32", half=rest == "fp16")
        return work.evaluator.evaluate(graph, limit=limit)

    return losses_alone(products, evaluate_alone, work.report, total_macs=total)


def quantized_graph(
    bundle: Bundle,
    calibration: Calibration,
    products: Sequence[Product],
    ranges: Mapping[str, Range],
    rest: str,
) -> ir.Model:
    """The image graph, smoothed, with these products in INT8, as a GPU (`rest` "fp16") or a CPU ("fp32") wants them.

    The rest is FP32; see `type_rest`. `ranges` are what `Calibration.clipped` gives.
    """
    model, ranges = smoothed_graph(bundle, calibration, rest, ranges)
    names = [product.name for product in products]
    quantize_products(model, names, ranges, unsigned=rest == "fp32", half=rest == "fp16")
    return model


def smoothed_graph(
    bundle: Bundle, calibration: Calibration, rest: str, ranges: Mapping[str, Range]
) -> tuple[ir.Model, dict[str, Range]]:
    """The FP32 image graph for this rest, a GPU's or a CPU's, smoothed, and the ranges of its tensors."""
    model = load_graph(bundle, "segmenter")
    apply_smoothing(model, calibration.channels, calibration.strengths)
    if rest == "fp16":
        lay_out_for_gpu(model, calibration.ranges["segmenter"])
    return model, known_ranges(model, {**calibration.ranges["segmenter"], **ranges})


def type_rest(model: ir.Model, calibration: Calibration) -> dict[str, str]:
    """Makes the rest of a quantised image graph FP16, in place; returns its islands of FP32 with their reasons."""
    smoothed = {tensor: (histogram.low, histogram.high) for tensor, histogram in calibration.histograms.items()}
    islands = find_islands(model, known_ranges(model, {**calibration.ranges["segmenter"], **smoothed}))
    to_half(model, islands)
    return islands
