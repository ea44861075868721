"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lavt_edge.tests.base_export import CommandRun
    from lavt_edge.tests.command_runs import Run


def pytest_configure() -> None:
    """A shell that starts pytest in the background has it, and all it starts, ignore Ctrl-C, which tests send."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, as `python -m build` makes them."""
    folder = tmp_path_factory.mktemp("distributions")
    # A copy without build/: what an earlier build left there would get into the wheel.
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "demo-output")
    shutil.copytree(Path(__file__).parent.parent, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def wheel(distributions: tuple[Path, Path]) -> Path:
    return distributions[1]


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's bundle, exported and checked as a user would, with a free batch."""
    from lavt_edge.export import ExportOptions
    from lavt_edge.export.source import open_source

    source = open_source(None)
    output = tmp_path_factory.mktemp("demo") / "bundle"
    options = ExportOptions(size=source.size, batch=None)
    source.export(output, options)
    return output


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
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandRun]:
    """The export of base with golden weights by the command; takes minutes and 1 GB of disk until the tests end."""
    from lavt_edge.tests.base_export import export_base

    run = export_base(tmp_path_factory.mktemp("base"))
    yield run
    for path in run.bundle.glob("*.onnx*"):
        path.unlink()
