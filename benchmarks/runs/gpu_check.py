"""Everything that only a GPU can show, in one file to send back: `make gpu-check`, on a CUDA machine or a Jetson.

Runs the tests marked `gpu`, builds the engines of a bundle with `lavt-export trt`, and measures latency and parity of
its ONNX graphs and its engines. Without a CUDA device it says so and ends with 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from ..._base.exits import run_main
from ..._base.files import write_whole
from ..._base.records import OPTIONAL, to_plain
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
from ..timing.machine import package_versions

ROOT = Path(__file__).resolve().parents[2]
SCENES = 20
_PARTS = ("image graph", "segment", "text graph")
_PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13", "cuda-python", "cuda-bindings")
Logits = npt.NDArray[np.float32]
out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


@dataclass(frozen=True)
class Machine:
    """The GPU, TensorRT, and the versions of what runs on them."""

    gpu: str
    compute_capability: str
    shares_memory: bool
    tensorrt: Mapping[str, str]
    platform: str
    python: str
    packages: Mapping[str, str]


@dataclass(frozen=True)
class Problem:
    """A test that did not pass: its `kind` is "failure", "error" or "skipped", `message` the first line of why."""

    test: str | None
    kind: str
    message: str


@dataclass(frozen=True)
class GpuTests:
    """What pytest reported."""

    exit_code: int
    tests: int
    failures: int
    errors: int
    skipped: int
    passed: int
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Build:
    """A run of `lavt-export trt` with `option`, and the last line that it printed."""

    option: str
    exit_code: int
    seconds: float
    last_line: str


@dataclass(frozen=True)
class Row:
    """An image graph or engine: latency by part of a call, and parity with the FP32 graph on ONNX Runtime on the CPU.

    `relative_error` is the largest over the scenes of norm(difference) / norm(logits) (in JSON None if it is not
    finite), `pixel_agreement` the smallest share of equal mask pixels. A file that cannot run has an `error` instead.
    """

    file: str
    runtime: str | None = field(default=None, metadata=OPTIONAL)
    device: str | None = field(default=None, metadata=OPTIONAL)
    precision: str | None = field(default=None, metadata=OPTIONAL)
    verified: bool | None = None
    relative_error: float | None = field(default=None, metadata=OPTIONAL)
    pixel_agreement: float | None = field(default=None, metadata=OPTIONAL)
    milliseconds: Mapping[str, Mapping[str, float]] | None = field(default=None, metadata=OPTIONAL)
    error: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Check:
    """The content of gpu-check.json."""

    machine: Machine
    tests: GpuTests
    checkpoint: str
    builds: tuple[Build, ...]
    table: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether tests ran and all passed, every engine was built, and every file ran with finite logits."""
        tests_passed = self.tests.exit_code == 0 and self.tests.passed > 0
        ran = all(row.relative_error is not None and math.isfinite(row.relative_error) for row in self.table)
        return tests_passed and ran and not any(build.exit_code for build in self.builds)

    def write(self, path: Path) -> None:
        """Writes it as JSON. Raises OSError."""
        write_whole(path, (json.dumps(to_plain(self), indent=1, allow_nan=False) + "\n").encode())


def describe_machine() -> Machine:
    """This machine. Raises BackendError if TensorRT or a GPU is missing."""
    device, flavor = Cuda().device(), find_flavor()
    return Machine(
        gpu=device.name,
        compute_capability=device.compute_capability,
        shares_memory=device.shares_memory,
        tensorrt={"flavor": flavor.name, "version": flavor.version},
        platform=platform.platform(),
        python=platform.python_version(),
        packages=package_versions(_PACKAGES),
    )


def run_tests(bundle: Path) -> GpuTests:
    """Runs the tests marked `gpu`.

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
        return summarise(code, list(suites))


def summarise(exit_code: int, suites: Sequence[ElementTree.Element]) -> GpuTests:
    """What the suites of a JUnit report say."""
    tests, failures, errors, skipped = (
        sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors", "skipped")
    )
    problems = tuple(
        Problem(case.get("name"), problem.tag, (problem.get("message") or "").split("\n")[0])
        for suite in suites
        for case in suite.iter("testcase")
        for problem in case
        if problem.tag in ("failure", "error", "skipped")
    )
    return GpuTests(exit_code, tests, failures, errors, skipped, tests - failures - errors - skipped, problems)


def export_demo(folder: Path) -> Path:
    """The demo model's bundle in `folder`. Raises LavtError if the packages for exporting are missing."""
    try:
        from ...export.source import export_demo as export

        export(folder / "bundle")
    except ModuleNotFoundError as error:
        raise LavtError(
            f"{error.name} is not installed, the demo bundle cannot be exported here: copy a bundle to this machine "
            "and give it with --bundle, or pip install 'lavt-edge[export]'"
        ) from error
    return folder / "bundle"


