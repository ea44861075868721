"""Fixtures that several test files share."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lavt_edge.tests.base_export import CommandRun
    from lavt_edge.tests.command_runs import Run


class FailuresAtOnce:
    """Prints each failure when it happens: a run that is cut off has said what it saw."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext[-3000:]}")


def pytest_configure(config: pytest.Config) -> None:
    """One thread of torch for a worker and what it starts; Ctrl-C, which tests send, is heeded; compiled code is kept.

    More threads than cores wait for each other longer than they work. A shell that starts pytest in the background has
    it, and all it starts, ignore Ctrl-C. Containers often forbid Python to keep what it compiled: here hundreds of
    processes would compile it again.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    if hasattr(config, "workerinput"):
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(FailuresAtOnce(config))


# Files that take longest, which begin first so that no worker is left with one at the end; of those that need the
# export of base the second begins when the first has made it.
LONGEST = (
    "test_quantize_base",
    "test_docs",
    "test_bench_standing",
    "test_export_onnx",
    "test_demo_model",
    "test_stress_faults",
    "test_quantize",
    "test_tune",
    "test_export_trt",
    "test_setup",
    "test_jetson",
    "test_checkpoint_bundles",
    "test_quantize_overflow",
    "test_export_golden",
    "test_bench_source",
    "test_bench_measure",
    "test_serve_page",
    "test_serve_safety",
    "test_rewrites_gpu",
    "test_export_frames",
    "test_calibration_run",
    "test_triton",
    "test_stress_inputs",
    "test_placement",
    "test_serve",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What importing the tests makes stays until the end: the garbage collector looks at none of it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Once:
    """Fills a folder once a run, in the worker that needs it first; the others wait for it, and all only read it."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(pytestconfig, "workerinput"):
        root = root.parent

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder, ready = root / f"once-{name}", root / f"once-{name}.ready"
        with ready.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ready.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                ready.touch()
        return folder

    return filled


@pytest.fixture(scope="session")
def distributions(once: Once) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, as `python -m build` makes them."""

    def build(folder: Path) -> None:
        # A copy without build/: what an earlier build left there would get into the wheel.
        source = folder / "source"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "demo-output")
        shutil.copytree(Path(__file__).parent.parent, source, ignore=ignored)
        command = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stderr

    folder = once("distributions", build)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def wheel(distributions: tuple[Path, Path]) -> Path:
    return distributions[1]


@pytest.fixture(scope="session")
def demo_bundle(once: Once, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's bundle, exported and checked as a user would, with a free batch; a copy for each worker."""

    def export(folder: Path) -> None:
        from lavt_edge.export import ExportOptions
        from lavt_edge.export.source import open_source

        source = open_source(None)
        source.export(folder / "bundle", ExportOptions(size=source.size, batch=None))

    return Path(shutil.copytree(once("demo", export) / "bundle", tmp_path_factory.mktemp("demo") / "bundle"))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a console script in this process: exit code, stdout, stderr."""
    from lavt_edge import cli

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            getattr(cli, name.removeprefix("lavt-") + "_main")()
        captured = capsys.readouterr()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread: on small tensors more of them wait for each other longer than they work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def base(once: Once) -> CommandRun:
    """The export of base with golden weights by the command; takes minutes and 1 GB of disk until the tests end."""
    from lavt_edge.tests.base_export import export_base, recorded

    return recorded(once("base", export_base))
