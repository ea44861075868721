"""The commands lavt-export, lavt-run and lavt-bench. Heavy imports live inside the command that needs them."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from .errors import ExportError, LavtError

if TYPE_CHECKING:
    from rich.progress import Progress

out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)

export_app = typer.Typer(
    help="Take a LAVT checkpoint to what an edge device runs.", no_args_is_help=True, add_completion=False
)
run_app = typer.Typer(add_completion=False)
bench_app = typer.Typer(add_completion=False)

Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA where it can be used, else the CPU.")]


@export_app.callback()
def _export() -> None:
    """Take a LAVT checkpoint to what an edge device runs."""


@export_app.command("onnx")
def export_onnx(
    output: Annotated[Path, typer.Option(help="The bundle to write, a folder.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="An official LAVT checkpoint (.pth); by default the built-in demo model.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="Side of the square input in pixels, or HEIGHTxWIDTH; by default 480, the demo model's 240."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images per call, or 'dynamic'.")] = "1",
    fusion_heads: Annotated[
        str | None, typer.Option(help="PWAM heads per stage, such as 4-4-4-4, where the checkpoint does not say.")
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX opset, 18 to 20.")] = 20,
    force: Force = False,
) -> None:
    """Write a bundle: the rewritten graphs, checked against PyTorch, the tokenizer and the manifest."""
    size, count, heads = _parse_size(image_size), _parse_batch(batch), _parse_heads(fusion_heads)
    with _needs("export"):
        from .export import ExportOptions, export_bundle
        from .export.bundle import check_output
        from .export.source import open_source

    source = open_source(checkpoint)
    options = ExportOptions(size=size or source.size, batch=count, opset=opset)
    check_output(output, force)
    if source.path.resolve().is_relative_to(output.resolve()):
        raise ExportError(f"{source.path} lies in {output}, which would be replaced; name another folder")
    with _steps(9) as report:
        report(f"reading {source.path.name}")
        manifest = export_bundle(
            source.load(heads),
            output,
            source.info(),
            vocabulary=source.vocabulary,
            options=options,
            replace=force,
            report=report,
        )
    parity = manifest.parity["segmenter"]
    out.print(
        f"{output}: {manifest.model['variant']} {manifest.model['swin']}, {options.size[0]}x{options.size[1]}, "
        f"{manifest.model['macs']['segmenter'] / 1e9:.1f} GMACs per image\n"
        f"against PyTorch in float64: relative error {parity['relative_error']:.1e}, "
        f"pixel agreement {100 * parity['pixel_agreement']:.3f} %, {parity['cases']} cases",
        soft_wrap=True,
        highlight=False,
    )


@export_app.command("quantize")
def export_quantize(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add to, a folder.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16 graphs, with FP32 where calibration asks for it.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="An INT8 image graph.")] = False,
    calibration_data: Annotated[
        Path | None, typer.Option(help="The folder with the data sets; by default generated scenes are used.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="refcoco, refcoco+ or refcocog, with --calibration-data.")] = "refcoco",
    split_by: Annotated[str | None, typer.Option(help="Whose splits: unc, umd, google; by default the usual.")] = None,
    samples: Annotated[int, typer.Option(help="Sentences to calibrate on; a quarter more is held out.")] = 512,
    seed: Annotated[int, typer.Option(help="Which sentences are drawn.")] = 0,
    method: Annotated[str, typer.Option(help="How ranges are clipped: mse, percentile, entropy, minmax.")] = "mse",
    policy: Annotated[
        str, typer.Option(help="What may be INT8: auto, full (no attention products), decoder.")
    ] = "auto",
    rest: Annotated[str, typer.Option(help="What the rest of an INT8 graph is: fp16, or fp32 for CPUs.")] = "fp16",
    max_drop: Annotated[float, typer.Option(help="Points of mean IoU that INT8 may cost.")] = 0.5,
    force: Force = False,
) -> None:
    """Add FP16 or INT8 graphs to a bundle: calibrated, with the accuracy that they keep measured."""
    if fp16 == int8:
        raise LavtError("give one of --fp16 and --int8")
    with _needs("export"):
        from .calibration.quantize import QuantizeOptions, quantize_bundle
        from .calibration.sample import GENERATED, DataOptions

    data = DataOptions(
        dataset=GENERATED if calibration_data is None else dataset,
        root=calibration_data,
        split_by=split_by,
        samples=samples,
        seed=seed,
    )
    options = QuantizeOptions(policy=policy, method=method, rest=rest, max_drop=max_drop, data=data)
    with _stages() as (report, progress):
        outcome = quantize_bundle(
            bundle, "fp16" if fp16 else "int8", options, replace_existing=force, report=report, progress=progress
        )
    figures = outcome.figures
    if outcome.placement is not None:
        total = outcome.manifest.model["macs"]["segmenter"]
        rows = [
            (one.group, f"{100 * one.macs / total:.2f}", f"{one.drop:+.3f}", f"{one.relative_error:.1e}", kept)
            for one in outcome.placement.ranking
            for kept in ("int8" if one.int8 else rest,)
        ]
        header = ("layer group", "% of MACs", "mIoU lost alone", "logit error alone", "precision")
        _print_table(f"{100 * outcome.int8_share:.1f} % of the image graph's MACs in INT8", header, rows)
    out.print(
        f"{bundle}: segmenter.{outcome.precision}.onnx, {figures.drop:+.3f} points of mean IoU lost against FP32 "
        f"({figures.mean_iou:.2f} over {figures.sentences} held-out sentences), pixel agreement "
        f"{100 * figures.pixel_agreement:.3f} %, logit error {figures.relative_error:.1e}",
        soft_wrap=True,
        highlight=False,
    )


@export_app.command("trt")
def export_trt(
    bundle: Annotated[Path, typer.Argument(help="The bundle to add to, a folder.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16 engines; the default.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="An INT8 image engine; the text encoder's is FP16.")] = False,
    flavor: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx; by default the one that is installed.")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(help="Batches of 1 to this, where the graphs' batch is free.")
    ] = None,
    workspace: Annotated[str | None, typer.Option(help="Device memory for a layer's scratch, such as 512M.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="0 (quick to build) to 5; TensorRT's is 3.")] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="TensorRT's timings, kept for the next build; by default beside the bundle.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="With TensorRT for RTX, what to compile for without a GPU, such as sm86,sm89.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Engines that newer TensorRT of the same major runs, too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Engines for every GPU since Ampere; slower.")
    ] = False,
) -> None:
    """Build a bundle's TensorRT engines, on the device that is to run them."""
    if fp16 and int8:
        raise LavtError("give one of --fp16 and --int8")
    from .export.engine import build_engines
    from .export.engine_options import EngineOptions, parse_bytes, parse_targets

    options = EngineOptions(
        precision="int8" if int8 else "fp16",
        flavor=flavor,
        workspace=None if workspace is None else parse_bytes(workspace),
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        max_batch=max_batch,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        targets=() if compute_capability is None else parse_targets(compute_capability),
    )
    with _needs("rtx"), _phases() as (report, progress):
        outcome = build_engines(
            bundle,
            options,
            report=report,
            progress=progress,
            warn=lambda line: err.print(f"warning: {line}", soft_wrap=True, highlight=False),
        )
    for engine in outcome.engines:
        out.print(f"{bundle / engine.name}: {engine.describe()}", soft_wrap=True, highlight=False)
    out.print(f"built by {outcome.plan.describe()}", soft_wrap=True, highlight=False)


