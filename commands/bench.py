"""The command lavt-bench: a bundle and its peers in time, or the accuracy of a bundle or a checkpoint."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._base.exits import needs
from ..errors import ExitCode, LavtError, one_line
from .common import Device, err, out, parse_heads, parse_shard, parse_size, print_table, progress_bar, refuse, warn

if TYPE_CHECKING:
    from .._base.progress import Progress, Report
    from ..benchmarks.evaluation.evaluate import Evaluation
    from ..benchmarks.timing.result import FidelityRow, Options, Result

bench_app = typer.Typer(add_completion=False)

_LATENCY_OPTIONS = (
    *("against", "image", "frame", "text", "warmup", "rounds", "batch", "sweep_threads", "sweep_batch", "parts"),
    *("estimate", "layers", "kernels", "fidelity", "json_file", "report", "baseline", "max_slowdown"),
)
_MODEL_OPTIONS = ("image_size", "fusion_heads", "bert", "vocabulary", "ema")
_CHECKPOINT_OPTIONS = ("checkpoint", *_MODEL_OPTIONS)
_ACCURACY_OPTIONS = (
    *_MODEL_OPTIONS,
    *("data_root", "split", "split_by", "images", "limit", "shard", "swap", "results", "restart"),
    "batch_size",
)
_MOST_SIDE = 16384
_DATA_OPTIONS = ("data_root", "split", "split_by", "images", "limit")

_Engine = Annotated[Path | None, typer.Option(help="A bundle, or a segmenter .onnx inside one.")]
_Against = Annotated[
    list[str] | None,
    typer.Option(
        help="A peer to measure in turn with it; may be given again: torch, torch-compile, onnx-plain, openvino, "
        "openvino-bf16, openvino-int8, openvino-plain, openvino-plain-bf16, tensorrt-plain, or the path of a bundle, "
        "an .onnx or an .engine."
    ),
]
_Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="An official checkpoint (.pth), or 'demo', the built-in model: what the peers in PyTorch run; "
        "with --dataset and no --engine, accuracy of PyTorch."
    ),
]
_Image = Annotated[Path | None, typer.Option(help="An image to measure on; by default 640x480 of noise.")]
_Frame = Annotated[
    str | None, typer.Option(help="Measure on noise of a camera's HEIGHTxWIDTH, such as 1080x1920, instead.")
]
_Text = Annotated[str, typer.Option(help="The sentence.")]
_Warmup = Annotated[int, typer.Option(min=0, help="Rounds before those that count.")]
_Rounds = Annotated[int, typer.Option(min=1, help="Rounds that count.")]
_Batch = Annotated[int, typer.Option(min=1, help="Images per call, if the bundle's batch is dynamic.")]
_SweepThreads = Annotated[str | None, typer.Option(help="Also measure with these numbers of threads, such as 1,2,4.")]
_SweepBatch = Annotated[str | None, typer.Option(help="Also measure with these batch sizes, such as 1,2,4.")]
_Parts = Annotated[bool, typer.Option("--parts/--no-parts", help="The time of each part, and the roofline.")]
_Estimate = Annotated[
    str | None,
    typer.Option(help="Latency lower bound for a device, such as jetson-agx-orin; another name lists all."),
]
_Layers = Annotated[bool, typer.Option("--layers", help="The first layer whose output diverges from FP32.")]
_Kernels = Annotated[bool, typer.Option("--kernels", help="What a GPU runs, by part: kernels, bytes, MACs.")]
_Fidelity = Annotated[bool, typer.Option("--fidelity", help="What each precision keeps of FP32's masks.")]
_JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all figures to this JSON file.")]
_Report = Annotated[Path | None, typer.Option(help="Write a self-contained HTML report.")]
_Baseline = Annotated[Path | None, typer.Option(help="An earlier --json file to compare with.")]
_MaxSlowdown = Annotated[
    float, typer.Option(min=1, help="Exit code 3 if the engine is surely slower than this times --baseline.")
]
_Dataset = Annotated[
    str | None,
    typer.Option(
        help="Measure accuracy: refcoco, refcoco+, refcocog, refclef, rrsisd, grefcoco, the folder of your own, or "
        "shapes, generated here."
    ),
]
_DataRoot = Annotated[Path | None, typer.Option(help="The folder with the data sets; shapes does not need one.")]
_Split = Annotated[str, typer.Option(help="val, test, testA, testB, train.")]
_SplitBy = Annotated[
    str | None, typer.Option(help="Whose splits: unc, umd, google, or your own; by default the usual ones.")
]
_Images = Annotated[
    Path | None, typer.Option(help="The folder of the data set's images, if it is not the usual one; also COCO 2017's.")
]
_Limit = Annotated[int | None, typer.Option(min=1, help="Only this many sentences, the first in the file.")]
_Shard = Annotated[
    str | None, typer.Option(help="Only this part of the sentences, such as 3/8, the third of eight; see --merge.")
]
_Merge = Annotated[
    bool, typer.Option("--merge", help="Make one result of the FILES of all shards, in any order; nothing else runs.")
]
_Files = Annotated[list[Path] | None, typer.Argument(help="With --merge: the shards' results.", show_default=False)]
_Swap = Annotated[bool, typer.Option("--swap", help="Control: each sentence is another object's, same image.")]
_Results = Annotated[
    Path | None, typer.Option(help="A file of JSON lines with each sentence's result; a stopped run continues from it.")
]
_Restart = Annotated[bool, typer.Option("--restart", help="Begin the results file anew.")]
_BatchSize = Annotated[int | None, typer.Option(min=1, help="With --dataset: images per call.")]
_ImageSize = Annotated[
    str | None, typer.Option(help="Of a checkpoint: 480 or HEIGHTxWIDTH; by default what it was trained at, else 480.")
]
_FusionHeads = Annotated[str | None, typer.Option(help="Of a checkpoint that does not say: such as 4-4-4-4.")]
_Bert = Annotated[Path | None, typer.Option(help="Of a checkpoint without it: its BERT, a state dict or a folder.")]
_Vocabulary = Annotated[Path | None, typer.Option(help="Of a checkpoint with another BERT: its vocab.txt.")]
_Ema = Annotated[bool, typer.Option("--ema", help="Of a checkpoint: its averaged parameters, model_ema.")]
_Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one per core.")]


@bench_app.command()
def bench(
    context: typer.Context,
    files: _Files = None,
    engine: _Engine = None,
    against: _Against = None,
    checkpoint: _Checkpoint = None,
    image: _Image = None,
    frame: _Frame = None,
    text: _Text = "the man in red",
    warmup: _Warmup = 3,
    rounds: _Rounds = 20,
    batch: _Batch = 1,
    sweep_threads: _SweepThreads = None,
    sweep_batch: _SweepBatch = None,
    parts: _Parts = False,
    estimate: _Estimate = None,
    layers: _Layers = False,
    kernels: _Kernels = False,
    fidelity: _Fidelity = False,
    json_file: _JsonFile = None,
    report: _Report = None,
    baseline: _Baseline = None,
    max_slowdown: _MaxSlowdown = 1.05,
    dataset: _Dataset = None,
    data_root: _DataRoot = None,
    split: _Split = "val",
    split_by: _SplitBy = None,
    images: _Images = None,
    limit: _Limit = None,
    shard: _Shard = None,
    merge: _Merge = False,
    swap: _Swap = False,
    results: _Results = None,
    restart: _Restart = False,
    batch_size: _BatchSize = None,
    image_size: _ImageSize = None,
    fusion_heads: _FusionHeads = None,
    bert: _Bert = None,
    vocabulary: _Vocabulary = None,
    ema: _Ema = False,
    threads: _Threads = None,
    device: Device = "auto",
) -> None:
    """Measure a bundle's latency beside its peers; or, with --dataset, the accuracy of a bundle or a checkpoint."""
    if merge or files:
        _merge(context, context.params)
        return
    if dataset is not None and not fidelity:
        refuse(context, _LATENCY_OPTIONS, "measures latency; leave it or --dataset out")
        _bench_accuracy(context, context.params)
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

    frame = parse_size(asked["frame"], "--frame")
    if frame is not None and asked["image"] is not None:
        raise LavtError("--frame is for noise of a size, and --image has its own; leave one out")
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
        [one for one in data.sentences if not one.target.no_target][: asked["limit"] or DEFAULT_SENTENCES],
        source=None if source.kind == "random" else source,
        report=report,
        progress=progress,
    )
    return tuple(rows)


