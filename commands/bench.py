"""The command lavt-bench: a bundle and its peers in time, or the accuracy of a bundle or a checkpoint."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._base.exits import needs
from ..errors import ExitCode, LavtError
from .accuracy import MODEL_OPTIONS, bench_accuracy, bench_merge
from .common import Device, err, out, parse_size, print_table, progress_bar, refuse, warn, writing

if TYPE_CHECKING:
    from .._base.progress import Progress, Report
    from ..benchmarks.timing.result import FidelityRow, Options, Result

bench_app = typer.Typer(add_completion=False)

_LATENCY_OPTIONS = (
    *("against", "image", "frame", "text", "warmup", "rounds", "batch", "sweep_threads", "sweep_batch", "parts"),
    *("estimate", "layers", "kernels", "fidelity", "json_file", "report", "baseline", "max_slowdown"),
)
_ACCURACY_OPTIONS = (
    *MODEL_OPTIONS,
    *("data_root", "split", "split_by", "images", "limit", "shard", "swap", "results", "restart"),
    "batch_size",
)
_MOST_SIDE = 16384
_DATA_OPTIONS = ("data_root", "split", "split_by", "images", "limit")


@bench_app.command()
def bench(
    context: typer.Context,
    files: Annotated[
        list[Path] | None, typer.Argument(help="With --merge: the shards' results files.", show_default=False)
    ] = None,
    engine: Annotated[Path | None, typer.Option(help="A bundle, or one of its image graphs (.engine, .onnx).")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="What to compare with, measured in turn; may be repeated. torch, torch-compile, onnx-plain, openvino, "
            "openvino-bf16, openvino-int8, openvino-plain, openvino-plain-bf16, tensorrt-plain, or the path of a "
            "bundle, an .onnx or an .engine."
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="An official checkpoint (.pth), or 'demo', the built-in model: the weights of the PyTorch peers. With "
            "--dataset and no --engine, accuracy is measured in PyTorch."
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="The image to measure on; by default 640x480 of random noise.")
    ] = None,
    frame: Annotated[
        str | None, typer.Option(help="Measure on random noise of this size instead: HEIGHTxWIDTH, such as 1080x1920.")
    ] = None,
    text: Annotated[str, typer.Option(help="The sentence to measure with.")] = "the man in red",
    warmup: Annotated[int, typer.Option(min=0, help="Warm-up rounds, which do not count.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Images per call, if the bundle's batch is dynamic.")] = 1,
    sweep_threads: Annotated[
        str | None, typer.Option(help="Repeat with these numbers of threads, such as 1,2,4.")
    ] = None,
    sweep_batch: Annotated[str | None, typer.Option(help="Repeat with these batch sizes, such as 1,2,4.")] = None,
    parts: Annotated[
        bool, typer.Option("--parts/--no-parts", help="Time of each part of the model, and a roofline.")
    ] = False,
    estimate: Annotated[
        str | None,
        typer.Option(help="Latency lower bound for a device, such as jetson-agx-orin; an unknown name lists them all."),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Find the first layer whose output diverges from FP32.")
    ] = False,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="GPU kernels, bytes and MACs of each part of the model.")
    ] = False,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="Compare the masks of each precision with FP32's.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="An earlier --json file to compare with.")] = None,
    max_slowdown: Annotated[
        float,
        typer.Option(min=1, help="End with exit code 3 if the engine takes clearly longer than this times --baseline."),
    ] = 1.05,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Measure accuracy on refcoco, refcoco+, refcocog, refclef, rrsisd, grefcoco, the folder of your own "
            "data set, or shapes, which is generated."
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="The folder that holds the data sets; not needed for shapes.")
    ] = None,
    split: Annotated[str, typer.Option(help="val, test, testA, testB or train.")] = "val",
    split_by: Annotated[
        str | None,
        typer.Option(help="Whose splits: unc, umd, google or your own; by default the data set's usual ones."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="The folder of the images, if it is not the usual one; COCO 2017's works too."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N sentences of the file.")] = None,
    shard: Annotated[
        str | None, typer.Option(help="Only one part of the sentences: 3/8 is the third of eight; see --merge.")
    ] = None,
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Combine the results of all shards, given as FILES in any order; nothing is run."),
    ] = False,
    swap: Annotated[
        bool,
        typer.Option("--swap", help="Control run: swap each sentence for one about another object in the same image."),
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="JSON lines file with each sentence's result; a run that was stopped continues from it."),
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start the results file from scratch.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per call, with --dataset.")] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="For a checkpoint: 480 or HEIGHTxWIDTH; by default the size it was trained at, else 480."),
    ] = None,
    fusion_heads: Annotated[
        str | None, typer.Option(help="For a checkpoint that does not say: its PWAM heads, such as 4-4-4-4.")
    ] = None,
    bert: Annotated[
        Path | None, typer.Option(help="For a checkpoint without one: its BERT, a state dict or a folder.")
    ] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="For a checkpoint with another BERT: its vocab.txt.")] = None,
    ema: Annotated[
        bool, typer.Option("--ema", help="For a checkpoint: use its averaged parameters, model_ema.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")] = None,
    device: Device = "auto",
) -> None:
    """Compare a bundle's latency with peers; or, with --dataset, measure the accuracy of a bundle or a checkpoint."""
    if merge or files:
        bench_merge(context, context.params)
        return
    if dataset is not None and not fidelity:
        refuse(context, _LATENCY_OPTIONS, "measures latency; leave it or --dataset out")
        bench_accuracy(context, context.params)
        return
    if fidelity:
        others = tuple(name for name in _ACCURACY_OPTIONS if name not in _DATA_OPTIONS)
        refuse(context, others, "is not for --fidelity; leave it or --fidelity out")
    else:
        refuse(context, _ACCURACY_OPTIONS, "measures accuracy; name a data set with --dataset")
        if not against:
            refuse(
                context,
                ("checkpoint",),
                "is for --dataset, or for --engine with --against or --fidelity; give one of these",
            )
    if engine is None:
        raise LavtError("--engine is missing: name the bundle to measure, or a data set with --dataset")
    if baseline is None:
        refuse(context, ("max_slowdown",), "is for --baseline; name an earlier --json file with it")
    elif rounds < 2:
        raise LavtError("--rounds 1 gives no interval; measure 2 or more rounds against a --baseline")
    _check_outputs(json_file, report)
    _bench_latency(_latency_options(context.params), context.params)


