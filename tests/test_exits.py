"""Every command ends with one line and a code of the table, whatever is raised within it."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx.helper
import pytest
import typer
from lavt_edge import errors
from lavt_edge._base.exits import TRACEBACK, describe, exit_codes, needs, run_typer
from lavt_edge.benchmarks.parts.costs import cost_rows
from lavt_edge.benchmarks.parts.profile import part_times
from lavt_edge.benchmarks.parts.roofline import measure_ceilings
from lavt_edge.data.metrics import ReferringMetrics
from lavt_edge.data.shapes import generate_scene
from lavt_edge.errors import BundleError, ExitCode, ImageError, InputError, LavtError, one_line
from lavt_edge.export.engines.build import import_polygraphy
from lavt_edge.export.macs import count_macs
from lavt_edge.reference import LAVTConfig, TextConfig
from lavt_edge.runtime.prompt import PromptCache
from lavt_edge.runtime.tensorrt.flavor import Flavor
from lavt_edge.runtime.tokenizer import build_tokenizer

FOREIGN = {
    "refused": (BundleError("no such bundle: x"), ExitCode.REFUSED, "error: no such bundle: x"),
    "missing file": (FileNotFoundError(errno.ENOENT, "No such file", "a.bin"), ExitCode.REFUSED, "a.bin: No such file"),
    "disk full": (
        OSError(errno.ENOSPC, "No space left on device", "b"),
        ExitCode.REFUSED,
        "b: No space left on device",
    ),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "c"), ExitCode.REFUSED, "place that can be written"),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied", "d"), ExitCode.REFUSED, "d: Permission denied"),
    "descriptors": (OSError(errno.EMFILE, "Too many open files"), ExitCode.REFUSED, "ulimit -n"),
    "odd name": (OSError(errno.ENOENT, "No such file", "a\nb\udcff"), ExitCode.REFUSED, r"a\nb\udcff: No such file"),
    "memory": (MemoryError(), ExitCode.REFUSED, "out of memory"),
    "torch's memory": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        ExitCode.REFUSED,
        "out of memory",
    ),
    "no torch": (
        ModuleNotFoundError("No module named 'torch'", name="torch"),
        ExitCode.REFUSED,
        "torch is not installed: pip install 'lavt-edge[export]'",
    ),
    "no polygraphy": (  # several extras bring it, and whoever imports it says which
        ModuleNotFoundError("No module named 'polygraphy'", name="polygraphy.backend"),
        ExitCode.REFUSED,
        "polygraphy.backend is not installed: pip install 'polygraphy'",
    ),
    "a part of openvino": (
        ImportError("libtbb.so.12: cannot open shared object file", name="openvino._pyopenvino"),
        ExitCode.REFUSED,
        "openvino cannot be imported (libtbb.so.12",
    ),
    "Ctrl-C": (KeyboardInterrupt(), ExitCode.INTERRUPTED, "interrupted"),
    "closed pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), ExitCode.PIPE_CLOSED, ""),
    "a bug": (KeyError("swin"), ExitCode.BUG, "this is a bug in lavt-edge (KeyError: 'swin')"),
    "a bug of several lines": (ValueError("one\ntwo"), ExitCode.BUG, r"ValueError: one\ntwo"),
    "a bug at the end of input": (EOFError(), ExitCode.BUG, "bug in lavt-edge (EOFError)"),
    "deep recursion": (RecursionError("maximum recursion depth exceeded"), ExitCode.BUG, "RecursionError"),
    "our own module": (
        ModuleNotFoundError("No module named 'lavt_edge.gone'", name="lavt_edge.gone"),
        ExitCode.BUG,
        "lavt_edge.gone",
    ),
}


def fails(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


@pytest.fixture
def as_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], int]:
    """Runs a function as a typer command; its exit code."""

    def run(body: Callable[[], None]) -> int:
        app = typer.Typer(add_completion=False)
        app.command()(body)
        monkeypatch.setattr(sys, "argv", ["command"])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as stopped:
                run_typer(app)
        finally:
            signal.signal(signal.SIGTERM, handler)
        return int(stopped.value.code or 0)

    return run


@pytest.mark.parametrize(("error", "code", "said"), FOREIGN.values(), ids=FOREIGN)
def test_what_is_raised_within_becomes_a_line_and_a_code(
    as_command: Callable[[Callable[[], None]], int],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: ExitCode,
    said: str,
) -> None:
    assert as_command(fails(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.count("\n") == (1 if said else 0)
    assert "Traceback" not in captured.err


def test_a_traceback_is_there_for_who_asks(
    as_command: Callable[[Callable[[], None]], int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TRACEBACK, "1")
    assert as_command(fails(KeyError("swin"))) == ExitCode.BUG
    *before, last = capsys.readouterr().err.splitlines()
    assert before[0].startswith("Traceback")
    assert last.startswith("error: this is a bug")


def test_a_command_line_that_is_not_understood_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(lambda: None)
    monkeypatch.setattr(sys, "argv", ["command", "--no-such-option"])
    with pytest.raises(SystemExit) as stopped:
        run_typer(app)
    assert stopped.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("flavor", "machine", "extra"),
    [("tensorrt_rtx", "x86_64", "rtx"), ("tensorrt", "x86_64", "trt"), ("tensorrt", "aarch64", "jetson")],
)
def test_a_missing_polygraphy_is_told_with_the_extra_of_its_tensorrt(
    monkeypatch: pytest.MonkeyPatch, flavor: str, machine: str, extra: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "polygraphy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "")
    with pytest.raises(LavtError, match=rf"^polygraphy\S* is not installed: pip install 'lavt-edge\[{extra}\]'$"):
        import_polygraphy(Flavor(flavor, ModuleType(flavor), "10.3"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("gone", name="polygraphy"),
            "polygraphy is not installed: pip install 'lavt-edge[export]'",
        ),
        (ImportError("libcudart.so: not there", name="torch"), "torch cannot be imported (libcudart.so: not there)"),
    ],
)
def test_the_extra_that_is_named_where_a_package_is_imported_is_told(error: ImportError, said: str) -> None:
    with pytest.raises(LavtError) as caught, needs("export"):
        raise error
    assert str(caught.value).startswith(said)
    assert "lavt-edge[export]" in str(caught.value)


def test_a_missing_module_of_our_own_is_a_bug_wherever_it_is_imported() -> None:
    with pytest.raises(ModuleNotFoundError), needs("export"):
        raise ModuleNotFoundError("gone", name="lavt_edge.gone")


def graph_without_shapes() -> onnx.ModelProto:
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["c"], "product")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "abc"]
    return onnx.helper.make_model(onnx.helper.make_graph([node], "unknown", values[:2], values[2:]))


def costs_without_shapes(folder: Path) -> None:
    onnx.save(graph_without_shapes(), folder / "unknown.onnx")
    cost_rows(folder / "unknown.onnx")


BAD_VALUES: dict[str, tuple[Callable[[Path], object], str]] = {
    "prompt cache": (lambda _: PromptCache(-1), "0 or more"),
    "vocabulary": (lambda _: build_tokenizer(["[PAD]"]), "give that of"),
    "count_macs": (lambda _: count_macs(graph_without_shapes()), "give a graph whose inputs have shapes"),
    "cost_rows": (costs_without_shapes, "give a graph whose inputs have shapes"),
    "rounds": (lambda folder: part_times(folder / "graph.onnx", {}, rounds=0), "give 1 or more"),
    "ceilings": (lambda _: measure_ceilings(["fp8"]), "give some of"),
    "configuration": (lambda _: LAVTConfig(window=1), "expected 2 to"),
    "text configuration": (lambda _: TextConfig(num_layers=0), "expected 1 to"),
    "scene": (lambda _: generate_scene(np.random.default_rng(0), split="none"), "expected one of"),
    "metrics": (lambda _: ReferringMetrics().add(2, 1), "cannot be pixel counts"),
}


@pytest.mark.parametrize(("call", "said"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_value_that_a_function_cannot_take_is_no_bug(
    tmp_path: Path, call: Callable[[Path], object], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        call(tmp_path)
    assert isinstance(caught.value, InputError)
    code, line = describe(caught.value)
    assert code == ExitCode.REFUSED
    assert line == f"error: {caught.value}"


def test_an_end_that_was_meant_passes() -> None:
    for code in (0, 3):
        with pytest.raises(SystemExit) as stopped, exit_codes():
            sys.exit(code)
        assert stopped.value.code == code
    with exit_codes():
        pass


def test_the_table_names_every_code() -> None:
    text = errors.__doc__ or ""
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and "`" in line]
    table = {name.strip(" `"): int(code) for code, name in rows}
    assert table == {code.name: code.value for code in ExitCode}


def test_the_message_of_an_error_is_one_line_that_a_terminal_can_show() -> None:
    error = ImageError("a\nb\r\x1b[31m\u202e\udcff é 中.png cannot be read")
    assert str(error) == r"a\nb\r\x1b[31m\u202e\udcff é 中.png cannot be read"
    assert describe(error) == (ExitCode.REFUSED, f"error: {error}")
    assert str(LavtError()) == ""
    assert len(one_line("x" * 10**6)) < 2100
    str(LavtError("\ud800 x" * 10)).encode()


# the installed commands

BIN = Path(sys.executable).parent
COMMANDS: dict[str, list[str]] = {
    "lavt-export": [str(BIN / "lavt-export"), "onnx"],
    "lavt-run": [str(BIN / "lavt-run")],
    "lavt-bench": [str(BIN / "lavt-bench")],
    "demo": [sys.executable, "-m", "lavt_edge.commands.demo"],
    "gpu_check": [sys.executable, "-m", "lavt_edge.benchmarks.runs.gpu_check"],
}


@pytest.mark.parametrize("name", ["lavt-export", "lavt-run", "lavt-bench"])  # argparse ignores what it cannot print
def test_a_full_or_closed_standard_output(name: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMANDS[name], "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.REFUSED, 1)
    assert "No space left on device" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMANDS[name], "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.PIPE_CLOSED, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_does_not_exist(name: str) -> None:
    done = subprocess.run([*COMMANDS[name], "--no-such-option"], capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr


WITHOUT_PACKAGES = """
import runpy, sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnx_ir", "modelopt"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
name, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(name, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("lavt_edge.commands.demo", ["out"]),
        ("lavt_edge.benchmarks.runs.precisions", []),
        ("lavt_edge.reference.training", ["--output", "out"]),
    ],
)
def test_a_module_that_is_run_says_what_to_install(module: str, arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_PACKAGES, module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (ExitCode.REFUSED, 1), done.stderr
    assert "is not installed: pip install 'lavt-edge[export]'" in done.stderr


@pytest.mark.parametrize(("kind", "code"), [("SIGINT", ExitCode.INTERRUPTED), ("SIGTERM", ExitCode.TERMINATED)])
def test_a_signal_ends_a_command_with_its_code_and_leaves_nothing(kind: str, code: ExitCode, tmp_path: Path) -> None:
    """Sent by the command to itself while a file is half written."""
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from lavt_edge._base.exits import run_main\n"
        "from lavt_edge._base.files import whole_file\n"
        "def body():\n"
        "    with whole_file(Path('out')) as partial:\n"
        "        partial.write_text('half')\n"
        "        os.kill(os.getpid(), signal.Signals[sys.argv[1]])\n"
        "        time.sleep(30)\n"
        "run_main(body)"
    )
    done = subprocess.run([sys.executable, "-c", script, kind], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert not any(tmp_path.iterdir())
