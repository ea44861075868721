"""The standing comparison, `make bench`: docs/benchmarks.json is measured, and docs/benchmarks.md written from it.

    python -m lavt_edge.benchmarks.runs.standing --output docs

Base has random weights: time does not depend on them, accuracy would say nothing. The demo model is judged as well.
Every side runs the image graph alone on one 480x480 (demo: its own size) image; the sentence is encoded beforehand.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from ..._base import strict_json
from ..._base.exits import run_main
from ..._base.files import write_whole
from ..._base.progress import Report
from ..._base.records import from_plain, to_plain
from ..._base.timing import Summary, paired_ratio
from ...errors import LavtError
from ...runtime.bundle import open_bundle
from ..peers.process import run_in_subprocess
from ..peers.sides import SideSpec
from ..report.standing import PLAIN, GpuGraph, Model, Part, PartTime, Side, Standing, markdown
from ..timing.machine import Ticks, describe_machine, machine_warnings, run_warnings
from ..timing.measure import measure_sides, prepare_sides, try_sides
from ..timing.result import FidelityFigures, Options, SideRatio, SideResult
from .frames import measure_frames
from .subjects import INT8_FILE, SUBJECTS, Subject, make_bundle, make_gpu_graphs, winograd_bundle

FORMAT_VERSION = 3
OPENVINO_PLAIN, OPENVINO_INT8 = "OpenVINO, plain export", "OpenVINO, INT8"
# What each peer is called in the tables; those after the first two may be missing on a machine.
NAMES = {
    "onnx-plain": PLAIN,
    "torch": "PyTorch, eager",
    "torch-compile": "PyTorch, torch.compile",
    "openvino-plain": OPENVINO_PLAIN,
    "openvino": "OpenVINO, rewritten",
    "openvino-plain-bf16": "OpenVINO in bfloat16, plain export",
    "openvino-bf16": "OpenVINO in bfloat16, rewritten",
    "openvino-int8": OPENVINO_INT8,
}
REWRITTEN, WINOGRAD, INT8 = "rewritten", "rewritten, Winograd", "rewritten, INT8"
OURS = (REWRITTEN, WINOGRAD, INT8)
# (side, against, at most): what the project asks of base.
TARGETS = (
    (REWRITTEN, PLAIN, 0.78),
    (WINOGRAD, PLAIN, 0.78),
    ("OpenVINO, rewritten", OPENVINO_PLAIN, 0.80),
    (INT8, PLAIN, 0.45),
    (OPENVINO_INT8, INT8, 0.80),
)


def specify_sides(subject: Subject, root: Path, peers: Sequence[str], report: Report) -> list[SideSpec]:
    """The rewritten graphs and the peers, named as in the tables; makes the plain export. Raises LavtError."""
    options = Options(
        engine=root / "segmenter.onnx",
        against=(str(winograd_bundle(root)), str(root / INT8_FILE), *peers),
        checkpoint="demo" if subject.swin is None else None,
        threads=subject.threads,
        device="cpu",
    )
    names = [*OURS, *(NAMES[peer] for peer in peers)]
    return [replace(spec, name=name) for spec, name in zip(prepare_sides(options, report), names, strict=True)]


def measure_subject(subject: Subject, root: Path, peers: Sequence[str], report: Report) -> Model:
    """Sides, ratios, parts, accuracy and warnings of a subject whose bundle is in `root`.

    A peer that does not run here is left out with a warning. Raises LavtError if the plain export or our own graphs do
    not.
    """
    warnings: list[str] = []
    report("opening")
    specs, skipped = try_sides(specify_sides(subject, root, peers, report))
    for name, reason in skipped:
        if name in (*OURS, PLAIN):
            raise LavtError(reason)
        warnings.append(f"{name} was left out: {reason}")
    before = Ticks.now()
    measured = measure_sides(
        specs, 3, subject.rounds, report, lambda done, total: report(f"measuring, round {done} of {total}"), warnings
    )
    warnings += run_warnings([side.name for side in measured], [side.seconds for side in measured], before, Ticks.now())
    sides = tuple(_rounded(side) for side in measured)
    report("where the time goes")
    parts = run_in_subprocess(parts_of, root, subject.threads)
    report("counting a GPU's kernels")
    gpu = run_in_subprocess(kernels_of, root) if find_spec("tensorrt_rtx") else None
    if gpu is None:
        warnings.append("a GPU's kernels were not counted: TensorRT for RTX is not installed")
    report("judging")
    return Model(
        name=subject.name,
        weights=subject.checkpoint,
        size=sides[0].size,
        rounds=subject.rounds,
        calibrated_on=subject.samples,
        int8_policy="auto" if subject.swin is None else "full",
        sides=sides,
        ratios=ratios_of(sides),
        targets=TARGETS if subject.swin == "base" else (),
        parts=parts,
        accuracy=accuracy(subject, root) if subject.sentences else None,
        frames=run_in_subprocess(measure_frames, root, subject.frames) if subject.frames else None,
        gpu=gpu,
        warnings=tuple(warnings),
    )


def _rounded(side: SideResult) -> Side:
    values = {field.name: getattr(side, field.name) for field in fields(Side)}
    values["seconds"] = tuple(round(value, 6) for value in side.seconds)
    values["summary"] = Summary(**{key: round(value, 6) for key, value in vars(side.summary).items()})
    return Side(**values)


def ratios_of(sides: Sequence[Side]) -> tuple[SideRatio, ...]:
    """Each side over the plain export on ONNX Runtime, OpenVINO's over OpenVINO's, INT8 over INT8; 95 % intervals."""
    seconds = {side.name: side.seconds for side in sides}
    pairs = [(name, PLAIN) for name in seconds if name != PLAIN]
    pairs += [(name, OPENVINO_PLAIN) for name in seconds if name.startswith("OpenVINO") and name != OPENVINO_PLAIN]
    pairs += [(OPENVINO_INT8, INT8)] if OPENVINO_INT8 in seconds else []
    return tuple(
        SideRatio(
            **vars(paired_ratio(seconds[name], seconds[other], period=len(sides))),
            name=name,
            against=other,
        )
        for name, other in pairs
        if other in seconds
    )


def parts_of(root: Path, threads: int | None) -> tuple[Part, ...]:
    """The parts of the rewritten graph and of the one with Winograd products, by ONNX Runtime's profiler.

    Raises LavtError.
    """
    from ...runtime.signature import segmenter_signature
    from ..parts.profile import part_times
    from ..peers.sides import feeds_for

    parts: dict[str, dict[str, PartTime]] = {}
    for name, folder in ((REWRITTEN, root), (WINOGRAD, winograd_bundle(root))):
        bundle = open_bundle(folder)
        path, inputs = bundle.file("segmenter"), segmenter_signature(bundle.manifest.input).inputs
        rows, _ = part_times(path, feeds_for(inputs, 1), threads)
        for row in rows:
            parts.setdefault(row.part, {})[name] = PartTime(round(row.seconds, 6), row.macs)
    return tuple(Part(part, sides) for part, sides in parts.items())


def kernels_of(root: Path) -> tuple[GpuGraph, ...]:
    """The plain export and ours in FP16, and INT8 where it saves bytes, as TensorRT for RTX compiles them.

    Raises LavtError.
    """
    from ...export.macs import count_macs
    from ..parts.kernels import compile_layers

    graphs = []
    for name, path in make_gpu_graphs(root).items():
        layers, compiler = compile_layers(path)
        moved, constants = (sum(getattr(layer, kind) or 0 for layer in layers) for kind in ("moved", "constants"))
        graphs.append(GpuGraph(name, compiler, sum(count_macs(path).values()), len(layers), moved, constants))
    return tuple(graphs)


def accuracy(subject: Subject, root: Path) -> tuple[FidelityFigures, ...]:
    """FP32 and INT8 on generated val against PyTorch, see `fidelity.measure_fidelity`."""
    from ...data.sentences import open_split
    from ...export.source import open_source
    from ..evaluation.fidelity import measure_fidelity

    sentences = open_split("shapes", "val").sentences[: subject.sentences]
    rows = measure_fidelity(root, sentences, source=open_source(subject.checkpoint), cases=0)
    names = [field.name for field in fields(FidelityFigures)]
    return tuple(FidelityFigures(**{name: getattr(row, name) for name in names}) for row in rows)


def measure_standing(subjects: Sequence[Subject], peers: Sequence[str], report: Report) -> Standing:
    """Makes and measures every subject. Raises LavtError."""
    start = time.monotonic()
    machine = describe_machine(subjects[0].threads)
    models = []
    for subject in subjects:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "bundle"
            report(f"{subject.name}: exporting and calibrating")
            run_in_subprocess(make_bundle, subject, root)
            models.append(
                measure_subject(subject, root, peers, lambda step, name=subject.name: report(f"{name}: {step}"))  # type: ignore[misc]
            )
    return Standing(
        format=FORMAT_VERSION,
        date=datetime.now(timezone.utc).date().isoformat(),
        minutes=round((time.monotonic() - start) / 60, 1),
        machine=machine,
        models=tuple(models),
        warnings=tuple(machine_warnings(machine)),
    )


def merge_previous(result: Standing, folder: Path) -> Standing:
    """`result` with the models that it lacks as benchmarks.json in `folder` has them, in the order of SUBJECTS.

    Raises LavtError if that file cannot be read, or is of another format or machine.
    """
    path = folder / "benchmarks.json"
    try:
        old = from_plain(Standing, strict_json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise LavtError(f"{path}: cannot be kept ({error}); measure all models, without --only") from error
    if _comparable(old) != _comparable(result):
        raise LavtError(f"{path}: of another format, machine or versions; measure all models, without --only")
    models = {model.name: model for model in (*old.models, *result.models)}
    kept = tuple(models[subject.name] for subject in SUBJECTS if subject.name in models)
    return replace(result, models=kept, minutes=old.minutes + result.minutes)


def _comparable(result: Standing) -> tuple[object, ...]:
    return result.format, result.machine.cpu.model, result.machine.versions


def write_standing(result: Standing, folder: Path) -> str:
    """Writes benchmarks.json and benchmarks.md, and returns the latter's text. Raises OSError."""
    text = markdown(result)
    write_whole(folder / "benchmarks.json", (json.dumps(to_plain(result), indent=1, allow_nan=False) + "\n").encode())
    write_whole(folder / "benchmarks.md", text.encode())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder of benchmarks.json and benchmarks.md")
    parser.add_argument("--only", choices=["base", "demo"], help="one model; the other's figures are kept")
    parser.add_argument("--peers", nargs="*", choices=sorted(NAMES), default=list(NAMES), help="what to compare with")
    parser.add_argument("--rounds", type=int, help="rounds of each side; default: enough for the model")
    parser.add_argument("--samples", type=int, help="sentences that INT8 is calibrated on")
    parser.add_argument("--sentences", type=int, help="sentences that the demo model is judged on")
    parser.add_argument("--threads", type=int, help="threads of each side; default: one per core")
    given = parser.parse_args()
    names = ("rounds", "samples", "threads")
    changes = {name: value for name in names if (value := getattr(given, name)) is not None}
    subjects = [
        replace(subject, **changes)
        for subject in SUBJECTS
        if given.only in (None, subject.name.split(",")[0].split()[0])
    ]
    if given.sentences is not None:
        subjects = [
            replace(subject, sentences=given.sentences) if subject.swin is None else subject for subject in subjects
        ]
    peers = list(dict.fromkeys(["onnx-plain", *given.peers]))
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = measure_standing(subjects, peers, status.update)
    if given.only and (given.output / "benchmarks.json").exists():
        result = merge_previous(result, given.output)
    print(write_standing(result, given.output))


if __name__ == "__main__":
    run_main(main)