def _check_outputs(json_file: Path | None, report: Path | None) -> None:
    """Refuses before anything is measured what could not be written afterwards."""
    if json_file is not None and report is not None and json_file.resolve() == report.resolve():
        raise LavtError(f"--json and --report both name {report}; give each its own file")
    for path in (json_file, report):
        if path is None:
            continue
        folder = next(parent for parent in path.resolve().parents if parent.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise LavtError(f"{path}: cannot be written; name another file")


def _latency_options(asked: dict[str, Any]) -> Options:
    from ..benchmarks.timing.result import Options

    frame = None if asked["frame"] is None else parse_size(asked["frame"], "--frame")
    if frame is not None and asked["image"] is not None:
        raise LavtError("--frame gives the size of random noise, and --image has its own; leave one out")
    if frame is not None and not all(0 < side <= _MOST_SIDE for side in frame):
        raise LavtError(f"--frame {asked['frame']}: each side must be 1 to {_MOST_SIDE} pixels")
    same = ("checkpoint", "image", "text", "warmup", "rounds", "batch", "threads", "device")
    against = list(asked["against"] or ())
    if asked["fidelity"]:  # accuracy is shown beside time, so each precision is timed
        against += [path for path in _precisions(asked["engine"]) if path not in against]
    return Options(
        asked["engine"],
        tuple(against),
        sweep_threads=_parse_counts("--sweep-threads", asked["sweep_threads"]),
        sweep_batch=_parse_counts("--sweep-batch", asked["sweep_batch"]),
        frame=frame,
        **{name: asked[name] for name in same},
    )


def _precisions(engine: Path) -> list[str]:
    """The paths of a bundle's image graphs other than FP32, as peers; none if one graph was named."""
    with needs("export"):
        from ..benchmarks.evaluation.fidelity import chosen_precisions
    from ..runtime.bundle import open_bundle

    bundle = open_bundle(engine)
    if bundle.selected is not None:
        return []
    names = (bundle.manifest.find("segmenter", precision) for precision in chosen_precisions(bundle, None)[1:])
    return [str(bundle.root / name) for name in names if name is not None]


def _bench_latency(options: Options, asked: dict[str, Any]) -> None:
    """Measures, prints, writes the files that were asked for, and exits with 3 if it is slower than the baseline."""
    from ..benchmarks.report.terminal import terminal
    from ..benchmarks.timing.baseline import compare_with_baseline, read_result

    baseline = None if asked["baseline"] is None else read_result(asked["baseline"])
    result = _measure(options, asked)
    for shown in terminal(result):
        if isinstance(shown, str):
            out.print(shown)
        else:
            print_table(shown.title, shown.columns, shown.rows)
    for line in result.warnings:
        warn(line)
    _write_files(result, asked["json_file"], asked["report"])
    if baseline is None:
        return
    verdict = compare_with_baseline(result, baseline, asked["max_slowdown"])
    for note in verdict.notes:
        warn(note)
    change, measured = verdict.change, f"through {verdict.through}" if verdict.through else "directly"
    out.print(
        f"time over the baseline's, {measured}: {change.ratio:.3f}, 95 % {change.low:.3f} to {change.high:.3f}",
    )
    if verdict.slower:
        err.print(f"slower than {asked['max_slowdown']:g} times the baseline", style="red")
        raise typer.Exit(ExitCode.SLOWER)


def _measure(options: Options, asked: dict[str, Any]) -> Result:
    from ..benchmarks.parts.measure import add_estimate, add_kernels, add_layers, add_parts, check
    from ..benchmarks.timing.measure import measure

    device = asked["estimate"]
    with progress_bar() as (report, progress):
        check(options, parts=asked["parts"], estimate=device, layers=asked["layers"], kernels=asked["kernels"])
        result = measure(options, report=report, progress=progress)
        if asked["parts"]:
            result = add_parts(result, options, report)
        if device is not None:
            result = add_estimate(result, options, device, report)
        if asked["layers"]:
            result = add_layers(result, options, report)
        if asked["kernels"]:
            result = add_kernels(result, options, report)
        if asked["fidelity"]:
            result = replace(result, fidelity=_measure_fidelity(options, asked, report, progress))
    return result


def _measure_fidelity(
    options: Options, asked: dict[str, Any], report: Report, progress: Progress
) -> tuple[FidelityRow, ...]:
    """What each precision keeps of PyTorch's masks, on generated scenes or the data set that was named."""
    with needs("export"):
        from ..benchmarks.evaluation.fidelity import DEFAULT_SENTENCES, measure_fidelity
    from ..data.sentences import open_split
    from ..export.source import peer_source
    from ..runtime.bundle import open_bundle

    source = peer_source(open_bundle(options.engine), options.checkpoint)
    report("opening the data set")
    data = open_split(
        asked["dataset"] or "shapes",
        asked["split"],
        **{name: asked[name] for name in ("data_root", "split_by", "images")},
    )
    rows = measure_fidelity(
        options.engine,
        [sentence for sentence in data.sentences if not sentence.target.no_target][
            : asked["limit"] or DEFAULT_SENTENCES
        ],
        source=None if source.kind == "random" else source,
        report=report,
        progress=progress,
    )
    return tuple(rows)


def _write_files(result: Result, json_file: Path | None, report: Path | None) -> None:
    import json

    from .._base.files import write_whole
    from ..benchmarks.report.page import write_report

    if json_file is not None:
        with writing(json_file):
            write_whole(json_file, (json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n").encode())
        out.print(f"written: {json_file}")
    if report is not None:
        with writing(report):
            write_report(result, report)
        out.print(f"written: {report}")


def _parse_counts(option: str, text: str | None) -> tuple[int, ...]:
    parts = [] if text is None else text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part[:4]) > 0 and len(part) < 5 for part in parts):
        raise LavtError(f"{option} {text!r}: give numbers such as 1,2,4")
    return tuple(dict.fromkeys(map(int, parts)))
