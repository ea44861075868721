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
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from ..._base import strict_json
from ..._base.exits import run_main
from ..._base.files import write_whole
from ..._base.progress import Report
from ..._base.records import to_plain
from ...errors import LavtError
from ...runtime.bundle import open_bundle
from ..peers.process import RemoteSide, run_in_subprocess
from ..peers.sides import SideSpec
from ..report.markdown import markdown
from ..timing.machine import Ticks, describe_machine, machine_warnings, run_warnings
from ..timing.measure import interleave, prepare_sides
from ..timing.result import Options
from ..timing.statistics import paired_ratio, summarise

FORMAT_VERSION = 3
INT8_FILE = "segmenter.int8-cpu.onnx"
PLAIN, OPENVINO_PLAIN = "plain export", "OpenVINO, plain export"
# What each peer is called in the tables; those after the first two may be missing on a machine.
NAMES = {
    "onnx-plain": PLAIN,
    "torch": "PyTorch, eager",
    "torch-compile": "PyTorch, torch.compile",
    "openvino-plain": OPENVINO_PLAIN,
    "openvino": "OpenVINO, rewritten",
    "openvino-plain-bf16": "OpenVINO in bfloat16, plain export",
    "openvino-bf16": "OpenVINO in bfloat16, rewritten",
}
REWRITTEN, WINOGRAD, INT8 = "rewritten", "rewritten, Winograd", "rewritten, INT8"
OURS = (REWRITTEN, WINOGRAD, INT8)
# (side, against, at most): what the project asks of base.
TARGETS = (
    (REWRITTEN, PLAIN, 0.78),
    (WINOGRAD, PLAIN, 0.78),
    ("OpenVINO, rewritten", OPENVINO_PLAIN, 0.80),
    (INT8, PLAIN, 0.45),
)


@dataclass(frozen=True)
class Subject:
    """A model of the comparison: `swin` None is the demo model, judged on `sentences` of generated val.

    INT8 is calibrated on `samples` sentences. Each side runs `rounds` times.
    """

    name: str
    rounds: int
    samples: int
    swin: str | None = None
    window: int = 12
    size: int = 480
    sentences: int = 0
    threads: int | None = None

    @property
    def checkpoint(self) -> str:
        return "demo" if self.swin is None else "random"


SUBJECTS = (
    Subject("base, window 12", rounds=24, samples=2, swin="base"),
    Subject("demo model", rounds=64, samples=128, sentences=520),
)


def winograd_bundle(root: Path) -> Path:
    """The bundle with Winograd products, beside the bundle `root`."""
    return root.with_name(f"{root.name}-winograd")


def make_bundle(subject: Subject, root: Path) -> None:
    """Writes the subject's bundle with its INT8 graph for CPUs, and `winograd_bundle`. Raises LavtError."""
    import torch

    from ...calibration import DataOptions
    from ...calibration.quantize import QuantizeOptions, quantize_bundle
    from ...export import ExportOptions, export_bundle
    from ...export.source import open_source
    from ...reference import LAVT, LAVTConfig
    from ...runtime.manifest import CheckpointInfo

    data = DataOptions(samples=subject.samples)
    if subject.swin is None:
        source = open_source(None)
        for path, winograd in ((root, False), (winograd_bundle(root), True)):
            options = ExportOptions(size=source.size, winograd=winograd)
            source.export(path, options)
        # Accuracy is shown beside it, so the budget is the default one and not widened here.
        quantize_bundle(root, "int8", QuantizeOptions(rest="fp32", data=data))
        return
    torch.manual_seed(0)
    model = LAVT(LAVTConfig(swin=subject.swin, window=subject.window)).eval()
    for path, winograd in ((root, False), (winograd_bundle(root), True)):
        options = ExportOptions(size=(subject.size,) * 2, winograd=winograd)
        export_bundle(model.float(), path, CheckpointInfo("random", "0" * 64), options=options)
    del model
    add_int8(root, data)


