"""`lavt-bench --dataset` as a command: what it prints and writes, and the combinations that it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lavt_edge.data.metrics import ReferringMetrics
from lavt_edge.tests.bench_results import MINI, expected_counts
from lavt_edge.tests.runtime_bundle import write_bundle

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "small")


def bench(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lavt-bench"), *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cwd / "cache")}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_the_command_ends_with_the_row_and_the_published_ones(bundle: Path, tmp_path: Path) -> None:
    command = ("--engine", bundle / "segmenter.onnx", "--dataset", "refcoco", "--data-root", MINI, "--device", "cpu")
    done = bench(*command, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    results = tmp_path / "small.fp32.refcoco-unc.val.jsonl"
    metrics = ReferringMetrics()
    for counts in expected_counts(MINI, "val").values():
        metrics.add(*counts)
    figures = [f"{value:.2f}" for value in metrics.compute().values()][1:]
    (row,) = [line for line in done.stdout.splitlines() if " all " in line]
    assert row.split() == ["all", "5", *figures]
    assert "paper, lavt_one base" in done.stdout
    assert results.name in done.stdout
    kept = results.read_bytes()
    assert bench(*command, cwd=tmp_path).stdout == done.stdout
    assert results.read_bytes() == kept

    control = bench(*command, "--split", "test", "--swap", cwd=tmp_path)
    assert "with the words of another object" in control.stdout
    assert (tmp_path / "small.fp32.refcoco-unc.test.swapped.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--engine is missing"),
        (("--checkpoint", "demo"), "--checkpoint is for --dataset, or for --engine with --against or --fidelity;"),
        (("--engine", "x", "--fidelity", "--dataset", "shapes", "--swap"), "--swap is not for --fidelity; leave it or"),
        (("--engine", "x", "--fidelity", "--batch-size", "2"), "--batch-size is not for --fidelity; leave it or"),
        (("--engine", "x", "--fidelity", "--limit", "3"), "no such bundle: x"),  # of the generated scenes
        (("--engine", "x", "--limit", "3"), "--limit measures accuracy"),
        (("--engine", "x", "--shard", "1/2"), "--shard measures accuracy"),
        (("--engine", "x", "--dataset", "shapes", "--shard", "1 of 2"), "--shard '1 of 2': give which of how many,"),
        (("--merge",), "--merge needs the shards' results: name their files"),
        (("x.jsonl",), "x.jsonl: files are for --merge; name a bundle with --engine"),
        (("--merge", "x.jsonl", "--dataset", "shapes"), "--dataset says nothing of a merge, which runs no model;"),
        (("--merge", "x.jsonl", "--restart"), "x.jsonl: cannot be read (No such file or directory)"),
        (("--dataset", "shapes", "--rounds", "3"), "--rounds measures latency"),
        (("--engine", "x", "--dataset", "shapes", "--image-size", "96"), "--image-size is for a checkpoint"),
        (("--engine", "x", "--checkpoint", "y", "--dataset", "shapes"), "--checkpoint is for a checkpoint"),
        (("--engine", "x", "--dataset", "refcoco"), "refcoco needs --data-root"),
        (("--engine", "x", "--dataset", "refcoco", "--data-root", str(MINI)), "no such bundle: x"),
        (("--checkpoint", "x.pth", "--dataset", "refcoco", "--data-root", str(MINI)), "x.pth: no such file"),
        (("--dataset", "refcoco", "--data-root", str(MINI), "--image-size", "big"), "--image-size 'big'"),
    ],
)
def test_a_wrong_combination_ends_in_one_line(
    options: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from lavt_edge.cli import bench_main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lavt-bench", *options])
    with pytest.raises(SystemExit) as caught:
        bench_main()
    assert caught.value.code == 1
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert named in shown.err
    assert list(tmp_path.iterdir()) == []