@run_app.command()
def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle, or a segmenter .onnx inside one.")],
    image: Annotated[Path, typer.Argument(help="Any image that Pillow reads.")],
    text: Annotated[str, typer.Argument(help="What to segment, such as 'the man in red'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The PNG to write.")] = Path("lavt.png"),
    mask: Annotated[bool, typer.Option("--mask", help="Write the bare mask, 255 where the object is.")] = False,
    device: Device = "auto",
) -> None:
    """Segment what TEXT refers to in IMAGE and write it as a PNG: an overlay, or the bare mask."""
    from PIL import Image

    from .files import whole_file
    from .runtime import Segmenter
    from .runtime.overlay import overlay
    from .runtime.preprocess import to_rgb_array

    if output.suffix.lower() != ".png":
        raise LavtError(f"{output}: the output is a PNG; give a name that ends in .png")
    pixels = to_rgb_array(image)
    if output.resolve() == image.resolve():
        raise LavtError(f"{output} is the image itself; name another output")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *rest: err.print(f"warning: {message}", soft_wrap=True, highlight=False)
        with Segmenter.load(bundle, device=device) as segmenter:
            result = segmenter.segment(pixels, text)
    picture = Image.fromarray(result.mask.astype("uint8") * 255) if mask else overlay(pixels, result.mask, text)
    try:
        with whole_file(output) as partial:
            picture.save(partial, format="PNG")
    except OSError as error:
        raise LavtError(f"{output}: cannot be written ({error.strerror or error})") from error
    share = 100 * result.mask.mean()
    out.print(f"{output}: {share:.1f} % of the pixels, on {segmenter.device}", soft_wrap=True, highlight=False)


