"""Everything that only a GPU can show, in one file to send back: `make gpu-check`, on a CUDA machine or a Jetson.

Runs the tests marked `gpu`, builds the engines of a bundle with `lavt-export trt`, and measures latency and parity of
its ONNX graphs and its engines. Without a CUDA device it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from ..._base.exits import run_main
from ..._base.files import write_whole
from ...data.metrics import pixel_agreement, relative_error
from ...data.shapes import scene_at
from ...errors import ExitCode, LavtError
from ...runtime import Segmenter, UnverifiedEngineWarning
from ...runtime.batches import stack_prompts
from ...runtime.bundle import open_bundle
from ...runtime.cuda import cuda_device_count
from ...runtime.images import resize
from ...runtime.tensorrt.cuda import Cuda
from ...runtime.tensorrt.flavor import find_flavor
from ..timing.latency import measure_split

ROOT = Path(__file__).resolve().parents[2]
SCENES = 20
_PARTS = ("image graph", "segment", "text graph")
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-python", "cuda-bindings")
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def describe_machine() -> dict[str, Any]:
    """The GPU, TensorRT, and the versions of what runs on them. Raises BackendError where one is missing."""
    device, flavor = Cuda().device(), find_flavor()
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "gpu": device.name,
        "compute_capability": device.compute_capability,
        "shares_memory": device.shares_memory,
        "tensorrt": {"flavor": flavor.name, "version": flavor.version},
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
    }


def run_tests(bundle: Path) -> dict[str, Any]:
    """Runs the tests marked `gpu`: counts, seconds, and name and message of each that did not pass.

    Those in tests/gpu need the runtime and pytest alone, and take `bundle`; the others what exporting needs.
    """
    lean = importlib.util.find_spec("onnx") is None or importlib.util.find_spec("torch") is None
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = ROOT / "tests" / ("gpu" if lean else "")
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", f"--junitxml={report}", str(chosen)]
        environment = {**os.environ, "LAVT_EDGE_GPU_BUNDLE": str(bundle.resolve())}
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        suites = ElementTree.parse(report).getroot().iter("testsuite") if report.is_file() else iter(())
        return {"exit_code": code, **summarise(list(suites))}


def summarise(suites: list[ElementTree.Element]) -> dict[str, Any]:
    """The counts of a JUnit report, and what did not pass with the first line of why."""
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    problems = [
        {"test": case.get("name"), "kind": problem.tag, "message": (problem.get("message") or "").split("\n")[0]}
        for suite in suites
        for case in suite.iter("testcase")
        for problem in case
        if problem.tag in ("failure", "error", "skipped")
    ]
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return {**counts, "passed": passed, "problems": problems}


def export_demo(folder: Path) -> Path:
    """The demo model's bundle in `folder`. Raises LavtError where the packages for exporting are missing."""
    try:
        from ...export.source import export_demo as export

        export(folder / "bundle")
    except ModuleNotFoundError as error:
        raise LavtError(
            f"{error.name} is not installed, the demo bundle cannot be exported here: copy a bundle to this machine "
            "and give it with --bundle, or pip install 'lavt-edge[export]'"
        ) from error
    return folder / "bundle"


def build_engines(bundle: Path) -> list[dict[str, Any]]:
    """Runs `lavt-export trt` for every precision: option, exit code, seconds, and the last line that it printed."""
    done = []
    for option in ("--fp16", "--int8"):
        command = [sys.executable, "-c", "from lavt_edge.cli import export_main; export_main()", "trt", str(bundle)]
        start = time.perf_counter()
        run = subprocess.run([*command, option], capture_output=True, text=True)
        lines = (run.stderr if run.returncode else run.stdout).strip().splitlines()
        last = lines[-1] if lines else ""
        done.append(
            {
                "option": option,
                "exit_code": run.returncode,
                "seconds": round(time.perf_counter() - start, 1),
                "last_line": last,
            }
        )
        out.print(f"lavt-export trt {bundle} {option}: {'done' if run.returncode == 0 else last}")
    return done


