"""The blocks of the documentation: found, and run as a reader would, on less data where it would take minutes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from lavt_edge.benchmarks import generated
from lavt_edge.data.shapes import scene_at
from lavt_edge.data.shapes_write import write_refcoco
from lavt_edge.reference import LAVTConfig
from lavt_edge.tests.golden import golden_lavt, official_content
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

RUN = ("sh", "python", "console")
SHOWN = ("text", "ini", "json", "dockerfile", "yaml")
REASONS = (
    "needs a GPU",
    "needs a Jetson",
    "needs a camera",
    "needs Docker",
    "needs ROS",
    "needs RefCOCO",
    "needs the internet",
)

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"not run: (.+)")
_RUN_BY = re.compile(r"run by (tests/\w+\.py): (.+)")
# A command that holds the first words gets the rest as well. The last of an option counts, for typer and argparse.
_REDUCED = (
    (("lavt-export onnx", "refcoco.pth"), "--image-size 64"),
    (("lavt_edge.benchmarks.against_plain",), "--swin demo --image-size 96 --rounds 2"),
    (("lavt_edge.benchmarks.precisions",), "--sentences 4 --samples 4"),
    (("lavt-export quantize", "--int8"), "--samples 6 --max-drop 5 --policy decoder"),
    (("lavt-export quantize", "--fp16"), "--samples 6"),
    (("lavt-bench", "--dataset"), "--limit 8"),
    (("lavt-bench", "--max-slowdown"), "--rounds 4 --warmup 1 --max-slowdown 100"),
    (("lavt-bench", "--against onnx-plain"), "--rounds 4 --warmup 1"),
    (("lavt-bench", "--rounds 5"), "--rounds 2 --warmup 1"),
)
# Scenes of the generated data that commands use by default; 2000 of train otherwise.
_SCENES = {"train": 24, "val": 6}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the text of the comment directly above it, or ""."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run here, or None."""
        found = _NOT_RUN.fullmatch(self.mark)
        return found[1] if found else None

    @property
    def runner(self) -> tuple[Path, str] | None:
        """The test that runs it instead, and what of it stands there, or None."""
        found = _RUN_BY.fullmatch(self.mark)
        return (ROOT / found[1], found[2]) if found else None

    @property
    def is_run(self) -> bool:
        return self.language in RUN and self.reason is None and self.runner is None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(Block(page, line, match["language"], match["text"], match["mark"] or ""))
    return found


def prepare(folder: Path, demo_bundle: Path) -> None:
    """What the pages suppose a reader to have: a photo, a checkpoint, bundles, and RefCOCO in ROOT."""
    photo = Image.fromarray(scene_at(0, "val", 2).render())
    photo.save(folder / "photo.jpg")
    torch.save(official_content(golden_lavt(LAVTConfig(swin="tiny", window=7))), folder / "refcoco.pth")
    for name in ("demo-bundle", "bundle"):
        shutil.copytree(demo_bundle, folder / name)
    write_refcoco(folder / "ROOT", scenes=_SCENES)
    for split, count in _SCENES.items():
        cached = f"shapes-{generated.generator_version()}-seed{generated.SEED}-{split}"
        write_refcoco(folder / "cache" / "lavt-edge" / cached, seed=generated.SEED, scenes={split: count})


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder.parent / "cache"), "COLUMNS": "120"}


def run(block: Block, folder: Path) -> str:
    """Runs a block in a page's folder and returns what it printed; a failure fails the test."""
    if block.language == "console":
        return "".join(compare(block, command, expected, folder) for command, expected in _session(block.text))
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        command = ["bash", "-euc", "\n".join(map(reduced, _lines(block.text)))]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, f"{block.place}\n{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def reduced(line: str) -> str:
    """The same command on less data; a target of make as its recipe, in this environment."""
    if line.startswith("make "):
        target = shlex.split(line, comments=True)[1]
        recipe = ["make", "-n", "-s", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", target]
        line = subprocess.run(recipe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        if target == "test":  # which would be this test; that the command finds tests shows in a short file
            line = f"{line} {ROOT}/tests/test_runtime_overlay.py --rootdir {ROOT} -c {ROOT}/pyproject.toml"
        return line
    for words, more in _REDUCED:
        if all(word in line for word in words):
            return f"{line} {more}"
    return line


def _session(text: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that it should print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = part.splitlines()
        yield command, expected


def compare(block: Block, command: str, expected: list[str], folder: Path) -> str:
    """Runs one command of a console block; what it prints, on stdout and stderr, must be what is shown."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert matches("\n".join(expected), done.stdout), f"{block.place}\n$ {command}\n{done.stdout}"
    refused = any(line.startswith("error: ") for line in expected) and "; echo" not in command
    assert done.returncode == int(refused), f"{block.place}\n$ {command}\nended with {done.returncode}"
    return done.stdout


def matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what a page shows, where `...` stands for any text."""
    pattern = ".*".join(map(re.escape, shown.strip().split("...")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def promised(block: Block) -> str:
    """What a Python block says that it prints: the comments behind its calls of print."""
    return "\n".join(re.findall(r"^\s*print\(.*\)  # (.+)$", block.text, re.MULTILINE))
