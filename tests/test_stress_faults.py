"""Kills, concurrent commands, threads and a short soak; `make stress` runs the heavy form."""

from __future__ import annotations

import io
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from lavt_edge._base.files import whole_folder
from lavt_edge.runtime import Segmenter
from lavt_edge.runtime.bundle import file_entry, open_bundle
from lavt_edge.runtime.update import update_bundle
from lavt_edge.tests.runtime_bundle import write_bundle
from lavt_edge.tests.runtime_engines import add_engine
from lavt_edge.tests.stress import faults, run_all, soak, threads
from lavt_edge.tests.stress.steps import kill_at_each_step

ENGINE = "segmenter.fp32.engine"
COMMAND = Path(sys.executable).parent / "lavt-export"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_is_whole_wherever_an_update_is_killed(tmp_path: Path) -> None:
    """A new graph under an engine: with the old graph and its engine, with neither, or with the new graph."""
    bundle, source = tmp_path / "bundle", write_bundle(tmp_path / "source", seed=0)
    other = write_bundle(tmp_path / "other", seed=1)
    add_engine(source, ENGINE, b"an engine")
    kept = ("text_encoder.onnx", "tokenizer.json")
    ends: set[tuple[str, ...]] = set()

    def begin() -> None:
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(source, bundle)

    def exchange() -> None:
        with update_bundle(bundle) as change:
            for name in ("segmenter.onnx", "notes.txt"):
                shutil.copyfile(other / "segmenter.onnx", change.new(name))
            entry = file_entry(change.path("segmenter.onnx"), "segmenter", "fp32")
            change.commit({"segmenter.onnx": entry, "notes.txt": replace(entry, role="report", precision=None)})

    def check() -> None:
        opened = open_bundle(bundle)
        for name in opened.manifest.files:
            assert file_entry(bundle / name, "x").sha256 == opened.manifest.files[name].sha256
        if opened.has("segmenter"):
            Segmenter.load(bundle, device="cpu", threads=1).close()
        ends.add(tuple(sorted(opened.manifest.files)))
        assert (ENGINE in opened.manifest.files) == (ENGINE in opened.manifest.engines)
        exchange()
        # An engine that was no longer listed but not yet removed may lie there until it is built again.
        assert {*names(bundle)} - {ENGINE} == {"lavt.json", "notes.txt", "segmenter.onnx", *kept}

    assert kill_at_each_step(bundle, begin, exchange, check) > 20
    assert ends == {
        (ENGINE, "segmenter.onnx", *kept),
        kept,
        ("notes.txt", "segmenter.onnx", *kept),
    }


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [str(COMMAND), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_commands_that_meet_at_one_bundle_are_refused_in_a_line(tmp_path: Path) -> None:
    """While a new bundle is being written, and while one is being changed."""
    new, old = tmp_path / "new", write_bundle(tmp_path / "old")
    before = names(old)
    with whole_folder(new) as partial, update_bundle(old):
        commands = {
            start("onnx", "--output", new, "--image-size", 64): new,
            start("onnx", "--output", old, "--image-size", 64, "--force"): old,
            start("quantize", old, "--fp16", "--samples", 4): old,
            start("trt", old, "--flavor", "tensorrt_rtx", "--compute-capability", "sm86"): old,
        }
        for process, bundle in commands.items():
            _, said = process.communicate(timeout=300)
            assert said == f"error: {bundle}: another command is changing this bundle; wait for it to end\n"
            assert process.returncode == 1
        (partial / "done").write_text("")
    assert (names(old), names(new), names(tmp_path)) == (before, ["done"], ["new", "old"])


def test_killed_at_random_moments_a_bundle_is_whole_and_a_rerun_succeeds(demo_bundle: Path) -> None:
    counts = faults.run(4, seed=5, plain=demo_bundle)
    assert [counts[f"kills of {command}"] for command in ("onnx", "quantize", "trt")] == [2, 1, 1]
    assert counts["reruns"] == 3


def test_eight_threads_get_what_one_gets(tmp_path: Path) -> None:
    counts = threads.run(write_bundle(tmp_path / "bundle", batch=None), rounds=2, seed=1, closings=5)
    assert counts["calls, equal to one thread's"] == 8 * 2 * 47


def test_a_short_soak_leaves_files_and_threads_as_they_were(demo_bundle: Path) -> None:
    """Memory too, once the prompt cache (256) is full: a mask of 240x240 with its probabilities kept would be found."""
    calls, warm_up, every, limit = 380, 260, 5, 2**16
    figures = run_all._in_own_process(soak.run, demo_bundle, calls, 1, warm_up, every, limit)
    assert figures["calls"] == calls


class Leaky(Segmenter):
    """Keeps a file open, or 64 KB of memory that no other use has left over, for each call."""

    kept: ClassVar[list[io.IOBase | mmap.mmap]] = []
    what: ClassVar[str] = "file"

    def segment(self, *arguments):  # type: ignore[no-untyped-def]
        if self.what == "file":
            self.kept.append(os.fdopen(os.open(os.devnull, os.O_RDONLY)))
        else:
            self.kept.append(mmap.mmap(-1, 2**16))
            self.kept[-1].write(b"x" * 2**16)  # type: ignore[union-attr]
        return super().segment(*arguments)


@pytest.mark.parametrize(("what", "error"), [("file", AssertionError), ("memory", MemoryError)])
def test_a_soak_finds_what_leaks(
    what: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soak, "Segmenter", Leaky)
    monkeypatch.setattr(Leaky, "what", what)
    with pytest.raises(error, match=r"open files|memory grows by"):
        soak.run(write_bundle(tmp_path / "bundle"), 300, seed=1, warm_up=100, every=10)
    while Leaky.kept:
        Leaky.kept.pop().close()


def test_what_fails_is_told_and_the_rest_still_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(work: object, *arguments: object) -> dict[str, int]:
        if work is threads.run:
            raise AssertionError("job 3 differs")
        return {"calls": 7}

    monkeypatch.setattr(run_all, "_in_own_process", run)
    monkeypatch.setattr(run_all, "export_demo", lambda bundle: bundle)
    output = tmp_path / "stress.json"
    monkeypatch.setattr(sys, "argv", ["run_all", "--output", str(output), "--parts", "threads,soak"])
    assert run_all.main() == 1
    found = json.loads(output.read_text())
    assert (found["threads"], found["soak"]) == ({"failed": "AssertionError: job 3 differs"}, {"calls": 7})


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "PART_SECONDS", 1.0)
    script = f"echo $$ > {tmp_path / 'pid'}; exec sleep 600"
    with pytest.raises(TimeoutError, match="no end after 1 seconds"):
        run_all._in_own_process(subprocess.run, ["sh", "-c", script])
    process = Path("/proc", (tmp_path / "pid").read_text().strip(), "status")
    deadline = time.monotonic() + 300
    while process.exists() and "State:\tZ" not in process.read_text():
        assert time.monotonic() < deadline, "what the part started still runs"
        time.sleep(0.05)


@pytest.mark.stress
def test_the_heavy_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run_all", "--output", str(tmp_path / "stress.json")])
    assert run_all.main() == 0