@bench_app.command()
def bench(
    context: typer.Context,
    engine: Annotated[Path | None, typer.Option(help="A bundle, or a segmenter .onnx inside one.")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Accuracy of PyTorch instead: an official checkpoint (.pth), or 'demo', the built-in model."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="An image to measure on; by default 640x480 of noise.")] = None,
    text: Annotated[str, typer.Option(help="The sentence.")] = "the man in red",
    warmup: Annotated[int, typer.Option(min=0, help="Rounds that do not count.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds that count.")] = 20,
    dataset: Annotated[
        str | None, typer.Option(help="Measure accuracy: refcoco, refcoco+, refcocog, or shapes, generated here.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="The folder with the data sets; shapes needs none.")] = None,
    split: Annotated[str, typer.Option(help="val, test, testA, testB, train.")] = "val",
    split_by: Annotated[str | None, typer.Option(help="Whose splits: unc, umd, google; by default the usual.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first sentences, in the file's order.")] = None,
    swap: Annotated[
        bool, typer.Option("--swap", help="Control: each sentence is another object's, same image.")
    ] = False,
    results: Annotated[
        Path | None, typer.Option(help="JSON lines with each sentence's result; a stopped run goes on from there.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Begin the results file again.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per call, where the model is free.")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="Of a checkpoint: 480 or HEIGHTxWIDTH; by default 480, the demo model's 240.")
    ] = None,
    fusion_heads: Annotated[
        str | None, typer.Option(help="Of a checkpoint that does not say, such as 4-4-4-4.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")] = None,
    device: Device = "auto",
) -> None:
    """Measure a bundle's latency; or, with --dataset, the accuracy of a bundle or a checkpoint."""
    if dataset is None:
        _refuse(context, _ACCURACY_OPTIONS, "measures accuracy; name a data set with --dataset")
        _bench_latency(engine, image, text, warmup, rounds, threads, device)
        return
    _refuse(context, _LATENCY_OPTIONS, "measures latency; leave it or --dataset out")
    if engine is not None:
        _refuse(
            context, _CHECKPOINT_OPTIONS, "is for a checkpoint and says nothing of a bundle; leave it or --engine out"
        )
    size, heads = _parse_size(image_size), _parse_heads(fusion_heads)
    from .benchmarks.evaluate import HEADER, evaluate
    from .benchmarks.predictors import Predictor, load_bundle
    from .benchmarks.sentences import open_split

    with _bar("opening the data set") as progress:
        sentences = open_split(dataset, split, data_root=data_root, split_by=split_by, swap=swap, progress=progress)
    predictor: Predictor
    if engine is not None:
        predictor = load_bundle(engine, batch_size=batch_size, device=device, threads=threads)
    else:
        with _needs("export"):
            from .benchmarks.reference_predictor import DEMO, load_reference

        predictor = load_reference(
            checkpoint or DEMO,
            image_size=size,
            batch_size=batch_size,
            fusion_heads=heads,
            device=device,
            threads=threads,
        )
    with _bar("sentences") as progress:
        evaluation = evaluate(predictor, sentences, results, limit=limit, restart=restart, progress=progress)
    words = ", each with the words of another object in its image" if swap else ""
    height, width = predictor.size
    _print_table(f"{predictor.name} on {sentences.name}, {width}x{height}{words}", HEADER, evaluation.table())
    out.print(f"each sentence's result: {evaluation.results}", soft_wrap=True, highlight=False, markup=False)


_LATENCY_OPTIONS = ("image", "text", "warmup", "rounds")
_CHECKPOINT_OPTIONS = ("checkpoint", "image_size", "fusion_heads")
_ACCURACY_OPTIONS = (
    *_CHECKPOINT_OPTIONS,
    *("data_root", "split", "split_by", "limit", "swap", "results", "restart", "batch_size"),
)


def _refuse(context: typer.Context, options: tuple[str, ...], reason: str) -> None:
    """Refuses the first of `options` that was given."""
    for option in options:
        source = context.get_parameter_source(option)
        if source is not None and source.name == "COMMANDLINE":
            raise LavtError(f"--{option.replace('_', '-')} {reason}")


def _bench_latency(
    engine: Path | None, image: Path | None, text: str, warmup: int, rounds: int, threads: int | None, device: str
) -> None:
    if engine is None:
        raise LavtError("--engine is missing: name the bundle to measure, or a data set with --dataset")
    import numpy as np

    from .benchmarks.latency import PARTS, measure_latency
    from .runtime import Segmenter
    from .runtime.preprocess import to_rgb_array

    with Segmenter.load(engine, device=device, threads=threads) as segmenter, _bar("measuring") as progress:
        noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
        pixels = noise if image is None else to_rgb_array(image)
        latencies = measure_latency(segmenter, pixels, text, warmup=warmup, rounds=rounds, progress=progress)
    height, width = pixels.shape[:2]
    rows = [(part, *(f"{value:.2f}" for value in latencies.summary(part))) for part in PARTS]
    _print_table(
        f"{engine} on {segmenter.device}, image {width}x{height}, {rounds} rounds",
        ("milliseconds", "median", "p90", "p99"),
        rows,
    )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ExportError(f"--image-size {text!r}: give a number such as 480, or HEIGHTxWIDTH such as 480x640")
    return int(parts[0]), int(parts[-1])


def _parse_batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise ExportError(f"--batch {text!r}: give a number, or 'dynamic'")
    return int(text)


def _parse_heads(text: str | None) -> tuple[int, int, int, int] | None:
    if text is None:
        return None
    parts = text.split("-")
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() and 0 < len(part) < 4 for part in parts):
        raise ExportError(f"--fusion-heads {text!r}: give four numbers such as 4-4-4-4")
    first, second, third, fourth = map(int, parts)
    return first, second, third, fourth


@contextmanager
def _needs(extra: str) -> Iterator[None]:
    """Turns a missing package into the line that says what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise LavtError(f"{error.name} is not installed: pip install 'lavt-edge[{extra}]'") from error


class _Steps:
    """Shows the step that is under way; silent where nobody watches."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("starting", total=total)
        self._begun = 0

    def __call__(self, step: str) -> None:
        self._progress.update(self._task, description=step, completed=self._begun)
        self._begun += 1


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


@contextmanager
def _steps(total: int) -> Iterator[_Steps]:
    with _progress() as progress:
        yield _Steps(progress, total)


@contextmanager
def _bar(description: str) -> Iterator[Callable[[int, int], None]]:
    with _progress() as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _stages() -> Iterator[tuple[Callable[[str], None], Callable[[int, int], None]]]:
    """For work in several steps of known length: what tells the step, and what tells how far it is."""
    with _progress() as progress:
        task = progress.add_task("starting", total=None)

        def report(step: str) -> None:
            progress.update(task, description=step, completed=0, total=None)

        yield report, lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def _phases() -> Iterator[tuple[Callable[[str], None], Callable[[str, float], None]]]:
    """For work that names its phase as it goes: what tells the step, and what tells the phase and the share done."""
    with _progress() as progress:
        task = progress.add_task("starting", total=None)

        def report(step: str) -> None:
            progress.update(task, description=step, completed=0, total=None)

        yield report, lambda phase, share: progress.update(task, description=phase, completed=share, total=1)


def _print_table(title: str, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out.print(title, soft_wrap=True, highlight=False, markup=False)
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=max(out.width, 100)).print(table)  # a figure that is cut short is none


def _main(app: typer.Typer) -> None:
    """Runs a command; bad input ends in one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # A polite kill unwinds like Ctrl-C does, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except LavtError as error:
        err.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True, style="red")
        sys.exit(1)


def export_main() -> None:
    _main(export_app)


def run_main() -> None:
    _main(run_app)


def bench_main() -> None:
    _main(bench_app)