def _write_files(result: Result, json_file: Path | None, report: Path | None) -> None:
    import json

    from .._base.files import write_whole

    for path in (json_file, report):
        if path is None:
            continue
        try:
            if path is json_file:
                write_whole(path, (json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n").encode())
            else:
                from ..benchmarks.report.page import write_report

                write_report(result, path)
        except OSError as error:
            raise LavtError(f"{path}: cannot be written ({error.strerror or error})") from error
        out.print(f"written: {path}")


def _bench_accuracy(context: typer.Context, asked: dict[str, Any]) -> None:
    engine = asked["engine"]
    if engine is not None:
        refuse(
            context, _CHECKPOINT_OPTIONS, "is for a checkpoint and says nothing of a bundle; leave it or --engine out"
        )
    size, heads = parse_size(asked["image_size"]), parse_heads(asked["fusion_heads"])
    shard = parse_shard(asked["shard"])
    from ..benchmarks.evaluation.evaluate import evaluate
    from ..benchmarks.evaluation.predictors import Predictor, load_bundle
    from ..data.sentences import open_split

    swap, run = asked["swap"], {name: asked[name] for name in ("batch_size", "device", "threads")}
    with progress_bar("opening the data set") as (_, progress):
        sentences = open_split(
            asked["dataset"],
            asked["split"],
            **{name: asked[name] for name in ("data_root", "split_by", "images")},
            swap=swap,
            progress=progress,
        )
    predictor: Predictor
    if engine is not None:
        predictor = load_bundle(engine, **run)
    else:
        with needs("export"):
            from ..benchmarks.evaluation.reference import load_reference
        from ..export.source import open_source

        beside = {"bert": asked["bert"], "words": asked["vocabulary"], "ema": asked["ema"]}
        predictor = load_reference(open_source(asked["checkpoint"], heads, **beside), image_size=size, **run)
    with progress_bar("sentences") as (_, progress):
        evaluation = evaluate(
            predictor,
            sentences,
            asked["results"],
            limit=asked["limit"],
            shard=shard,
            restart=asked["restart"],
            progress=progress,
        )
    _print_accuracy(evaluation)


def _merge(context: typer.Context, asked: dict[str, Any]) -> None:
    if not asked["merge"]:
        raise LavtError(f"{asked['files'][0]}: files are for --merge; name a bundle with --engine")
    others = tuple(name for name in asked if name not in ("merge", "files", "results", "restart"))
    refuse(context, others, "says nothing of a merge, which runs no model; leave it or --merge out")
    if not asked["files"]:
        raise LavtError("--merge needs the shards' results: name their files")
    from ..benchmarks.evaluation.evaluate import merge

    _print_accuracy(merge(asked["files"], asked["results"], restart=asked["restart"]))


def _print_accuracy(evaluation: Evaluation) -> None:
    print_table(one_line(evaluation.title), evaluation.header, evaluation.table())
    out.print(f"each sentence's result: {evaluation.results}")


def _parse_counts(option: str, text: str | None) -> tuple[int, ...]:
    parts = [] if text is None else text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part[:4]) > 0 and len(part) < 5 for part in parts):
        raise LavtError(f"{option} {text!r}: give numbers such as 1,2,4")
    return tuple(dict.fromkeys(map(int, parts)))
