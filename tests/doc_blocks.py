"""The blocks of the documentation: found, and run as a reader would, on less data where it would take minutes."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lavt_edge import cli
from lavt_edge.data.shapes import cached as generated
from lavt_edge.data.shapes import scene_at
from lavt_edge.data.shapes.write import write_refcoco
from lavt_edge.reference import LAVT, LAVTConfig
from lavt_edge.tests.golden import official_content
from PIL import Image

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

COMMANDS: dict[str, Callable[[], object]] = {
    "lavt-export": cli.export_main,
    "lavt-run": cli.run_main,
    "lavt-bench": cli.bench_main,
}
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
    "needs qemu",
)

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"not run: (.+)")
_RUN_BY = re.compile(r"run by (tests/test_\w+\.py)::(test_\w+)")
# Fences that Markdown knows and `_BLOCK` does not: indented, in a list, of more characters, of others.
OTHER_FENCE = re.compile(r".+```.*|.*~~~.*")
# A command that holds the first words gets the rest as well. The last of an option counts, for typer and argparse.
_REDUCED = (
    (("precisions.main()",), "--sentences 4 --samples 4"),
    (("lavt-export quantize", "--int8"), "--samples 6 --max-drop 5 --policy decoder"),
    (("lavt-export quantize", "--fp16"), "--samples 6"),
    (("lavt-bench", "--dataset"), "--limit 8"),
    (("lavt-bench", "--max-slowdown"), "--rounds 4 --warmup 1 --max-slowdown 100"),
    (("lavt-bench", "--against"), "--rounds 4 --warmup 1"),
    (("lavt-bench", "--rounds 5"), "--rounds 2 --warmup 1"),
    (("lavt-bench", "--json before.json"), "--rounds 4 --warmup 1"),
)
# A module that is run, and the code that runs it with less to do: 12 scenes instead of 60; a bundle that is there,
# fewer layer groups to rank and fewer sentences to rank them on.
_SHORTER = {
    "-m lavt_edge.commands.demo": "from lavt_edge.commands import demo; demo.SCENES = 12; demo.main()",
    "-m lavt_edge.benchmarks.runs.precisions": "import shutil; from functools import partial; "
    "import lavt_edge.export.bundle as e; "
    "import lavt_edge.calibration.quantize as q; from lavt_edge.benchmarks.runs import precisions; "
    "import lavt_edge.calibration.sample as s; s.MAX_HELD_OUT = 2; "
    "e.export_bundle = lambda model, output, *rest, **more: shutil.copytree('demo-bundle', output); "
    "q.QuantizeOptions = partial(q.QuantizeOptions, policy='decoder'); precisions.main()",
}
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
        """The file and the name of the test that runs it instead, or None."""
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
    torch.save(official_content(LAVT(LAVTConfig(swin="tiny", window=7))), folder / "refcoco.pth")
    for name in ("demo-bundle", "bundle"):
        shutil.copytree(demo_bundle, folder / name)
    write_refcoco(folder / "ROOT", scenes=_SCENES)
    for split, count in _SCENES.items():
        cached = f"shapes-{generated.generator_version()}-seed{generated.SEED}-{split}"
        write_refcoco(folder / "cache" / "lavt-edge" / cached, seed=generated.SEED, scenes={split: count})


def environment(folder: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(folder.parent / "cache"), "COLUMNS": "120"}


def _where(folder: Path) -> dict[str, Any]:
    return {"cwd": folder, "env": environment(folder), "text": True}


def run(block: Block, folder: Path) -> str:
    """Runs a block in a page's folder and returns what it printed; a failure fails the test."""
    if block.language == "console":
        return "".join(compare(block, command, expected, folder) for command, expected in _session(block.text))
    lines = [reduced(line) for line in _lines(block.text)]
    if block.language == "sh" and all(map(_is_simple, lines)):
        return "".join(_succeed(block, line, *call(shlex.split(line, comments=True), folder)) for line in lines)
    command = [sys.executable, "-c", block.text] if block.language == "python" else ["bash", "-euc", "\n".join(lines)]
    done = subprocess.run(command, **_where(folder), capture_output=True)
    return _succeed(block, block.text, done.returncode, done.stdout, done.stderr)


def _succeed(block: Block, command: str, code: int, printed: str, errors: str = "") -> str:
    assert code == 0, f"{block.place}\n{command}\n{printed}\n{errors}"
    return printed


def _is_simple(line: str) -> bool:
    """Whether a line is one of COMMANDS alone; lavt-bench starts processes of its own, which want one like a user's."""
    return line.startswith(("lavt-export ", "lavt-run ")) and not set("|&;<>$") & set(line)


def _lines(text: str) -> list[str]:
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def reduced(line: str) -> str:
    """The same command on less data; a target of make as its recipe, in this environment."""
    if line.startswith("make "):
        target = shlex.split(line, comments=True)[1]
        recipe = ["make", "-n", "-s", "-o", ".venv/.installed", f"BIN={Path(sys.executable).parent}", target]
        line = subprocess.run(recipe, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        if target == "test":  # which would be this test; that the command finds tests shows in a short file
            line = f"{line} {ROOT}/tests/test_runtime_result.py --rootdir {ROOT} -c {ROOT}/pyproject.toml"
    # A peer that needs no export; tests/test_bench_measure.py measures onnx-plain.
    line = line.replace("--against onnx-plain", "--against demo-bundle")
    for module, code in _SHORTER.items():
        line = line.replace(module, f"-c {shlex.quote(code)}")
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
    if _is_simple(command) or (command.startswith("lavt-bench") and expected[0].startswith("error: ")):
        code, printed = call(shlex.split(command), folder)
    else:
        done = subprocess.run(["bash", "-c", f"{{ {command}\n}} 2>&1"], **_where(folder), stdout=subprocess.PIPE)
        code, printed = done.returncode, done.stdout
    assert matches("\n".join(expected), printed), f"{block.place}\n$ {command}\n{printed}"
    refused = any(line.startswith("error: ") for line in expected) and "; echo" not in command
    assert code == int(refused), f"{block.place}\n$ {command}\nended with {code}"
    return printed


def call(words: list[str], folder: Path) -> tuple[int, str]:
    """The exit code and the output of one of COMMANDS, in this process: importing torch again takes seconds."""
    printed, before = io.StringIO(), (Path.cwd(), sys.argv, dict(os.environ), signal.getsignal(signal.SIGTERM))
    try:
        os.chdir(folder)
        os.environ.update(environment(folder))
        sys.argv = words
        with redirect_stdout(printed), redirect_stderr(printed):
            COMMANDS[words[0]]()
    except SystemExit as stop:
        return int(stop.code or 0), printed.getvalue()
    finally:
        os.chdir(before[0])
        sys.argv = before[1]
        os.environ.clear()
        os.environ.update(before[2])
        signal.signal(signal.SIGTERM, before[3])
    return 0, printed.getvalue()


def matches(shown: str, printed: str) -> bool:
    """Whether `printed` is what a page shows, where `...` stands for any text."""
    pattern = ".*".join(map(re.escape, shown.strip().split("...")))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None


def promised(block: Block) -> str:
    """What a Python block says that it prints: the comments behind its calls of print."""
    return "\n".join(re.findall(r"^\s*print\(.*\)  # (.+)$", block.text, re.MULTILINE))