def build_engines(bundle: Path) -> tuple[Build, ...]:
    """Runs `lavt-export trt` for every precision."""
    builds = []
    for option in ("--fp16", "--int8"):
        command = [sys.executable, "-c", "from lavt_edge.cli import export_main; export_main()", "trt", str(bundle)]
        start = time.perf_counter()
        run = subprocess.run([*command, option], capture_output=True, text=True)
        seconds = round(time.perf_counter() - start, 1)
        last = ((run.stderr if run.returncode else run.stdout).strip().splitlines() or [""])[-1]
        builds.append(Build(option, run.returncode, seconds, last))
        out.print(f"lavt-export trt {bundle} {option}: {'done' if run.returncode == 0 else last}")
    return tuple(builds)


def measure_bundle(bundle: Path, rounds: int) -> tuple[Row, ...]:
    """A row for each image graph and engine."""
    manifest = open_bundle(bundle).manifest
    with Segmenter.load(bundle / (manifest.find("segmenter", "fp32") or ""), device="cpu") as reference:
        expected = _logits(reference)
    names = [name for name, entry in manifest.files.items() if entry.role == "segmenter"]
    names += [name for name, engine in manifest.engines.items() if engine.get("role") == "segmenter"]
    return tuple(measure_file(bundle / name, expected, rounds) for name in names)


def measure_file(path: Path, expected: Sequence[Logits], rounds: int) -> Row:
    """The row of one file, beside the logits (2,H,W) expected of each scene."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnverifiedEngineWarning)
            segmenter = Segmenter.load(path, prompt_cache=1)
        with segmenter:
            pairs = list(zip(_logits(segmenter), expected, strict=True))
            return Row(
                path.name,
                runtime=segmenter.runtime,
                device=segmenter.device,
                precision=segmenter.precision,
                verified=segmenter.manifest.engines.get(path.name, {}).get("verified"),
                relative_error=max(relative_error(*pair) for pair in pairs),
                pixel_agreement=min(pixel_agreement(*pair) for pair in pairs),
                milliseconds=_latency(segmenter, rounds),
            )
    except LavtError as error:
        return Row(path.name, error=str(error))


def _logits(segmenter: Segmenter) -> list[Logits]:
    rows = segmenter.manifest.input.batch or 1
    made = []
    for index in range(SCENES):
        scene = scene_at(0, "val", index)
        prompt = segmenter.encode(scene.sentences()[0].text)
        image = resize(scene.render(), *segmenter.input_size)
        made.append(segmenter.run_graph(**stack_prompts([prompt] * rows).feeds([image] * rows))[0])
    return made


def _latency(segmenter: Segmenter, rounds: int) -> dict[str, dict[str, float]]:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    split = measure_split(segmenter, noise, "the man in red", warmup=10, rounds=rounds)
    times = (split.parts["image"], split.calls, split.parts["text_cold"])
    percentiles = (1e3 * np.percentile(times, (50, 90, 99), axis=1)).T.tolist()
    return {
        part: dict(zip(("median", "p90", "p99"), row, strict=True))
        for part, row in zip(_PARTS, percentiles, strict=True)
    }


def print_table(rows: Sequence[Row]) -> None:
    """Median milliseconds, relative error and pixel agreement of each file."""
    table = Table("file", "runs on", *_PARTS, "relative error", "pixel agreement", title="median milliseconds")
    for row in rows:
        if row.milliseconds is None:
            table.add_row(row.file, row.error)
            continue
        medians = [f"{row.milliseconds[part]['median']:.2f}" for part in _PARTS]
        parity = (f"{row.relative_error:.1e}", f"{100 * (row.pixel_agreement or 0):.3f} %")
        table.add_row(row.file, f"{row.runtime}, {row.device}", *medians, *parity)
    Console(width=max(out.width, 140)).print(table)


def check(bundle: Path | None, output: Path, rounds: int) -> bool:
    """Does it all and writes `output`; whether everything passed. Raises LavtError."""
    if not cuda_device_count():
        raise LavtError("no CUDA device was found: make gpu-check needs a CUDA machine or a Jetson")
    machine = describe_machine()
    out.print(f"{machine.gpu}, {' '.join(machine.tensorrt.values())}")
    with tempfile.TemporaryDirectory() as folder:
        used = export_demo(Path(folder)) if bundle is None else bundle
        checkpoint = open_bundle(used).manifest.checkpoint.name
        done = Check(machine, run_tests(used), checkpoint, build_engines(used), measure_bundle(used, rounds))
    print_table(done.table)
    done.write(output)
    out.print(f"{output}: {'everything passed' if done.passed else 'NOT everything passed'}; send it back")
    return done.passed


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
