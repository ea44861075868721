"""The command lavt-export: a bundle from a checkpoint, FP16 and INT8 graphs and engines for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .._base.exits import needs
from .._base.progress import Progress, Report
from ..errors import ExportError, LavtError
from .common import out, parse_batch, parse_heads, parse_size, print_table, progress_bar, refuse, warn

if TYPE_CHECKING:
    from ..calibration import QuantizeResult
    from ..calibration.tune import Device, Tuning
    from ..export.engines.options import EngineOptions

export_app = typer.Typer(
    help="Turn a LAVT checkpoint into graphs and engines for an edge device.",
    no_args_is_help=True,
    add_completion=False,
)

Bundle = Annotated[Path, typer.Argument(help="The folder of the bundle to add to.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what exists already.")]


@export_app.command("onnx")
def export_onnx(
    output: Annotated[Path, typer.Option(help="The folder to write the bundle to.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="A LAVT checkpoint (.pth, .safetensors); default: the built-in demo model."),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="Input size in pixels: 480 or HEIGHTxWIDTH; default: what it was trained at, else 480."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per call, or 'dynamic'.")] = "1",
    fusion_heads: Annotated[
        str | None, typer.Option(help="PWAM heads per stage, such as 4-4-4-4, if the checkpoint does not say.")
    ] = None,
    bert: Annotated[
        Path | None,
        typer.Option(help="The BERT of a checkpoint without one: a state dict, or a Hugging Face folder."),
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="The vocabulary of a BERT other than bert-base-uncased: a vocab.txt.")
    ] = None,
    ema: Annotated[bool, typer.Option("--ema", help="Use a checkpoint's averaged parameters, model_ema.")] = False,
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 20.")] = 20,
    winograd: Annotated[
        bool,
        typer.Option("--winograd", help="Only for FP32 on CPUs: fewer products in the decoder's widest convolutions."),
    ] = False,
    force: Force = False,
) -> None:
    """Export a bundle: ONNX graphs, checked against PyTorch, the tokenizer and the manifest."""
    size = None if image_size is None else parse_size(image_size)
    count, heads = parse_batch(batch), parse_heads(fusion_heads)
    with needs("export"):
        from ..export import ExportOptions
        from ..export.bundle import check_output
        from ..export.source import open_source, shown

    source = open_source(checkpoint, heads, bert=bert, words=vocabulary, ema=ema)
    options = ExportOptions(size=size or ExportOptions.size, batch=count, opset=opset, winograd=winograd)
    check_output(output, force)
    if Path(os.path.realpath(source.path)).is_relative_to(os.path.realpath(output)):
        raise ExportError(f"{source.path} lies in {output}, which would be replaced; name another folder")
    with progress_bar() as (report, _):
        report(f"reading {source.path.name}")
        chosen, reason = source.choose_size(size)
        options = replace(options, size=chosen)
        manifest = source.export(output, options, replace=force, report=report)
    parity = manifest.parity["segmenter"]
    out.print(
        f"{output}: {manifest.model['variant']} {manifest.model['swin']}, {shown(chosen)} ({reason}), "
        f"{manifest.model['macs']['segmenter'] / 1e9:.1f} GMACs per image\n"
        f"against PyTorch in float64: relative error {parity['relative_error']:.1e}, "
        f"pixel agreement {100 * parity['pixel_agreement']:.3f} %, {parity['cases']} cases",
    )
    if source.leaves_ema:
        out.print(f"{source.path.name} also has averaged parameters, model_ema: --ema uses them")
    if manifest.checkpoint.note is not None:
        out.print(
            f"{manifest.checkpoint.note}: {source.path.name} does not say them, and shapes do not show them; check "
            f"with lavt-bench --engine {output} --dataset NAME, or give others with --fusion-heads"
        )


@export_app.command("quantize")
def export_quantize(
    context: typer.Context,
    bundle: Bundle,
    fp16: Annotated[bool, typer.Option("--fp16", help="Add FP16 graphs; sensitive nodes stay in FP32.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Add bfloat16 graphs: FP32's range, for TensorRT.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Add an INT8 image graph.")] = False,
    calibration_data: Annotated[
        Path | None, typer.Option(help="The folder with the data sets; default: generated scenes.")
    ] = None,
    dataset: Annotated[
        str,
        typer.Option(
            help="refcoco, refcoco+, refcocog, refclef, rrsisd, grefcoco or your own; needs --calibration-data."
        ),
    ] = "refcoco",
    split_by: Annotated[
        str | None, typer.Option(help="Whose splits: unc, umd, google or your own; default: the data set's usual ones.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the images, if it is not the usual one.")] = None,
    samples: Annotated[
        int, typer.Option(help="Sentences to calibrate on; a quarter more are held out to measure accuracy.")
    ] = 512,
    seed: Annotated[int, typer.Option(help="Seed for drawing the sentences.")] = 0,
    method: Annotated[str, typer.Option(help="How ranges are clipped: mse, percentile, entropy or minmax.")] = "mse",
    policy: Annotated[
        str,
        typer.Option(help="What may be INT8: auto, full (no attention products), decoder, or bytes (for GPUs)."),
    ] = "auto",
    rest: Annotated[str, typer.Option(help="Precision of the rest of an INT8 graph: fp16, or fp32 for CPUs.")] = "fp16",
    max_drop: Annotated[float, typer.Option(help="Points of mean IoU that INT8 may lose.")] = 0.5,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="Time placements of INT8 on this machine (on its CPU for --rest fp32); keep the fastest."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Add calibrated FP16, bfloat16 or INT8 graphs to a bundle, and measure the accuracy that they keep."""
    precision = _one_of(fp16=fp16, bf16=bf16, int8=int8)
    if precision is None:
        raise LavtError("give one of --fp16, --bf16 and --int8")
    if precision != "int8":
        refuse(context, ("method", "policy", "rest", "max_drop", "tune"), "is for --int8; leave it out")
    if calibration_data is None:
        refuse(context, ("dataset", "split_by", "images"), "needs --calibration-data, the folder with the data sets")
    with needs("export"):
        from ..calibration import CpuDevice, DataOptions, QuantizeOptions, quantize_bundle
        from ..data.sentences import GENERATED

    data = DataOptions(
        dataset=GENERATED if calibration_data is None else dataset,
        root=calibration_data,
        split_by=split_by,
        images=images,
        samples=samples,
        seed=seed,
    )
    options = QuantizeOptions(policy=policy, method=method, rest=rest, max_drop=max_drop, data=data)
    with progress_bar() as (report, progress):
        device: Device | None = None
        if tune and rest == "fp32":
            device = CpuDevice()
        elif tune:
            from ..export.engines.device import EngineDevice
            from ..export.engines.options import EngineOptions

            device = EngineDevice(bundle, EngineOptions(precision="int8"), _phases(report, progress))
        result = quantize_bundle(
            bundle, precision, options, device=device, replace=force, report=report, progress=progress
        )
    _print_result(bundle, result, rest)