def measure_bundle(bundle: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each image graph and engine: latency, and parity with the fp32 graph on ONNX Runtime on the CPU.

    `relative_error` is the largest over the scenes of norm(difference) / norm(logits), `pixel_agreement` the smallest
    share of equal mask pixels. A file that cannot run has an `error` instead.
    """
    manifest = open_bundle(bundle).manifest
    with Segmenter.load(bundle / (manifest.find("segmenter", "fp32") or ""), device="cpu") as reference:
        wanted = _logits(reference)
    names = [name for name, entry in manifest.files.items() if entry.role == "segmenter"]
    names += [name for name, engine in manifest.engines.items() if engine.get("role") == "segmenter"]
    rows = []
    for name in names:
        row: dict[str, Any] = {"file": name}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnverifiedEngineWarning)
                segmenter = Segmenter.load(bundle / name, prompt_cache=1)
            with segmenter:
                row |= {"runtime": segmenter.runtime, "device": segmenter.device, "precision": segmenter.precision}
                row |= {"verified": manifest.engines.get(name, {}).get("verified")}
                row |= compare(_logits(segmenter), wanted)
                row["milliseconds"] = _latency(segmenter, rounds)
        except LavtError as error:
            row["error"] = str(error)
        rows.append(row)
    return rows


def compare(found: list[npt.NDArray[np.float32]], wanted: list[npt.NDArray[np.float32]]) -> dict[str, float]:
    """`relative_error` and `pixel_agreement` of logits (2,H,W), the worst over the cases."""
    pairs = list(zip(found, wanted, strict=True))
    return {
        "relative_error": max(relative_error(*pair) for pair in pairs),
        "pixel_agreement": min(pixel_agreement(*pair) for pair in pairs),
    }


def _logits(segmenter: Segmenter) -> list[npt.NDArray[np.float32]]:
    rows = segmenter.manifest.input.batch or 1
    made = []
    for index in range(SCENES):
        scene = scene_at(0, "val", index)
        prompt = segmenter.encode(scene.sentences()[0].text)
        image = resize(scene.render(), *segmenter.input_size)
        made.append(segmenter.run_graph(**stack_prompts([prompt] * rows).feeds(image))[0])
    return made


def _latency(segmenter: Segmenter, rounds: int) -> dict[str, dict[str, float]]:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    split = measure_split(segmenter, noise, "the man in red", warmup=10, rounds=rounds)
    times = zip(_PARTS, (split.parts["image"], split.calls, split.parts["text_cold"]), strict=True)
    names = ("median", "p90", "p99")
    return {
        part: dict(zip(names, (1e3 * np.percentile(seconds, (50, 90, 99))).tolist(), strict=True))
        for part, seconds in times
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Median milliseconds, relative error and pixel agreement of each file."""
    table = Table("file", "runs on", *_PARTS, "relative error", "pixel agreement", title="median milliseconds")
    for row in rows:
        if "error" in row:
            table.add_row(row["file"], row["error"])
            continue
        medians = [f"{row['milliseconds'][part]['median']:.2f}" for part in _PARTS]
        parity = (f"{row['relative_error']:.1e}", f"{100 * row['pixel_agreement']:.3f} %")
        table.add_row(row["file"], f"{row['runtime']}, {row['device']}", *medians, *parity)
    Console(width=max(out.width, 140)).print(table)


def check(bundle: Path | None, output: Path, rounds: int) -> bool:
    """Does it all and writes `output`; whether everything passed. Raises LavtError."""
    if not cuda_device_count():
        raise LavtError("no CUDA device was found: make gpu-check needs a CUDA machine or a Jetson")
    machine = describe_machine()
    out.print(f"{machine['gpu']}, {machine['tensorrt']['flavor']} {machine['tensorrt']['version']}")
    with tempfile.TemporaryDirectory() as folder:
        used = export_demo(Path(folder)) if bundle is None else bundle
        tests = run_tests(used)
        builds = build_engines(used)
        rows = measure_bundle(used, rounds)
        checkpoint = open_bundle(used).manifest.checkpoint.name
    print_table(rows)
    report = {"machine": machine, "tests": tests, "checkpoint": checkpoint, "builds": builds, "table": rows}
    write_whole(output, (json.dumps(report, indent=1) + "\n").encode())
    passed = tests["exit_code"] == 0 and tests["passed"] > 0
    passed = passed and not any(row.get("error") for row in rows) and not any(build["exit_code"] for build in builds)
    out.print(f"{output}: {'everything passed' if passed else 'NOT everything passed'}; send it back")
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a bundle to measure; by default the demo model's, exported here")
    parser.add_argument("--output", type=Path, default=Path("gpu-check.json"))
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    if not check(options.bundle, options.output, options.rounds):
        sys.exit(ExitCode.REFUSED)


if __name__ == "__main__":
    run_main(main)
