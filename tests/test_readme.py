"""README and docs are true: each command and all Python in them runs, in order, on a machine that has a checkpoint."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lavt_edge.data.shapes import scene_at
from lavt_edge.reference import LAVTConfig
from lavt_edge.tests.golden import golden_lavt, official_content
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    if language == "sh"
    for line in block.splitlines()
    if line.strip()
]
DOCS = sorted((ROOT / "docs").glob("*.md"))
MAKE = [command for command in COMMANDS if command[0] == "make"]
OTHER = [command for command in COMMANDS if command[0] != "make"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the README supposes: an official checkpoint and a photo."""
    path = tmp_path_factory.mktemp("readme")
    Image.fromarray(scene_at(0, "val", 0).render()).save(path / "photo.jpg")
    torch.save(official_content(golden_lavt(LAVTConfig(swin="tiny", window=7))), path / "refcoco.pth")
    return path


def execute(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    environment["COLUMNS"] = "120"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_every_block_is_run_or_a_make_target() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python"}
    assert [command[1:] for command in MAKE] == [["demo"], ["test"]]


def test_commands(folder: Path) -> None:
    for command in OTHER:
        assert execute(small(command), folder).strip()
    for name in ("result.png", "mask.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    mask = np.asarray(Image.open(folder / "mask.png"))
    assert set(np.unique(mask)) <= {0, 255}
    assert mask.shape == (240, 240)

    for language, block in BLOCKS:
        if language == "python":
            shown = execute([sys.executable, "-c", block], folder)
            assert "(240, 240)" in shown


def small(command: list[str]) -> list[str]:
    """The same command on less data: the usual sizes take minutes, so few sentences are a noisy measure."""
    if "lavt_edge.benchmarks.against_plain" in command:
        return [*command, "--swin", "demo", "--image-size", "96", "--rounds", "2"]
    if "lavt_edge.benchmarks.precisions" in command:
        return [*command, "--sentences", "8", "--samples", "4"]
    if "quantize" in command:
        return [*command, "--samples", "8", *(["--max-drop", "5"] if "--int8" in command else [])]
    return command


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_docs(page: Path, folder: Path) -> None:
    if not (folder / "demo-bundle").exists():
        execute(["lavt-export", "onnx", "--output", "demo-bundle", "--batch", "dynamic"], folder)
    text = page.read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        assert language == "sh", f"{page.name}: a block of {language or 'no language'}"
        for line in block.splitlines():
            command = shlex.split(line, comments=True)
            if "lavt_edge.benchmarks.precisions" in command:
                pytest.importorskip("modelopt", reason="ModelOpt needs Python 3.11 and x86-64")
            if command:
                assert execute(small(command), folder).strip()


def test_make_demo(folder: Path) -> None:
    """As `make demo` does it, in this environment instead of a new one."""
    shown = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (line,) = [line for line in shown.splitlines() if "lavt_edge.demo" in line]
    arguments = shlex.split(line)[1:]
    shown = execute([sys.executable, *arguments], folder)
    sheet = Image.open(folder / arguments[-1] / "sheet.png")
    assert min(sheet.size) > 400
    found = re.search(r"\d+ sentences on 60 scenes: mean IoU (\d+\.\d\d)", shown)
    assert found
    assert float(found[1]) > 75
    assert "relative error" in shown
