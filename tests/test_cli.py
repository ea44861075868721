"""The commands refuse in one line, before any work, and touch nothing that is not theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
from lavt_edge.commands import common
from lavt_edge.commands.common import print_table, progress_bar
from lavt_edge.tests.command_runs import Run, refused
from lavt_edge.tests.runtime_bundle import write_bundle
from rich.console import Console


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
