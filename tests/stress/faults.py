"""SIGKILL at random moments of `lavt-export onnx`, `quantize` and `trt`: the bundle stays whole, a rerun succeeds.

python -m lavt_edge.tests.stress.faults --kills 100 --seed 0
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lavt_edge.tests.stress.outcome import Picture, check_whole, contents, segment_all
from lavt_edge.tests.stress.warm import PRELOADED, run_command

SIZE = 96
"""Of the bundles' images; the commands do the same at any size."""
_COMMAND_LINE_EVERY = 5
_RERUN_EVERY = {"onnx": 4, "quantize": 1, "trt": 1}
"""Killed `quantize` leaves its calibration, with which the next is quicker; an export begins anew each time."""
_QUANTIZE = ("--samples", "8")
_TRT = ("--flavor", "tensorrt_rtx", "--compute-capability", "sm86")
_LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Scenario:
    """A command, and the bundle that is there before it (None: none)."""

    name: str
    command: str
    arguments: tuple[str, ...]
    before: Path | None

    def line(self, bundle: Path) -> list[str]:
        place = ["--output", str(bundle)] if self.command == "onnx" else [str(bundle)]
        return [self.command, *place, *self.arguments]


@dataclass(frozen=True)
class Undisturbed:
    """A run that was let be: its seconds from a warm process and as a command line, and the bundle that it leaves."""

    seconds: float
    command_line_seconds: float
    files: dict[str, str]
    pictures: dict[str, Picture]


def run(kills: int, seed: int, plain: Path | None = None) -> dict[str, int | float]:
    """Kills the three commands, in turn, `kills` times in all; counts and seconds.

    With a bundle `plain` to begin with, the scenarios are left out in which the command replaces what it made before.

    Raises AssertionError where a bundle was damaged, a rerun failed or something was left.
    """
    begun = time.monotonic()
    counts: dict[str, int | float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="lavt-faults-") as folder,
        # Two side by side have a core each.
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), initializer=_on_one_core) as pool,
    ):
        scenarios = pool.submit(_prepare, Path(folder), plain).result()
        shares = _shares(scenarios, kills)
        works = [
            pool.submit(_kill_often, scenario, shares[i], [seed, i], Path(folder))
            for i, scenario in enumerate(scenarios)
        ]
        for scenario, work in zip(scenarios, works, strict=True):
            tally = work.result()
            print(f"{scenario.command}, {scenario.name}: {tally.kills} kills", flush=True)
            for name, count in tally.counts(scenario.command).items():
                counts[name] = counts.get(name, 0) + count
    return {**counts, "seconds": round(time.monotonic() - begun, 1)}


def _on_one_core() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


def _shares(scenarios: Sequence[Scenario], kills: int) -> list[int]:
    """As many for each command, and as many for each of its scenarios, as near as can be."""
    commands = list(dict.fromkeys(one.command for one in scenarios))
    shares = []
    for i, scenario in enumerate(scenarios):
        of_command = len(range(commands.index(scenario.command), kills, len(commands)))
        alike = [j for j, one in enumerate(scenarios) if one.command == scenario.command]
        shares.append(len(range(alike.index(i), of_command, len(alike))))
    return shares


@dataclass
class _Tally:
    kills: int = 0
    command_lines: int = 0
    left_over: int = 0
    reruns: int = 0
    absent: int = 0

    def counts(self, command: str) -> dict[str, int]:
        return {
            f"kills of {command}": self.kills,
            "kills of a whole command line": self.command_lines,
            "kills that left partial files": self.left_over,
            "kills that left no bundle": self.absent,
            "reruns": self.reruns,
        }


def _prepare(folder: Path, given: Path | None) -> list[Scenario]:
    """The bundles to begin with, each made by the commands themselves."""
    plain, smaller, typed, built = (folder / name for name in ("plain", "smaller", "typed", "built"))
    if given is None:
        _finish(["onnx", "--output", str(plain), "--image-size", str(SIZE)])
    else:
        shutil.copytree(given, plain)
    shutil.copytree(plain, typed)
    _finish(["quantize", str(typed), "--fp16", *_QUANTIZE])
    size = ("--image-size", str(SIZE))
    int8 = ("--int8", "--policy", "decoder", "--max-drop", "100", *_QUANTIZE)
    scenarios = [
        Scenario("a new bundle", "onnx", size, None),
        Scenario("fp16", "quantize", ("--fp16", *_QUANTIZE), plain),
        Scenario("engines", "trt", _TRT, typed),
    ]
    if given is not None:
        return scenarios
    _finish(["onnx", "--output", str(smaller), "--image-size", "64"])
    shutil.copytree(typed, built)
    _finish(["trt", str(built), *_TRT])
    return [
        *scenarios,
        Scenario("a bundle replaced", "onnx", (*size, "--force"), smaller),
        Scenario("int8", "quantize", int8, plain),
        Scenario("fp16 again, under engines", "quantize", ("--fp16", "--force", *_QUANTIZE), built),
        Scenario("engines again", "trt", _TRT, built),
    ]