def _phases(report: Report, progress: Progress) -> Callable[[str, float], None]:
    """Shows a build's phase, with the share that is done, on the bar of these two."""

    def show(phase: str, share: float) -> None:
        report(phase)
        progress(round(1000 * share), 1000)

    return show


def _one_of(**options: bool) -> str | None:
    """The one option that is on; None if none is. Raises LavtError if several are."""
    given = [name for name, on in options.items() if on]
    if len(given) > 1:
        raise LavtError(f"give one of --{', --'.join(given[:-1])} and --{given[-1]}")
    return given[0] if given else None


def _print_result(bundle: Path, result: QuantizeResult, rest: str) -> None:
    """The ranking of layer groups, if there is one, and what the new graph keeps."""
    figures = result.figures
    if result.ranking:
        rows = [
            (
                loss.group,
                f"{100 * loss.macs / result.total_macs:.2f}",
                f"{loss.drop:+.3f}",
                f"{loss.relative_error:.1e}",
                "int8" if loss.int8 else rest,
            )
            for loss in result.ranking
        ]
        header = ("layer group", "% of MACs", "mIoU lost alone", "logit error alone", "precision")
        print_table(f"{100 * result.int8_share:.1f} % of the image graph's MACs in INT8", header, rows)
    if result.tuning is not None:
        _print_tuning(result.tuning)
    out.print(
        f"{bundle}: segmenter.{result.precision}.onnx, {figures.drop:+.3f} points of mean IoU lost against FP32 "
        f"({figures.mean_iou:.2f} over {figures.sentences} held-out sentences), pixel agreement "
        f"{100 * figures.pixel_agreement:.3f} %, logit error {figures.relative_error:.1e}",
    )


def _print_tuning(tuning: Tuning) -> None:
    rows = [
        (
            timed.placement,
            str(len(timed.groups)),
            f"{timed.median_ms:.2f}",
            " to ".join(f"{quartile:.2f}" for quartile in timed.quartiles_ms),
            f"{timed.drop:+.3f}",
            "kept" if timed.kept else "",
        )
        for timed in tuning.placements
    ]
    header = ("placement", "INT8 groups", "median ms", "quartiles", "mIoU lost", "")
    print_table(f"{tuning.device}, {tuning.rounds} rounds", header, rows)


@export_app.command("frame")
def export_frame(
    bundle: Bundle,
    size: Annotated[str, typer.Option(help="The camera's frames: HEIGHTxWIDTH in pixels, such as 1080x1920.")],
    pixels: Annotated[str, typer.Option(help="Their layout: rgb, bgr (OpenCV's), rgbx, bgrx, grey or nv12.")] = "rgb",
    force: Force = False,
) -> None:
    """Add graphs that take a camera's frames as they are and return masks of their size, all on the device."""
    height, width = parse_size(size, "--size")
    with needs("export"):
        from ..export.frames import FrameOptions, add_frame_graphs

    options = FrameOptions(height, width, pixels)
    with progress_bar() as (report, _):
        entry = add_frame_graphs(bundle, options, replace_existing=force, report=report)
    differing, agreement = (100 * float(entry.parity[key]) for key in ("bytes_differing", "pixel_agreement"))
    out.print(
        f"{bundle}: {entry.frame} and {entry.mask}; against the general path {differing:.2f} % of the prepared bytes "
        f"differ, by 1, and {agreement:.3f} % of the mask's pixels agree",
    )