def add_int8(root: Path, data: Any) -> None:
    """Adds the INT8 graph for CPUs, every product with a weight in INT8: of random weights accuracy is no guide.

    `data` is a calibration.sample.DataOptions. Raises LavtError.
    """
    from ...calibration.calibrate import calibrate
    from ...calibration.graphs import load_graph
    from ...calibration.products import candidates, image_products
    from ...calibration.quantize import quantized_graph
    from ...calibration.sample import draw_sample
    from ...export.graph import save_graph
    from ...runtime.bundle import file_entry
    from ...runtime.update import update_bundle

    bundle = open_bundle(root)
    calibration = calibrate(bundle, draw_sample(data))
    products = candidates(image_products(bundle, load_graph(bundle, "segmenter")), "full")
    model = quantized_graph(bundle, calibration, products, calibration.clipped("mse"), "fp32")
    with update_bundle(root) as change:
        (path,) = save_graph(model, change.new(INT8_FILE))
        change.commit({INT8_FILE: file_entry(path, "segmenter", "int8-cpu")})


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


def measure_subject(subject: Subject, root: Path, peers: Sequence[str], report: Report) -> dict[str, Any]:
    """Sides, ratios, accuracy and warnings of a subject whose bundle is in `root`.

    A peer that cannot be opened here is left out with a warning. Raises LavtError where our own graphs cannot.
    """
    warnings: list[str] = []
    specs, sides = specify_sides(subject, root, peers, report), list[RemoteSide]()
    with ExitStack() as stack:
        for spec in specs:
            report(f"opening {spec.name}")
            try:
                sides.append(stack.enter_context(RemoteSide(spec)))
            except LavtError as error:
                if spec.name in (*OURS, PLAIN):
                    raise
                warnings.append(f"{spec.name} was left out: {error}")
        report(f"measuring {len(sides)} sides")
        before = Ticks.now()
        seconds = interleave(
            sides, 3, subject.rounds, lambda done, total: report(f"measuring, round {done} of {total}")
        )
        found = [_described(side, values) for side, values in zip(sides, seconds, strict=True)]
        warnings += run_warnings([one["name"] for one in found], seconds, before, Ticks.now())
    report("where the time goes")
    parts = run_in_subprocess(parts_of, root, subject.threads)
    report("judging")
    return {
        "name": subject.name,
        "weights": subject.checkpoint,
        "size": found[0]["size"],
        "rounds": subject.rounds,
        "calibrated_on": subject.samples,
        "int8_policy": "auto" if subject.swin is None else "full",
        "sides": found,
        "ratios": ratios_of(found),
        "targets": [list(target) for target in TARGETS] if subject.swin == "base" else [],
        "parts": parts,
        "accuracy": accuracy(subject, root) if subject.sentences else None,
        "warnings": warnings,
    }


def _described(side: RemoteSide, seconds: list[float]) -> dict[str, Any]:
    summary = {key: round(value, 6) for key, value in vars(summarise(seconds)).items()}
    return {
        "name": side.spec.name,
        **{key: side.about[key] for key in ("precision", "size", "runtime")},
        "seconds": [round(value, 6) for value in seconds],
        "summary": summary,
        "memory": side.memory(),
    }