def _kill_often(scenario: Scenario, kills: int, seed: Sequence[int], folder: Path) -> _Tally:
    rng, tally = np.random.default_rng(seed), _Tally()
    place = folder / scenario.name.replace(" ", "-").replace(",", "")
    place.mkdir()
    bundle = place / "bundle"
    undisturbed = _let_be(scenario, place, kills >= _COMMAND_LINE_EVERY)
    before = segment_all(scenario.before) if scenario.before else {}
    _reset(scenario, place)
    while tally.kills < kills:
        command_line = tally.kills % _COMMAND_LINE_EVERY == _COMMAND_LINE_EVERY - 1
        seconds = undisturbed.command_line_seconds if command_line else undisturbed.seconds
        moment = rng.uniform(0, seconds)
        if not _killed(scenario.line(bundle), moment, command_line):
            _reset(scenario, place)  # it was through before the moment came
            continue
        tally.kills += 1
        tally.command_lines += command_line
        tally.left_over += any(".partial" in path.name for path in place.rglob(".*"))
        what = f"{scenario.name}, killed after {moment:.3f} of {seconds:.3f} s"
        if bundle.exists():
            check_whole(bundle, (before, undisturbed.pictures), allowed=undisturbed.files, what=what)
        else:
            tally.absent += 1
            _check_absent(scenario, place, (before, undisturbed.pictures), what)
        made = scenario.before is None and bundle.exists()  # killed at its very end: the same again would be refused
        if made or tally.kills % _RERUN_EVERY[scenario.command] == 0 or tally.kills == kills:
            _finish(_forced(scenario, bundle))
            tally.reruns += 1
            check_whole(bundle, (undisturbed.pictures,), allowed={}, what=f"{what}, and run again")
            assert contents(place) == undisturbed.files, f"{what}, and run again: other files than undisturbed"
            _reset(scenario, place)
    return tally


def _forced(scenario: Scenario, bundle: Path) -> list[str]:
    """The same command, or, where the kill came after the new files got their names, the one that makes them again."""
    line = scenario.line(bundle)
    listed = (bundle / "lavt.json").read_text() if bundle.exists() else ""
    done = bundle.exists() if scenario.command == "onnx" else '"segmenter.fp16.onnx"' in listed or ".int8." in listed
    return [*line, "--force"] if done and scenario.command != "trt" and "--force" not in line else line


def _check_absent(scenario: Scenario, place: Path, pictures: Sequence[dict[str, Picture]], what: str) -> None:
    """Only a new bundle may be absent, or one between the two renames; then the old one is still there."""
    assert scenario.command == "onnx", f"{what}: the bundle is gone"
    if scenario.before is not None:
        (kept,) = place.glob(".bundle.*.replaced")
        check_whole(kept, pictures, allowed={}, what=what)


def _reset(scenario: Scenario, place: Path) -> None:
    shutil.rmtree(place)
    place.mkdir()
    if scenario.before is not None:
        shutil.copytree(scenario.before, place / "bundle")


def _let_be(scenario: Scenario, place: Path, command_line: bool) -> Undisturbed:
    def seconds(command_line: bool) -> float:
        _reset(scenario, place)
        start = time.monotonic()
        _finish(scenario.line(place / "bundle"), command_line)
        return time.monotonic() - start

    whole = seconds(command_line=True) if command_line else 0.0
    return Undisturbed(seconds(False), whole, contents(place), segment_all(place / "bundle"))


def _finish(line: list[str], command_line: bool = False) -> None:
    with _started(line, command_line) as process:
        code = process.wait(_LIMIT_SECONDS)
        assert code == 0, f"lavt-export {' '.join(line)}: ended with {code}: {process.said()}"


def _killed(line: list[str], moment: float, command_line: bool) -> bool:
    """Whether the command was still at it at the `moment`, when it was killed; else it succeeded."""
    with _started(line, command_line) as process:
        code = process.wait(moment)
        if code is None:
            process.kill()
            code = process.wait(_LIMIT_SECONDS)
        assert code in (0, -signal.SIGKILL), f"lavt-export {' '.join(line)}: ended with {code}: {process.said()}"
        return code != 0


class _Running:
    """A command under way: forked from a process that has imported everything, or a command line."""

    def __init__(self, line: list[str], command_line: bool, output: Path) -> None:
        self._output = output
        self._command: subprocess.Popen[bytes] | None = None
        if command_line:
            with output.open("wb") as stream:
                program = str(Path(sys.executable).parent / "lavt-export")
                self._command = subprocess.Popen([program, *line], stdout=stream, stderr=stream)
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(list(PRELOADED))
            self._process = context.Process(target=run_command, args=(line, str(output)))
            self._process.start()

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None where the command goes on for longer."""
        if self._command is None:
            self._process.join(seconds)
            return self._process.exitcode
        try:
            return self._command.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        (self._command or self._process).kill()

    def said(self) -> str:
        return self._output.read_text(errors="replace").strip()


@contextmanager
def _started(line: list[str], command_line: bool) -> Iterator[_Running]:
    with tempfile.NamedTemporaryFile(prefix="lavt-said-") as output:
        running = _Running(line, command_line, Path(output.name))
        try:
            yield running
        finally:
            if running.wait(0) is None:
                running.kill()
                running.wait(_LIMIT_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, count in run(given.kills, given.seed).items():
        print(f"{count:8} {name}")


if __name__ == "__main__":
    main()