@export_app.command("trt")
def export_trt(
    context: typer.Context,
    bundle: Bundle,
    fp16: Annotated[bool, typer.Option("--fp16", help="Build FP16 engines (default).")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Build bfloat16 engines.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Build FP32 engines: slow, but nothing is rounded.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Build an INT8 image engine; the text encoder's is FP16.")
    ] = False,
    flavor: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx; default: the one that is installed.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Largest batch of the engines, if the graphs' batch is dynamic.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Most device memory for a layer's scratch space, such as 512M.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="0 (quick to build) to 5 (quick to run); TensorRT's default is 3.")
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(help="File that keeps TensorRT's timings for the next build; default: beside the bundle."),
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option(help="GPUs to compile for without having one, such as sm86,sm89; needs TensorRT for RTX."),
    ] = None,
    version_compatible: Annotated[
        bool,
        typer.Option("--version-compatible", help="Engines that later TensorRT of the same major version can run too."),
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Engines for all GPUs since Ampere; slower.")
    ] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="For --int8: first time placements on this GPU, and make the fastest one's graph."),
    ] = False,
    max_drop: Annotated[float, typer.Option(help="For --tune: points of mean IoU that INT8 may lose.")] = 0.5,
) -> None:
    """Build a bundle's TensorRT engines, on the device that will run them."""
    from ..export.engines.bundle import build_engines, missing_graphs
    from ..export.engines.options import EngineOptions, parse_bytes, parse_targets

    precision = _one_of(fp16=fp16, bf16=bf16, fp32=fp32, int8=int8) or "fp16"
    if precision != "int8":
        refuse(context, ("tune",), "is for --int8; leave it out")
    if not tune:
        refuse(context, ("max_drop",), "needs --tune")
    options = EngineOptions(
        precision=precision,
        flavor=flavor,
        workspace=None if workspace is None else parse_bytes(workspace),
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        max_batch=max_batch,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        targets=() if compute_capability is None else parse_targets(compute_capability),
    )
    with progress_bar() as (report, progress):
        show_phase = _phases(report, progress)
        tuned = _tune(bundle, options, max_drop, report, progress) if tune else None
        for missing in missing_graphs(bundle, options):
            _quantize(bundle, missing, report)
        outcome = build_engines(bundle, options, report=report, progress=show_phase, warn=warn)
    if tuned is not None:
        _print_result(bundle, tuned, "fp16")
    for engine in outcome.engines:
        out.print(f"{bundle / engine.name}: {engine.describe()}")
    out.print(f"built by {outcome.plan.describe()}")


@export_app.command("triton")
def export_triton(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder, or one of its image graphs (.engine, .onnx).")],
    output: Annotated[Path, typer.Option(help="The model repository: a new folder, or one to add this bundle to.")],
    instances: Annotated[int, typer.Option(help="Copies of each model, per GPU for bare graphs.")] = 1,
    backend: Annotated[
        str,
        typer.Option(
            help="python: the model lavt, which turns sentences and an image into masks; onnxruntime or tensorrt: the "
            "bare graphs, lavt_text and lavt_segmenter."
        ),
    ] = "python",
) -> None:
    """Write a model repository for NVIDIA Triton, or add a bundle to one as the version to serve."""
    from ..export.triton.repository import TritonOptions, write_repository

    version, names = write_repository(bundle, output, TritonOptions(backend, instances))
    out.print(f"{output}: {' and '.join(names)}, version {version}")
    out.print(f"tritonserver --model-repository={output.resolve()}")


def _quantize(bundle: Path, precision: str, report: Report) -> None:
    try:
        from ..calibration import quantize_bundle
    except ImportError as error:
        raise ExportError(
            f"{bundle} has no graphs of precision {precision}, and {error.name} is missing to make them: run "
            f"lavt-export quantize {bundle} --{precision} where lavt-edge[export] is installed, and copy the bundle "
            "here"
        ) from error
    quantize_bundle(bundle, precision, report=report)


def _tune(bundle: Path, options: EngineOptions, max_drop: float, report: Report, progress: Progress) -> QuantizeResult:
    """Makes the INT8 graph again, with the placement that is the fastest here, on the data of the present one."""
    with needs("export"):
        from ..calibration import QuantizeOptions, quantize_bundle
        from ..calibration.record import recorded_data
    from ..export.engines.device import EngineDevice
    from ..runtime.bundle import open_bundle

    device = EngineDevice(bundle, options, _phases(report, progress))
    quantize_options = QuantizeOptions(max_drop=max_drop, data=recorded_data(open_bundle(bundle)))
    return quantize_bundle(
        bundle, "int8", quantize_options, device=device, replace=True, report=report, progress=progress
    )