def ratios_of(sides: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each side over the plain export on ONNX Runtime, and OpenVINO's over OpenVINO's, with 95 % intervals."""
    seconds = {one["name"]: one["seconds"] for one in sides}
    pairs = [(name, PLAIN) for name in seconds if name != PLAIN]
    pairs += [(name, OPENVINO_PLAIN) for name in seconds if name.startswith("OpenVINO") and name != OPENVINO_PLAIN]
    return [
        {"name": name, "against": other, **asdict(paired_ratio(seconds[name], seconds[other], period=len(sides)))}
        for name, other in pairs
        if other in seconds
    ]


def parts_of(root: Path, threads: int | None) -> list[dict[str, Any]]:
    """Seconds and MACs of each part of the rewritten graph and of the one with Winograd products, from ONNX Runtime's
    profiler: `part`, and for each side its `seconds` and `macs`. Raises LavtError."""
    from ...runtime.signature import segmenter_signature
    from ..parts.profile import part_times
    from ..peers.sides import feeds_for

    parts: dict[str, dict[str, Any]] = {}
    for name, folder in ((REWRITTEN, root), (WINOGRAD, winograd_bundle(root))):
        bundle = open_bundle(folder)
        path, inputs = bundle.file("segmenter"), segmenter_signature(bundle.manifest.input).inputs
        feeds = feeds_for([(one.name, one.dtype, one.shape) for one in inputs], 1)
        for row in part_times(path, feeds, threads):
            parts.setdefault(row.part, {})[name] = {"seconds": round(row.seconds, 6), "macs": row.macs}
    return [{"part": part, "sides": sides} for part, sides in parts.items()]


def accuracy(subject: Subject, root: Path) -> list[dict[str, Any]]:
    """Rows of FP32 and INT8 on generated val against PyTorch, see `fidelity.measure_fidelity`, less the pictures."""
    from ...data.sentences import open_split
    from ...export.source import open_source
    from ..evaluation.fidelity import measure_fidelity

    sentences = open_split("shapes", "val").sentences[: subject.sentences]
    rows = measure_fidelity(root, sentences, source=open_source(subject.checkpoint), cases=0)
    return [{key: value for key, value in to_plain(row).items() if key != "overlays"} for row in rows]


def measure_standing(subjects: Sequence[Subject], peers: Sequence[str], report: Report) -> dict[str, Any]:
    """The content of docs/benchmarks.json. Raises LavtError."""
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
    return {
        "format": FORMAT_VERSION,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "machine": to_plain(machine),
        "models": models,
        "warnings": machine_warnings(machine),
    }


def merge_previous(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`result` with the models that it lacks as benchmarks.json in `folder` has them, in the order of SUBJECTS.

    Raises LavtError where that file cannot be read, or is of another format or machine.
    """
    path = folder / "benchmarks.json"
    try:
        old = strict_json.loads(path.read_bytes())
        kept = {model["name"]: model for model in old["models"]}
        same = old["format"] == FORMAT_VERSION and old["machine"]["cpu"]["model"] == result["machine"]["cpu"]["model"]
        same = same and old["machine"]["versions"] == result["machine"]["versions"]
        minutes = float(old["minutes"]) + result["minutes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LavtError(f"{path}: cannot be kept ({error}); measure all models, without --only") from error
    if not same:
        raise LavtError(f"{path}: of another format, machine or versions; measure all models, without --only")
    found = {**kept, **{model["name"]: model for model in result["models"]}}
    models = [found[subject.name] for subject in SUBJECTS if subject.name in found]
    return {**result, "models": models, "minutes": minutes}


def write_standing(result: dict[str, Any], folder: Path) -> None:
    """Writes benchmarks.json and, from it, benchmarks.md. Raises OSError."""
    write_whole(folder / "benchmarks.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    write_whole(folder / "benchmarks.md", markdown(result).encode())


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
    changes: dict[str, Any] = {key: getattr(given, key) for key in ("rounds", "samples", "threads")}
    changes = {key: value for key, value in changes.items() if value is not None}
    subjects = [replace(one, **changes) for one in SUBJECTS if given.only in (None, one.name.split(",")[0].split()[0])]
    if given.sentences is not None:
        subjects = [replace(one, sentences=given.sentences) if one.swin is None else one for one in subjects]
    peers = list(dict.fromkeys(["onnx-plain", *given.peers]))
    console = Console(stderr=True)
    with console.status("starting") as status:
        result = measure_standing(subjects, peers, status.update)
    if given.only and (given.output / "benchmarks.json").exists():
        result = merge_previous(result, given.output)
    write_standing(result, given.output)
    print(markdown(result))


if __name__ == "__main__":
    run_main(main)
