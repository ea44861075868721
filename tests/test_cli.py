"""The commands refuse in one line, before any work, and touch nothing that is not theirs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lavt_edge import cli
from lavt_edge.commands import common
from lavt_edge.commands.common import print_table, progress_bar
from lavt_edge.tests.runtime_bundle import write_bundle
from PIL import Image
from rich.console import Console

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a console script in this process: exit code, stdout, stderr."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            getattr(cli, name.removeprefix("lavt-") + "_main")()
        captured = capsys.readouterr()
        code = stopped.value.code
        return (code if isinstance(code, int) else 0 if code is None else 1), captured.out, captured.err

    return run


def refused(result: tuple[int, str, str]) -> str:
    code, _, stderr = result
    assert code == 1
    assert stderr.strip().count("\n") == 0
    assert stderr.startswith("error: ")
    return stderr


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--image-size", "big"], "--image-size 'big'"),
        (["--image-size", "480x480x3"], "480x480x3"),
        (["--image-size", "8"], "32 to 4096"),
        (["--batch", "0"], "batch 0"),
        (["--batch", "many"], "--batch 'many'"),
        (["--opset", "17"], "opset 17"),
        (["--fusion-heads", "4-4"], "--fusion-heads '4-4'"),
    ],
)
def test_export_refuses_options_that_mean_nothing(
    command: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    assert said in refused(command("lavt-export", "onnx", "--output", tmp_path / "new", *arguments))
    assert not (tmp_path / "new").exists()


def test_force_replaces_nothing_but_a_bundle(command: Run, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "source.txt").write_text("mine")
    message = refused(command("lavt-export", "onnx", "--output", tmp_path / "project", "--force"))
    assert "is not a bundle" in message
    assert (tmp_path / "project" / "source.txt").read_text() == "mine"


def test_force_does_not_replace_the_checkpoint(command: Run, bundle: Path) -> None:
    checkpoint = bundle / "refcoco.pth"
    checkpoint.write_bytes(b"weights")
    arguments = ("--checkpoint", checkpoint, "--output", bundle, "--force")
    assert "would be replaced" in refused(command("lavt-export", "onnx", *arguments))
    assert checkpoint.read_bytes() == b"weights"


@pytest.mark.parametrize("output", [".", "x" * 300])
def test_export_refuses_names_that_cannot_be(
    command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(command("lavt-export", "onnx", "--output", output))
    assert not any(tmp_path.iterdir())


def test_run_writes_an_overlay_or_the_bare_mask(command: Run, bundle: Path, photo: Path, tmp_path: Path) -> None:
    code, shown, _ = command("lavt-run", bundle, photo, "the red thing", "-o", tmp_path / "x[bold].png")
    assert (code, "x[bold].png" in shown) == (0, True)
    assert Image.open(tmp_path / "x[bold].png").width >= 70
    assert command("lavt-run", bundle, photo, "the red thing", "--mask", "-o", tmp_path / "mask.png")[0] == 0
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    assert mask.shape == (50, 70)
    assert set(np.unique(mask)) <= {0, 255}


def test_a_long_sentence_is_cut_with_a_warning_whatever_it_holds(
    command: Run, bundle: Path, photo: Path, tmp_path: Path
) -> None:
    sentence = "[/red] " + "very " * 40 + "red"
    code, _, stderr = command("lavt-run", bundle, photo, sentence, "-o", tmp_path / "o.png")
    assert code == 0
    assert "warning: " in stderr
    assert "[/red]" in stderr


def test_run_refuses_what_it_cannot_read_or_write(command: Run, bundle: Path, photo: Path, tmp_path: Path) -> None:
    before = photo.read_bytes()
    output = tmp_path / "out.png"
    assert "no such bundle" in refused(command("lavt-run", tmp_path / "none", photo, "x", "-o", output))
    assert "nothing.jpg" in refused(command("lavt-run", bundle, tmp_path / "nothing.jpg", "x", "-o", output))
    assert "sentence" in refused(command("lavt-run", bundle, photo, "  ", "-o", output))
    assert "ends in .png" in refused(command("lavt-run", bundle, photo, "x", "-o", tmp_path / "out.jpg"))
    assert "the image itself" in refused(command("lavt-run", bundle, photo, "x", "-o", photo))
    os.mkfifo(tmp_path / "pipe.png")
    assert "not a regular file" in refused(command("lavt-run", bundle, photo, "x", "-o", tmp_path / "pipe.png"))
    assert (tmp_path / "pipe.png").is_fifo()
    assert photo.read_bytes() == before
    assert not output.exists()


def test_names_that_the_terminal_cannot_show_do_not_fail(bundle: Path, photo: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [Path(sys.executable).parent / "lavt-run", bundle, photo, "é", "-o", tmp_path / "é.png"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "é.png").exists()


def test_tables_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("a [red] title", ("side", "ms"), [("bundle[red] :smile:", "1.0")])
    shown = capsys.readouterr().out
    assert "a [red] title" in shown
    assert "bundle[red] :smile:" in shown


def test_progress_is_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar("reading") as (report, progress):
        report("measuring")
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(common, "err", Console(stderr=True, force_terminal=True))
    with progress_bar("reading") as (report, progress):
        report("measuring")
        progress(1, 2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "measuring" in shown.err
