"""`lavt-bench --engine`: sides in their own processes, peers by name, the JSON's form, the baseline's exit code."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lavt_edge.benchmarks.peers.onnx import photo
from lavt_edge.benchmarks.peers.process import RemoteSide, run_in_subprocess
from lavt_edge.benchmarks.peers.sides import feeds_for, specify
from lavt_edge.benchmarks.timing.baseline import compare_with_baseline, read_result
from lavt_edge.benchmarks.timing.machine import (
    describe_machine,
    machine_warnings,
    parse_gpu,
    parse_power_mode,
    run_warnings,
)
from lavt_edge.benchmarks.timing.measure import measure, prepare_sides
from lavt_edge.benchmarks.timing.result import Options
from lavt_edge.errors import ExitCode, LavtError
from lavt_edge.runtime.signature import TensorSpec
from lavt_edge.tests.report_pages import read
from lavt_edge.tests.runtime_bundle import write_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("measured") / "small", batch=None)


@pytest.fixture(scope="module")
def result(bundle: Path) -> dict[str, Any]:
    """The bundle beside itself and beside its bare graph, with a sweep."""
    bare = bundle.parent / "bare.onnx"
    bare.write_bytes((bundle / "segmenter.onnx").read_bytes())
    against = (str(bundle), str(bare))
    options = Options(bundle, against, rounds=6, warmup=1, threads=1, sweep_batch=(2,), sweep_rounds=2)
    return measure(options).to_dict()


def test_the_result_has_the_form_that_others_read(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    assert [side["name"] for side in result["sides"]] == ["small", "small #2", result["sides"][2]["name"]]
    assert [side["kind"] for side in result["sides"]] == ["bundle", "bundle", "onnx"]
    for side in result["sides"]:
        assert (side["precision"], side["size"], side["batch"]) == ("fp32", [24, 32], 1)
        assert len(side["seconds"]) == 6
        assert min(side["seconds"]) > 0
        assert set(side["summary"]) == {"median", "p90", "p99", "throughput"}
    assert [row["against"] for row in result["ratios"]] == [side["name"] for side in result["sides"][1:]]
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in result["ratios"])
    assert result["machine"]["threads"] == 1
    assert "onnxruntime" in " ".join(result["machine"]["versions"])


def test_a_bundle_is_split_and_a_bare_graph_is_not(result: dict[str, Any]) -> None:
    first, _, bare = result["sides"]
    apart, steps = ("decode", "text_cold", "text_cached"), ("preprocess", "copy_in", "image", "copy_out", "postprocess")
    assert tuple(first["split"]) == (*apart, *steps)
    assert all(first["split"][step] > 0 for step in (*apart, "preprocess", "copy_in", "image", "postprocess"))
    assert first["split"]["copy_out"] == 0
    assert first["split"]["text_cached"] < first["split"]["text_cold"]
    assert 0 < first["overhead"]["share"] < 1
    assert bare["split"] is None


def test_sweeps_measure_other_batches(result: dict[str, Any]) -> None:
    assert [(row["sweep"], row["batch"]) for row in result["sweeps"]] == [("batch", 2)] * 3
    engine, again = result["sweeps"][:2]
    assert engine["summary"]["throughput"] == pytest.approx(2 / engine["summary"]["median"])
    assert "ratio" in again


def test_memory_is_the_sides_own(bundle: Path) -> None:
    """What this process holds does not count, and what the side allocates does."""
    held = bytearray(400 << 20)
    (spec,) = specify(bundle, (), device="cpu")
    with RemoteSide(spec) as side:
        side.run()
        memory = side.memory()
    assert len(held) > (memory["peak_bytes"] or 0) > (memory["before_bytes"] or 0) > 0
    with RemoteSide(specify(bundle, (), device="cpu", batch=20_000)[0]) as large:
        large.run()
        peak = large.memory()["peak_bytes"]
    assert peak is not None
    assert peak > (memory["peak_bytes"] or 0) + 20_000 * 24 * 32 * 3 * 4


def test_a_side_answers_only_when_its_threads_sleep(bundle: Path) -> None:
    (spec,) = specify(bundle, (), device="cpu", threads=2, batch=500)
    with RemoteSide(spec) as side:
        side.run()
        pid = side._process.pid
        before = _processor_seconds(pid)
        time.sleep(0.3)
        assert _processor_seconds(pid) - before <= 0.05


def _processor_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_process_that_ends_or_fails_is_one_line() -> None:
    with pytest.raises(LavtError, match=r"^exit: its process ended \(exit code 3\)$"):
        run_in_subprocess(os._exit, 3)
    with pytest.raises(LavtError, match=r"^JSONDecodeError: Expecting property name [^\n]*$"):
        run_in_subprocess(json.loads, "{")


@pytest.mark.parametrize("peer", ["torch", "onnx-plain", "openvino", "openvino-plain"])
def test_peers_of_the_demo_model_run(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory, peer: str) -> None:
    if peer.startswith("openvino"):
        pytest.importorskip("openvino")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "plain-cache"))
        options = Options(demo_bundle, (peer,), rounds=2, warmup=0, device="cpu", split=False)
        side = measure(options).sides[1]
    assert (side.name, side.precision, side.size, side.device) == (peer, "fp32", (240, 240), "cpu")


def test_tensorrt_is_refused_without_a_device(demo_bundle: Path) -> None:
    spec = specify(demo_bundle, ("tensorrt-plain",), device="cpu")[1]
    with pytest.raises(LavtError, match="tensorrt-plain needs a CUDA device"):
        RemoteSide(spec)


def test_only_the_batch_may_be_dynamic() -> None:
    feeds = feeds_for([TensorSpec("image", "uint8", (None, 8, 8, 3)), TensorSpec("word_mask", "float32", (None, 4))], 3)
    assert feeds["image"].shape == (3, 8, 8, 3)
    assert feeds["word_mask"].min() == 1
    with pytest.raises(LavtError, match="only the batch"):
        feeds_for([TensorSpec("image", "uint8", (1, None, 8, 3))], 1)
    with pytest.raises(LavtError, match="for batches of 1, not 2"):
        feeds_for([TensorSpec("image", "uint8", (1, 8, 8, 3))], 2)
    with pytest.raises(LavtError, match="input scale is a single number"):
        feeds_for([TensorSpec("scale", "float32", ())], 1)


def test_a_baseline_is_gone_through_a_common_peer(result: dict[str, Any]) -> None:
    """The whole machine half as fast is no regression; the engine alone half as fast is one."""
    steady = copy.deepcopy(result)
    for side in steady["sides"]:
        side["seconds"] = [0.1 + 0.0001 * i for i in range(20)]
    for row in steady["ratios"]:
        row.update(ratio=1.0, low=0.99, high=1.01)
    slow_machine, slow_engine = copy.deepcopy(steady), copy.deepcopy(steady)
    for side in slow_machine["sides"]:
        side["seconds"] = [2 * value for value in side["seconds"]]
    for row in slow_engine["ratios"]:
        row.update(ratio=2.0, low=1.98, high=2.02)
    assert not compare_with_baseline(read(slow_machine), read(steady), 1.05).slower
    verdict = compare_with_baseline(read(slow_engine), read(steady), 1.05)
    assert verdict.slower
    assert verdict.through == "small #2"
    for one in (steady, slow_machine):
        one["sides"], one["ratios"] = one["sides"][:1], []
    alone = compare_with_baseline(read(slow_machine), read(steady), 1.05)
    assert alone.slower
    assert alone.through is None
    assert not compare_with_baseline(read(slow_machine), read(steady), 2.05).slower


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("precision", "int8", "its precision is int8, here it is fp32"),
        ("device", "cuda", "its device is cuda, here it is cpu"),
        ("batch", 2, "its batch is 2, here it is 1"),
        ("threads", 7, "measured with 7 threads, here with 1"),
    ],
)
def test_a_baseline_of_something_else_is_refused(result: dict[str, Any], key: str, value: object, said: str) -> None:
    other = copy.deepcopy(result)
    (other["machine"] if key == "threads" else other["sides"][0])[key] = value
    with pytest.raises(LavtError, match=said):
        compare_with_baseline(read(result), read(other), 1.05)


def test_a_file_that_an_earlier_version_wrote_is_a_baseline() -> None:
    """It was written from dicts, before the result had classes; every key of it is still written."""
    path = Path(__file__).parent / "data" / "bench_result.json"
    earlier = read_result(path)
    assert earlier.to_dict() == json.loads(path.read_bytes())
    assert earlier.layers is not None
    assert compare_with_baseline(earlier, earlier, 1.05).through == "fixed"


def test_what_makes_a_baseline_doubtful_is_said(result: dict[str, Any]) -> None:
    assert compare_with_baseline(read(result), read(result), 1.05).notes == ()
    other = copy.deepcopy(result)
    other["sides"][0]["runtime"] = "ONNX Runtime 1.0"
    other["sides"], other["ratios"] = other["sides"][:1], []
    alone, runtime = compare_with_baseline(read(result), read(other), 1.05).notes
    assert "no peer is in both runs" in alone
    assert "ran on ONNX Runtime 1.0" in runtime


def test_a_batch_that_the_bundle_does_not_take_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    fixed = write_bundle(tmp_path / "fixed", batch=1)
    done = bench(tmp_path, "--engine", fixed, "--sweep-batch", "1,2")
    assert done.returncode == 1
    assert "was exported for batches of 1, not 2" in done.stderr


def test_noise_is_said() -> None:
    machine = describe_machine(threads=4)
    cpu = replace(machine.cpu, allowed=4, quota=1.5, governor="powersave", virtual=False)
    said = " ".join(machine_warnings(replace(machine, cpu=cpu, load=3.0)))
    assert all(word in said for word in ("load 3.0", "grants 1.5 cores", "powersave"))
    calm = replace(machine, cpu=replace(cpu, quota=None, governor="performance"), load=0.1)
    assert machine_warnings(calm) == []
    assert run_warnings(["calm"], [[0.1] * 20], None, None) == []
    drifting = run_warnings(["warm"], [[0.1] * 10 + [0.2] * 10], None, None)
    assert any("last third" in line for line in drifting)


def test_what_tools_print_is_read() -> None:
    assert parse_power_mode("NVPM WARN: fan\nNV Power Mode: MAXN\n0\n") == "MAXN"
    line = "NVIDIA H100, 570.86, 81559 MiB, 345 MHz, 1980 MHz, 2619 MHz, 700.00 W, Enabled, 32"
    assert (parse_gpu(line) or {})["clocks.max.sm"] == "1980 MHz"
    assert parse_gpu("No devices were found") is None


def bench(cwd: Path, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lavt-bench")), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=env)


def test_the_command_prints_writes_and_judges(bundle: Path, tmp_path: Path) -> None:
    common = ("--engine", bundle, "--device", "cpu", "--rounds", 4, "--warmup", 0)
    done = bench(tmp_path, *common, "--against", bundle, "--json", "now.json", "--report", "now.html")
    assert done.returncode == 0, done.stderr
    assert "small #2" in done.stdout
    assert "<html" in (tmp_path / "now.html").read_text()
    earlier = read_result(tmp_path / "now.json").to_dict()
    for side in earlier["sides"]:
        side["seconds"] = [value / 1000 for value in side["seconds"]]
    (tmp_path / "fast.json").write_text(json.dumps(earlier))
    slower = bench(tmp_path, *common, "--baseline", "fast.json", "--max-slowdown", "1.5")
    assert slower.returncode == ExitCode.SLOWER
    assert "slower than 1.5 times" in slower.stderr


def test_a_frame_s_size_is_what_every_side_is_measured_on(bundle: Path) -> None:
    for frame, size in (((72, 128), (72, 128)), (None, (480, 640))):
        specs = prepare_sides(Options(bundle, (str(bundle),), device="cpu", frame=frame))
        assert [photo(spec).shape for spec in specs] == [(*size, 3)] * 2
    (found,) = measure(Options(bundle, rounds=2, warmup=0, device="cpu", frame=(72, 128))).sides
    assert found.split is not None


@pytest.mark.parametrize("options", [("--parts",), ("--estimate", "jetson-thor")])
def test_a_package_that_is_missing_is_told_before_anything_is_measured(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    """The graph is damaged, so that a side which is opened would say so."""
    bundle = write_bundle(tmp_path / "small")
    graph = bundle / "segmenter.onnx"
    graph.write_bytes(bytes(graph.stat().st_size))
    environment = without_package(tmp_path, "onnx")
    done = bench(tmp_path, "--engine", bundle, *options, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: onnx is not installed: pip install 'lavt-edge[export]'\n"


def without_package(folder: Path, name: str) -> dict[str, str]:
    """An environment in which a package is missing, also for the processes of sides."""
    stand_in = folder / "missing" / f"{name}.py"
    stand_in.parent.mkdir()
    stand_in.write_text(f"raise ModuleNotFoundError('no module', name={name!r})\n")
    return {**os.environ, "PYTHONPATH": str(stand_in.parent)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--against", "nobody"), "peers: torch"),
        (("--sweep-batch", "1,x"), "--sweep-batch '1,x'"),
        (("--layers",), "--layers compares a graph with the FP32 one"),
        (("--estimate", "phone"), "unknown device 'phone'"),
        (("--max-slowdown", "2"), "is for --baseline"),
        (("--baseline", "none.json"), "none.json: cannot be read"),
        (("--rounds", "1", "--against", "torch"), "--rounds 1 gives no interval"),
        (("--dataset", "shapes", "--json", "x"), "--json measures latency"),
        (("--rounds", "1", "--baseline", "none.json"), "--rounds 1 gives no interval"),
        (("--json", "x", "--report", "./x"), "--json and --report both name"),
        (("--json", f"{__file__}/x.json"), "x.json: cannot be written"),
        (("--report", "."), "cannot be written"),
        (("--limit", "3"), "--limit measures accuracy"),
        (("--frame", "0x3"), "--frame 0x3: each side must be 1 to 16384"),
        (("--frame", "3", "--image", "x.png"), "--frame gives the size of random noise"),
    ],
)
def test_mistakes_end_in_one_line(bundle: Path, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = bench(tmp_path, "--engine", bundle, *options)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert not any(tmp_path.iterdir())
